"""Scratch files: whatever else is created in a chat's or a workspace's directory. Never logged, kept over a remount."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.ops import EXCHANGE, NOREPLACE, opened, refused, renameat2

pytestmark = pytest.mark.mount

NAMES = [".history.md.swp", "4913", "history.md~", "#history.md#", "sedAbC123", ".goutputstream-X", "x" * 255, "a b\n"]


@pytest.mark.parametrize("name", NAMES)
def test_any_other_name_is_scratch(chat: Chat, name: str) -> None:
    path = chat.directory / name
    path.write_bytes(b"one")
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b" two")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 7
    assert path.read_bytes() == b"one two"
    assert name in os.listdir(chat.directory)
    path.unlink()
    assert not path.exists()
    assert chat.events() == []


def test_they_are_kept_over_a_remount(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    paths = [chat.directory / "a", workspace.directory / "b", chat.directory / ".c"]
    for path in paths:
        path.write_bytes(path.name.encode())
    os.chmod(paths[0], 0o640)
    os.utime(paths[0], ns=(1_000_000_000, 2_000_000_000))
    (chat.directory / ".#lock").symlink_to("me@here.1:2")
    before = [(path.stat().st_ino, path.stat().st_mode, path.stat().st_mtime_ns) for path in paths]
    mounted.remount()
    assert [path.read_bytes() for path in paths] == [b"a", b"b", b".c"]
    assert [(path.stat().st_ino, path.stat().st_mode, path.stat().st_mtime_ns) for path in paths] == before
    assert (chat.directory / ".#lock").readlink() == Path("me@here.1:2")
    assert chat.events() == []


def test_flags_of_open(chat: Chat) -> None:
    path = chat.directory / "a"
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        os.write(descriptor, b"12345")
    with refused(errno.EEXIST):
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"678")
    with opened(path, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, b"X", 1)
        os.ftruncate(descriptor, 7)
    assert path.read_bytes() == b"1X34567"
    path.write_bytes(b"")
    assert path.stat().st_size == 0
    os.truncate(path, 3)
    assert path.read_bytes() == b"\0\0\0"
    with refused(errno.ENOENT):
        os.open(chat.directory / "nothing", os.O_RDONLY)


def test_two_descriptors_share_a_file(chat: Chat) -> None:
    path = chat.directory / "a"
    with opened(path, os.O_RDWR | os.O_CREAT) as first, opened(path, os.O_RDWR) as second:
        os.write(first, b"hello")
        assert os.read(second, 10) == b"hello"
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with refused(errno.EAGAIN):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_removed_while_open(chat: Chat) -> None:
    path = chat.directory / "a"
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"hello")
        path.unlink()
        assert os.pread(descriptor, 10, 0) == b"hello"
        assert os.fstat(descriptor).st_size == 5
        os.write(descriptor, b" again")
        os.ftruncate(descriptor, 8)
        assert os.pread(descriptor, 20, 0) == b"hello ag"
        os.fchmod(descriptor, 0o640)
        assert os.fstat(descriptor).st_mode & 0o777 == 0o640
        path.write_bytes(b"another")
        assert os.pread(descriptor, 20, 0) == b"hello ag"
    assert path.read_bytes() == b"another"


def test_renames(chat: Chat) -> None:
    first, second = chat.directory / "a", chat.directory / "b"
    first.write_bytes(b"first")
    inode = first.stat().st_ino
    with opened(first, os.O_RDWR) as descriptor:
        first.rename(second)
        assert os.pread(descriptor, 10, 0) == b"first"
        os.pwrite(descriptor, b"F", 0)
    assert (second.read_bytes(), second.stat().st_ino) == (b"First", inode)
    first.write_bytes(b"new")
    with refused(errno.EEXIST):
        renameat2(first, second, NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(first, second, EXCHANGE)
    first.replace(second)
    assert second.read_bytes() == b"new"
    assert "a" not in os.listdir(chat.directory)
    assert chat.events() == []


def test_renames_between_directories_copy(workspace: Workspace, chat: Chat) -> None:
    other = workspace.chat("other")
    path = chat.directory / "a"
    path.write_bytes(b"x")
    with refused(errno.EXDEV):
        path.rename(other.directory / "a")
    subprocess.run(["mv", path, other.directory / "a"], check=True)
    assert (other.directory / "a").read_bytes() == b"x"
    assert not path.exists()


def test_symbolic_links(chat: Chat) -> None:
    link = chat.directory / ".#history.md"
    link.symlink_to("user@host.42:1")
    assert link.is_symlink()
    assert link.readlink() == Path("user@host.42:1")
    with refused(errno.EEXIST):
        link.symlink_to("again")
    link.unlink()
    assert not link.is_symlink()
    with refused(errno.EEXIST):
        (chat.directory / "history.md").symlink_to("x")
    (chat.directory / "to-md").symlink_to("history.md")
    assert (chat.directory / "to-md").read_bytes() == chat.md.read_bytes()


def test_a_link_is_never_saved_as_the_text(chat: Chat, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"## user\n\nsecret\n")
    link = chat.directory / "link"
    link.symlink_to(secret)
    with refused(errno.EPERM):
        link.rename(chat.md)
    with refused(errno.EXDEV):
        link.rename(chat.attachments / "a")
    assert b"secret" not in chat.md.read_bytes()
    assert chat.events() == []


def test_what_cannot_be_made(chat: Chat) -> None:
    with refused(errno.EPERM):
        (chat.directory / "sub").mkdir()
    with refused(errno.EPERM):
        os.mkfifo(chat.directory / "pipe")
    with refused(errno.ENAMETOOLONG):
        (chat.directory / ("x" * 256)).write_bytes(b"")
    (chat.directory / "a").write_bytes(b"")
    with refused(errno.EPERM):
        (chat.directory / "b").hardlink_to(chat.directory / "a")
    with refused(errno.EPERM):
        os.chown(chat.directory / "a", os.getuid() + 1, -1)


def test_large_ones(chat: Chat) -> None:
    path = chat.directory / "large"
    content = os.urandom(3_000_000)
    path.write_bytes(content)
    assert path.read_bytes() == content
    path.rename(chat.attachments / "large")
    assert (chat.attachments / "large").read_bytes() == content
