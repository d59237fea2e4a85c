"""Chats that are only in a workspace's project, as rows.

Their `spaces.kind` is 'external', and `size`, `mtime_ns` and `inode` are those of the project's file. Where the store
gets such a chat, its row becomes a chat's, and is taken in anew.

Concurrency: blocking, for threads.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from store.index import schema
from store.index.document import say
from store.index.update import Known, Stamp, clear, rewrite_words, spaces_where, transaction, words_of
from store.model import Seq, WorkspaceId, chat_space
from store.projection import form
from store.projection.external import External

KIND = "external"


@dataclass(frozen=True, slots=True)
class Listed:
    """The external chats of a workspace: `root` is the project's directory of chats."""

    root: str
    chats: Sequence[External]

    def stamp(self, external: External) -> Stamp | None:
        """How its log looks; None where it has none."""
        try:
            found = os.lstat(f"{self.root}/{external.directory}/{form.HISTORY}")
        except OSError:
            return None
        return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


NOTHING = Listed("", ())


def place(
    connection: sqlite3.Connection, workspace: WorkspaceId, own: Known, listed: Listed
) -> list[tuple[External, Known, Stamp]]:
    """Make the rows be those of the listed chats; those whose log isn't in them as it is now."""
    present = {
        space: (key, name, at)
        for key, space, name, at in connection.execute(
            "SELECT id, space, shown, place FROM spaces JOIN chats USING (id) WHERE workspace = ? AND kind = ?",
            (own.key, KIND),
        )
    }
    spaces = {chat_space(workspace, each.id): each for each in listed.chats}
    for gone in present.keys() - spaces.keys():
        for row in spaces_where(connection, "space = ? AND kind = ?", gone, KIND):
            clear(connection, row, forget=True)
    with transaction(connection):
        for space, each in spaces.items():
            known = present.get(space)
            if known is None:
                _insert(connection, own.key, space, each)
            elif known[1:] != (each.name, each.place.value):
                before = words_of(connection, known[0])
                connection.execute(
                    "UPDATE chats SET name = ?, shown = ?, place = ? WHERE id = ?",
                    (each.name, each.name, each.place.value, known[0]),
                )
                rewrite_words(connection, known[0], before, words_of(connection, known[0]))
    return list(_behind(connection, spaces.items(), listed))


def _insert(connection: sqlite3.Connection, workspace: int, space: str, each: External) -> None:
    # The store may have it by now, as another process knows already.
    made = connection.execute("INSERT OR IGNORE INTO spaces (space, kind) VALUES (?, ?)", (space, KIND))
    if made.rowcount == 1:
        key = made.lastrowid or 0
        connection.execute(
            "INSERT INTO chats (id, workspace, uuid, name, shown, place, created, moved)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, workspace, each.id, each.name, each.name, each.place.value, each.created, each.created),
        )
        say(connection, key, schema.TITLE, words_of(connection, key)[schema.TITLE])


def _behind(
    connection: sqlite3.Connection, spaces: Iterable[tuple[str, External]], listed: Listed
) -> Iterable[tuple[External, Known, Stamp]]:
    for space, each in spaces:
        stamp = listed.stamp(each)
        for row in spaces_where(connection, "space = ? AND kind = ?", space, KIND):
            if stamp is not None and row.stamp != stamp:
                yield each, row, stamp


def emptied(known: Known) -> Known:
    """The row of a chat of which nothing is there any more."""
    return replace(known, first=Seq(1), seq=Seq(0), crc=0)
