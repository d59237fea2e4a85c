"""`chatfs sandbox run|ls|stop`: the command, its chat, its session, and what is left when it is over."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from pathlib import Path

import orjson
import pytest

from fusefs.cli.entry import main
from fusefs.sandbox import mountpoints
from tests.cli.conftest import REPOSITORY
from tests.sandbox.conftest import Chat, Sandboxed, begun
from tests.support.mounts import message
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.container]

ADDED = message("added").decode().strip()


def test_a_command_has_the_chat_and_nothing_else(demo: Sandboxed, chat: Chat) -> None:
    demo.chat("secret")
    script = f"""
        pwd; ls; cat history.md
        echo '{ADDED}' >> history.jsonl
        echo attached > attachments/a.txt
        ls -a /chat/.. | tr '\\n' ' '
        echo; echo "${{CHATFS_STORE-none}} $COLOUR"; cat
        exit 7
    """
    code, out, err = chat.sandbox("--env", "COLOUR=dark blue", "--", "sh", "-c", script, given=b"typed\n")
    assert (code, err) == (7, "")
    lines = out.splitlines()
    assert lines[:5] == ["/chat", "attachments", "chat.json", "history.jsonl", "history.md"]
    assert "hi there" in out
    assert "secret" not in out
    assert str(demo.root) not in out
    *_, top, variables, typed = lines
    assert set(top.split()) >= {"chat", "usr", "proc", "dev", "tmp"}
    assert not {"root", "home", "work", "var"} & set(top.split())
    assert (variables, typed) == ("none dark blue", "typed")
    assert chat.says("added") == [True]
    assert [event["name"] for event in chat.events("attachment.put")] == ["a.txt"]
    (started,), (exited,) = chat.events("sandbox.started"), chat.events("sandbox.exited")
    assert (started["command"][0], started["runtime"]) == ("sh", "bwrap")
    assert (exited["code"], exited["session"]) == (7, started["session"])
    assert exited["seconds"] >= 0
    assert exited["max_rss_bytes"] > 0
    assert (demo.left_over(), chat.session()) == ([], None)


def test_what_it_prints_is_recorded_if_asked(demo: Sandboxed, chat: Chat) -> None:
    script = "echo problem >&2; cat; head -c 300000 /dev/zero | tr '\\0' 'ä'; printf '\\377'; kill -USR1 $$"
    with subprocess.Popen(
        demo.command("sandbox", "run", chat.path, "--runtime", "none", "--record", "--", "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=demo.environment,
        cwd=REPOSITORY,
    ) as process:
        printed, problem = process.communicate("grüße\n".encode())
    assert (process.returncode, problem) == (128 + signal.SIGUSR1, b"problem\n")
    recorded = {"stdout": b"", "stderr": b""}
    for event in chat.events("sandbox.output"):
        recorded[event["stream"]] += event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
    assert recorded == {"stdout": printed, "stderr": problem}
    assert len(printed) > 300_000
    assert "grüße" not in chat.text()
    assert [event["signal"] for event in chat.events("sandbox.exited")] == ["SIGUSR1"]


@pytest.mark.parametrize("access", ["--read-only", "--append-only"])
def test_read_only_and_append_only(chat: Chat, access: str) -> None:
    code, _, err = chat.sandbox(access, "--", "sh", "-c", f"echo x >> history.md; echo '{ADDED}' >> history.jsonl")
    if access == "--read-only":
        assert code
        assert err.count("Read-only file system") == 2
    else:
        assert code == 0
        assert err.count("not permitted") == 1
    assert chat.says("added") == [access == "--append-only"]


def test_what_it_left_running_is_not_waited_for(demo: Sandboxed, chat: Chat) -> None:
    """Without isolation that goes on, and has the files that are recorded still open."""
    words = (
        "sandbox",
        "run",
        chat.path,
        "--runtime",
        "none",
        "--record",
        "--",
        "sh",
        "-c",
        "sleep 600 & echo $!; exit 4",
    )
    process = demo.begin(*words)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        assert process.wait(30) == 4
        assert [event["text"] for event in chat.events("sandbox.output")] == [f"{pid}\n"]
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("runtime", ["none", "bwrap"])
def test_what_it_has_used_is_the_commands(chat: Chat, runtime: str) -> None:
    program = "import time\nbytearray(100 << 20)\nwhile time.process_time() < 0.3: pass"
    assert chat.sandbox("--runtime", runtime, "--", "/usr/bin/python3", "-c", program)[0] == 0
    (exited,) = chat.events("sandbox.exited")
    assert exited["user_seconds"] + exited["system_seconds"] >= 0.3
    assert exited["max_rss_bytes"] >= 100 << 20


def test_what_a_killed_one_has_written_down_goes(demo: Sandboxed, chat: Chat) -> None:
    other = demo.chat()
    process = begun(demo, chat)
    process.kill()
    process.wait(30)
    assert chat.session() is not None
    assert other.sandbox("--runtime", "none", "--", "true")[0] == 0
    assert chat.session() is None


def test_a_chat_in_a_sandbox_stays_until_it_is_stopped(demo: Sandboxed, chat: Chat) -> None:
    process = begun(demo, chat)
    (session,) = [each for each in demo.json("sandbox", "ls") if each["chat"] == chat.path]
    assert (session["state"], session["pid"]) == ("active", process.pid)
    for words in (("chat", "rm", chat.path), ("sandbox", "run", chat.path, "--", "true")):
        assert f"chatfs sandbox stop {session['id']}" in demo.fails(*words)
    assert demo.run("sandbox", "stop", chat.path) == f"stopped the sandbox of {chat.path}\n"
    assert process.wait(30) == 128 + signal.SIGTERM
    assert demo.fails("sandbox", "stop", chat.path) == f"no sandbox has {chat.path}: see chatfs sandbox ls"
    assert demo.left_over() == []


def test_a_killed_sandbox_leaves_nothing(demo: Sandboxed, chat: Chat) -> None:
    """Also where its mount was killed first: the next one takes away what is left."""
    process = begun(demo, chat)
    process.kill()
    process.wait(30)
    wait_for(lambda: not demo.mounted(), 30, what="the unmount")
    session = chat.session()
    assert session is not None
    assert demo.active() == []
    process = begun(demo, chat, script=f"echo '{ADDED}' >> /chat/history.jsonl; echo written; sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    (mountpoint,) = demo.mounted()
    (record,) = (demo.root / "state/chatfs").glob("mount-*.json")
    os.kill(orjson.loads(record.read_bytes())["pid"], signal.SIGKILL)
    process.kill()
    process.wait(30)
    code, out, _ = chat.sandbox("--", "cat", "history.md")
    assert code == 0
    assert "added" in out
    assert not mountpoint.exists()
    assert demo.left_over() == []
    assert demo.run("fsck").startswith("no errors, no warnings")


def test_a_mount_point_that_is_being_made_is_not_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sandbox isn't mounted yet: only the lock says that somebody needs it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    with mountpoints.mount_point() as fresh:
        assert (fresh.stat().st_mode & 0o777, fresh.parent.stat().st_mode & 0o777) == (0o700, 0o700)
        mountpoints.sweep()
        assert fresh.is_dir()
    assert not fresh.exists()
    left = fresh.parent / "left"
    left.mkdir()
    mountpoints.sweep()
    assert not left.exists()


def test_a_runtime_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could put a link in the place of the mount point."""
    theirs, ours = tmp_path / "run", tmp_path / "state"
    theirs.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(theirs))
    monkeypatch.setenv("XDG_STATE_HOME", str(ours))
    theirs.chmod(0o777)
    assert mountpoints.mounts_directory().is_relative_to(ours)
    theirs.chmod(0o700)
    assert mountpoints.mounts_directory().is_relative_to(theirs)
    if os.geteuid() == 0:
        os.chown(theirs, 4242, 4242)
        assert mountpoints.mounts_directory().is_relative_to(ours)
    (ours / "chatfs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (ours / "chatfs/sandboxes").symlink_to(tmp_path / "elsewhere")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(Exception, match="mode 0700"), mountpoints.mount_point():
        pass
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "none", "--", "no-such-program"), "no-such-program can't be started"),
        (("--runtime", "none", "--image", "/x", "--", "true"), "--image needs a runtime"),
        (("--runtime", "podman", "--", "true"), "podman needs --image"),
        (("--runtime", "podman", "--image=--privileged", "--", "true"), "is no image"),
        (("--image", "/no/such", "--", "true"), "no directory"),
        ((), "the following arguments are required"),
        (("--env", "1=2", "--", "true"), "sets nothing"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    stored: Sandboxed,
    words: tuple[str, ...],
    said: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = stored.chat()
    for name, value in stored.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    try:
        code = main(["sandbox", "run", chat.path, *words])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else -1
    out, err = capfd.readouterr()
    assert code in {1, 2}
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert (stored.left_over(), chat.session()) == ([], None)
