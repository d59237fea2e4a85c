"""history.md: what is saved is what is read back, the difference becomes events, and bad text is refused and kept."""

from __future__ import annotations

import base64
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Chat, message
from tests.support.ops import append, opened, refused, rests
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

NOT_UTF8 = b"# x\n\n## user\n\n\xff\xfe\n"


def cat(path: Path) -> bytes:
    """What a process of its own reads."""
    return subprocess.run(["cat", path], check=True, capture_output=True).stdout


def in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def unbuffered_pieces(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
        for start in range(0, len(data), 7):
            os.write(descriptor, data[start : start + 7])


def without_truncating_first(path: Path, data: bytes) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))


def backwards(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC) as descriptor:
        for start in reversed(range(0, len(data), 10)):
            os.pwrite(descriptor, data[start : start + 10], start)


def by_a_rename_over_it(path: Path, data: bytes) -> None:
    temporary = path.with_name(".history.md.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def by_remove_and_create(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def by_backup_and_create(path: Path, data: bytes) -> None:
    backup = path.with_name("history.md~")
    path.rename(backup)
    path.write_bytes(data)
    backup.unlink()


def with_fsync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        assert cat(path) == data


SAVES: list[Callable[[Path, bytes], None]] = [
    in_place,
    unbuffered_pieces,
    without_truncating_first,
    backwards,
    by_a_rename_over_it,
    by_remove_and_create,
    by_backup_and_create,
    with_fsync,
]
ways = pytest.mark.parametrize("save", SAVES, ids=[way.__name__ for way in SAVES])


@ways
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"no heading",
        b"# Title\n\npreamble\n\n## user\n\nq\n\n## assistant\n\na\n",
        b"## user\r\n\r\ncrlf\r\n",
        b"## user\n\n## user\n\n\n\n## \xc3\xbc\xc3\xb1\n\n  indented\n\ttab  \n\n",
        b"## user\n\n" + b"long line " * 100_000 + b"\n",
    ],
    ids=["empty", "newline", "plain", "messages", "crlf", "odd", "large"],
)
def test_what_is_saved_is_read_back(chat: Chat, save: Callable[[Path, bytes], None], text: bytes) -> None:
    assert len(chat.md.read_bytes()) == chat.md.stat().st_size
    save(chat.md, text)
    assert chat.md.stat().st_size == len(text)
    assert chat.md.read_bytes() == text == cat(chat.md)
    assert set(os.listdir(chat.directory)) == {"history.jsonl", "history.md", "chat.json", "attachments"}


@ways
def test_saving_what_was_read_is_no_event(chat: Chat, save: Callable[[Path, bytes], None]) -> None:
    text = chat.md.read_bytes()
    save(chat.md, text)
    assert chat.events() == []
    assert chat.md.read_bytes() == text


@ways
def test_an_edited_message_is_one_event_that_names_it(chat: Chat, save: Callable[[Path, bytes], None]) -> None:
    third = chat.say("the third")[0]
    first, second = (entry.data for entry in chat.log()[:2])
    save(chat.md, chat.md.read_bytes().replace(b"the third", b"the last!"))
    [event] = chat.events()
    assert (event["type"], event["id"], event["content"]) == ("message.edited", third, "the last!")
    assert [entry.data for entry in chat.log()[:2]] == [first, second]


def test_messages_added_edited_and_removed_in_one_save_are_one_batch(chat: Chat) -> None:
    text = chat.md.read_bytes()
    head, _, _ = text.partition(b"## user")
    second = text[text.index(b"## assistant") :].replace(b"hi there", b"hello to you")
    chat.md.write_bytes(head + second + b"\n## user\n\nbye\n")
    kinds = chat.types()
    assert sorted(kinds) == ["message.appended", "message.edited", "message.removed"]
    assert [entry.more for entry in chat.log()[-3:]] == [2, 1, 0]
    assert chat.log()[-1].actor.startswith(f"uid:{os.getuid()}/")


def test_the_preamble_and_the_title(chat: Chat) -> None:
    text = chat.md.read_bytes()
    chat.md.write_bytes(b"# A trip\n\nnotes\n\n" + text)
    assert chat.types() == ["preamble.edited"]
    assert b'"title": "A trip"' in (chat.directory / "chat.json").read_bytes()


def test_size_and_mtime_move_and_the_inode_stays(chat: Chat) -> None:
    before = chat.md.stat()
    text = chat.md.read_bytes()
    chat.md.write_bytes(text.replace(b"hello", b"HELLO"))
    after = chat.md.stat()
    assert after.st_size == before.st_size
    assert after.st_mtime_ns > before.st_mtime_ns
    by_a_rename_over_it(chat.md, text)
    again = chat.md.stat()
    assert again.st_mtime_ns > after.st_mtime_ns
    append(chat.jsonl, message("more"))
    assert chat.md.stat().st_mtime_ns > again.st_mtime_ns


def test_an_append_is_an_event_and_costs_what_is_written(chat: Chat) -> None:
    before = chat.md.read_bytes()
    append(chat.md, b"\n## user\n\nfirst line\n")
    append(chat.md, b"second line\n")
    assert chat.types() == ["message.appended", "message.edited"]
    assert chat.md.read_bytes() == before + b"\n## user\n\nfirst line\nsecond line\n" == cat(chat.md)
    assert b"second line" in chat.log()[-1].data
    assert b"first line" not in chat.log()[-1].data


def test_appends_through_one_descriptor_with_appends_to_the_log_between(chat: Chat) -> None:
    with opened(chat.md, os.O_WRONLY | os.O_APPEND) as descriptor:
        for number in range(3):
            os.write(descriptor, b"\n## user\n\nmd %d\n" % number)
            os.fsync(descriptor)
            append(chat.jsonl, message(f"jsonl {number}"))
    contents = [event["content"] for event in chat.events()]
    assert contents == ["md 0", "jsonl 0", "md 1", "jsonl 1", "md 2", "jsonl 2"]
    assert chat.md.stat().st_size == len(chat.md.read_bytes()) == len(cat(chat.md))


@pytest.mark.parametrize("how", [">", ">>"])
def test_a_redirected_subshell_is_saved_as_one_text(chat: Chat, how: str) -> None:
    before = chat.md.read_bytes() if how == ">>" else b""
    script = f"( /bin/echo; /bin/echo '## user'; /bin/echo; /bin/echo a; /bin/echo b ) {how} history.md"
    subprocess.run(["sh", "-c", script], check=True, cwd=chat.directory)
    assert chat.md.read_bytes() == before + b"\n## user\n\na\nb\n" == cat(chat.md)
    assert chat.md.stat().st_size == len(before) + 14


def test_an_empty_redirection_empties_it(chat: Chat) -> None:
    subprocess.run(["sh", "-c", ": > history.md"], check=True, cwd=chat.directory)
    assert chat.types() == ["message.removed", "message.removed"]
    assert (chat.md.read_bytes(), chat.md.stat().st_size) == (b"", 0)


def test_a_save_in_progress_is_seen_by_its_own_process_alone(chat: Chat) -> None:
    before = chat.md.read_bytes()
    other = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert other.stdin is not None
    assert other.stdout is not None

    def others_view() -> tuple[int, bytes]:
        print(f"stat -c %s {chat.md}; wc -c < {chat.md}; base64 -w 0 {chat.md}; echo", file=other.stdin)
        size, count, text = (other.stdout.readline().strip() for _ in range(3))
        assert size == count
        return int(size), base64.b64decode(text)

    with opened(chat.md, os.O_RDWR | os.O_TRUNC) as descriptor:
        assert (chat.md.stat().st_size, chat.md.read_bytes()) == (0, b"")
        assert others_view() == (len(before), before)
        os.write(descriptor, b"## user\n\nhalf")
        assert (chat.md.stat().st_size, chat.md.read_bytes()) == (13, b"## user\n\nhalf")
        assert others_view() == (len(before), before)
        assert os.lseek(descriptor, 0, os.SEEK_END) == 13
        os.write(descriptor, b" and half\n")
        assert os.pread(descriptor, 100, 0) == b"## user\n\nhalf and half\n"
        assert chat.events() == []
    assert others_view() == (23, b"## user\n\nhalf and half\n")
    other.stdin.close()
    assert other.wait(10) == 0
    other.stdout.close()


def test_an_open_reader_never_sees_half_a_save(chat: Chat) -> None:
    before = chat.md.read_bytes()
    program = (
        "import sys; f = open(sys.argv[1], 'w', 1); print('# half', file=f); print(flush=True); input(); f.close()"
    )
    with chat.md.open("rb", buffering=0) as reader:
        command = [sys.executable, "-c", program, chat.md]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert writer.stdout is not None
        writer.stdout.read(1)
        assert os.fstat(reader.fileno()).st_size == len(before)
        assert reader.read() == before
        writer.communicate(b"\n", timeout=10)
        assert writer.returncode == 0
        assert os.pread(reader.fileno(), 1000, 0) == b"# half\n"


def test_listing_while_a_save_is_open(chat: Chat) -> None:
    with opened(chat.md, os.O_WRONLY | os.O_TRUNC) as descriptor:
        os.write(descriptor, b"12345")
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(chat.directory)}
        assert sizes["history.md"] == 5
        assert os.fstat(descriptor).st_size == 5


def test_mappings(chat: Chat) -> None:
    """Reading ones are pages of the kernel's; a writing handle has none."""
    text = chat.md.read_bytes()
    wait_for(lambda: rests(chat.md))
    with chat.md.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert bytes(mapped) == text
        edited = text.replace(b"hello", b"HELLO")
        chat.md.write_bytes(edited)
        assert chat.md.read_bytes() == edited
        assert bytes(mapped) == edited
    with chat.md.open("r+b") as file, refused(errno.ENODEV):
        mmap.mmap(file.fileno(), 0)


def test_truncate_by_name_is_a_save(chat: Chat) -> None:
    text = chat.md.read_bytes()
    os.truncate(chat.md, text.index(b"## assistant"))
    assert chat.types()[0] == "message.removed"
    assert chat.md.read_bytes() == text[: text.index(b"## assistant")]


def test_large_text_in_pieces(chat: Chat) -> None:
    text = b"".join(b"## user\n\nmessage %d %b\n\n" % (number, b"x" * 1000) for number in range(8000))
    chat.md.write_bytes(text)
    assert chat.md.stat().st_size == len(text) > 8_000_000
    assert cat(chat.md) == text
    edited = text.replace(b"message 4321 ", b"MESSAGE 4321 ")
    chat.events()
    chat.md.write_bytes(edited)
    [event] = chat.events()
    assert (event["type"], event["content"][:12]) == ("message.edited", "MESSAGE 4321")
    assert cat(chat.md) == edited


def test_only_the_last_close_of_a_descriptor_saves(chat: Chat) -> None:
    """A duplicate's close, or a child's that inherited it, comes before the text is whole."""
    descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
    duplicate = os.dup(descriptor)
    os.write(descriptor, b"## user\n\none\n")
    os.close(duplicate)
    subprocess.run(["true"], check=True)
    assert chat.events() == []
    os.write(descriptor, b"two\n")
    os.close(descriptor)
    assert cat(chat.md) == b"## user\n\none\ntwo\n"
    assert sorted(chat.types()) == ["message.edited", "message.removed"]


def test_what_a_child_writes_is_saved_when_it_ends(chat: Chat) -> None:
    descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
    with subprocess.Popen(["sh", "-c", "read go; printf '# a child wrote'"], stdin=subprocess.PIPE, stdout=descriptor):
        os.close(descriptor)
    wait_for(lambda: chat.md.read_bytes() == b"# a child wrote")


def test_two_descriptors_of_one_process_share_what_is_written(chat: Chat) -> None:
    with opened(chat.md, os.O_RDWR | os.O_TRUNC) as first, opened(chat.md, os.O_RDWR) as second:
        os.write(first, b"## user\n\n")
        assert os.pread(second, 100, 0) == b"## user\n\n"
        os.pwrite(second, b"text\n", 9)
        assert os.pread(first, 100, 0) == b"## user\n\ntext\n"
    assert cat(chat.md) == b"## user\n\ntext\n"
