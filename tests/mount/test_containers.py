"""One chat bound into a sandbox or a container: what is written inside is logged, and nothing else can be seen.

The root directory inside has one program, busybox. Where the machine forbids such containers even for a plain
directory, the tests are skipped with its own words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Workspace
from tests.support.programs import Done, attempt

pytestmark = [pytest.mark.mount, pytest.mark.container]

SCRIPT = """set -e
ls /chat
cat /chat/history.md
echo '{"role":"user","content":"from inside"}' >> /chat/history.jsonl
echo attached > /chat/attachments/inside.txt
sed -i 's/hi there/&, friend/' /chat/history.md
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root directory with a static busybox under the names that the scripts use."""
    root = tmp_path / "rootfs"
    for name in ("bin", "chat", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox isn't installed: scripts/test does that"
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in ("cat", "echo", "find", "ls", "sed", "sh", "sort"):
        (root / "bin" / name).symlink_to("busybox")
    return root


def bubblewrap(home: Path, rootfs: Path, chat: Path, script: str) -> Done:
    isolated = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", rootfs, "/", "--dev", "/dev"]
    return attempt(home, *isolated, "--bind", chat, "/chat", "/bin/sh", "-c", script)


def podman(home: Path, rootfs: Path, chat: Path, script: str) -> Done:
    limits = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
    command = ["run", "--rm", *limits, "-v", f"{chat}:/chat", "--rootfs", rootfs, "/bin/sh", "-c", script]
    # Podman takes at most 50 characters for its run directory, fewer than tmp_path has.
    with tempfile.TemporaryDirectory(prefix="chatfs-", dir="/tmp") as short:
        stores = ["--root", f"{short}/storage", "--runroot", f"{short}/run", "--tmpdir", f"{short}/tmp"]
        engine = ["podman", *stores, "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager=cgroupfs"]
        return attempt(home, *engine, *command)


Inside = Callable[[Path, str], str]
"""Runs a shell script with a directory as /chat, and returns what it printed."""

RUNNERS = {"bubblewrap": bubblewrap, "podman": podman}


@pytest.fixture(params=RUNNERS)
def inside(request: pytest.FixtureRequest, rootfs: Path, tmp_path: Path) -> Inside:
    runner = RUNNERS[request.param]
    plain = tmp_path / "plain"
    plain.mkdir()
    trial = runner(tmp_path, rootfs, plain, "echo works")
    if (trial.status, trial.stdout) != (0, b"works\n"):
        pytest.skip(f"{request.param} can't run here: {trial.stderr.strip()}")

    def run(chat: Path, script: str) -> str:
        done = runner(tmp_path, rootfs, chat, script)
        assert (done.status, done.stderr) == (0, ""), done
        return done.stdout.decode()

    return run


def test_a_chat_is_used_from_inside(inside: Inside, chat: Chat) -> None:
    before = chat.md.read_text()
    printed = inside(chat.directory, SCRIPT)
    assert printed == f"attachments\nchat.json\nhistory.jsonl\nhistory.md\n{before}"
    appended, put, edited = chat.events()
    assert (appended["type"], appended["content"]) == ("message.appended", "from inside")
    assert (put["type"], put["name"], put["size"]) == ("attachment.put", "inside.txt", 9)
    assert (edited["type"], edited["content"]) == ("message.edited", "hi there, friend")
    assert chat.md.read_text().startswith(before.replace("hi there", "hi there, friend"))
    assert (chat.attachments / "inside.txt").read_bytes() == b"attached\n"


def test_only_that_chat_is_seen_inside(inside: Inside, chat: Chat, workspace: Workspace) -> None:
    other = workspace.chat("neighbour")
    other.say("top secret")
    printed = inside(
        chat.directory, "cd /chat; ls -a ..; find / -name 'neighbour*' -o -name workspace.json -o -name by-id"
    )
    assert "chats" not in printed.split()
    assert "neighbour" not in printed
    assert "workspace.json" not in printed
    assert "by-id" not in printed


def test_the_log_cannot_be_overwritten_from_inside(inside: Inside, chat: Chat) -> None:
    printed = inside(chat.directory, "(: > /chat/history.jsonl) 2>&1 || echo refused")
    assert "Operation not permitted" in printed
    assert printed.endswith("refused\n")
    assert chat.events() == []


def test_what_is_written_outside_is_seen_inside_at_once(rootfs: Path, chat: Chat, tmp_path: Path) -> None:
    trial = bubblewrap(tmp_path, rootfs, tmp_path, "echo works")
    if trial.status != 0:
        pytest.skip(f"bubblewrap can't run here: {trial.stderr.strip()}")
    script = "cat /chat/history.md; echo --; read go; cat /chat/history.md; echo --; read go; cat /chat/history.md"
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        rootfs,
        "/",
        "--bind",
        chat.directory,
        "/chat",
    ]
    with subprocess.Popen(
        [*map(os.fspath, command), "/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for contents in (["one more"], ["another", "and another"]):
            seen = b"".join(iter(process.stdout.readline, b"--\n"))
            assert seen == chat.md.read_bytes()
            chat.say(*contents)
            process.stdin.write(b"go\n")
            process.stdin.flush()
        assert process.stdout.read() == chat.md.read_bytes()
