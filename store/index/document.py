"""A chat's rows as the document that its events change.

`store.fold.ChatState` says what an event means; here it works on a document whose messages are rows, of which only
those that an event names are read. So the index agrees with history.md without folding the chat, and a change costs
what it touches. Where text stands exactly isn't kept, only how many lines it has.

Concurrency: within one transaction; for one thread. Rows are written by `flush`, and read again after `forget`.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Final

from store import events as ev
from store.attachment_fold import Attachments
from store.document import NOTHING, Document, Effect, Item, default_lead
from store.index import schema
from store.markdown import content_of
from store.model import Attachment, AttachmentId, Digest, Entry

_STEP: Final = 1 << 32
"""Between the positions of two messages, at first: so many halvings until a chat's positions are dealt anew."""
_SMALL: Final = 256
"""Bytes of text that aren't worth compressing."""

_SELECT: Final = (
    "SELECT id, role, ts, seq, hidden, edited, position, before, behind, text FROM messages"
    " WHERE chat = ? AND message = ?"
)


def packed(text: bytes) -> bytes | str:
    """What `unpacked` takes."""
    if len(text) > _SMALL:
        small = zlib.compress(text, 1)
        if len(small) < len(text) * 7 // 8:
            return small
    return text.decode()


def unpacked(text: bytes | str | None) -> bytes:
    """The bytes of a column that holds text."""
    if isinstance(text, str):
        return text.encode()
    return b"" if text is None else zlib.decompress(text)


class _Row:
    """A message: `item` is what events see, `key` its row's (0: none yet), `words` what the full-text index has."""

    __slots__ = ("before", "behind", "item", "key", "position", "words")

    def __init__(self, item: Item, key: int, position: int, before: int | None, behind: int, words: str | None) -> None:
        self.item = item
        self.key = key
        self.position = position
        self.before = before
        self.behind = behind
        self.words = words


def _lines_behind(item: Item) -> int:
    """Line ends that stand between its text and the next one's, if that doesn't say otherwise."""
    return default_lead(item).count(b"\n")


class IndexedDocument(Document):
    """The document of the chat with the row `chat`; `empty` says that it has no messages in the table.

    What was folded already ends with `shown` messages.
    """

    __slots__ = ("_chat", "_connection", "_dirty", "_end", "_next_key", "_position", "_rows", "_stored", "weight")

    def __init__(self, connection: sqlite3.Connection, chat: int, shown: int, *, empty: bool) -> None:
        super().__init__()
        self.shown = shown
        self.weight = 0
        """Bytes of text that are held."""
        self._connection = connection
        self._chat = chat
        self._rows: dict[str, _Row] = {}
        self._dirty: dict[str, _Row] = {}
        self._stored = not empty
        self._end = Item("", "", 0, 0, b"")
        self._position = 0
        if self._stored:
            found = connection.execute("SELECT max(position) FROM messages WHERE chat = ?", (chat,)).fetchone()
            self._position = found[0] or 0
        self._next_key = 0

    # ---- what the fold asks for

    def get(self, id_: str) -> Item | None:
        """See Document."""
        if not id_:
            return self.head
        row = self._rows.get(id_) or self._read(id_)
        return None if row is None else row.item

    @property
    def end(self) -> Item:
        """A stand-in for the last item."""
        return self._end

    def insert(self, item: Item, after: Item | None = None) -> Effect:
        """See Document."""
        row = _Row(item, 0, 0, None if item.lead is None else item.lead.count(b"\n"), _lines_behind(item), None)
        row.position = self._free(after)
        self._rows[item.id] = self._dirty[item.id] = row
        self.shown += not item.hidden
        self.weight += len(item.text)
        return NOTHING

    def remove(self, item: Item) -> Effect:
        """See Document."""
        row = self._rows.pop(item.id)
        self._dirty.pop(item.id, None)
        self.shown -= not item.hidden
        if row.key:
            self._connection.execute("DELETE FROM messages WHERE id = ?", (row.key,))
            unsay(self._connection, row.key, schema.MESSAGE, row.words)
        return NOTHING

    def clear(self) -> None:
        """See Document."""
        self.flush()
        for key, hidden, text in self._connection.execute(
            "SELECT id, hidden, text FROM messages WHERE chat = ?", (self._chat,)
        ).fetchall():
            unsay(self._connection, key, schema.MESSAGE, None if hidden else content_of(unpacked(text)))
        self._connection.execute("DELETE FROM messages WHERE chat = ?", (self._chat,))
        self._rows.clear()
        self._stored = False
        self._position = self.weight = 0
        super().clear()

    def move(self, item: Item, after: Item) -> Effect:
        """See Document."""
        row = self._rows[item.id]
        if after is not item and not (after is self._end and row.position == self._position):
            row.position = self._free(after)
            self._dirty[item.id] = row
        return NOTHING

    def replace(
        self, item: Item, *, text: bytes | None = None, lead: bytes | None = None, tail: bytes | None = None
    ) -> Effect:
        """See Document."""
        self._set(item, text, lead, tail)
        if item is not self.head:
            row = self._dirty[item.id] = self._rows[item.id]
            row.before = row.before if lead is None else lead.count(b"\n")
            row.behind = row.behind if tail is None else _lines_behind(item)
            self.weight += 0 if text is None else len(text)
        return NOTHING

    def extend(self, item: Item, addition: bytes, *, tail: bytes | None = None) -> Effect:
        """See Document."""
        if not isinstance(item.text, bytearray):
            item.text = bytearray(item.text)
        item.text += addition
        self.weight += len(addition)
        return self.replace(item, tail=tail)

    # ---- positions

    def _free(self, after: Item | None) -> int:
        """A position behind `after` (None: at the end)."""
        if after is not None and after is not self._end:
            position = 0 if after is self.head else self._rows[after.id].position
            if position != self._position:
                return self._between(after, position)
        self._position += _STEP
        return self._position

    def _between(self, after: Item, low: int) -> int:
        high = self._next_position(low)
        if high is not None and high - low < 2:
            self._deal()
            low = 0 if after is self.head else self._rows[after.id].position
            high = self._next_position(low)
        if high is None:
            self._position += _STEP
            return self._position
        return (low + high) // 2

    def _next_position(self, position: int) -> int | None:
        self.flush()
        found: int | None = self._connection.execute(
            "SELECT min(position) FROM messages WHERE chat = ? AND position > ?", (self._chat, position)
        ).fetchone()[0]
        return found

    def _deal(self) -> None:
        """Positions with room between them, in the same order."""
        self._connection.execute(
            """
            UPDATE messages SET position = dealt.number * ? FROM (
                SELECT id, row_number() OVER (ORDER BY position) AS number FROM messages WHERE chat = ?
            ) AS dealt WHERE messages.id = dealt.id
            """,
            (_STEP, self._chat),
        )
        for row in self._rows.values():
            row.position = self._connection.execute(
                "SELECT position FROM messages WHERE id = ?", (row.key,)
            ).fetchone()[0]
        self._position = self._connection.execute(
            "SELECT max(position) FROM messages WHERE chat = ?", (self._chat,)
        ).fetchone()[0]

    # ---- rows

    def _read(self, id_: str) -> _Row | None:
        if not self._stored:
            return None
        found = self._connection.execute(_SELECT, (self._chat, id_)).fetchone()
        if found is None:
            return None
        key, role, ts, seq, hidden, edited, position, before, behind, text = found
        item = Item(id_, role, ts, seq, unpacked(text), hidden=bool(hidden))
        item.edited = bool(edited)
        self.weight += len(item.text)
        row = self._rows[id_] = _Row(item, key, position, before, behind, None if hidden else content_of(item.text))
        return row

    def flush(self) -> None:
        """Write what changed."""
        if not self._dirty:
            return
        connection = self._connection
        new, old, unsaid, said = [], [], [], []
        for row in self._dirty.values():
            item = row.item
            text = b"" if item.hidden else bytes(item.text)
            lines = text.count(b"\n")
            shown = (item.role, item.hidden, item.edited, row.position, lines, row.before, row.behind, packed(text))
            words = None if item.hidden else content_of(text)
            if not row.key:
                row.key = self._new_key()
                new.append((row.key, self._chat, item.id, item.seq, item.ts, *shown))
            else:
                old.append((*shown, row.key))
            if words != row.words:
                if row.words:
                    unsaid.append((row.key * schema.KINDS + schema.MESSAGE, row.words))
                if words:
                    said.append((row.key * schema.KINDS + schema.MESSAGE, words))
                row.words = words
        connection.executemany(
            "INSERT INTO messages"
            " (id, chat, message, seq, ts, role, hidden, edited, position, lines, before, behind, text)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            new,
        )
        connection.executemany(
            "UPDATE messages SET role = ?, hidden = ?, edited = ?, position = ?, lines = ?, before = ?, behind = ?,"
            " text = ? WHERE id = ?",
            old,
        )
        connection.executemany(_UNSAY[schema.MESSAGE], unsaid)
        connection.executemany(_SAY[schema.MESSAGE], said)
        self._dirty.clear()
        self._stored = True

    def forget(self) -> None:
        """Write what changed, and hold nothing. Between two events."""
        self.flush()
        self._rows.clear()
        self.weight = 0

    def _new_key(self) -> int:
        if not self._next_key:
            found = self._connection.execute("SELECT max(id) FROM messages").fetchone()[0]
            self._next_key = (found or 0) + 1
        self._next_key += 1
        return self._next_key - 1


class IndexedAttachments(Attachments):
    """The attachments of a chat, read from its rows by the first event that is about one."""

    __slots__ = ("_before", "_chat", "_connection", "_keys", "blobs")

    def __init__(self, connection: sqlite3.Connection, chat: int) -> None:
        super().__init__()
        self.blobs: dict[str, int] = {}
        """What attachments were made of, with the sizes: it takes room for as long as the log names it."""
        self._connection = connection
        self._chat = chat
        self._before: dict[tuple[str, int | None], tuple[int, Attachment]] | None = None

    def apply(self, event: ev.Event, entry: Entry) -> tuple[str, ...]:
        """See Attachments."""
        self.read()
        if isinstance(event, ev.AttachmentPut):
            self.blobs[event.digest] = event.size
        return super().apply(event, entry)

    def clear(self) -> tuple[str, ...]:
        """See Attachments."""
        self.read()
        return super().clear()

    def read(self) -> None:
        """Get the rows, unless that was done."""
        if self._before is not None:
            return
        self._before = {}
        for key, name, removed, identity, digest, size, content_type, mtime_ns, mode in self._connection.execute(
            "SELECT id, name, removed, attachment, digest, size, content_type, mtime_ns, mode FROM attachments"
            " WHERE chat = ?",
            (self._chat,),
        ):
            found = Attachment(AttachmentId(identity), name, Digest(digest), size, content_type, mtime_ns, mode)
            self._before[name, removed] = (key, found)
            if removed is None:
                self.present[name] = found
            else:
                self.removed[name] = (removed, found)

    def flush(self) -> int | None:
        """Write what changed; how many there are, or None where nothing did."""
        if self._before is None:
            return None
        connection = self._connection
        now: dict[tuple[str, int | None], Attachment] = {(name, None): found for name, found in self.present.items()}
        now |= {(name, seq): found for name, (seq, found) in self.removed.items()}
        for (name, removed), (key, found) in self._before.items():
            if now.get((name, removed)) != found:
                connection.execute("DELETE FROM attachments WHERE id = ?", (key,))
                unsay(connection, key, schema.ATTACHMENT, None if removed is not None else name)
        for (name, removed), found in now.items():
            known = self._before.get((name, removed))
            if known is None or known[1] != found:
                made = connection.execute(
                    "INSERT INTO attachments"
                    " (chat, name, removed, attachment, digest, size, content_type, mtime_ns, mode)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (self._chat, name, removed, *_columns(found)),
                ).lastrowid
                say(connection, made or 0, schema.ATTACHMENT, None if removed is not None else name)
        connection.executemany(
            "INSERT OR REPLACE INTO blobs (chat, digest, size) VALUES (?, ?, ?)",
            [(self._chat, digest, size) for digest, size in self.blobs.items()],
        )
        return len(self.present)


def _columns(found: Attachment) -> tuple[str, str, int, str, int, int | None]:
    return (found.id, found.digest, found.size, found.content_type, found.mtime_ns, found.mode)


_COLUMN_OF: Final = {
    schema.MESSAGE: "message",
    schema.TITLE: "title",
    schema.LABELS: "labels",
    schema.ATTACHMENT: "attachment",
    schema.PREAMBLE: "message",
}
_SAY: Final = {
    kind: f"INSERT INTO words (rowid, {column}) VALUES (?, ?)"  # noqa: S608 - own names
    for kind, column in _COLUMN_OF.items()
}
_UNSAY: Final = {
    kind: f"INSERT INTO words (words, rowid, {column}) VALUES ('delete', ?, ?)"  # noqa: S608 - as above
    for kind, column in _COLUMN_OF.items()
}


def say(connection: sqlite3.Connection, key: int, kind: int, words: str | None) -> None:
    """Put words into the full-text index."""
    if words:
        connection.execute(_SAY[kind], (key * schema.KINDS + kind, words))


def unsay(connection: sqlite3.Connection, key: int, kind: int, words: str | None) -> None:
    """Take out of the full-text index the words that were put there."""
    if words:
        connection.execute(_UNSAY[kind], (key * schema.KINDS + kind, words))
