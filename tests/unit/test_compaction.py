"""Compaction: history.md and all else that is shown stay; the old events go, and only behind what replaces them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from store import durability
from store.beginning import COMPACTED, COMPACTOR
from store.chat import Chat
from store.compaction import compact
from store.errors import CorruptLog, SeqConflict, StoreError
from store.importers.imported import ImportedChat, ImportedRecord
from store.importing import store_chat
from store.library import Store, open_store
from store.model import Digest, Millis, NewEntry, Seq
from store.workspace_state import Place

ME = "test"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Store, Chat]]:
    async with open_store(url) as store:
        names = [workspace.state.name for workspace in await store.workspaces()]
        workspace = await store.workspace("demo") if names else await store.create_workspace("demo", ME)
        chat = await workspace.chat("trip") if workspace.state.find("trip") else await workspace.create_chat("trip", ME)
        yield store, chat


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


async def fill(chat: Chat, count: int = 100) -> None:
    for number in range(count):
        await chat.append_lines([b'{"id":"m%d","role":"user","content":"number %d"}' % (number, number)], ME)
    await chat.append_events([{"type": "message.edited", "id": "m2", "content": "edited"}], ME)
    await chat.append_events([{"type": "message.edited", "id": "m90", "append": " and on"}], ME)
    await chat.remove_message("m1", ME)
    await chat.change(ME, title="Title", labels=["a", "b"])
    await chat.attach("kept.txt", b"kept", ME)
    await chat.attach("gone.txt", b"gone", ME)
    await chat.remove_attachment("gone.txt", ME)


async def base_event(chat: Chat) -> dict[str, Any]:
    return next(orjson.loads(entry.data) for entry in [e async for e in chat.log()] if entry.actor == COMPACTOR)


async def view(chat: Chat) -> object:
    state = await chat.load()
    summary = (state.created, state.title, state.labels, state.size, state.message_count, dict(state.attachments))
    return summary, await chat.read_text(0, 1 << 30), await chat.messages(), await chat.text()


@pytest.mark.parametrize("keep", [0, 1, 50])
async def test_all_that_is_shown_stays(url: str, keep: int, tmp_path: Path) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
        before, seq = await view(chat), chat.space.head.seq
        done = await compact(chat, keep=keep)
        assert (done.through, done.events) == (seq - keep, seq - keep)
        assert await view(chat) == before
        assert (await chat.head()).seq == seq + 1
        assert [entry.seq async for entry in chat.log()] == list(range(seq - keep + 1, seq + 2))
    shutil.rmtree(chat.space.snapshots.directory)
    async with opened(url) as (_, chat):
        assert await view(chat) == before
        await chat.append_events([{"type": "message.edited", "id": "m0", "content": "edited late"}], ME)
        await chat.append_events([{"type": "message.appended", "id": "m5", "role": "user", "content": "a twin"}], ME)
        assert (await chat.messages())[-1].id == f"m5~{seq + 3}"
        assert b"edited late" in await chat.text()
        before = await view(chat)
        again = await compact(chat, keep=0)
        assert again.events == keep + 3
        assert await view(chat) == before
        assert (await compact(chat, keep=0)).events == 0
    async with opened(url) as (_, chat):
        assert await view(chat) == before
        assert (await chat.head()).seq == seq + 4


async def test_what_a_removal_took_with_it_can_still_be_restored(url: str) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
        since = await chat.remove_attachment("kept.txt", ME)
        await chat.workspace.trash_chat(chat.id, ME, since=since)
        await compact(chat, keep=0)
        await chat.workspace.move_chat(chat.id, Place.CHATS, "trip", ME)
        assert b"".join([piece async for piece in chat.read_attachment("kept.txt")]) == b"kept"
        assert list((await chat.load()).attachments) == ["kept.txt"]


async def test_what_nothing_restores_is_named_no_more(url: str) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
        await compact(chat, keep=0)
        assert (await chat.load()).attachment_state.removed == {}
        for path in chat.directory.glob("snapshots/*.json"):
            assert b"gone.txt" not in path.read_bytes()
    async with opened(url) as (_, chat):
        shutil.rmtree(chat.directory / "snapshots")
        assert (await chat.load()).attachment_state.removed == {}
        assert list((await chat.load()).attachments) == ["kept.txt"]


async def test_a_chat_that_goes_to_the_trash_meanwhile_keeps_what_comes_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
        since = await chat.remove_attachment("kept.txt", ME)
        inner, trashed = chat.sync, 0

        async def sync() -> None:
            nonlocal trashed
            if not trashed:
                await chat.workspace.trash_chat(chat.id, ME, since=since)
            trashed += 1
            await inner()

        monkeypatch.setattr(type(chat), "sync", lambda _chat: sync())
        await compact(chat, keep=0)
        await chat.workspace.move_chat(chat.id, Place.CHATS, "trip", ME)
        assert list((await chat.load()).attachments) == ["kept.txt"]


async def test_a_dry_run_changes_nothing(url: str, tmp_path: Path) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
        log = chat.directory / "history.jsonl"
        before = log.read_bytes()
        found = await compact(chat, keep=0, dry_run=True)
        assert (found.events, found.size) == (chat.space.head.seq, len(before))
        assert log.read_bytes() == before
        done = await compact(chat, keep=0)
        assert (done.events, done.size, done.state_size) == (found.events, found.size, found.state_size)
        assert log.stat().st_size < 300


async def test_a_short_or_an_empty_log_has_nothing_to_drop(url: str) -> None:
    async with opened(url) as (_, chat):
        assert (await compact(chat, keep=0)).events == 0
        await chat.append_lines([b"1", b"2"], ME)
        assert (await compact(chat, keep=2)).events == 0
        assert (await compact(chat, keep=5)).events == 0
        assert (await compact(chat)).events == 0
        assert (await chat.head()).seq == 2


async def test_a_damaged_log_isnt_compacted(url: str) -> None:
    async with opened(url) as (_, chat):
        await fill(chat)
    log = chat.directory / "history.jsonl"
    log.write_bytes(damaged := log.read_bytes().replace(b"number 50", b"number 51", 1))
    async with opened(url) as (_, chat):
        with pytest.raises(CorruptLog):
            await compact(chat, keep=0)
    assert log.read_bytes() == damaged


async def test_the_state_that_cant_be_read_is_reported_and_the_rest_shown(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(url) as (store, chat):
        await fill(chat)
        await compact(chat, keep=3)
        await chat.append_lines([b'{"role":"user","content":"after"}'], ME)
        await store.driver.blobs.delete(Digest((await base_event(chat))["state"]))
    shutil.rmtree(chat.space.snapshots.directory, ignore_errors=True)
    async with opened(url) as (_, chat):
        assert b"after" in await chat.text()
        with pytest.raises(CorruptLog):
            await chat.append_lines([b"1"], ME)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


async def test_nobody_can_forge_a_compaction(url: str) -> None:
    async with opened(url) as (store, chat):
        other = await (await store.workspace("demo")).create_chat("other", ME)
        await other.append_lines([b'{"role":"user","content":"forged"}'], ME)
        await compact(other, keep=0)
        base = await base_event(other)
        await fill(chat)
        head = chat.space.head.seq
        forged = {"type": COMPACTED, "through": head - 5 + 2, "state": base["state"], "size": base["size"]}
        await chat.append_events([forged, forged], ME)
        before = await view(chat)
        await compact(chat, keep=5)
        assert await view(chat) == before
    shutil.rmtree(chat.space.snapshots.directory, ignore_errors=True)
    async with opened(url) as (_, chat):
        assert await view(chat) == before


@pytest.mark.parametrize("position", range(40))
async def test_a_compaction_that_fails_anywhere_loses_nothing(
    url: str, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as (_, chat):
        await fill(chat, 30)
        before = await view(chat)
        calls = 0

        class Failing(durability.System):
            pass

        def failing(name: str) -> Callable[..., object]:
            inner = getattr(durability.System, name)

            def call(self: durability.System, label: str, *args: object) -> object:
                nonlocal calls
                calls += 1
                if calls > position:
                    raise OSError(5, "Input/output error")
                return inner(self, label, *args)

            return call

        for name in ("open", "write", "pwrite", "fsync", "fdatasync", "rename", "link", "unlink", "mkdir", "ftruncate"):
            setattr(Failing, name, failing(name))
        with monkeypatch.context() as patch:
            patch.setattr(durability, "system", Failing())
            try:
                await compact(chat, keep=4)
            except StoreError:
                pass
            else:
                assert position > 20
    async with opened(url) as (_, chat):
        assert await view(chat) == before
        await chat.append_lines([b'{"role":"user","content":"on it goes"}'], ME)
        await compact(chat, keep=0)
        assert (await chat.text()).endswith(b"on it goes\n")


async def test_appends_meanwhile_are_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(url) as (_, chat), opened(url) as (_, twin):
        await fill(chat)
        inner, conflicts = chat.space.append, 0

        async def append(batch, *, expected_seq=None) -> Seq:
            nonlocal conflicts
            if batch[0].actor == COMPACTOR and conflicts == 0:
                conflicts += 1
                await twin.append_lines([b'{"role":"user","content":"meanwhile"}'], ME)
                with pytest.raises(SeqConflict):
                    await inner(batch, expected_seq=expected_seq)
            return await inner(batch, expected_seq=expected_seq)

        monkeypatch.setattr(type(chat.space), "append", lambda _self, batch, **more: append(batch, **more))
        await compact(chat, keep=0)
        assert conflicts == 1
        assert (await chat.text()).endswith(b"meanwhile\n")
        assert await twin.text() == await chat.text()


async def test_an_import_knows_what_it_has_brought_before(url: str) -> None:
    imported = ImportedChat(
        "source-1",
        "imported",
        "",
        [ImportedRecord(f"key-{n}", b'{"role":"user","content":"n %d"}' % n, Millis(1000 + n), ME) for n in range(20)],
        [],
    )
    async with opened(url) as (store, _):
        workspace = await store.workspace("demo")
        stored = await store_chat(workspace, "test", imported, ME)
        assert stored.record is not None
        chat = workspace.chat_by_id(stored.record.id)
        await compact(chat, keep=0)
        before = await chat.text()
        again = await store_chat(workspace, "test", imported, ME)
        assert (again.added, again.present) == (0, 20)
        await compact(chat, keep=0)
        await chat.append([NewEntry(b"1", ME)])
        await compact(chat, keep=0)
        assert (await store_chat(workspace, "test", imported, ME)).added == 0
        assert await chat.text() == before


async def test_a_save_by_who_read_before_the_compaction_keeps_both_sides(url: str) -> None:
    async with opened(url) as (_, chat):
        await fill(chat, 10)
        base, text = chat.space.head.seq, await chat.text()
        await chat.append_lines([b'{"role":"user","content":"unseen by the editor"}'], ME)
        await compact(chat, keep=0)
        saved = await chat.save_text(text.replace(b"number 5", b"number five"), ME, base=base)
        assert b"number five" in await chat.text()
        assert saved.conflict is not None
        assert b"unseen by the editor" in saved.conflict


async def test_a_save_over_the_kept_part_is_merged(url: str) -> None:
    async with opened(url) as (_, chat):
        await fill(chat, 10)
        base, text = chat.space.head.seq, await chat.text()
        await chat.append_lines([b'{"role":"user","content":"unseen by the editor"}'], ME)
        await compact(chat, keep=5)
        saved = await chat.save_text(text.replace(b"number 5", b"number five"), ME, base=base)
        assert saved.conflict is None
        assert b"number five" in await chat.text()
        assert b"unseen by the editor" in await chat.text()
