"""What a workspace's log says, as rows: the workspace, its chats' names and places.

The workspace's state is folded already wherever a store is open, so it is asked what became of the chats that the log's
tail names; all of them are compared where the tail is long, or isn't one of what the index has.

Concurrency: `found` on the trio loop; the others block, for threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import orjson
import trio

from store import codec
from store import events as ev
from store.errors import CorruptLog, Truncated
from store.index import schema
from store.index.document import say
from store.index.update import (
    Known,
    Stamp,
    clear,
    is_still,
    rewrite_words,
    settle,
    spaces_where,
    transaction,
    words_of,
)
from store.model import ChatId, Entry, NewEntry, Seq, WorkspaceId, chat_space, workspace_space
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place, WorkspaceState

_LONG_TAIL: Final = 5_000
_SLICE: Final = 500
"""How many chats are looked at before others have their turn."""

Row = tuple[str, str, str, str, int, int]
"""A chat's uuid, name, shown name, place, when it was made and when it was last moved."""


@dataclass(frozen=True, slots=True)
class Names:
    """What is to be said of a workspace that is at `known`: the `chats` that are there, and those that are `gone`.

    With `all`, whatever isn't among the chats is gone.
    """

    workspace: WorkspaceId
    known: Known
    seq: Seq
    crc: int
    size: int
    columns: tuple[str, str, str, str, int, int, int]
    chats: list[Row]
    gone: list[ChatId]
    all: bool


def continues(known_crc: int, entry: Entry) -> bool:
    """Whether `entry` is what follows an entry with that crc."""
    new = NewEntry(entry.data, entry.actor, entry.origin)
    return codec.encode(new, entry.seq, entry.ts, known_crc, entry.more)[1] == entry.crc


async def found(workspace: Workspace, known: Known) -> Names | None:
    """What the workspace's log says now; None where it hasn't moved."""
    with workspace.space.hold():
        state = await workspace.load()
        seq, head = state.seq, workspace.space.head
        crc = head.crc if head.seq == seq else 0
        if (known.seq, known.crc) == (seq, crc):
            return None
        named = await _named(workspace, known, seq)
        # The state may be further by now; then the next time says the same once more.
        trash = {record.id: name for name, record in state.in_place(Place.TRASH)}
        ids = list(state.chats) if named is None else named
        rows: list[Row] = []
        gone: list[ChatId] = []
        for number, chat in enumerate(ids):
            record = state.chats.get(chat)
            if record is None:
                gone.append(chat)
            else:
                rows.append(_row(record, trash.get(chat, record.name)))
            if number % _SLICE == _SLICE - 1:
                await trio.lowlevel.checkpoint()
        return Names(workspace.id, known, seq, crc, head.size, _columns(state), rows, gone, named is None)


async def _named(workspace: Workspace, known: Known, until: Seq) -> list[ChatId] | None:
    """The chats that the log names after what is known; None where all have to be compared."""
    if not 0 < known.seq < until <= known.seq + _LONG_TAIL:
        return None
    chats: dict[ChatId, None] = {}
    first = True
    try:
        async for entry in workspace.space.read(known.seq):
            if first and not continues(known.crc, entry):
                return None
            first = False
            chat = getattr(ev.parse(entry.data), "chat", None)
            if chat:
                chats[ChatId(chat)] = None
    except (CorruptLog, Truncated):
        return None
    return list(chats)


def _row(record: ChatRecord, shown: str) -> Row:
    return (record.id, record.name, shown, record.place.value, record.created, record.changed)


def _columns(state: WorkspaceState) -> tuple[str, str, str, str, int, int, int]:
    labels = orjson.dumps(state.labels).decode()
    return (state.name, state.user, state.title, labels, state.quota_bytes, state.created, state.ts)


# ---- rows


def workspace_row(connection: sqlite3.Connection, workspace: WorkspaceId) -> Known:
    """The row of a workspace's space, made if there is none."""
    space = workspace_space(workspace)
    rows = spaces_where(connection, "space = ?", space)
    if not rows:
        with transaction(connection):
            rows = spaces_where(connection, "space = ?", space)
            if not rows:
                connection.execute("INSERT INTO spaces (space, kind) VALUES (?, 'workspace')", (space,))
                rows = spaces_where(connection, "space = ?", space)
                connection.execute("INSERT INTO workspaces (id, uuid) VALUES (?, ?)", (rows[0].key, workspace))
    return rows[0]


def write(connection: sqlite3.Connection, names: Names) -> bool:
    """Make the rows say it; False where another process has moved them on."""
    gone: Iterable[str] = names.gone
    if names.all:
        gone = _rows(connection, names).keys() - {row[0] for row in names.chats}
    for uuid in gone:
        space = chat_space(names.workspace, ChatId(uuid))
        for chat in spaces_where(connection, "space = ? AND kind = 'chat'", space):
            clear(connection, chat, forget=True)
    with transaction(connection):
        if not is_still(connection, names.known):
            return False
        present = _rows(connection, names)
        for row in names.chats:
            before = present.get(row[0])
            if before is None:
                _insert(connection, names, row)
            elif before[1] != row:
                _change(connection, before[0], row)
        connection.execute(
            "UPDATE workspaces SET name = ?, user = ?, title = ?, labels = ?, quota_bytes = ?, created = ?, changed = ?"
            " WHERE id = ?",
            (*names.columns, names.known.key),
        )
        settle(connection, names.known, names.seq, names.crc, Stamp(names.size, -1, -1))
    return True


def _rows(connection: sqlite3.Connection, names: Names) -> dict[str, tuple[int, Row]]:
    """What is there of the chats, or of all of them: by uuid, the key and the rest."""
    select = "SELECT chats.id, uuid, name, shown, place, created, moved FROM chats"
    if names.all:
        rows = connection.execute(f"{select} WHERE workspace = ?", (names.known.key,)).fetchall()
    else:
        rows = [
            row
            for chat in names.chats
            for row in connection.execute(
                f"{select} JOIN spaces USING (id) WHERE space = ?", (chat_space(names.workspace, ChatId(chat[0])),)
            )
        ]
    return {row[1]: (row[0], row[1:]) for row in rows}


def _insert(connection: sqlite3.Connection, names: Names, row: Row) -> None:
    space = chat_space(names.workspace, ChatId(row[0]))
    key = connection.execute("INSERT INTO spaces (space, kind) VALUES (?, 'chat')", (space,)).lastrowid or 0
    connection.execute(
        "INSERT INTO chats (id, workspace, uuid, name, shown, place, created, moved) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (key, names.known.key, *row),
    )
    say(connection, key, schema.TITLE, words_of(connection, key)[schema.TITLE])


def _change(connection: sqlite3.Connection, key: int, row: Row) -> None:
    before = words_of(connection, key)
    connection.execute("UPDATE spaces SET kind = 'chat' WHERE id = ?", (key,))
    connection.execute(
        "UPDATE chats SET name = ?, shown = ?, place = ?, created = ?, moved = ? WHERE id = ?", (*row[1:], key)
    )
    rewrite_words(connection, key, before, words_of(connection, key))


def forget_workspace(connection: sqlite3.Connection, own: Known) -> None:
    """Remove a workspace with all of its chats."""
    for chat in spaces_where(connection, "id IN (SELECT id FROM chats WHERE workspace = ?)", own.key):
        clear(connection, chat, forget=True)
    with transaction(connection):
        connection.execute("DELETE FROM workspaces WHERE id = ?", (own.key,))
        connection.execute("DELETE FROM spaces WHERE id = ?", (own.key,))
