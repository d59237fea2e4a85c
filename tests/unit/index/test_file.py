"""Whatever is wrong with the index's file, it is never in the way."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store import codec
from store.driver import Access
from store.errors import StoreFailed
from store.index import database, schema
from store.library import Store
from tests.support.indexed import ACTOR, counted, find, index_db, opened, say, unwritable


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
