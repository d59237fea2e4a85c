"""Attachments moved between directories, made of scratch files, and their attributes."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.ops import NEW, blobs, digest, opened, refused

pytestmark = pytest.mark.mount


# ---- between directories


def test_moved_to_another_chat_without_copying(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    here, there = workspace.chat("here"), workspace.chat("there")
    (here.attachments / "a").write_bytes(b"x" * 3_000_000)
    os.utime(here.attachments / "a", ns=(0, 1_234_567_890_123_456_789))
    os.chmod(here.attachments / "a", 0o755)
    before = blobs(mounted)
    here.events()
    os.rename(here.attachments / "a", there.attachments / "b")
    assert blobs(mounted) == before
    assert here.types() == ["attachment.removed"]
    [put] = there.events()
    assert (put["name"], put["mode"], put["mtime_ns"]) == ("b", 0o755, 1_234_567_890_123_456_789)
    assert (there.attachments / "b").stat().st_size == 3_000_000
    assert (there.attachments / "b").read_bytes() == b"x" * 3_000_000
    assert os.listdir(here.attachments) == []
    assert os.listdir(there.attachments) == ["b"]


def test_moved_to_another_chat_over_a_file(workspace: Workspace) -> None:
    here, there = workspace.chat("here"), workspace.chat("there")
    (here.attachments / "a").write_bytes(b"new")
    (there.attachments / "a").write_bytes(b"old")
    os.replace(here.attachments / "a", there.attachments / "a")
    assert (there.attachments / "a").read_bytes() == b"new"
    assert (there.attachments / "a").stat().st_size == 3


def test_moved_to_another_workspace_it_is_copied(mounted: Mounted) -> None:
    here, there = mounted.workspace("one").chat(), mounted.workspace("two").chat()
    (here.attachments / "a").write_bytes(b"bytes")
    with refused(errno.EXDEV):
        os.rename(here.attachments / "a", there.attachments / "a")
    subprocess.run(["mv", here.attachments / "a", there.attachments / "a"], check=True)
    assert (there.attachments / "a").read_bytes() == b"bytes"
    assert here.types() == ["attachment.put", "attachment.removed"]


def test_a_scratch_file_becomes_an_attachment(chat: Chat) -> None:
    """As GLib, rsync and curl do: a temporary name, then a rename."""
    for temporary in (chat.attachments / ".goutputstream-X1", chat.directory / "download.part"):
        temporary.write_bytes(b"first")
        assert chat.events() == []
        inode = temporary.stat().st_ino
        temporary.rename(chat.attachments / "a.txt")
        [put] = chat.events()
        assert (put["type"], put["name"], put["digest"]) == ("attachment.put", "a.txt", digest(b"first"))
        assert (chat.attachments / "a.txt").read_bytes() == b"first"
        assert not temporary.exists()
        assert os.listdir(chat.attachments) == ["a.txt"]
        assert (chat.attachments / "a.txt").stat().st_ino != inode
        (chat.attachments / "a.txt").unlink()
        chat.events()


def test_a_descriptor_of_a_scratch_file_that_became_an_attachment(chat: Chat) -> None:
    temporary = chat.attachments / ".tmp"
    with opened(temporary, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"first")
        temporary.rename(chat.attachments / "a")
        assert os.pread(descriptor, 10, 0) == b"first"
        os.fchmod(descriptor, 0o755)
        os.utime(descriptor, ns=(5_000_000_000, 5_000_000_000))
    found = (chat.attachments / "a").stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o755, 5_000_000_000)
    assert (chat.attachments / "a").read_bytes() == b"first"


def test_dot_files_are_scratch(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    path = chat.attachments / ".hidden"
    path.write_bytes(b"scratch")
    assert os.listdir(chat.attachments) == [".hidden"]
    assert chat.events() == []
    mounted.remount()
    assert path.read_bytes() == b"scratch"
    path.rename(chat.attachments / ".other")
    assert os.listdir(chat.attachments) == [".other"]
    (chat.attachments / ".other").unlink()
    assert os.listdir(chat.attachments) == []
    assert chat.events() == []


# ---- attributes


def test_mode_and_mtime_are_kept_and_logged(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"x")
    chat.events()
    os.chmod(path, 0o750)
    os.utime(path, ns=(1, 1_000_000_000_000_000_001))
    assert (path.stat().st_mode, path.stat().st_mtime_ns) == (0o100750, 1_000_000_000_000_000_001)
    assert chat.events() == [
        {"type": "attachment.changed", "name": "a", "mode": 0o750},
        {"type": "attachment.changed", "name": "a", "mtime_ns": 1_000_000_000_000_000_001},
    ]
    os.chmod(path, 0o750)
    assert chat.events() == []


def test_mode_and_mtime_of_an_open_file_come_with_its_put(chat: Chat) -> None:
    path = chat.attachments / "a"
    with opened(path, NEW) as descriptor:
        os.write(descriptor, b"x")
        os.fchmod(descriptor, 0o640)
        os.utime(descriptor, ns=(2, 2_000_000_000))
        assert path.stat().st_mtime_ns == 2_000_000_000
    [put] = chat.events()
    assert (put["mode"], put["mtime_ns"]) == (0o640, 2_000_000_000)
    assert (path.stat().st_mode, path.stat().st_mtime_ns) == (0o100640, 2_000_000_000)


def test_only_the_owner_that_it_has(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"x")
    os.chown(path, os.getuid(), os.getgid())
    os.chown(path, -1, -1)
    for uid, gid in ((os.getuid() + 1, -1), (-1, os.getgid() + 1)):
        with refused(errno.EPERM):
            os.chown(path, uid, gid)
    assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


def test_extended_attributes_are_not_offered(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"x")
    with refused(errno.EOPNOTSUPP):
        os.setxattr(path, "user.x", b"y")
    with refused(errno.EOPNOTSUPP):
        os.getxattr(path, "user.x")
    assert os.listxattr(path) == []


def test_the_directory_tells_that_it_changed(chat: Chat) -> None:
    times = [chat.attachments.stat().st_mtime_ns]
    (chat.attachments / "a").write_bytes(b"x")
    times.append(chat.attachments.stat().st_mtime_ns)
    (chat.attachments / "a").rename(chat.attachments / "b")
    times.append(chat.attachments.stat().st_mtime_ns)
    (chat.attachments / "b").unlink()
    times.append(chat.attachments.stat().st_mtime_ns)
    assert times == sorted(set(times))


def test_everything_is_there_after_a_remount(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    (chat.attachments / "a").write_bytes(b"a" * 5000)
    (chat.attachments / "b").write_bytes(b"b")
    os.chmod(chat.attachments / "b", 0o700)
    os.utime(chat.attachments / "b", ns=(3, 3_000_000_000))
    (chat.attachments / "b").rename(chat.attachments / "c")

    def seen() -> dict[str, tuple[int, ...]]:
        entries = {entry.name: entry.stat() for entry in os.scandir(chat.attachments)}
        return {name: (e.st_ino, e.st_mode, e.st_size, e.st_mtime_ns, e.st_ctime_ns) for name, e in entries.items()}

    before = seen()
    mounted.remount()
    assert seen() == before
    assert (chat.attachments / "a").read_bytes() == b"a" * 5000
