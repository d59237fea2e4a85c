"""One chat in two processes' hands (two opened stores): compacted, repaired, deleted beneath who has it loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from store import library
from store.chat import Chat
from store.compaction import compact
from store.errors import ChatNotFound, CorruptLog, SpaceNotFound, StoreError
from store.fsck.check import check_store
from store.gc.collect import collect
from store.library import Store, open_store
from store.model import Seq

ME = "test"
ONE_MORE = [b'{"role":"user","content":"one more"}']


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(url) as opened:
        yield opened


@pytest.fixture
async def chat(store: Store) -> Chat:
    made = await (await store.create_workspace("demo", ME)).create_chat("trip", ME)
    for number in range(20):
        await made.append_lines([b'{"role":"user","content":"number %d"}' % number], ME)
    await made.sync()
    return made


async def twin_of(store: Store) -> Chat:
    return await (await store.workspace("demo")).chat("trip")


async def test_who_is_behind_a_compaction_begins_at_its_state(url: str, chat: Chat) -> None:
    with chat.hold():
        await chat.load()
        async with open_store(url) as other:
            twin = await twin_of(other)
            await twin.append_lines([b'{"role":"user","content":"unseen"}'], ME)
            await compact(twin, keep=0)
        seq = await chat.append_lines(ONE_MORE, ME)
        assert seq == 23
        text = await chat.text()
        assert text == await chat.read_text(0, 1 << 20)
        assert [text.count(b"number 3\n"), text.count(b"unseen"), text.count(b"one more")] == [1, 1, 1]


async def test_a_log_that_is_shorter_after_a_repair_is_read_anew(url: str, chat: Chat, tmp_path: Path) -> None:
    with chat.hold():
        await chat.load()
        log = chat.directory / "history.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        with log.open("r+b") as file:
            file.seek(sum(map(len, lines[:6])))
            file.write(b"X" * (sum(map(len, lines[6:])) - 1))
        await trio.to_thread.run_sync(lambda: check_store(tmp_path / "store", repair=True))
        with trio.fail_after(20):
            await chat.append_lines(ONE_MORE, ME)
            assert b"one more" in await chat.text()
            assert b"one more" in await chat.read_text(0, 1 << 20)
            assert b"number 10" not in await chat.text()
            await chat.append_text(b"\nand text\n", ME)
    before = await chat.text()
    async with open_store(url) as other:
        assert await (await twin_of(other)).text() == before


async def test_a_chat_that_gc_has_deleted_isnt_made_again(url: str, store: Store, chat: Chat) -> None:
    workspace = chat.workspace
    await workspace.trash_chat(chat.id, ME)
    await workspace.space.sync()
    await chat.release()
    async with open_store(url) as other:
        await collect(other, "gc", retention_days=-1)
    with pytest.raises((SpaceNotFound, ChatNotFound)):
        await chat.append_lines(ONE_MORE, ME)
    assert not chat.directory.exists()


async def test_what_cant_be_dropped_from_memory_stays_and_is_durable_in_the_end(
    store: Store, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat.append_lines(ONE_MORE, ME)
    other = await chat.workspace.create_chat("other", ME)
    await other.load()

    async def fails(_log: object) -> None:
        raise StoreError("no")

    with monkeypatch.context() as patch:
        patch.setattr(type(chat.space), "_sync", lambda _self, log: fails(log))
        await store.trim(keep=0, text=0)
    assert chat.space.loaded
    assert chat.space.unsynced
    await store.aclose()
    assert not chat.space.unsynced
    assert not chat.space.loaded


async def test_a_reader_during_a_release_leaves_no_old_text(url: str, chat: Chat) -> None:
    await chat.read_text(0, 1 << 20)
    await chat.append_lines(ONE_MORE, ME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat.release)
        for _ in range(3):
            nursery.start_soon(chat.read_text, 0, 100)
    await chat.release()
    async with open_store(url) as other:
        twin = await twin_of(other)
        await twin.save_text((await twin.text()).replace(b"one more", b"two more"), ME)
    assert b"two more" in await chat.read_text(0, 1 << 20)
    assert await chat.read_text(0, 1 << 20) == await chat.text()


async def test_damage_in_the_last_batch_is_met(url: str, chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    await chat.release()
    log = chat.directory / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"number 19", b"number 91"))
    async with open_store(url) as other:
        twin = await twin_of(other)
        assert b"number 18" in await twin.text()
        assert isinstance(twin.space.damage, CorruptLog)
        with pytest.raises(CorruptLog):
            await twin.append_lines(ONE_MORE, ME)
    assert len([record for record in caplog.records if "is read-only" in record.message]) == 1


async def test_damage_of_a_log_that_is_one_batch_is_met(
    url: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = await store.create_workspace("demo", ME)
    chat = await workspace.create_chat("trip", ME)
    await chat.append_lines([b'{"role":"user","content":"number %d"}' % number for number in range(12)], ME)
    await chat.release()
    log = chat.directory / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"number 5", b"number 6"))
    async with open_store(url) as other:
        twin = await twin_of(other)
        await twin.load()
        assert isinstance(twin.space.damage, CorruptLog)
    assert len([record for record in caplog.records if "is read-only" in record.message]) == 1


async def test_a_lost_compaction_event_isnt_an_empty_past(url: str, chat: Chat, tmp_path: Path) -> None:
    await compact(chat, keep=0)
    for number in range(5):
        await chat.append_lines([b'{"role":"user","content":"later %d"}' % number], ME)
    text = await chat.text()
    await chat.release()
    log = chat.directory / "history.jsonl"
    for snapshot in (chat.directory / "snapshots").iterdir():
        snapshot.unlink()
    log.write_bytes(log.read_bytes().replace(b"log.compacted", b"log.compactee"))
    async with open_store(url) as other:
        twin = await twin_of(other)
        await twin.load()
        assert isinstance(twin.space.damage, CorruptLog)
    await trio.to_thread.run_sync(lambda: check_store(tmp_path / "store", repair=True))
    async with open_store(url) as other:
        twin = await twin_of(other)
        assert await twin.text() == text
        assert twin.space.damage is None
        await twin.append_lines(ONE_MORE, ME)


async def test_chats_that_are_opened_fast_dont_pile_up(store: Store) -> None:
    workspace = await store.create_workspace("many", ME)
    for number in range(2 * library.CHATS_AT_MOST):
        made = await workspace.create_chat(f"chat {number}", ME)
        await made.append_lines(ONE_MORE, ME)
        assert sum(chat.space.loaded for chat in store._recent) <= library.CHATS_AT_MOST + 2
    assert (await made.head()).seq == Seq(1)


async def test_others_have_their_turns_while_a_large_batch_of_another_process_is_taken_in(url: str, chat: Chat) -> None:
    seen: set[Seq] = set()

    async def look() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            assert chat.space.state is not None
            seen.add(chat.space.state.seq)

    with chat.hold():
        await chat.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with open_store(url) as other:
                lines = [b'{"role":"user","content":"and number %d"}' % number for number in range(20_000)]
                await (await twin_of(other)).append_lines(lines, ME)
            state = await chat.load()
            nursery.cancel_scope.cancel()
        assert state.message_count == 20_020
        # It is taken in by pieces of 256 KiB.
        assert len(seen) > 10
