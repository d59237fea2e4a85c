"""The index keeps up with the logs, by itself or when it is asked, whatever others do."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from store.compaction import compact
from store.drivers.file.driver import FileDriver
from store.index import Search, update
from store.library import Store, open_store
from store.workspace_state import Place
from tests.support.indexed import ACTOR, counted, find, index_db, opened, paths, say, unscored, until, unwritable


async def test_only_what_moved_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await find(store, "lisbon")
    with counted(monkeypatch) as spaces:
        await find(store, "lisbon")
        assert spaces == []
        await say(chat, "And in June?")
        assert len(await find(store, "june")) == 1
        assert spaces == [chat.space.id]


async def test_another_process_finds_what_was_indexed(tmp_path: Path, store: Store, monkeypatch: Any) -> None:
    before = await find(store, "porto")
    async with opened(tmp_path) as other:
        with counted(monkeypatch) as spaces:
            assert await find(other, "porto") == before
        assert [space for space in spaces if "/chats/" in space] == []


async def test_edits_and_removals_are_taken_in(store: Store) -> None:
    chat = await (await store.workspace("demo")).chat("trip")
    await find(store, "lisbon")
    first, second = await chat.messages()
    await chat.edit_message(second.id, "Faro. Or Porto.", ACTOR)
    assert (await find(store, "lisbon"), len(await find(store, "faro"))) == ([], 1)
    await chat.remove_message(first.id, ACTOR)
    assert await find(store, "where") == []
    assert (await find(store, "faro"))[0].number == 1


async def test_a_log_from_a_backup_is_taken_in_anew(tmp_path: Path, store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    log = store.driver.local_dir(chat.space.id) / "history.jsonl"
    backup = log.read_bytes()
    await say(chat, "needle", "and more")
    assert len(await find(store, "needle")) == 1
    log.write_bytes(backup)
    async with opened(tmp_path) as other:
        assert await find(other, "needle") == []
        chat = await (await other.workspace("demo")).chat("trip")
        await say(chat, "another", "end", "even longer than it was")
        # The same seqs, other entries.
        assert (len(await find(other, "another")), await find(other, "needle")) == (1, [])
        assert len(await find(other, "lisbon")) == 1


async def test_a_compacted_log_is_taken_in_from_its_state(tmp_path: Path, store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await chat.attach("map.png", b"bytes", ACTOR)
    (first, _) = await chat.messages()
    await chat.remove_message(first.id, ACTOR)
    before = await unscored(store, "lisbon map*")
    await compact(chat, keep=0)
    assert await unscored(store, "lisbon map*") == before
    await say(chat, "later")
    assert [hit.number for hit in await find(store, "later")] == [2]
    used = usage(tmp_path)
    index_db(tmp_path).unlink()
    async with opened(tmp_path) as other:
        assert await unscored(other, "lisbon map*") == before
        assert [hit.number for hit in await find(other, "later")] == [2]
        assert await find(other, "where") == []
    assert usage(tmp_path) == used


def usage(tmp_path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
        return connection.execute("SELECT logs, blobs FROM usage").fetchall()


async def test_deleted_chats_and_workspaces_go_away(tmp_path: Path, store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await find(store, "lisbon")
    await workspace.trash_chat(chat.id, ACTOR)
    event = {"type": "chat.deleted", "chat": chat.id}
    await workspace.append_lines([durable(event)])
    await chat.release()
    await store.driver.delete_space(chat.space.id)
    assert await find(store, "lisbon", trash=True) == []
    await store.index.aclose()
    with contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
        assert connection.execute("SELECT name FROM chats").fetchall() == [("work",)]
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    for each in (await workspace.chat("work"), workspace.space):
        await each.release()
    await store.driver.delete_space(workspace.space.id)
    async with opened(tmp_path) as other:
        assert await find(other, "porto", trash=True) == []
        await other.index.aclose()
        with contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
            for table in ("spaces", "workspaces", "chats", "messages", "attachments", "blobs"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def durable(event: dict[str, Any]) -> Any:
    from store.model import NewEntry  # noqa: PLC0415 - one use

    return NewEntry(orjson.dumps(event), ACTOR)


async def test_a_chat_whose_log_is_missing_is_not_found(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await find(store, "lisbon")
    await chat.release()
    shutil.rmtree(store.driver.local_dir(chat.space.id))
    assert await find(store, "lisbon") == []
    assert await paths(store, "trip") == ["demo/chats/trip"]


async def test_a_damaged_log_is_found_up_to_the_damage(tmp_path: Path, store: Store) -> None:
    chat = await (await store.workspace("demo")).chat("trip")
    await say(chat, "needle", "behind it")
    log = store.driver.local_dir(chat.space.id) / "history.jsonl"
    text = log.read_bytes()
    log.write_bytes(text.replace(b"needle", b"noodle"))
    async with opened(tmp_path) as other:
        assert len(await find(other, "lisbon")) == 1
        assert await find(other, "noodle") == []
        assert await find(other, "behind") == []
        assert len(await find(other, "wine")) == 1
    log.write_bytes(text)
    async with opened(tmp_path) as other:
        assert len(await find(other, "behind")) == 1


async def test_a_log_that_cant_be_read_is_left_out(store: Store, monkeypatch: Any, caplog: Any) -> None:
    chat = await (await store.workspace("demo")).chat("trip")
    usual = FileDriver.open_log

    async def open_log(self: FileDriver, space: Any, *, create: bool = False) -> Any:
        if space == chat.space.id:
            raise OSError(errno.EIO, "Input/output error")
        return await usual(self, space, create=create)

    with monkeypatch.context() as patch:
        patch.setattr(FileDriver, "open_log", open_log)
        for _ in range(2):
            assert await paths(store, "porto") == ["demo/chats/work/history.md"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "isn't searched as it is now: [Errno 5]" in caplog.records[0].message
    assert len(await paths(store, "porto")) == 2


async def test_chats_of_other_processes_and_long_logs_come_in_pieces(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.index.index._CHUNK", 500)
    monkeypatch.setattr("store.index.index._BATCH", 2)
    async with opened(tmp_path) as other:
        workspace = await other.workspace("demo")
        for number in range(7):
            await say(await workspace.create_chat(f"chat {number}", ACTOR), *(f"word{n} {number}" for n in range(20)))
    told: list[tuple[int, int]] = []
    hits = await store.search(Search("word19", limit=100), lambda done, total: told.append((done, total)))
    assert sorted((hit.chat, hit.number) for hit in hits) == [(f"chat {number}", 20) for number in range(7)]
    assert told == [(0, 9), (2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]


async def test_names_and_places_are_those_of_the_workspace(tmp_path: Path, store: Store) -> None:
    dice = random.Random(7)
    workspace = await store.workspace("demo")
    for step in range(120):
        state = await workspace.load()
        record = dice.choice([None, *state.chats.values()])
        name = f"name{dice.randrange(1000)}"
        with contextlib.suppress(Exception):
            if record is None:
                await workspace.create_chat(name, ACTOR)
            elif dice.random() < 0.3:
                await workspace.trash_chat(record.id, ACTOR)
            else:
                await workspace.move_chat(record.id, dice.choice([Place.CHATS, Place.ARCHIVE]), name, ACTOR)
        if step % 10 == 9:
            await store.index.catch_up()
    state = await workspace.load()
    expected = sorted((each.id, each.name, state.shown_name(each), each.place.value) for each in state.chats.values())

    def said() -> tuple[list[Any], list[Any]]:
        with contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
            connection.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, words, instance)")
            return (
                sorted(connection.execute("SELECT uuid, name, shown, place FROM chats")),
                sorted(connection.execute("SELECT term, col, offset FROM temp.terms")),
            )

    await store.index.aclose()
    grown = said()
    assert grown[0] == expected
    await store.index.rebuild()
    await store.index.catch_up()
    await store.index.aclose()
    assert said() == grown


async def test_two_at_once_give_one_index(tmp_path: Path, store: Store) -> None:
    workspace = await store.workspace("demo")
    for number in range(30):
        await say(await workspace.create_chat(f"chat{number}", ACTOR), *["needle"] * 5)
    async with opened(tmp_path) as one, opened(tmp_path) as two, trio.open_nursery() as nursery:
        for each in (one, two):
            nursery.start_soon(each.index.catch_up)
    assert len(await find(store, "needle", limit=1000)) == 150
    await store.index.aclose()
    with contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (153,)
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_search_finds_all_while_another_process_is_halfway(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount takes in a long log in small pieces; who searches meanwhile takes in the rest."""
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await say(chat, *(f"text {number}" for number in range(400)), "needle")
    usual = update.apply
    done = 0

    def halfway(connection: sqlite3.Connection, updates: list[Any], pace: Any = update.HURRIED) -> set[int]:
        # Just before, somebody else took in part of the same.
        nonlocal done
        done += 1
        for each in updates:
            if done <= 3 and len(each.entries) > 100:
                usual(connection, [replace(each, entries=each.entries[:100], stamp=update.UNSTAMPED)])
        return usual(connection, updates, pace)

    monkeypatch.setattr(update, "apply", halfway)
    monkeypatch.setattr("store.index.index._CHUNK", 20_000)
    (hit,) = await find(store, "needle")
    assert hit.number == 403
    assert done > 3


async def test_a_space_can_be_checked(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    assert not await store.index.check(chat.space.id)
    assert await store.index.check(chat.space.id)
    await say(chat, "more")
    assert not await store.index.check(chat.space.id)
    assert await store.index.check(chat.space.id)
    await store.index.check(workspace.space.id)
    assert await store.index.check(workspace.space.id)


async def test_a_store_in_memory_is_searched() -> None:
    async with open_store("memory:") as store:
        workspace = await store.create_workspace("demo", ACTOR)
        chat = await workspace.create_chat("trip", ACTOR)
        await say(chat, "needle")
        assert len(await find(store, "needle")) == 1
        await say(chat, "needle")
        assert len(await find(store, "needle")) == 2


# ---- following


async def test_what_moves_is_taken_in_by_and_by(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.index.index._COALESCED_SECONDS", 0.01)
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.index.follow)
        await until(lambda: indexed(tmp_path, "wine"))
        await say(chat, "needle")
        await until(lambda: indexed(tmp_path, "needle"))
        new = await workspace.create_chat("new", ACTOR)
        await say(new, "another")
        await until(lambda: indexed(tmp_path, "another"))
        other = await store.create_workspace("other", ACTOR)
        await say(await other.create_chat("first", ACTOR), "elsewhere")
        await until(lambda: indexed(tmp_path, "elsewhere"))
        nursery.cancel_scope.cancel()


def indexed(tmp_path: Path, word: str) -> bool:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(index_db(tmp_path))) as connection:
        return bool(connection.execute("SELECT count(*) FROM words WHERE words MATCH ?", (word,)).fetchone()[0])
    return False


async def test_following_is_quiet_where_nothing_can_be_written_and_ends_with_a_temporary_index(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("store.index.index._COALESCED_SECONDS", 0.01)
    chat = await (await store.workspace("demo")).chat("trip")
    with unwritable() as tries, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.index.follow)
            for number in range(4):
                await until(lambda count=number: len(tries) > count)
                await say(chat, f"more {number}")
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert len(await find(store, "more")) == 4
            await say(chat, "the last")
