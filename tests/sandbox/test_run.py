"""`chatfs sandbox run|ls|stop`: the command, its chat, its session, and what is left when it is over."""

from __future__ import annotations

import base64
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from fusefs.unmount import mounts
from tests.cli.conftest import REPOSITORY, Cli
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.container]


def sandboxed(cli: Cli, *words: str | Path, chat: str = "demo/trip", given: bytes = b"") -> tuple[int, str, str]:
    return cli.attempt("sandbox", "run", chat, *words, given=given)


def events(cli: Cli, kind: str, chat: str = "demo/trip") -> list[dict[str, Any]]:
    found = [orjson.loads(entry.data) for entry in cli.entries(chat)]
    return [event for event in found if event["type"] == f"sandbox.{kind}"]


def left_over(cli: Cli) -> list[Path]:
    """Mounts and directories of sandboxes."""
    base = cli.root / "state/chatfs/sandboxes"
    directories = list(base.iterdir()) if base.exists() else []
    return [*directories, *(each.mountpoint for each in mounts() if each.mountpoint.is_relative_to(cli.root))]


@pytest.fixture(autouse=True)
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_a_command_has_the_chat_and_nothing_else(demo: Cli) -> None:
    demo.run("chat", "new", "demo/secret")
    script = """
        pwd; ls; cat history.md
        echo '{"role":"tool","content":"from inside"}' >> history.jsonl
        echo attached > attachments/a.txt
        ls -a /chat/.. | tr '\\n' ' '
    """
    code, out, err = sandboxed(demo, "--", "sh", "-c", script)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:5] == ["/chat", "attachments", "chat.json", "history.jsonl", "history.md"]
    assert "hi there" in out
    assert str(demo.root) not in out
    assert set(lines[-1].split()) >= {"chat", "usr", "proc", "dev", "tmp"}
    assert not {"root", "home", "work", "var"} & set(lines[-1].split())
    assert "from inside" in demo.run("cat", "demo/trip")
    assert demo.json("chat", "show", "demo/trip")["attachments"] == 1
    assert left_over(demo) == []
    assert demo.json("sandbox", "ls") == []


def test_its_status_is_the_command_s(demo: Cli) -> None:
    assert sandboxed(demo, "--", "sh", "-c", "exit 7")[0] == 7
    assert sandboxed(demo, "--runtime", "none", "--", "sh", "-c", "kill -USR1 $$")[0] == 128 + signal.SIGUSR1
    assert [event.get("code", event.get("signal")) for event in events(demo, "exited")] == [7, "SIGUSR1"]
    exited = events(demo, "exited")[0]
    assert exited["seconds"] >= 0
    assert exited["max_rss_bytes"] > 0
    assert [event["command"][0] for event in events(demo, "started")] == ["sh", "sh"]


def test_what_it_prints_is_recorded_if_asked(demo: Cli) -> None:
    script = "cat; echo problem >&2"
    code, out, err = sandboxed(demo, "--record", "--", "sh", "-c", script, given="grüße\n".encode())
    assert (code, out, err) == (0, "grüße\n", "problem\n")
    assert {(event["stream"], event["text"]) for event in events(demo, "output")} == {
        ("stdout", "grüße\n"),
        ("stderr", "problem\n"),
    }
    assert "grüße" not in demo.run("cat", "demo/trip")


def test_a_flood_and_bytes_are_recorded_whole(demo: Cli) -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' 'ä'; printf '\\377'"
    with subprocess.Popen(
        demo.command("sandbox", "run", "demo/trip", "--record", "--", "sh", "-c", script),
        stdout=subprocess.PIPE,
        env=demo.environment,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
    found = b"".join(
        event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
        for event in events(demo, "output")
    )
    assert found == printed
    assert len(found) > 300_000


def test_input_and_variables_reach_it(demo: Cli) -> None:
    code, out, _ = sandboxed(
        demo, "--env", "COLOUR=dark blue", "--", "sh", "-c", 'cat; echo "$COLOUR"', given=b"typed\n"
    )
    assert (code, out) == (0, "typed\ndark blue\n")
    assert "no" in sandboxed(demo, "--", "sh", "-c", 'echo "${CHATFS_STORE-no}"')[1]


def test_read_only_and_append_only(demo: Cli) -> None:
    touch = 'echo x >> history.md; echo \'{"role":"user","content":"added"}\' >> history.jsonl'
    code, _, err = sandboxed(demo, "--read-only", "--", "sh", "-c", touch)
    assert code
    assert err.count("Read-only file system") == 2
    code, _, err = sandboxed(demo, "--append-only", "--", "sh", "-c", touch)
    assert code == 0
    assert err.count("not permitted") == 1
    assert demo.run("cat", "demo/trip").endswith("added\n")


def test_signals_are_passed_on(demo: Cli) -> None:
    script = "trap 'echo ended well; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    process = demo.begin("sandbox", "run", "demo/trip", "--runtime", "none", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"ended well\n"
    assert process.wait(30) == 5


def begun(demo: Cli, *words: str) -> subprocess.Popen[bytes]:
    """A sandbox whose command has started."""
    process = demo.begin("sandbox", "run", "demo/trip", *words, "--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_chat_in_a_sandbox_stays_until_it_is_stopped(demo: Cli) -> None:
    process = begun(demo)
    (session,) = demo.json("sandbox", "ls")
    assert (session["chat"], session["state"], session["pid"]) == ("demo/trip", "active", process.pid)
    for words in (
        ("chat", "rm", "demo/trip"),
        ("chat", "archive", "demo/trip"),
        ("sandbox", "run", "demo/trip", "--", "true"),
    ):
        said = demo.fails(*words)
        assert f"chatfs sandbox stop {session['id']}" in said
    mountpoint = demo.root / "mnt"
    mountpoint.mkdir()
    demo.run("mount", mountpoint)
    with pytest.raises(OSError, match="busy"):
        (mountpoint / "demo/chats/trip").rmdir()
    with pytest.raises(OSError, match="busy"):
        (mountpoint / "demo/chats/trip").rename(mountpoint / "demo/archive/trip")
    demo.run("umount", mountpoint)
    assert demo.run("sandbox", "stop", "demo/trip") == "stopped the sandbox of demo/trip\n"
    assert process.wait(30) == 128 + signal.SIGTERM
    assert demo.fails("sandbox", "stop", "demo/trip") == "no sandbox has demo/trip: see chatfs sandbox ls"
    demo.run("chat", "rm", "demo/trip")
    assert left_over(demo) == []


def test_a_killed_sandbox_leaves_nothing(demo: Cli) -> None:
    process = begun(demo)
    process.kill()
    process.wait(30)
    wait_for(lambda: not any(each.mountpoint.is_relative_to(demo.root) for each in mounts()), 30, what="the unmount")
    (session,) = demo.json("sandbox", "ls")
    assert session["state"] == "ended"
    code, out, err = sandboxed(demo, "--", "sh", "-c", "cat history.md")
    assert (code, err) == (0, "")
    assert "hi there" in out
    assert left_over(demo) == []
    assert demo.json("sandbox", "ls") == []


def test_the_chat_outlives_the_kill_of_everything(demo: Cli) -> None:
    script = 'echo \'{"role":"user","content":"kept"}\' >> history.jsonl; echo ready; sleep 600'
    process = demo.begin("sandbox", "run", "demo/trip", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    (mounted,) = [each for each in mounts() if each.mountpoint.is_relative_to(demo.root)]
    (record,) = (demo.root / "state/chatfs").glob("mount-*.json")
    os.kill(orjson.loads(record.read_bytes())["pid"], signal.SIGKILL)
    process.kill()
    process.wait(30)
    code, out, _ = sandboxed(demo, "--", "cat", "history.md")
    assert code == 0
    assert "kept" in out
    assert not mounted.mountpoint.exists()
    assert left_over(demo) == []
    assert demo.run("fsck").startswith("no errors, no warnings")


def test_a_terminal_is_its_own(demo: Cli) -> None:
    """Where there is a terminal the command has one, too: another, of the same size, and keys reach it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        demo.command("sandbox", "run", "demo/trip", "--", "sh", "-c", "test -t 0 && stty size; read x; echo got:$x"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=demo.environment,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        os.close(theirs)
        said = _read_until(ours, rb"\d+ \d+\r?\n")
        os.write(ours, b"typed\r")
        said += _read_until(ours, rb"got:typed")
        assert process.wait(30) == 0, said
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)


def _read_until(fd: int, wanted: bytes) -> bytes:
    found = b""
    deadline = time.monotonic() + 30
    while re.search(wanted, found) is None:
        assert time.monotonic() < deadline, found
        if select.select([fd], [], [], 1)[0]:
            found += os.read(fd, 4096)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "none", "--", "no-such-program"), "no-such-program can't be started"),
        (("--runtime", "none", "--image", "/x", "--", "true"), "--image needs a runtime"),
        (("--runtime", "podman", "--", "true"), "podman needs --image"),
        (("--image", "/no/such", "--", "true"), "no directory"),
        ((), "the following arguments are required"),
        (("--env", "1=2", "--", "true"), "sets nothing"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(demo: Cli, words: tuple[str, ...], said: str) -> None:
    code, out, err = sandboxed(demo, *words)
    assert code in {1, 2}
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert left_over(demo) == []
    assert demo.json("sandbox", "ls") == []
