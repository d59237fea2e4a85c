"""Two sandboxes on two chats of one workspace: each tries all it can to reach the other's, the store, other processes.

With bubblewrap and with podman (runc). Where the machine forbids such containers even for `true`, a test is skipped
with the machine's own words.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.sandbox.conftest import Chat, Sandboxed
from tests.support.mounts import message
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.container]

SECRET = "the-neighbours-secret"


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """Podman takes at most 50 characters for its run directory, fewer than tmp_path has."""
    with tempfile.TemporaryDirectory(prefix="chatfs-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(params=["bwrap", "podman"])
def runtime(request: pytest.FixtureRequest, rootfs: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that choose it."""
    stores = ["--root", f"{short}/storage", "--runroot", f"{short}/run", "--tmpdir", f"{short}/tmp"]
    podman = ["podman", *stores, "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager=cgroupfs"]
    monkeypatch.setenv("CHATFS_PODMAN", shlex.join(podman))
    monkeypatch.setenv("CHATFS_PODMAN_RUN", "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000")
    assert shutil.which(request.param), f"{request.param} isn't installed: scripts/test does that"
    return ["--runtime", request.param, "--image", str(rootfs)]


def begun(demo: Sandboxed, chat: Chat, runtime: list[str], script: str) -> subprocess.Popen[bytes]:
    """A sandbox that has said `ready` and does a script."""
    words = ("sandbox", "run", chat.path, *runtime, "--", "sh", "-c", f"echo ready; {script}")
    process = demo.begin(*words, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"ready\n":
        pytest.skip(f"{runtime[1]} can't run here: {process.stderr.read().decode().strip()}")
    return process


def attempts(demo: Sandboxed, neighbour: Chat, outside: int) -> dict[str, str]:
    """What is tried from inside, each a command that must fail (or show nothing of the secret)."""
    session = neighbour.session()
    assert session is not None
    log = neighbour.log_file
    return {
        "read the store": f"cat {log}",
        "list the store": f"ls {demo.store}",
        "read by the mount's parent": f"cat /chat/../{neighbour.name}/history.md",
        "list the mount's parent": "ls /chat/../chats",
        "enter by-id": "ls /chat/by-id || ls /chat/../by-id",
        "enter the trash": "ls /chat/trash || ls /chat/../trash",
        "follow a link of its own to the store": f"rm -f /chat/l; ln -s {log} /chat/l; cat /chat/l",
        "follow a link among the attachments": f"ln -s {log} /chat/attachments/l; cat /chat/attachments/l",
        "make a link an attachment": "cd /chat/attachments && ln -s /etc/passwd .l && mv .l l && cat l",
        "make a link the text": "ln -s /etc/passwd /chat/t~ && mv /chat/t~ /chat/history.md",
        "reach it through a process's root": f"cat /proc/{outside}/root{log}",
        "reach it through any process's root": f"cat /proc/[0-9]*/root{log}",
        "see the neighbour's process": f"test -d /proc/{outside}",
        "kill the neighbour's process": f"kill -9 {outside}",
        "unmount": "umount /chat",
        "mount over": "mount -t tmpfs none /chat",
        "mount proc of outside": "mkdir /tmp/p && mount -t proc none /tmp/p && ls /tmp/p/1/root/home",
        "mount with another namespace": "unshare -Urm sh -c 'mkdir -p /tmp/q && mount -t proc none /tmp/q'",
        "uncover with another namespace": "unshare -Urm umount /proc/sys",
        "make it writable with another namespace": "unshare -Urm mount -o remount,rw,bind /proc/sys",
        "make the disk's device": "mknod /tmp/d b 259 0 && head -c 1 /tmp/d",
        "make a device in the chat": "mknod /chat/d b 259 0 || mknod /chat/d c 1 3",
        "open fuse": "head -c 1 /dev/fuse",
        "attach a name outside": "echo x > '/chat/attachments/../../x'",
        "write the log from the start": ": > /chat/history.jsonl",
        "write the root": "touch /made",
        "change the machine's settings": "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern",
        "load what the machine runs on a crash": "echo 0 > /proc/sys/vm/drop_caches",
        "press a key of the kernel's": "echo h > /proc/sysrq-trigger",
        "read the machine's memory": "head -c 1 /proc/kcore || head -c 1 /dev/mem",
        "read the kernel's keys and messages": "head -c 1 /proc/keys | grep . || head -c 1 /proc/kmsg",
        "use another session": f"ls /chat/{session.id}",
    }


def test_two_sandboxes_of_one_workspace(demo: Sandboxed, runtime: list[str]) -> None:
    """Nothing of the other can be reached, and each goes on while the other is killed."""
    chat, neighbour = demo.chat(), demo.chat(SECRET)
    other = begun(demo, neighbour, runtime, "sleep 600")
    tried = attempts(demo, neighbour, other.pid)
    before = {path: path.read_bytes() for path in demo.store.glob("workspace/*/chats/*/history.jsonl")}
    script = "\n".join(f"( {what} ) 2>/dev/null; echo $? {number}" for number, what in enumerate(tried.values()))
    append = 'while read line; do echo "$line" >> /chat/history.jsonl && echo done; done'
    process = begun(demo, chat, runtime, f"{script}\necho tried\n{append}")
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    printed = _until(stdout, b"tried\n")
    assert SECRET not in printed
    assert "root:" not in printed
    statuses = {int(number): int(status) for status, number in re.findall(r"^(\d+) (\d+)$", printed, re.MULTILINE)}
    assert [name for number, name in enumerate(tried) if statuses[number] == 0] == []
    assert other.poll() is None
    assert {path for path, text in before.items() if path.read_bytes() != text} <= {chat.log_file}
    assert set(demo.active()) >= {chat.id, neighbour.id}

    def add(text: str) -> None:
        stdin.write(message(text))
        stdin.flush()
        assert stdout.readline() == b"done\n"

    add("before")
    os.kill(other.pid, signal.SIGKILL)
    other.wait(30)
    add("after")
    code, out, _ = neighbour.sandbox(*runtime, "--", "cat", "/chat/history.md")
    assert code == 0
    assert SECRET in out
    add("at the end")
    stdin.close()
    assert process.wait(60) == 0
    assert chat.says("before", "after", "at the end") == [True] * 3
    wait_for(lambda: demo.active() == [], 30)


def test_nothing_runs_on_when_it_is_killed(demo: Sandboxed, runtime: list[str]) -> None:
    """Podman's containers have no parent that the kernel would tell."""
    chat = demo.chat()
    seconds = str(uuid.uuid4().int)[:12]
    process = begun(demo, chat, runtime, f"sleep {seconds}")
    assert _running(seconds)
    process.kill()
    process.wait(30)
    wait_for(lambda: not _running(seconds), 30, what="the end of its processes")
    wait_for(lambda: not demo.mounted(), 30, what="the unmount")


def _running(word: str) -> list[int]:
    """The processes that have it among their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _until(stream: IO[bytes], last: bytes) -> str:
    found = b""
    while line := stream.readline():
        if line == last:
            return found.decode()
        found += line
    raise AssertionError(found)


KEYS = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.syscall(%d, b"user", b"chatfs-test", None, 0))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are that machine's")
def test_it_has_none_of_the_callers_keys(chat: Chat) -> None:
    """What a session keyring holds (Kerberos tickets, keys of file systems) is inherited by every child, else."""
    libc = ctypes.CDLL(None)
    join, add, request = 250, 248, 249
    child = os.fork()
    if child == 0:
        try:
            libc.syscall(join, 1, None)
            key = libc.syscall(add, b"user", b"chatfs-test", b"secret", 6, -3)
            code, out, _ = chat.sandbox("--", "/usr/bin/python3", "-c", KEYS % request)
            os._exit(0 if (code, out) == (0, "-1\n") else 2 if key > 0 else 3)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 3:
        pytest.skip("this machine keeps no keys")
    assert status == 0
