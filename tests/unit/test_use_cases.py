"""The use cases of workspaces and chats, on the memory driver: as a program with the library has them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import orjson
import pytest

from store import events as ev
from store.errors import (
    AttachmentNotFound,
    ChatBusy,
    ChatNotFound,
    InvalidEvent,
    InvalidInput,
    InvalidName,
    InvalidText,
    LineTooLong,
    MessageNotFound,
    NameTaken,
    NameTooLong,
    NotEmpty,
    QuotaExceeded,
    WorkspaceNotFound,
)
from store.library import Store, open_store
from store.model import LINE_MAX, NewEntry
from store.workspace import Workspace
from store.workspace_state import Place
from tests.support.sandboxed import session_of

ME = "test"
_names = itertools.count()


@pytest.fixture
def url() -> str:
    return f"memory:use-cases-{next(_names)}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(url) as opened:
        yield opened


@pytest.fixture
async def workspace(store: Store) -> Workspace:
    return await store.create_workspace("demo", ME)


async def test_a_workspace_is_found_by_name_and_by_id(store: Store, workspace: Workspace) -> None:
    assert (await store.workspace("demo")).id == workspace.id
    assert (await store.workspace(workspace.id)).id == workspace.id
    with pytest.raises(WorkspaceNotFound):
        await store.workspace("other")


async def test_a_workspace_name_is_given_once_and_again_after_it_is_free(store: Store, workspace: Workspace) -> None:
    with pytest.raises(NameTaken):
        await store.create_workspace("demo", ME)
    await workspace.trash(ME)
    with pytest.raises(WorkspaceNotFound):
        await store.workspace("demo")
    again = await store.create_workspace("demo", ME)
    assert again.id != workspace.id
    assert [found.id for found in await store.workspaces()] == [again.id]


async def test_a_renamed_workspace_leaves_its_name(store: Store, workspace: Workspace) -> None:
    await store.rename_workspace(workspace, "work", ME)
    assert (await store.workspace("work")).id == workspace.id
    await store.create_workspace("demo", ME)
    with pytest.raises(NameTaken):
        await store.rename_workspace(workspace, "demo", ME)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\nb", "a\x7f", "\u2028"])
async def test_names_that_cant_be(store: Store, workspace: Workspace, name: str) -> None:
    with pytest.raises(InvalidName):
        await workspace.create_chat(name, ME)
    with pytest.raises(InvalidName):
        await store.create_workspace(name, ME)
    assert not workspace.state.chats


async def test_names_have_255_bytes_at_most(workspace: Workspace) -> None:
    await workspace.create_chat("é" * 127, ME)
    with pytest.raises(NameTooLong):
        await workspace.create_chat("é" * 128, ME)


async def test_a_chat_goes_through_all_places(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await workspace.move_chat(chat.id, Place.CHATS, "journey", ME)
    await workspace.move_chat(chat.id, Place.ARCHIVE, "journey", ME)
    assert (await workspace.record("journey")).place is Place.ARCHIVE
    with pytest.raises(NameTaken):
        await workspace.create_chat("journey", ME)
    await workspace.move_chat(chat.id, Place.CHATS, "trip", ME)
    await workspace.trash_chat(chat.id, ME)
    with pytest.raises(ChatNotFound):
        await workspace.chat("trip")
    await workspace.create_chat("trip", ME)
    with pytest.raises(NameTaken):
        await workspace.move_chat(chat.id, Place.CHATS, "trip", ME)
    await workspace.move_chat(chat.id, Place.CHATS, "trip 2", ME)
    assert (await workspace.chat("trip 2")).id == chat.id
    types = [type(ev.parse(entry.data)).__name__ async for entry in workspace.space.read()]
    assert types == [
        "WorkspaceCreated",
        "ChatCreated",
        "ChatRenamed",
        "ChatArchived",
        "ChatRenamed",
        "ChatUnarchived",
        "ChatTrashed",
        "ChatCreated",
        "ChatRenamed",
        "ChatRestored",
    ]


async def test_trashed_chats_of_one_name_are_told_apart(workspace: Workspace) -> None:
    for _ in range(3):
        await workspace.trash_chat((await workspace.create_chat("trip", ME)).id, ME)
    assert [name for name, _ in workspace.state.in_place(Place.TRASH)] == ["trip", "trip~2", "trip~3"]


async def test_what_went_with_a_chat_comes_back_with_it(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    for name in ("early", "a", "b"):
        await chat.attach(name, b"x", ME)
    await chat.remove_attachment("early", ME)
    since = await chat.remove_attachment("a", ME)
    await chat.remove_attachment("b", ME)
    await workspace.trash_chat(chat.id, ME, since=since)
    await workspace.move_chat(chat.id, Place.CHATS, "trip", ME)
    assert set((await chat.load()).attachments) == {"a", "b"}


async def test_a_sandbox_keeps_its_chat(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    key = f"sandboxes/{chat.id}"
    await workspace.driver.kv.put(key, session_of(workspace.id, chat.id))
    with pytest.raises(ChatBusy):
        await workspace.trash_chat(chat.id, ME)
    with pytest.raises(ChatBusy):
        await workspace.move_chat(chat.id, Place.ARCHIVE, "trip", ME)
    await workspace.driver.kv.put(key, session_of(workspace.id, chat.id, lapses_in=-1))
    await workspace.trash_chat(chat.id, ME)


async def test_a_workspace_with_chats_stays(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await workspace.move_chat(chat.id, Place.ARCHIVE, "trip", ME)
    with pytest.raises(NotEmpty):
        await workspace.trash(ME)
    await workspace.trash_chat(chat.id, ME)
    await workspace.trash(ME)


async def test_lines_are_one_batch_or_nothing(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    with pytest.raises(InvalidEvent) as caught:
        await chat.append_lines([b'{"role":"user","content":"hi"}', b"", b"nope"], ME)
    assert caught.value.line == 3
    assert (await chat.head()).seq == 0
    with pytest.raises(LineTooLong):
        await chat.append_lines([b'"' + b"x" * LINE_MAX + b'"'], ME)
    assert await chat.append_lines([b'{"role":"user","content":"hi"}', b" 42 "], ME) == 2
    assert [entry.more async for entry in chat.log()] == [1, 0]


async def test_messages_are_edited_and_removed(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_events([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], ME)
    first, second = await chat.messages()
    await chat.edit_message(first.id, "uno", ME)
    await chat.remove_message(second.id, ME)
    assert [message.content for message in await chat.messages()] == ["uno"]
    with pytest.raises(MessageNotFound):
        await chat.edit_message(second.id, "dos", ME)


async def test_a_save_is_the_difference(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_events([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], ME)
    text = await chat.text()
    outcome = await chat.save_text(text.replace(b"two", b"2"), ME)
    assert (outcome.changed, outcome.seq) == (True, 3)
    assert not (await chat.save_text(await chat.text(), ME)).changed
    with pytest.raises(InvalidText):
        await chat.save_text(b"\xff", ME)


async def test_a_late_save_keeps_both_sides_twice(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_events([{"role": "user", "content": "one"}], ME)
    read, text = (await chat.load()).seq, await chat.text()
    await chat.append_events([{"role": "assistant", "content": "from elsewhere"}], "other")
    first = text.replace(b"one", b"ONE") + b"\n## user\n\nmore\n"
    outcome = await chat.save_text(first, ME, base=read)
    assert outcome.conflict is None
    contents = [message.content for message in await chat.messages()]
    assert contents == ["ONE", "from elsewhere", "more"]
    # The editor still shows what it saved, without the other's message: its next save must not take that away.
    again = await chat.save_text(first.replace(b"more", b"more!"), ME, base=outcome.seen)
    assert [message.content for message in await chat.messages()] == ["ONE", "from elsewhere", "more!"]
    assert [type(ev.parse(entry.data)) async for entry in chat.log(outcome.seq)] == [ev.MessageEdited]
    assert again.conflict is None


async def test_where_both_changed_the_same_line_the_save_wins(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_events([{"id": "m", "role": "user", "content": "one"}], ME)
    read, text = (await chat.load()).seq, await chat.text()
    await chat.edit_message("m", "theirs", "other")
    outcome = await chat.save_text(text.replace(b"one", b"mine"), ME, base=read)
    assert [message.content for message in await chat.messages()] == ["mine"]
    assert outcome.conflict is not None
    assert b"theirs" in outcome.conflict


async def test_a_save_of_what_was_read_meanwhile_doubles_nothing(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_events([{"role": "user", "content": "one"}], ME)
    read = (await chat.load()).seq
    await chat.append_events([{"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}], "other")
    # The writer has read all of it since, from the kernel's cache, say: nobody was told.
    await chat.save_text(await chat.text() + b"\n## user\n\nfour\n", ME, base=read)
    assert [message.content for message in await chat.messages()] == ["one", "two", "three", "four"]


async def test_an_envelope_with_an_impossible_time_is_just_a_value(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    for ts in (10**18, 253_402_300_800_000, -1):
        line = b'{"seq":1,"ts":%d,"actor":"x","data":1}' % ts
        await chat.append_lines(
            [line, b'{"seq":1,"ts":5,"actor":"x","origin":{"actor":"y","ts":%d},"data":1}' % ts], ME
        )
    await chat.release()
    entries = [entry async for entry in chat.log()]
    assert [entry.origin.ts if entry.origin else None for entry in entries] == [None, 5] * 3
    await chat.append_lines([b"1"], ME)


async def test_blanks_in_an_envelope_break_no_log(workspace: Workspace) -> None:
    line = b'{"seq":1,"ts":1,"actor":"x","data": {"role":"user","content":"hi"} ,"crc":"00000000"}'
    chat = await workspace.create_chat("trip", ME)
    await chat.append_lines([line], ME)
    assert [message.content for message in await chat.messages()] == ["hi"]
    assert [orjson.loads(entry.data)["content"] async for entry in chat.log()] == ["hi"]


async def test_an_entry_that_says_nothing_spoils_no_workspace(workspace: Workspace) -> None:
    await workspace.create_chat("trip", ME)
    await workspace.append_lines([NewEntry(b'{"type":"chat.created",{}', ME), NewEntry(b"1", ME)])
    assert (await workspace.load()).seq == 4
    assert (await workspace.chat("trip")).called == "demo/trip"


async def test_what_logs_claim_of_a_blob_frees_no_quota(workspace: Workspace) -> None:
    chat, other = await workspace.create_chat("trip", ME), await workspace.create_chat("other", ME)
    put = await chat.attach("a", b"x" * 100_000, ME)
    used = await workspace.usage()
    assert used >= 100_000
    for size in (0, -(10**9)):
        claim = ev.AttachmentPut("1", "b", put.digest, size, "text/plain").encode()
        await other.append_lines([claim, claim.replace(put.digest.encode(), b"sha256:other")], ME)
        assert await workspace.usage() >= used


async def test_what_was_appended_is_synced_before_it_leaves_memory(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.append_lines([b"1"], ME)
    assert chat.space.unsynced
    await chat.release()
    assert not chat.space.unsynced
    await chat.append_lines([b"1"], ME)
    await chat.sync()
    assert not chat.space.unsynced
    assert not workspace.space.unsynced


async def test_a_time_beyond_what_a_log_keeps_is_bounded(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    ref = await workspace.driver.blobs.put(b"x")
    put = await chat.put_attachment("a", ref, ME, mtime_ns=10**20)
    assert put.mtime_ns == (1 << 63) - 1


async def test_attachments(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.attach("a.txt", b"hello", ME)
    before = (await chat.head()).seq
    await chat.attach("a.txt", b"hello", ME)
    assert (await chat.head()).seq == before
    await chat.rename_attachment("a.txt", "b.txt", ME)
    assert b"".join([piece async for piece in chat.read_attachment("b.txt", 1, 3)]) == b"ell"
    with pytest.raises(AttachmentNotFound):
        await chat.attachment("a.txt")
    for name in ("history.md", ".hidden", "a/b"):
        with pytest.raises(InvalidName):
            await chat.attach(name, b"", ME)


async def test_metadata_is_checked(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.change(ME, title="Trip", labels=["a"])
    seq = (await chat.head()).seq
    await chat.change(ME, title="Trip", labels=["a"])
    assert (await chat.head()).seq == seq
    for bad in ("two\nlines", " untrimmed", "x" * 1001):
        with pytest.raises(InvalidInput):
            await chat.change(ME, title=bad)
    with pytest.raises(InvalidInput):
        await workspace.change(ME, quota_bytes=-1)


async def test_the_quota_holds(workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await workspace.change(ME, quota_bytes=await workspace.usage() + 1000)
    await chat.append_events([{"role": "user", "content": "x"}], ME)
    with pytest.raises(QuotaExceeded):
        await chat.append_events([{"role": "user", "content": "x" * 1000}], ME)
    with pytest.raises(QuotaExceeded):
        await chat.attach("a", b"x" * 2000, ME)
    await workspace.change(ME, quota_bytes=0)
    await chat.append_events([{"role": "user", "content": "x" * 1000}], ME)


async def test_chats_that_nobody_uses_leave_memory_and_come_back(store: Store, workspace: Workspace) -> None:
    chats = [await workspace.create_chat(f"chat {number}", ME) for number in range(10)]
    for chat in chats:
        await chat.append_events([{"role": "user", "content": chat.id}], ME)
        await chat.load()
    with chats[0].hold():
        await store.trim(keep=2)
        assert [chat.space.loaded for chat in chats] == [True] + [False] * 8 + [True]
    assert [chat.id.encode() in await chat.text() for chat in chats] == [True] * 10


async def test_two_stores_see_each_other(url: str, store: Store, workspace: Workspace) -> None:
    chat = await workspace.create_chat("trip", ME)
    await chat.load()
    async with open_store(url) as other:
        theirs = await (await other.workspace("demo")).chat("trip")
        await theirs.append_events([{"role": "user", "content": "hi"}], "other")
        assert [message.content for message in await chat.messages()] == ["hi"]
        await workspace.move_chat(chat.id, Place.CHATS, "journey", ME)
        assert (await (await other.workspace("demo")).chat("journey")).id == chat.id
        assert [found.state.name for found in await store.workspaces()] == ["demo"]
