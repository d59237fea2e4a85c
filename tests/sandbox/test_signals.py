"""`chatfs sandbox run`: signals, and the terminal, of who runs it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY
from tests.sandbox.conftest import Chat, Sandboxed, begun
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.container]


@pytest.mark.parametrize("runtime", ["none", "bwrap"])
def test_signals_are_passed_on(demo: Sandboxed, chat: Chat, runtime: str) -> None:
    traps = "".join(f"trap 'echo {name}' {name}; " for name in ("INT", "HUP", "USR1"))
    script = f"{traps} trap 'echo ended well; exit 5' TERM; echo trapped; while :; do sleep 0.1; done"
    process = begun(demo, chat, "--runtime", runtime, script=script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"trapped\n"
    for name in ("INT", "HUP", "USR1"):
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.stdout.readline() == name.encode() + b"\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"ended well\n"
    assert process.wait(30) == 5


def test_a_command_may_end_well_when_it_is_stopped(demo: Sandboxed, chat: Chat) -> None:
    process = begun(demo, chat, script="trap 'echo ended well; exit 5' TERM; echo trapped; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"trapped\n"
    demo.run("sandbox", "stop", chat.path)
    assert process.stdout.read() == b"ended well\n"
    assert process.wait(30) == 5


def test_a_suspended_command_goes_on_with_its_session(demo: Sandboxed, chat: Chat) -> None:
    """Without isolation it is suspended with `chatfs sandbox run`, as the shell's job; a sandbox goes on."""
    process = begun(demo, chat, "--runtime", "none", script="echo $$; read x; echo got:$x", given=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: {_state(pid), _state(process.pid)} == {"T"}, 30, what="both to be stopped")
    assert demo.active() == [chat.id]
    process.send_signal(signal.SIGCONT)
    process.stdin.write(b"typed\n")
    process.stdin.close()
    assert process.stdout.read() == b"got:typed\n"
    assert process.wait(30) == 0
    process = begun(demo, chat, script="read x; echo got:$x", given=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.send_signal(signal.SIGTSTP)
    assert process.stderr.readline() == b"chatfs: a sandbox isn't suspended: it goes on\n"
    process.stdin.write(b"typed\n")
    process.stdin.close()
    assert process.stdout.read() == b"got:typed\n"


def test_a_suspended_one_can_be_stopped(demo: Sandboxed, chat: Chat) -> None:
    process = begun(demo, chat)
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: _state(process.pid) == "T", 30)
    assert chat.path in demo.fails("chat", "rm", chat.path)
    demo.run("sandbox", "stop", chat.path)
    assert process.wait(30) == 128 + signal.SIGTERM


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def on_a_terminal(
    demo: Sandboxed, *words: str, stdout: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process whose terminal the first one is; what it writes may go elsewhere."""
    ours, theirs = pty.openpty()

    def control() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        demo.command(*words),
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env=demo.environment,
        cwd=REPOSITORY,
        start_new_session=True,
        preexec_fn=control,  # noqa: PLW1509 - as the shell does
    )
    try:
        os.close(theirs)
        yield process, ours
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)


def test_a_terminal_is_its_own(demo: Sandboxed, chat: Chat) -> None:
    """Another, of the same size; keys reach it, and a shell there has job control: Ctrl-C ends a job, not all."""
    job = "trap 'echo interrupted; exit' INT; echo running; while :; do sleep 0.1; done"
    script = f'test -t 0 && stty size; set -m; sh -c "{job}"; read x; echo got:$x'
    with on_a_terminal(demo, "sandbox", "run", chat.path, "--", "sh", "-c", script) as (process, ours):
        said = _read_until(ours, rb"\d+ \d+\r?\n(.|\n)*running")
        os.write(ours, b"\x03")
        said += _read_until(ours, rb"interrupted")
        os.write(ours, b"typed\r")
        said += _read_until(ours, rb"got:typed")
        process.wait(30)


COUNTS = """
import os, signal, sys
count = 0
def interrupted(*_):
    global count
    count += 1
    os.write(1, b"interrupted\\n")
signal.signal(signal.SIGINT, interrupted)
os.write(1, b"ready\\n")
sys.stdin.readline()
print(count, flush=True)
"""


@pytest.mark.parametrize("runtime", ["none", "bwrap"])
def test_ctrl_c_comes_once_where_only_its_input_is_the_terminal(demo: Sandboxed, chat: Chat, runtime: str) -> None:
    """It is one more process of the terminal's then, or none: many programs end at once when interrupted twice."""
    words = ("sandbox", "run", chat.path, "--runtime", runtime, "--", "/usr/bin/python3", "-c", COUNTS)
    with on_a_terminal(demo, *words, stdout=subprocess.PIPE) as (process, ours):
        assert process.stdout is not None
        with process.stdout as stdout:
            assert stdout.readline() == b"ready\n"
            os.write(ours, b"\x03")
            assert stdout.readline() == b"interrupted\n"
            os.write(ours, b"end\n")
            assert stdout.read() == b"1\n"
        assert process.wait(30) == 0


def _read_until(fd: int, wanted: bytes) -> bytes:
    found = b""
    deadline = time.monotonic() + 30
    while re.search(wanted, found) is None:
        assert time.monotonic() < deadline, found
        if select.select([fd], [], [], 1)[0]:
            found += os.read(fd, 4096)
    return found


TIOCSTI = """
import fcntl, os, sys, termios
for fd in (0, 1, 2):
    try:
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    except OSError:
        pass
    try:
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
        sys.exit(9)
    except OSError:
        pass
os.write(2, b"done\\n")
"""


def test_nothing_can_be_typed_into_the_terminal_of_who_runs_it(demo: Sandboxed, chat: Chat) -> None:
    """Where only some of its files are that terminal, it has no other, and that one isn't its own to control."""
    words = demo.command("sandbox", "run", chat.path, "--", "/usr/bin/python3", "-c", TIOCSTI)
    ours, theirs = pty.openpty()

    def control() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=demo.environment,
        cwd=REPOSITORY,
        start_new_session=True,
        preexec_fn=control,  # noqa: PLW1509 - as the shell does
    )
    os.close(theirs)
    try:
        _read_until(ours, b"done")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)
        assert process.stdout is not None
        process.stdout.close()
