"""history.jsonl: append-only, one event per complete line, one write(2) one atomic batch."""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import subprocess

import pytest

from store.model import LINE_MAX
from tests.support.mounts import Chat, Mounted, Workspace, message
from tests.support.ops import append, opened, refused

pytestmark = pytest.mark.mount

APPEND = os.O_WRONLY | os.O_APPEND


def kept_aside(chat: Chat) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in chat.directory.glob("*.rejected-*")}


def test_one_write_is_one_batch(chat: Chat) -> None:
    append(chat.jsonl, b"".join(message(text) for text in ("one", "two", "three")))
    assert [event["content"] for event in chat.events()] == ["one", "two", "three"]
    assert [entry.more for entry in chat.log()] == [1, 0, 2, 1, 0]
    assert [entry.seq for entry in chat.log()] == [1, 2, 3, 4, 5]


def test_a_message_gets_type_and_id_and_keeps_its_own(chat: Chat) -> None:
    append(chat.jsonl, b'{"role":"user","content":"a"}\n{"id":"mine","role":"tool","content":"b","more":{"x":1}}\n')
    first, second = chat.events()
    assert (first["type"], first["role"], first["content"]) == ("message.appended", "user", "a")
    assert len(first["id"]) == 36
    assert second == {"type": "message.appended", "id": "mine", "role": "tool", "content": "b", "more": {"x": 1}}


@pytest.mark.parametrize(
    "value", [b"42", b'"text"', b"[1,[2]]", b"null", b"true", b'{"a":1.50,"a":2}', b'{"type":"x"}']
)
def test_any_other_json_value_is_kept_verbatim(chat: Chat, value: bytes) -> None:
    append(chat.jsonl, value + b"\n")
    assert chat.log()[-1].data == value
    assert b'"data":' + value in chat.jsonl.read_bytes().splitlines()[-1]


def test_empty_lines_and_carriage_returns_are_no_events(chat: Chat) -> None:
    assert append(chat.jsonl, b"\n\r\n  \n1\r\n") == 9
    assert [entry.data for entry in chat.log()[2:]] == [b"1"]


def test_an_entry_in_envelope_form_keeps_who_wrote_it_as_its_origin(chat: Chat, workspace: Workspace) -> None:
    other = workspace.chat("other")
    append(other.jsonl, chat.jsonl.read_bytes())
    assert [entry.data for entry in other.log()] == [entry.data for entry in chat.log()]
    assert [entry.origin and (entry.origin.actor, entry.origin.ts) for entry in other.log()] == [
        (entry.actor, entry.ts) for entry in chat.log()
    ]
    assert other.md.read_bytes() == chat.md.read_bytes()


def test_valid_lines_before_an_invalid_one_are_a_short_write(chat: Chat) -> None:
    good, bad = message("good"), b"{bad\n"
    with opened(chat.jsonl, APPEND) as descriptor:
        assert os.write(descriptor, good + bad + message("never")) == len(good)
        with refused(errno.EINVAL):
            os.write(descriptor, bad + message("never"))
        assert os.write(descriptor, message("after")) == len(message("after"))
    assert [event["content"] for event in chat.events()] == ["good", "after"]
    assert kept_aside(chat) == {}


@pytest.mark.parametrize("bad", [b"not json\n", b'{"a":1}{"b":2}\n', b'"\xff"\n', b"{'a':1}\n", b"NaN\n", b"[1,]\n"])
def test_what_is_not_json_is_refused(chat: Chat, bad: bytes) -> None:
    with refused(errno.EINVAL):
        append(chat.jsonl, bad)
    assert chat.events() == []
    assert kept_aside(chat) == {}


def test_a_line_split_over_writes_waits_for_its_newline(chat: Chat) -> None:
    with opened(chat.jsonl, APPEND) as descriptor:
        for piece in (b'{"type":', b'"step","n', b'":1}\n{"type":"st'):
            assert os.write(descriptor, piece) == len(piece)
        assert chat.events() == [{"type": "step", "n": 1}]
        assert os.write(descriptor, b'ep","n":2}\nbad\n3\n') == len(b'ep","n":2}\n')
        assert chat.events() == [{"type": "step", "n": 2}]
    assert chat.events() == []


def test_a_tail_without_a_newline_is_an_event_at_close(chat: Chat) -> None:
    descriptor = os.open(chat.jsonl, APPEND)
    os.write(descriptor, b'{"type":"last"}')
    assert chat.events() == []
    os.close(descriptor)
    assert chat.events() == [{"type": "last"}]


def test_an_invalid_tail_at_close_is_refused_and_kept(chat: Chat) -> None:
    for number in (1, 2):
        descriptor = os.open(chat.jsonl, APPEND)
        os.write(descriptor, b'%d\n{"type":' % number)
        with refused(errno.EINVAL):
            os.close(descriptor)
    assert chat.events() == [1, 2]
    assert kept_aside(chat) == {"history.jsonl.rejected-1": b'{"type":', "history.jsonl.rejected-2": b'{"type":'}


def test_a_tail_may_be_finished_through_a_duplicate(chat: Chat) -> None:
    script = "( /bin/echo -n '{\"type\":'; /bin/echo '\"pieces\"}' ) >> history.jsonl"
    subprocess.run(["sh", "-c", script], check=True, cwd=chat.directory)
    assert chat.events() == [{"type": "pieces"}]
    assert kept_aside(chat) == {}


def test_a_carried_line_that_turns_out_bad_is_kept_whole(chat: Chat) -> None:
    with opened(chat.jsonl, APPEND) as descriptor:
        os.write(descriptor, b'{"type":')
        with refused(errno.EINVAL):
            os.write(descriptor, b"oops}\n")
    assert chat.events() == []
    assert kept_aside(chat) == {"history.jsonl.rejected-1": b'{"type":oops}'}


def test_the_longest_line_is_16_mib(chat: Chat) -> None:
    longest = b'"%b"' % (b"x" * (LINE_MAX - 2))
    with opened(chat.jsonl, APPEND) as descriptor:
        left = memoryview(longest + b"\n")
        while left:
            left = left[os.write(descriptor, left) :]
    assert chat.log()[-1].data == longest


def test_a_longer_line_is_refused(chat: Chat) -> None:
    line = b'"%b"' % (b"x" * (LINE_MAX - 1))
    with opened(chat.jsonl, APPEND) as descriptor:
        left = memoryview(line + b"\n")
        with refused(errno.EFBIG):
            while left:
                left = left[os.write(descriptor, left) :]
        os.write(descriptor, b"1\n")
    assert chat.events() == [1]
    assert kept_aside(chat) == {"history.jsonl.rejected-1": line}


def test_a_much_longer_line_is_refused_before_its_end(chat: Chat) -> None:
    descriptor = os.open(chat.jsonl, APPEND)
    with refused(errno.EFBIG):
        for _ in range(20):
            os.write(descriptor, b"x" * (1 << 20))
    with refused(errno.EINVAL):
        os.close(descriptor)
    assert chat.events() == []
    assert append(chat.jsonl, b"1\n") == 2
    assert chat.events() == [1]


def test_a_large_batch_in_one_call(chat: Chat) -> None:
    lines = b"".join(message(f"{number} " + "x" * 1000) for number in range(5000))
    with chat.jsonl.open("ab", buffering=0) as log:
        written = log.write(lines)
    assert written == len(lines)
    assert [int(event["content"].split()[0]) for event in chat.events()] == list(range(5000))
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()


def test_nothing_overwrites_the_log(chat: Chat) -> None:
    before = chat.jsonl.read_bytes()
    with refused(errno.EPERM):
        os.open(chat.jsonl, os.O_WRONLY | os.O_TRUNC)
    with refused(errno.EPERM):
        os.truncate(chat.jsonl, 0)
    with refused(errno.EPERM):
        os.truncate(chat.jsonl, len(before) + 1)
    os.truncate(chat.jsonl, len(before))
    with opened(chat.jsonl, os.O_RDWR) as descriptor:
        with refused(errno.EPERM):
            os.write(descriptor, b"1\n")
        with refused(errno.EPERM):
            os.pwrite(descriptor, b"1\n", len(before))
        with refused(errno.EPERM):
            os.ftruncate(descriptor, 3)
    assert chat.jsonl.read_bytes() == before == chat.log_file.read_bytes()


def test_an_empty_log_can_be_replaced_and_truncated(workspace: Workspace) -> None:
    chat = workspace.chat()
    chat.jsonl.write_bytes(b"")
    os.truncate(chat.jsonl, 0)
    chat.jsonl.write_bytes(b"1\n2\n")
    assert chat.events() == [1, 2]
    with refused(errno.EPERM):
        chat.jsonl.write_bytes(b"1\n2\n3\n")


def test_size_mtime_and_content_move_with_every_append(chat: Chat) -> None:
    seen = chat.jsonl.stat()
    for number in range(5):
        append(chat.jsonl, b"%d\n" % number)
        now = chat.jsonl.stat()
        text = chat.jsonl.read_bytes()
        assert now.st_size == len(text) == chat.log_file.stat().st_size
        assert now.st_mtime_ns > seen.st_mtime_ns
        assert now.st_ino == seen.st_ino
        assert text == chat.log_file.read_bytes()
        seen = now


def test_an_open_reader_sees_what_is_appended(chat: Chat) -> None:
    with chat.jsonl.open("rb", buffering=0) as reader:
        assert len(reader.read().splitlines()) == 2
        for number in range(3):
            append(chat.jsonl, b"%d\n" % number)
            assert json.loads(reader.read())["data"] == number


def test_a_writer_can_read_back(chat: Chat) -> None:
    with opened(chat.jsonl, os.O_RDWR | os.O_APPEND) as descriptor:
        os.write(descriptor, b'{"type":"x"}\n')
        assert os.pread(descriptor, 1 << 20, 0) == chat.log_file.read_bytes()
        os.fsync(descriptor)
        os.fdatasync(descriptor)


def test_the_log_can_be_mapped(chat: Chat) -> None:
    """Privately; it is read past the kernel's cache, which a shared mapping would show."""
    with chat.jsonl.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
            assert bytes(mapped) == chat.log_file.read_bytes()
        with refused(errno.ENODEV):
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def test_the_actor_is_the_user_and_the_program(chat: Chat) -> None:
    subprocess.run(["tee", "-a", chat.jsonl], input=b"1\n", check=True, capture_output=True)
    assert chat.log()[-1].actor == f"uid:{os.getuid()}/tee"


def test_the_inode_is_the_same_after_a_remount(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say("hello")
    (chat.attachments / "a").write_bytes(b"a")
    paths = [chat.jsonl, chat.md, chat.directory / "chat.json", chat.attachments / "a", chat.attachments]
    paths += [chat.directory, *chat.directory.parents[:2]]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    text = chat.jsonl.read_bytes()
    mounted.remount()
    assert [(path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in paths] == before
    assert chat.jsonl.read_bytes() == text
    assert len({inode for inode, _, _ in before}) == len(paths)


def test_the_workspace_log_takes_events_too(workspace: Workspace, chat: Chat) -> None:
    log = workspace.directory / "history.jsonl"
    assert log.read_bytes() == workspace.log_file.read_bytes()
    append(log, json.dumps({"type": "chat.renamed", "chat": chat.id, "name": "journey"}).encode() + b"\n")
    append(log, b'{"type":"note"}\n')
    assert os.listdir(workspace.directory / "chats") == ["journey"]
    assert (workspace.directory / "chats" / "journey" / "history.md").exists()
    assert not chat.directory.exists()
    assert workspace.events()[-1] == {"type": "note"}
    with refused(errno.EINVAL):
        append(log, b"nonsense\n")
    with refused(errno.EPERM):
        os.open(log, os.O_WRONLY | os.O_TRUNC)
    assert log.read_bytes() == workspace.log_file.read_bytes()
    assert log.stat().st_size == workspace.log_file.stat().st_size


def test_a_reader_is_told_that_the_log_is_readable(chat: Chat) -> None:
    with chat.jsonl.open("rb", buffering=0) as reader:
        found = select.select([reader], [], [], 5)
    assert found[0] == [reader]
