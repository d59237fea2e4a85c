"""attachments/: closing a written file commits it, renaming copies no bytes, and what the log says of each."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import subprocess

import pytest

from tests.support.mounts import Chat
from tests.support.ops import EXCHANGE, NEW, NOREPLACE, digest, opened, refused, renameat2

pytestmark = pytest.mark.mount


def test_closing_a_written_file_is_one_put(chat: Chat) -> None:
    path = chat.attachments / "a.png"
    with opened(path, NEW) as descriptor:
        os.write(descriptor, b"12")
        os.write(descriptor, b"345")
        assert chat.events() == []
        assert os.listdir(chat.attachments) == ["a.png"]
        assert (path.stat().st_size, path.read_bytes()) == (5, b"12345")
    [put] = chat.events()
    assert put | {"id": ""} == {
        "type": "attachment.put",
        "id": "",
        "name": "a.png",
        "digest": digest(b"12345"),
        "size": 5,
        "content_type": "image/png",
    }
    assert path.read_bytes() == b"12345"


@pytest.mark.parametrize("asked", ["never", "before the write", "after it", "by name"])
def test_after_closing_its_times_are_those_of_the_log(chat: Chat, asked: str) -> None:
    """Whatever the kernel has kept of it from before."""
    path = chat.attachments / "a"
    with opened(path, NEW) as descriptor:
        if asked == "before the write":
            os.fstat(descriptor)
        os.write(descriptor, b"12345")
        if asked == "after it":
            assert os.fstat(descriptor).st_size == 5
        if asked == "by name":
            assert [(entry.name, entry.stat().st_size) for entry in os.scandir(chat.attachments)] == [("a", 5)]
    found = path.stat()
    [*_, entry] = chat.log()
    assert (found.st_size, found.st_mtime_ns) == (5, entry.ts * 1_000_000 + entry.seq)
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor, opened(path, os.O_RDWR) as other:
        os.write(descriptor, b"6")
        os.pwrite(other, b"7", 0)
        os.fsync(other)
        [*_, entry] = chat.log()
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (6, entry.ts * 1_000_000 + entry.seq)
    [*_, entry] = chat.log()
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (6, entry.ts * 1_000_000 + entry.seq)


def test_an_empty_file_is_an_attachment(chat: Chat) -> None:
    (chat.attachments / "empty").touch()
    (chat.attachments / "none").write_bytes(b"")
    assert (chat.attachments / "empty").read_bytes() == b""
    assert sorted(os.listdir(chat.attachments)) == ["empty", "none"]
    assert [(event["name"], event["size"], event["digest"]) for event in chat.events()] == [
        ("empty", 0, digest(b"")),
        ("none", 0, digest(b"")),
    ]


def test_mknod_makes_one(chat: Chat) -> None:
    os.mknod(chat.attachments / "made", 0o600)
    assert (chat.attachments / "made").read_bytes() == b""
    with refused(errno.EPERM):
        os.mkfifo(chat.attachments / "pipe")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (os.O_WRONLY | os.O_TRUNC, b"new"),
        (os.O_WRONLY, b"newgh"),
        (os.O_WRONLY | os.O_APPEND, b"abcdefghnew"),
        (os.O_RDWR, b"newgh"),
    ],
)
def test_writing_again_is_another_put_of_the_same_attachment(chat: Chat, flags: int, wanted: bytes) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"abcdefgh" if flags & os.O_APPEND else b"abcgh")
    before = path.stat()
    [first] = chat.events()
    with opened(path, flags) as descriptor:
        os.write(descriptor, b"new")
    [again] = chat.events()
    assert (again["type"], again["id"], again["digest"]) == ("attachment.put", first["id"], digest(wanted))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, len(wanted))
    assert after.st_mtime_ns > before.st_mtime_ns
    assert path.read_bytes() == wanted


def test_pwrite_with_a_gap_and_ftruncate(chat: Chat) -> None:
    path = chat.attachments / "a"
    with opened(path, NEW) as descriptor:
        os.pwrite(descriptor, b"end", 10)
        os.ftruncate(descriptor, 12)
    assert path.read_bytes() == b"\0" * 10 + b"en"
    os.truncate(path, 3)
    assert path.read_bytes() == b"\0\0\0"
    assert path.stat().st_size == 3
    os.truncate(path, 6)
    assert path.read_bytes() == b"\0" * 6
    assert [event["size"] for event in chat.events()] == [12, 3, 6]


def test_the_same_bytes_again_are_no_event(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"same")
    chat.events()
    path.write_bytes(b"same")
    assert chat.events() == []
    assert path.read_bytes() == b"same"


def test_fsync_commits(chat: Chat) -> None:
    path = chat.attachments / "a"
    with opened(path, NEW) as descriptor:
        os.write(descriptor, b"one")
        os.fsync(descriptor)
        assert [event["size"] for event in chat.events()] == [3]
        os.write(descriptor, b"two")
    assert [event["size"] for event in chat.events()] == [6]
    assert path.read_bytes() == b"onetwo"


def test_redirections_of_subshells(chat: Chat) -> None:
    subprocess.run(["sh", "-c", "( /bin/echo a; /bin/echo b ) > x; /bin/echo c >> x"], check=True, cwd=chat.attachments)
    assert (chat.attachments / "x").read_bytes() == b"a\nb\nc\n"
    assert (chat.attachments / "x").stat().st_size == 6
    assert [event["size"] for event in chat.events()] == [4, 6]


def test_large_files(chat: Chat) -> None:
    content = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 18))
    path = chat.attachments / "large.bin"
    path.write_bytes(content)
    assert path.read_bytes() == content
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"patched", 5_000_000)
        assert os.pread(descriptor, 7, 5_000_000) == b"patched"
    patched = content[:5_000_000] + b"patched" + content[5_000_007:]
    assert path.read_bytes() == patched
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[4_999_990:5_000_020] == patched[4_999_990:5_000_020]
    first, second = chat.events()
    assert first["id"] == second["id"]
    assert first["digest"] != second["digest"]


def test_writing_through_a_mapping(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"0123456789" * 1000)
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5000:5005] = b"HELLO"
            mapped.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"HELLO"
    assert path.read_bytes()[4995:5010] == b"56789HELLO56789"
    assert chat.types() == ["attachment.put", "attachment.put"]


# ---- names


def test_a_rename_keeps_inode_bytes_and_id(chat: Chat) -> None:
    path, other = chat.attachments / "a", chat.attachments / "b"
    path.write_bytes(b"bytes")
    inode = path.stat().st_ino
    with path.open("rb") as file:
        path.rename(other)
        assert file.read() == b"bytes"
    assert other.stat().st_ino == inode
    assert other.read_bytes() == b"bytes"
    assert not path.exists()
    assert chat.events()[1:] == [{"type": "attachment.renamed", "name": "a", "to": "b"}]


def test_a_rename_over_another(chat: Chat) -> None:
    path, other = chat.attachments / "a", chat.attachments / "b"
    path.write_bytes(b"a")
    other.write_bytes(b"bb")
    with other.open("rb") as old:
        with refused(errno.EEXIST):
            renameat2(path, other, NOREPLACE)
        with refused(errno.EINVAL):
            renameat2(path, other, EXCHANGE)
        path.replace(other)
        assert old.read() == b"bb"
        assert os.fstat(old.fileno()).st_nlink == 0
    assert os.listdir(chat.attachments) == ["b"]
    assert other.read_bytes() == b"a"
    assert chat.types() == ["attachment.put", "attachment.put", "attachment.renamed"]


def test_a_rename_while_it_is_written(chat: Chat) -> None:
    path, other = chat.attachments / "a", chat.attachments / "b"
    with opened(path, NEW) as descriptor:
        os.write(descriptor, b"one ")
        path.rename(other)
        os.write(descriptor, b"two")
        assert other.stat().st_size == 7
    assert other.read_bytes() == b"one two"
    assert os.listdir(chat.attachments) == ["b"]


def test_a_rename_over_one_that_is_written(chat: Chat) -> None:
    """The renamed file stands at the name; what the other writer had is gone with its name, as POSIX has it."""
    path, other = chat.attachments / "a", chat.attachments / "b"
    path.write_bytes(b"a")
    with opened(other, NEW) as descriptor:
        os.write(descriptor, b"unfinished")
        path.replace(other)
        os.write(descriptor, b"...")
    assert os.listdir(chat.attachments) == ["b"]
    assert other.read_bytes() == b"a"


def test_removed_while_open(chat: Chat) -> None:
    path = chat.attachments / "a"
    path.write_bytes(b"bytes")
    with path.open("rb", buffering=0) as file:
        path.unlink()
        assert chat.types() == ["attachment.put", "attachment.removed"]
        assert file.read() == b"bytes"
        assert (os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_nlink) == (5, 0)
        path.write_bytes(b"another")
        assert os.pread(file.fileno(), 10, 0) == b"bytes"
    assert path.read_bytes() == b"another"


def test_removed_before_it_was_ever_committed(chat: Chat) -> None:
    path = chat.attachments / "a"
    with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"temporary")
        path.unlink()
        assert os.listdir(chat.attachments) == []
        os.write(descriptor, b" file")
        assert os.pread(descriptor, 20, 0) == b"temporary file"
        assert os.fstat(descriptor).st_size == 14
    assert chat.events() == []
    assert os.listdir(chat.attachments) == []
    assert list(chat.directory.glob("*recovered*")) == []


def test_a_removed_one_can_be_put_again(chat: Chat) -> None:
    path = chat.attachments / "a"
    for number in range(3):
        path.write_bytes(b"%d" % number)
        assert path.read_bytes() == b"%d" % number
        path.unlink()
        assert not path.exists()
    assert chat.types() == ["attachment.put", "attachment.removed"] * 3


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"history.md", errno.EPERM),
        (b"history.jsonl", errno.EPERM),
        (b"chat.json", errno.EPERM),
        (b"a\x01b", errno.EINVAL),
        (b"line\nbreak", errno.EINVAL),
        (b"not-utf8-\xff", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
        ("ü".encode() * 128, errno.ENAMETOOLONG),
    ],
)
def test_names_that_it_cannot_have(chat: Chat, name: bytes, code: int) -> None:
    target = os.fsencode(chat.attachments) + b"/" + name
    with refused(code):
        os.open(target, NEW)
    (chat.attachments / "good").write_bytes(b"")
    with refused(code):
        os.rename(chat.attachments / "good", target)
    assert os.listdir(chat.attachments) == ["good"]


def test_names_that_it_can_have(chat: Chat) -> None:
    names = ["a b", "ü" * 127, "日本語.txt", "-rf", "a\\b", "x" * 255, "a~", "#a#", "'\"$(`"]
    for name in names:
        (chat.attachments / name).write_text(name)
    assert sorted(os.listdir(chat.attachments)) == sorted(names)
    assert [event["name"] for event in chat.events()] == names
    assert all((chat.attachments / name).read_text() == name for name in names)


def test_no_directories_links_or_lookups_of_nothing(chat: Chat) -> None:
    with refused(errno.EPERM):
        (chat.attachments / "sub").mkdir()
    with refused(errno.EPERM):
        (chat.attachments / "link").symlink_to("x")
    (chat.attachments / "a").write_bytes(b"")
    with refused(errno.EPERM):
        (chat.attachments / "b").hardlink_to(chat.attachments / "a")
    with refused(errno.ENOENT):
        os.stat(chat.attachments / "nothing")
    with refused(errno.ENOENT):
        os.stat(os.fsencode(chat.attachments) + b"/\xff")
    with refused(errno.ENAMETOOLONG):
        os.stat(chat.attachments / ("x" * 256))
    with refused(errno.ENOENT):
        os.unlink(chat.attachments / "nothing")
    with refused(errno.ENOTEMPTY):
        chat.attachments.rmdir()
    with refused(errno.EISDIR):
        chat.attachments.unlink()
