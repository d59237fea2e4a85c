"""The index of a store: what is found, that it keeps up with the logs, and that it is never in the way."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from store import codec, durability
from store.compaction import compact
from store.driver import Access
from store.drivers.file.driver import FileDriver
from store.errors import StoreFailed
from store.index import Hit, Kind, Search, database, schema, update
from store.library import Store, open_store
from store.workspace_state import Place

ACTOR = "test"


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, **settings: Any) -> AsyncIterator[Store]:
    async with open_store(f"file://{tmp_path}/store", **settings) as store:
        yield store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A workspace `demo` with two chats."""
    async with opened(tmp_path) as store:
        workspace = await store.create_workspace("demo", ACTOR)
        trip = await workspace.create_chat("trip", ACTOR)
        await say(trip, "Where to in May?", "Lisbon. Or Porto.")
        work = await workspace.create_chat("work", ACTOR)
        await say(work, "Porto is a wine, too")
        yield store


async def say(chat: Any, *texts: str) -> None:
    roles = ("user", "assistant")
    await chat.append_events([{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)], ACTOR)


async def find(store: Store, words: str, **settings: Any) -> list[Hit]:
    return await store.search(Search(words, **settings))


async def unscored(store: Store, words: str) -> list[Hit]:
    """The hits of each word, which are the same however much else there is."""
    return [replace(hit, score=0.0) for word in words.split() for hit in await find(store, word)]


async def paths(store: Store, words: str, **settings: Any) -> list[str]:
    return sorted(hit.path for hit in await find(store, words, **settings))


def index_db(tmp_path: Path) -> Path:
    return tmp_path / "store" / "index.db"


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The spaces whose logs are opened meanwhile."""
    spaces: list[str] = []
    usual = FileDriver.open_log

    async def open_log(self: FileDriver, space: Any, *, create: bool = False) -> Any:
        spaces.append(space)
        return await usual(self, space, create=create)

    with monkeypatch.context() as patch:
        patch.setattr(FileDriver, "open_log", open_log)
        yield spaces


# ---- what is found, and where


async def test_a_message_is_found_with_its_place(store: Store) -> None:
    (hit,) = await find(store, "lisbon")
    assert (hit.kind, hit.path, hit.number, hit.line, hit.role) == (
        Kind.MESSAGE,
        "demo/chats/trip/history.md",
        2,
        7,
        "assistant",
    )
    chat = await (await store.workspace("demo")).chat("trip")
    text = (await chat.text()).decode()
    assert "Lisbon" in text.splitlines()[hit.line - 1]
    assert hit.snippet == "Lisbon. Or Porto."
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["Lisbon"]


async def test_the_line_is_the_one_where_the_words_stand(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await chat.save_text(
        b"# A title\n\nBefore all.\n\n\n## user\n\n\n\none\n\n```\n## user\n```\n\n\\## user\nneedle one\n"
        b"## assistant \n\n\n\n\ntwo\nthree needle\n",
        ACTOR,
    )
    lines = (await chat.text()).decode().split("\n")
    hits = await find(store, "needle")
    assert sorted(lines[hit.line - 1] for hit in hits) == ["needle one", "three needle"]
    assert sorted(hit.number for hit in hits) == [1, 2]
    (before,) = await find(store, "before all")
    assert (before.number, lines[before.line - 1]) == (0, "Before all.")


async def test_titles_names_labels_and_attachments_are_found(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.chat("trip")
    await chat.change(ACTOR, title="Summer plans", labels=["Urlaub", "füße"])
    await chat.attach("Q3-report_final.pdf", b"bytes", ACTOR)
    assert await paths(store, "summer") == ["demo/chats/trip"]
    assert await paths(store, "trip") == ["demo/chats/trip"]
    assert await paths(store, "fusse") == []
    assert await paths(store, "fuße") == ["demo/chats/trip/chat.json"]
    assert await paths(store, "final report*") == ["demo/chats/trip/attachments/Q3-report_final.pdf"]
    await chat.rename_attachment("Q3-report_final.pdf", "other.pdf", ACTOR)
    assert await paths(store, "report") == []
    await chat.remove_attachment("other.pdf", ACTOR)
    assert await paths(store, "other") == []


async def test_a_search_can_be_narrowed(store: Store) -> None:
    other = await store.create_workspace("other", ACTOR)
    chat = await other.create_chat("porto", ACTOR)
    await say(chat, "Porto", "Porto, Porto")
    assert len(await find(store, "porto")) == 5
    assert await paths(store, "porto", workspace="demo") == ["demo/chats/trip/history.md", "demo/chats/work/history.md"]
    assert len(await find(store, "porto", workspace=other.id)) == 3
    assert {hit.role for hit in await find(store, "porto", role="assistant")} == {"assistant"}
    assert await paths(store, "porto", kinds=frozenset({Kind.TITLE})) == ["other/chats/porto"]
    assert len(await find(store, "porto", kinds=frozenset({Kind.MESSAGE}), limit=3)) == 3
    assert await find(store, "porto -wine", kinds=frozenset({Kind.LABEL})) == []
    (best, *_) = await find(store, "porto")
    assert best.kind is Kind.TITLE


async def test_archived_chats_are_found_and_trashed_ones_only_if_asked(store: Store) -> None:
    workspace = await store.workspace("demo")
    trip, work = [await workspace.chat(name) for name in ("trip", "work")]
    await workspace.move_chat(trip.id, Place.ARCHIVE, "trip", ACTOR)
    assert await paths(store, "lisbon") == ["demo/archive/trip/history.md"]
    await workspace.trash_chat(trip.id, ACTOR)
    await workspace.create_chat("trip", ACTOR, chat=None)
    assert await paths(store, "lisbon") == []
    assert await paths(store, "lisbon", trash=True) == ["demo/trash/trip/history.md"]
    again = await workspace.chat("trip")
    await workspace.trash_chat(again.id, ACTOR)
    await say(again, "needle")
    assert await paths(store, "needle", trash=True) == ["demo/trash/trip~2/history.md"]
    await workspace.move_chat(again.id, Place.CHATS, "new name", ACTOR)
    assert await paths(store, "needle") == ["demo/chats/new name/history.md"]
    assert await paths(store, "name") == ["demo/chats/new name"]
    await workspace.trash_chat(work.id, ACTOR)
    await workspace.trash_chat(again.id, ACTOR)
    await workspace.trash(ACTOR)
    assert await paths(store, "needle", trash=True) == []


async def test_hostile_content(store: Store) -> None:
    workspace = await store.workspace("demo")
    chat = await workspace.create_chat("hostile", ACTOR)
    long = "QUJD" * (3 * 512 * 1024)
    await say(chat, "before\0after \x1b[31mred\x1b[0m \u202eright", f"{long} needle {long}", "x " * 100_000 + "hay")
    (hit,) = await find(store, "after")
    assert "\x1b[31m" in hit.snippet  # whoever shows it escapes it
    (hit,) = await find(store, "needle")
    assert "needle" in hit.snippet
    assert len(hit.snippet) < 1000
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["needle"]
    (hit,) = await find(store, "hay")
    assert hit.snippet.endswith("x x hay")
    assert [await paths(store, word) for word in ("before", "right", "31mred")] == [
        ["demo/chats/hostile/history.md"]
    ] * 3


# ---- keeping up


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


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another connection sees it
            await trio.sleep(0.01)


async def test_following_ends_quietly_where_nothing_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("store.index.index._COALESCED_SECONDS", 0.01)
    chat = await (await store.workspace("demo")).chat("trip")
    with unwritable(), trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.index.follow)
            await until(lambda: bool(caplog.records))
            for number in range(3):
                await say(chat, f"more {number}")
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert len(await find(store, "more")) == 3


# ---- whatever is wrong with the file


@contextlib.contextmanager
def unwritable() -> Any:
    """No file can be made for an index."""

    class Failing(durability.System):
        def open(self, label: str, path: str | Path, flags: int) -> int:
            if label.startswith("index."):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return super().open(label, path, flags)

    usual = durability.system
    durability.system = Failing()
    try:
        yield
    finally:
        durability.system = usual


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def holes(path: Path) -> None:
    """The header is whole, the tables aren't."""
    text = path.read_bytes()
    path.write_bytes(text[:100] + b"\xaa" * (len(text) - 100))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def somebody_elses(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (id)")
        connection.commit()


def another_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")


def without_a_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE attachments")
        connection.commit()


def bad_text(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE messages SET text = x'00ff'")
        connection.commit()


BAD = [garbage, half, holes, directory, link, somebody_elses, another_version, without_a_table, bad_text]


@pytest.mark.parametrize("spoil", BAD)
async def test_a_bad_file_is_replaced(
    tmp_path: Path, store: Store, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = await find(store, "porto")
    await store.index.aclose()
    spoil(index_db(tmp_path))
    assert await find(store, "porto") == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "built anew" in caplog.records[0].message
    async with opened(tmp_path) as other:
        assert await find(other, "porto") == before
    assert len(caplog.records) == 1
    assert index_db(tmp_path).is_file()
    assert not index_db(tmp_path).is_symlink()
    assert index_db(tmp_path).stat().st_mode & 0o777 == 0o600
    kept = index_db(tmp_path).with_name("index.db.bad")
    assert (kept.exists() or kept.is_symlink()) == (spoil is not another_version)


@pytest.mark.parametrize("take_away", [Path.unlink, empty])
async def test_without_the_file_all_is_found(tmp_path: Path, store: Store, take_away: Any, caplog: Any) -> None:
    before = await find(store, "porto")
    await store.index.aclose()
    take_away(index_db(tmp_path))
    assert await find(store, "porto") == before
    assert caplog.records == []


@pytest.mark.parametrize("spoil", [None, garbage, another_version])
async def test_where_nothing_can_be_written_a_temporary_index_is_used(
    tmp_path: Path, store: Store, spoil: Callable[[Path], None] | None, monkeypatch: Any, caplog: Any
) -> None:
    before = await find(store, "porto")
    await store.index.aclose()
    if spoil is not None:
        spoil(index_db(tmp_path))
    bytes_before = index_db(tmp_path).read_bytes()
    async with opened(tmp_path, access=Access.READ) as other:
        with counted(monkeypatch) as spaces:
            assert await find(other, "porto") == before
        # What could be copied isn't read again.
        assert any("/chats/" in space for space in spaces) == (spoil is not None)
        assert await find(other, "porto") == before
    assert index_db(tmp_path).read_bytes() == bytes_before
    assert caplog.records == []


async def test_a_full_disk_is_worked_around(tmp_path: Path, store: Store, caplog: Any) -> None:
    with unwritable():
        assert len(await find(store, "porto")) == 2
        assert len(await find(store, "porto")) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not index_db(tmp_path).exists()


async def test_a_locked_file_is_worked_around(tmp_path: Path, store: Store, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    await find(store, "porto")
    chat = await (await store.workspace("demo")).chat("trip")
    await store.index.aclose()
    with contextlib.closing(sqlite3.connect(index_db(tmp_path), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await say(chat, "needle")
        assert len(await find(store, "needle")) == 1
        assert len(await find(store, "porto")) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "locked" in caplog.records[0].message


async def test_where_there_is_no_place_at_all_one_line_says_so(store: Store, monkeypatch: Any) -> None:
    def full(_path: Path | None) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "borrowed", full)
    with unwritable(), pytest.raises(StoreFailed, match="no place for the index: database or disk is full"):
        await find(store, "porto")


async def test_a_change_of_the_index_is_never_a_change_of_a_log(tmp_path: Path, store: Store) -> None:
    logs = {path: path.read_bytes() for path in (tmp_path / "store").rglob("history.jsonl")}
    await find(store, "porto")
    await store.index.rebuild()
    await find(store, "porto")
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("history.jsonl")} == logs


def test_an_entry_continues_only_its_own_log() -> None:
    from store.index.workspaces import continues  # noqa: PLC0415 - looks inside
    from store.model import Millis, NewEntry, Origin, Seq  # noqa: PLC0415

    new = [NewEntry(b'{"a":1}', 'uid:0/"é', Origin("somebody", Millis(5))), NewEntry(b"2", ACTOR)]
    text, _ = codec.encode_batch(new, Seq(0), [1, 2], 77)
    first, second = [entry for entry, _ in codec.decode_lines(text, after=Seq(0), previous_crc=77)]
    assert continues(77, first)
    assert continues(first.crc, second)
    assert not continues(78, first)
    assert not continues(77, second)
