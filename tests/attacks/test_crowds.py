"""Much at once, and much from an archive: a crowd of processes on one mount, tar files that mean harm."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.mounts import message, mounting
from tests.support.ops import append
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

CROWD = 300
LINES = 5
FEW = 96
"""Descriptors that stay: the index, caches, the names of the last 64 programs that used the mount."""
MEMORY = 64 << 20
"""How much more a mount may need for them."""

BOMB = """
import json, os, sys
directory, count, lines = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin, ended = os.pipe(), os.pipe()
ready = os.pipe()
for number in range(count):
    if os.fork() == 0:
        log = os.open(f"{directory}/history.jsonl", os.O_WRONLY | os.O_APPEND)
        text = os.open(f"{directory}/history.md", os.O_RDONLY)
        attached = os.open(f"{directory}/attachments/a", os.O_RDONLY)
        scratch = os.open(f"{directory}/s{number}~", os.O_RDWR | os.O_CREAT)
        os.write(ready[1], b"x")
        os.close(begin[1])
        os.read(begin[0], 1)
        for line in range(lines):
            content = json.dumps({"role": "user", "content": f"{number}.{line}"}).encode()
            assert os.write(log, content + b"\\n") == len(content) + 1
            assert os.pread(text, 1 << 20, 0)
            assert len(os.pread(attached, 1 << 20, 0)) == 1 << 20
            os.write(scratch, b"s")
        os.unlink(f"{directory}/s{number}~")
        os._exit(0)
for _ in range(count):
    os.read(ready[0], 1)
print("ready", flush=True)
sys.stdin.readline()
os.close(begin[1])
print("begun", flush=True)
print(sum(os.waitstatus_to_exitcode(os.wait()[1]) != 0 for _ in range(count)), flush=True)
"""


def _memory(pid: int) -> int:
    (line,) = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_crowd_on_one_chat_keeps_nobody_out(tmp_path: Path) -> None:
    """Each has four files open, reads, and appends. Others are served meanwhile; in the end all is as before."""
    with mounting(tmp_path) as mounted:
        workspace = mounted.workspace()
        trip, other = workspace.chat(), workspace.chat("other")
        trip.say("x" * 10_000)
        (trip.attachments / "a").write_bytes(bytes(2 << 20))
        assert mounted.process is not None
        pid = mounted.process.pid
        memory, descriptors = _memory(pid), _descriptors(pid)
        bomb = subprocess.Popen(
            [sys.executable, "-c", BOMB, str(trip.directory), str(CROWD), str(LINES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert bomb.stdin is not None
        assert bomb.stdout is not None
        try:
            assert bomb.stdout.readline() == b"ready\n"
            assert _descriptors(pid) <= descriptors + 2 * CROWD
            bomb.stdin.write(b"\n")
            bomb.stdin.flush()
            assert bomb.stdout.readline() == b"begun\n"
            for number in range(20):
                append(other.jsonl, message(f"meanwhile {number}"))
                assert f"meanwhile {number}" in other.md.read_text()
            assert int(bomb.stdout.readline()) == 0, "some of them failed"
        finally:
            bomb.stdin.close()
            bomb.stdout.close()
            bomb.kill()
            bomb.wait(30)
        said = [event["content"] for event in trip.events() if event["type"] == "message.appended"]
        assert sorted(said) == sorted(f"{number}.{line}" for number in range(CROWD) for line in range(LINES))
        wait_for(lambda: _descriptors(pid) <= descriptors + FEW, 30, what="the files to be closed")
        assert _memory(pid) <= memory + MEMORY
        assert [path.name for path in trip.directory.iterdir() if path.name.endswith("~")] == []


def _tar(path: Path) -> Path:
    """What a tar file may have that was made to do harm."""

    def add(name: str, kind: bytes = tarfile.REGTYPE, *, leads: str = "", mode: int = 0o644) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.mode = kind, leads, mode
        data = b"planted" if kind == tarfile.REGTYPE else b""
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))

    with tarfile.open(path, "w") as tar:
        add("../climbed")
        add("../../../climbed")
        add(f"{path.parent}/absolute")
        add("good.txt")
        add("link", tarfile.SYMTYPE, leads=str(path.parent / "outside"))
        add("link/through")
        add(".dir", tarfile.SYMTYPE, leads=str(path.parent / "outside"))
        add(".dir/through")
        add("hard", tarfile.LNKTYPE, leads="good.txt")
        add("hard-outside", tarfile.LNKTYPE, leads=str(path.parent / "outside/file"))
        add("device", tarfile.CHRTYPE)
        add("block", tarfile.BLKTYPE)
        add("pipe", tarfile.FIFOTYPE)
        add("program", mode=0o6755)
        add("sub/directory/file")
        add("history.md")
        add("chat.json")
        add("\x1b[2Jescape")
        add("last.txt")
    return path


@pytest.mark.parametrize("where", ["attachments", ".", "../unpacked"])
def test_a_tar_file_that_means_harm(tmp_path: Path, where: str) -> None:
    """What isn't a file of the chat is refused, one by one; the rest comes, and nothing is made anywhere else."""
    with mounting(tmp_path) as mounted:
        trip = mounted.workspace().chat()
        trip.say("kept")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"somebody's")
        archive = _tar(tmp_path / "evil.tar")
        place = trip.directory / where
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["tar", "--extract", "--file", archive, "--directory", place], capture_output=True, check=False, timeout=30
        )
        assert done.returncode == 2, done.stderr
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"somebody's"}
        assert not [*tmp_path.rglob("climbed"), *tmp_path.rglob("absolute")]
        for path in mounted.store.rglob("*"):
            status = path.lstat()
            assert not path.is_symlink() or path.name in {"link", ".dir"}, path
            assert path.is_file() or path.is_dir() or path.is_symlink() or path.is_socket(), path
            assert status.st_mode & 0o7000 == 0, path
            assert status.st_nlink == 1 or path.is_dir(), path
        if where == "attachments":
            names = sorted(path.name for path in trip.attachments.iterdir() if not path.name.startswith("."))
            assert names == ["good.txt", "last.txt", "program"]
        assert trip.log()[0].data.count(b"kept") == 1
        assert mounted.cli("fsck").returncode == 0
