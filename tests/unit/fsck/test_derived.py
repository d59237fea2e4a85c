"""What was made from the logs (snapshots, texts, the index): what is spoiled is dropped."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from store.fsck import Severity, counted
from store.fsck.spaces import _spans
from store.index import schema
from store.library import open_store
from tests.support.checked import Made, flip, texts


@pytest.mark.parametrize(
    ("spoiled", "kind"),
    [
        ("snapshots/*.json", "snapshot"),
        ("snapshots/*.md", "snapshot"),
        ("history.md", "text"),
        ("history.md.json", "text"),
    ],
)
async def test_what_can_be_made_again_is_dropped(made: Made, spoiled: str, kind: str):
    before = await texts(made)
    path = max(made.chats["trip"].glob(spoiled))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # history.md and a snapshot's text are one file
    path.write_bytes(content)
    path.chmod(0o600)
    assert made.kinds() == [kind]
    report = made.check()
    assert (report.exit_code, report.count(Severity.WARNING)) == (0, 1)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert not path.exists()
    assert await texts(made) == before


async def test_a_snapshot_that_is_sound_and_wrong_is_found_by_a_full_check(made: Made):
    from store import snapshots  # noqa: PLC0415

    path = max(made.chats["trip"].glob("snapshots/*.json"))
    head = snapshots._decode(path.read_bytes(), "")
    head["state"]["title"] = "never said"
    head.pop("sum", None)
    path.write_bytes(snapshots._encode(head))
    assert made.problems(full=False) == []
    assert made.kinds(full=True) == ["snapshot"]


async def test_a_snapshot_that_knows_more_than_the_log_is_kept(made: Made):
    lines = made.log("trip").read_bytes().splitlines(keepends=True)
    made.log("trip").write_bytes(b"".join(lines[:4]))
    assert {"snapshot", "text"} == set(made.kinds())
    made.check(repair=True)
    assert made.problems() == []
    kept = b"".join(path.read_bytes() for path in (made.root / "quarantine").glob("*.copy"))
    assert b"hello 15" in kept


async def test_a_spoiled_index_is_dropped(made: Made):
    async with open_store(f"file://{made.root}") as store:
        await store.index.catch_up()
    assert made.problems() == []
    path = made.root / "index.db"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    (found,) = made.problems()
    assert (found.kind, "\n" in found.what) == ("index", False)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert not path.exists()


def test_a_heading_of_sqlite_isnt_said(made: Made):
    """It comes with a newline."""
    path = made.root / "index.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        connection.execute("CREATE TABLE gone (x)")
        connection.execute("CREATE TABLE spaces (x)")
        connection.execute("INSERT INTO gone VALUES (1)")
        connection.commit()
        connection.execute("DROP TABLE gone")  # leaves a free page
        connection.commit()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[36:40] = bytes(4)  # SQLite's file format: the number of free pages
    path.write_bytes(content)
    (found,) = made.problems()
    assert found.what.startswith("is damaged: ")
    assert not {"\n", "*"} & set(found.what)


def _still(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk, also for root, whom modes don't stop: SQLite opens files only if they are immutable."""
    usual, access = sqlite3.connect, os.access

    def connect(name: str, **how: Any) -> sqlite3.Connection:
        return usual(name if name.endswith("?immutable=1") else "file:/nowhere/index.db?mode=ro", **how)

    monkeypatch.setattr(sqlite3, "connect", connect)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != made.root and access(path, mode))


@pytest.mark.parametrize("damaged", [False, True])
async def test_an_index_on_a_read_only_disk(made: Made, monkeypatch: pytest.MonkeyPatch, *, damaged: bool):
    async with open_store(f"file://{made.root}") as store:
        await store.index.catch_up()
    path = made.root / "index.db"
    assert not path.with_name("index.db-wal").exists()
    if damaged:
        content = bytearray(path.read_bytes())
        content[4096:8192] = b"\xff" * 4096
        path.write_bytes(content)
    _still(made, monkeypatch)
    assert made.kinds() == ["index"] * damaged
    path.with_name("index.db-wal").write_bytes(b"what makes it whole")
    path.with_name("index.db-wal").chmod(0o600)
    assert made.kinds() == []


def test_damage_is_said_once(made: Made):
    path = max(made.chats["trip"].glob("snapshots/*.json"))
    flip(path)
    (found,) = made.problems()
    assert found.what == f"the snapshot can't be loaded: {path.name} is damaged"


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([[6, 6]], "entry 6"),
        ([[6, 7]], "entries 6-7"),
        ([[6, 6], [9, 11]], "entries 6 and 9-11"),
        ([[1, 1], [3, 3], [5, 6]], "entries 1, 3 and 5-6"),
        ([[n, n] for n in range(1, 30, 2)], "entries 1, 3, 5, 7, 9, 11, 13, 15 and more"),
    ],
)
def test_entries_are_listed_in_words(spans: list[list[int]], said: str):
    assert _spans(spans) == said


def test_one_of_a_thing_is_no_plural():
    assert [counted(1, what) for what in ("file", "entry")] == ["1 file", "1 entry"]
    assert [counted(0, what) for what in ("file", "entry")] == ["0 files", "0 entries"]
