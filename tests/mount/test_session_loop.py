"""The session loop, fast and plain: every request is answered, nobody else is kept waiting, and it ends when told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.session_loop import REQUESTS
from tests.support.mounts import Mounted, mounting
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
THREADS = 4


class LoopMount:
    """tests.support.loop_mount, running."""

    def __init__(self, directory: Path, loop: str) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "tests.support.loop_mount", str(directory), loop]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        self.loop = self.process.stdout.readline().decode().strip()

    def size(self, name: str) -> int:
        return os.stat(self.directory / name).st_size

    def unmount(self) -> None:
        wait_for(lambda: subprocess.run(["fusermount3", "-u", self.directory], check=False).returncode == 0)

    def ended(self) -> str:
        """Its stderr, once it has ended well."""
        _, said = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said.decode()
        return said.decode()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=15)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        if any(line.split()[4] == str(self.directory) for line in mounts):
            subprocess.run(["fusermount3", "-u", "-z", self.directory], check=True)


@pytest.fixture(params=["fast", "plain"])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopMount]:
    mount = LoopMount(tmp_path, request.param)
    try:
        assert mount.loop == request.param
        yield mount
    finally:
        mount.stop()


@contextlib.contextmanager
def flood(path: Path) -> Iterator[None]:
    """Requests without a pause meanwhile."""
    over = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                os.stat(path)

    askers = [threading.Thread(target=ask) for _ in range(THREADS)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        over.set()
        for asker in askers:
            asker.join(30)
        assert not any(asker.is_alive() for asker in askers)


def test_requests_one_after_the_other_and_at_once(loop: LoopMount) -> None:
    for _ in range(500):
        assert loop.size("plain") == 0
    with flood(loop.directory / "plain"):
        assert [loop.size("threaded") for _ in range(100)] == [17] * 100
    loop.unmount()
    assert loop.ended() == ""


def test_a_request_that_waits_holds_up_no_other(loop: LoopMount) -> None:
    held = [threading.Thread(target=loop.size, args=("held",)) for _ in range(20)]
    for each in held:
        each.start()
    for _ in range(200):
        assert loop.size("plain") == 0
        assert all(each.is_alive() for each in held)
    loop.size("release")
    for each in held:
        each.join(30)
    assert not any(each.is_alive() for each in held)
    loop.unmount()
    assert loop.ended() == ""


def test_timers_and_events_get_their_turn_under_a_flood(loop: LoopMount) -> None:
    with flood(loop.directory / "plain"):
        ticks, rounds = loop.size("ticks"), loop.size("rounds")
        wait_for(lambda: loop.size("ticks") >= ticks + 50 and loop.size("rounds") >= rounds + 50)
    # A turn of the reader's, and one of the worker that relieves it in the same round.
    assert loop.size("overtaken") <= 2 * REQUESTS + 2 * THREADS
    loop.unmount()
    assert loop.ended() == ""


def test_terminate_under_a_flood(loop: LoopMount) -> None:
    with flood(loop.directory / "plain"):
        loop.size("stop")
        loop.ended()


def test_terminate_while_nothing_happens(loop: LoopMount) -> None:
    loop.size("stop")
    assert loop.ended() == ""


def test_cancelled_under_a_flood(loop: LoopMount) -> None:
    with flood(loop.directory / "plain"):
        with pytest.raises(OSError):
            loop.size("cancel")
        loop.ended()


def test_an_unmount_ends_it(loop: LoopMount) -> None:
    loop.size("plain")
    loop.unmount()
    assert loop.ended() == ""


# ---- chatfs with either


@pytest.fixture(params=[(), ("--no-fast-loop",)], ids=["fast", "plain"])
def chatfs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with mounting(tmp_path, *request.param) as mounted:
        yield mounted


def test_a_chat_through_either_loop(chatfs: Mounted) -> None:
    chat = chatfs.workspace().chat()
    chat.say(*["hello"] * 30)
    chat.md.write_text(chat.md.read_text().replace("hello", "good morning", 1))
    (chat.attachments / "notes").write_bytes(b"x" * 300_000)
    assert chat.md.read_text().count("hello") == 29
    assert (chat.attachments / "notes").read_bytes() == b"x" * 300_000
    chatfs.remount()
    assert chat.md.read_text().count("hello") == 29


def test_sigterm_under_a_flood(chatfs: Mounted) -> None:
    chat = chatfs.workspace().chat()
    chat.say("hello")
    assert chatfs.process is not None
    with flood(chat.directory / "no-such-file"), chat.jsonl.open("ab", buffering=0) as log:
        log.write(b'{"role":"user","content":"last words"}\n')
        log.close()
        chatfs.process.send_signal(signal.SIGTERM)
        assert chatfs.process.wait(30) == 0, chatfs.stderr
    chatfs.process = None
    assert chat.log()[-1].data.count(b"last words") == 1
    assert chatfs.trouble() == []


def test_an_idle_mount_uses_no_processor(chatfs: Mounted) -> None:
    chat = chatfs.workspace().chat()
    chat.say("hello")
    assert chat.md.read_text()
    wait_for(lambda: _spent(chatfs, 1.0) < 0.1, what="an idle second in which the daemon sleeps")


def _spent(mounted: Mounted, seconds: float) -> float:
    """The share of one processor that the daemon takes for the next `seconds`."""
    assert mounted.process is not None

    def ticks() -> int:
        fields = Path(f"/proc/{mounted.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, end = ticks(), time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > end)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
