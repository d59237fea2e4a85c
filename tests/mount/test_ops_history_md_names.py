"""history.md refused, renamed, replaced, removed: what its name means then, and what is kept of bad text."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.ops import EXCHANGE, NOREPLACE, append, opened, refused, renameat2

pytestmark = pytest.mark.mount


NOT_UTF8 = b"# x\n\n## user\n\n\xff\xfe\n"


def cat(path: Path) -> bytes:
    """What a process of its own reads."""
    return subprocess.run(["cat", path], check=True, capture_output=True).stdout


def by_a_rename_over_it(path: Path, data: bytes) -> None:
    temporary = path.with_name(".history.md.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


# ---- bad text


def rejected(chat: Chat) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in chat.directory.glob("*.rejected-*")}


def test_text_that_is_not_utf8_is_refused_at_close(chat: Chat) -> None:
    before = chat.md.read_bytes()
    for number in (1, 2):
        descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, NOT_UTF8)
        with refused(errno.EILSEQ):
            os.close(descriptor)
        assert chat.md.stat().st_size == len(before)
        assert chat.md.read_bytes() == before == cat(chat.md)
        assert rejected(chat) == {f"history.md.rejected-{n + 1}": NOT_UTF8 for n in range(number)}
    assert chat.events() == []


def test_text_that_is_not_utf8_is_refused_at_fsync(chat: Chat) -> None:
    before = chat.md.read_bytes()
    descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, NOT_UTF8)
    with refused(errno.EILSEQ):
        os.fsync(descriptor)
    os.close(descriptor)
    assert chat.md.read_bytes() == before == cat(chat.md)
    assert rejected(chat) == {"history.md.rejected-1": NOT_UTF8}


def test_text_that_is_not_utf8_is_refused_at_rename(chat: Chat) -> None:
    before = chat.md.read_bytes()
    temporary = chat.directory / "new.md"
    temporary.write_bytes(NOT_UTF8)
    with refused(errno.EILSEQ):
        temporary.replace(chat.md)
    assert chat.md.read_bytes() == before == cat(chat.md)
    assert temporary.read_bytes() == NOT_UTF8
    assert chat.events() == []


def test_an_append_that_is_not_utf8_is_refused(chat: Chat) -> None:
    before = chat.md.read_bytes()
    with refused(errno.EILSEQ):
        append(chat.md, b"\xff\n")
    assert chat.md.read_bytes() == before == cat(chat.md)
    assert chat.md.stat().st_size == len(before)
    assert rejected(chat) == {"history.md.rejected-1": b"\xff\n"}


def test_after_a_refused_save_the_next_works(chat: Chat) -> None:
    with refused(errno.EILSEQ):
        append(chat.md, b"\xff\n")
    append(chat.md, b"\n## user\n\nfine\n")
    assert chat.md.read_bytes().endswith(b"\n## user\n\nfine\n")
    assert chat.types() == ["message.appended"]


# ---- names


def test_rename_flags(chat: Chat) -> None:
    text = chat.md.read_bytes()
    temporary = chat.directory / "new.md"
    temporary.write_bytes(b"## user\n\nnew\n")
    with refused(errno.EEXIST):
        renameat2(temporary, chat.md, NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(temporary, chat.md, EXCHANGE)
    assert chat.md.read_bytes() == text
    renameat2(temporary, chat.directory / "newer.md", NOREPLACE)
    assert (chat.directory / "newer.md").read_bytes() == b"## user\n\nnew\n"


def test_a_descriptor_of_what_was_renamed_over_it_is_still_good(chat: Chat) -> None:
    temporary = chat.directory / "new.md"
    with opened(temporary, os.O_RDWR | os.O_CREAT) as descriptor:
        os.write(descriptor, b"## user\n\nnew\n")
        os.rename(temporary, chat.md)
        assert os.pread(descriptor, 100, 0) == b"## user\n\nnew\n"
        assert os.fstat(descriptor).st_size == 13
        chat.say("more")
        assert chat.md.read_bytes().startswith(b"## user\n\nnew\n")
        assert len(cat(chat.md)) == chat.md.stat().st_size > 13
    assert not temporary.exists()


def test_saves_by_rename_again_and_again(chat: Chat) -> None:
    for number in range(10):
        text = b"## user\n\n%d%b\n" % (number, b"x" * (number % 3))
        by_a_rename_over_it(chat.md, text)
        assert chat.md.read_bytes() == text == cat(chat.md)
        assert chat.md.stat().st_size == len(text)
    inode = chat.md.stat().st_ino
    assert {entry.name: entry.inode() for entry in os.scandir(chat.directory)}["history.md"] == inode


def test_a_copy_is_left_where_it_is_moved(chat: Chat) -> None:
    text = chat.md.read_bytes()
    backup = chat.directory / "history.md.bak"
    chat.md.rename(backup)
    assert not chat.md.exists()
    assert "history.md" not in os.listdir(chat.directory)
    assert backup.read_bytes() == text
    assert chat.events() == []
    backup.rename(chat.md)
    assert chat.md.read_bytes() == text
    assert chat.events() == []
    assert not backup.exists()


def test_removed_it_is_hidden_until_the_log_moves(chat: Chat) -> None:
    chat.md.unlink()
    assert not chat.md.exists()
    with refused(errno.ENOENT):
        chat.md.read_bytes()
    assert sorted(os.listdir(chat.directory)) == ["attachments", "chat.json", "history.jsonl"]
    chat.say("more")
    assert b"more" in chat.md.read_bytes()
    assert "history.md" in os.listdir(chat.directory)


def test_removed_while_open_it_is_still_readable(chat: Chat) -> None:
    text = chat.md.read_bytes()
    with chat.md.open("rb") as file:
        chat.md.unlink()
        assert file.read() == text
        assert os.fstat(file.fileno()).st_size == len(text)


def test_hidden_files_come_back_with_a_remount(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say("hello")
    for path in (chat.md, chat.jsonl, chat.directory / "chat.json"):
        path.unlink()
    chat.attachments.rmdir()
    assert os.listdir(chat.directory) == []
    assert chat.events() == []
    mounted.remount()
    assert sorted(os.listdir(chat.directory)) == ["attachments", "chat.json", "history.jsonl", "history.md"]


def test_it_cannot_take_anothers_place(chat: Chat, workspace: Workspace) -> None:
    other = workspace.chat("other")
    with refused(errno.EPERM):
        chat.md.rename(chat.directory / "chat.json")
    with refused(errno.EPERM):
        chat.md.rename(chat.jsonl)
    with refused(errno.EXDEV):
        chat.md.rename(other.md)
    with refused(errno.EXDEV):
        chat.md.rename(chat.attachments / "a.md")
    with refused(errno.EPERM):
        (chat.directory / "second").hardlink_to(chat.md)


def test_owner_mode_and_times(chat: Chat) -> None:
    before = chat.md.stat()
    os.chmod(chat.md, 0o400)
    os.utime(chat.md, (1, 1))
    os.chown(chat.md, os.getuid(), os.getgid())
    with refused(errno.EPERM):
        os.chown(chat.md, os.getuid() + 1, -1)
    after = chat.md.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, os.getuid())
    assert chat.events() == []
