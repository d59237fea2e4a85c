"""Two sandboxes on two chats of one workspace: each tries all it can to reach the other's, the store, other processes.

With bubblewrap and with podman (runc). Where the machine forbids such containers even for `true`, a test is skipped
with the machine's own words.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.mount, pytest.mark.container]

SECRET = "the-neighbours-secret"


@pytest.fixture
def short() -> Iterator[Path]:
    """Podman takes at most 50 characters for its run directory, fewer than tmp_path has."""
    with tempfile.TemporaryDirectory(prefix="chatfs-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(params=["bwrap", "podman"])
def runtime(
    request: pytest.FixtureRequest, demo: Cli, rootfs: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The words that choose it."""
    stores = ["--root", f"{short}/storage", "--runroot", f"{short}/run", "--tmpdir", f"{short}/tmp"]
    podman = ["podman", *stores, "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager=cgroupfs"]
    monkeypatch.setenv("CHATFS_PODMAN", shlex.join(podman))
    monkeypatch.setenv("CHATFS_PODMAN_RUN", "--ulimit nofile=1024:1024 --ulimit nproc=1000:1000")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert shutil.which(request.param), f"{request.param} isn't installed: scripts/test does that"
    words = ["--runtime", request.param, "--image", str(rootfs)]
    code, _, err = demo.attempt("sandbox", "run", "demo/trip", *words, "--", "true")
    if code:
        pytest.skip(f"{request.param} can't run here: {err.strip()}")
    demo.run("append", "demo/neighbour", "-", "--create", given=f'{{"role":"user","content":"{SECRET}"}}\n'.encode())
    return words


def begun(demo: Cli, chat: str, runtime: list[str], script: str) -> subprocess.Popen[bytes]:
    process = demo.begin("sandbox", "run", chat, *runtime, "--", "sh", "-c", f"echo ready; {script}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def attempts(demo: Cli, outside: int, session: str) -> dict[str, str]:
    """What is tried from inside, each a command that must fail (or show nothing of the secret)."""
    store = demo.store
    (neighbour,) = [path for path in store.glob("workspace/*/chats/*/history.jsonl") if SECRET in path.read_text()]
    return {
        "read the store": f"cat {neighbour}",
        "list the store": f"ls {store}",
        "read by the mount's parent": "cat /chat/../neighbour/history.md",
        "list the mount's parent": "ls /chat/../chats",
        "enter by-id": "ls /chat/by-id || ls /chat/../by-id",
        "enter the trash": "ls /chat/trash || ls /chat/../trash",
        "follow a link of its own to the store": f"rm -f /chat/l; ln -s {neighbour} /chat/l; cat /chat/l",
        "follow a link among the attachments": f"ln -s {neighbour} /chat/attachments/l; cat /chat/attachments/l",
        "reach it through a process's root": f"cat /proc/{outside}/root{neighbour}",
        "reach it through any process's root": f"cat /proc/[0-9]*/root{neighbour}",
        "see the neighbour's process": f"test -d /proc/{outside}",
        "kill the neighbour's process": f"kill -9 {outside}",
        "unmount": "umount /chat",
        "mount over": "mount -t tmpfs none /chat",
        "mount proc of outside": "mkdir /tmp/p && mount -t proc none /tmp/p && ls /tmp/p/1/root/home",
        "make the disk's device": "mknod /tmp/d b 259 0 && head -c 1 /tmp/d",
        "open fuse": "head -c 1 /dev/fuse",
        "attach a name outside": "echo x > '/chat/attachments/../../x'",
        "write the log from the start": ": > /chat/history.jsonl",
        "write the root": "touch /made",
        "change the machine's settings": "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern",
        "load what the machine runs on a crash": "echo 0 > /proc/sys/vm/drop_caches",
        "press a key of the kernel's": "echo h > /proc/sysrq-trigger",
        "read the machine's memory": "head -c 1 /proc/kcore || head -c 1 /dev/mem",
        "use another session": f"ls /chat/{session}",
    }


def test_nothing_of_the_others_can_be_reached(demo: Cli, runtime: list[str]) -> None:
    neighbour = begun(demo, "demo/neighbour", runtime, "sleep 600")
    (session,) = demo.json("sandbox", "ls")
    tried = attempts(demo, neighbour.pid, session["id"])
    before = {path: path.read_bytes() for path in demo.store.glob("workspace/*/chats/*/history.jsonl")}
    script = "\n".join(f"( {what} ) 2>/dev/null; echo $? {number} >&2" for number, what in enumerate(tried.values()))
    code, out, err = demo.attempt("sandbox", "run", "demo/trip", *runtime, "--", "sh", "-c", script)
    assert code == 0
    assert SECRET not in out
    statuses = {int(line.split()[1]): int(line.split()[0]) for line in err.splitlines()}
    succeeded = [name for number, name in enumerate(tried) if statuses[number] == 0]
    assert succeeded == []
    assert neighbour.poll() is None
    own = demo.log_file("demo/trip")
    assert {path for path, text in before.items() if path.read_bytes() != text} <= {own}
    assert "demo/neighbour" in {each["chat"] for each in demo.json("sandbox", "ls")}
    demo.run("sandbox", "stop", "demo/neighbour")
    neighbour.wait(30)


def test_the_other_goes_on_while_one_is_killed(demo: Cli, runtime: list[str]) -> None:
    script = 'while read line; do echo "$line" >> /chat/history.jsonl && echo done; done'
    first = demo.begin(
        "sandbox", "run", "demo/trip", *runtime, "--", "sh", "-c", f"echo ready; {script}", stdin=subprocess.PIPE
    )
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == b"ready\n"
    second = begun(demo, "demo/neighbour", runtime, "sleep 600")
    for number in range(4):
        if number == 1:
            os.kill(second.pid, signal.SIGKILL)
            second.wait(30)
        if number == 3:
            code, out, _ = demo.attempt("sandbox", "run", "demo/neighbour", *runtime, "--", "cat", "/chat/history.md")
            assert code == 0
            assert SECRET in out
        first.stdin.write(b'{"role":"user","content":"line %d"}\n' % number)
        first.stdin.flush()
        assert first.stdout.readline() == b"done\n"
    first.stdin.close()
    assert first.wait(60) == 0
    text = demo.run("cat", "demo/trip")
    assert [f"line {number}" in text for number in range(4)] == [True] * 4
    wait_for(lambda: {each["state"] for each in demo.json("sandbox", "ls")} <= {"ended"}, 30)
