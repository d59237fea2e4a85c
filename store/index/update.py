"""Entries of chats' logs become rows: many chats' in one transaction, each only if its row still says what it said.

Two processes may do the same at once: whoever comes second finds the row moved on, and takes in what is left.

Concurrency: blocking; for threads, one at a time per connection. No log is read here, so that nobody waits for one.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from store.fold import ChatState
from store.index import schema
from store.index.document import IndexedAttachments, IndexedDocument, packed, say, unpacked, unsay
from store.markdown import content_of
from store.model import BlobRef, Entry, Millis, Seq

HELD_BYTES: Final = 16 * 1024 * 1024
"""Text that is held before it is written."""
CLEARED_ROWS: Final = 2_000
"""How many messages are removed in one transaction."""
_PAUSE_AFTER: Final = 0.001
_PAUSE_TIMES: Final = 9.0


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a log's file looked. None of it is known where the driver keeps no file: then all are 0."""

    size: int
    mtime_ns: int
    inode: int


UNSTAMPED: Final = Stamp(schema.UNSETTLED, -1, -1)


@dataclass(frozen=True, slots=True)
class Known:
    """What the index has of a space: see `schema`. `key` is the row's."""

    key: int
    space: str
    first: Seq
    seq: Seq
    crc: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Update:
    """What comes next for a chat that is at `known`.

    `entries` follow what is there. `base` is a state that they follow instead, of a chat that has no rows, and `blob`
    what it was read from. `stamp` is the log's if `entries` reach its end.
    """

    known: Known
    entries: Sequence[Entry]
    stamp: Stamp = UNSTAMPED
    base: ChatState | None = None
    blob: BlobRef | None = None


class Pace:
    """How fast a thread works. A gentle one leaves the processor, and the interpreter, to others most of the time.

    Concurrency: `hurry` may be called from any thread; it wakes the one that rests.
    """

    def __init__(self, *, gentle: bool) -> None:
        self._hurried = threading.Event()
        self._since = time.perf_counter()
        if not gentle:
            self._hurried.set()

    @property
    def gentle(self) -> bool:
        """Whether nobody waits for it."""
        return not self._hurried.is_set()

    def hurry(self) -> None:
        """Somebody waits for it now."""
        self._hurried.set()

    def breathe(self) -> None:
        """Rest, if it is time to."""
        if self.gentle:
            worked = time.perf_counter() - self._since
            if worked > _PAUSE_AFTER:
                self._hurried.wait(worked * _PAUSE_TIMES)
                self._since = time.perf_counter()


HURRIED: Final = Pace(gentle=False)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; others' writing waits."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Where the commit failed the transaction may be over already.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def spaces_where(connection: sqlite3.Connection, where: str, *values: object) -> list[Known]:
    """The rows of spaces that a condition names."""
    return [
        Known(key, space, Seq(first), Seq(seq), crc, Stamp(size, mtime_ns, inode))
        for key, space, first, seq, crc, size, mtime_ns, inode in connection.execute(
            f"SELECT id, space, first, seq, crc, size, mtime_ns, inode FROM spaces WHERE {where}",  # noqa: S608 - own words
            values,
        )
    ]


def settle(connection: sqlite3.Connection, found: Known, seq: Seq, crc: int, stamp: Stamp) -> None:
    """Say where a space is now. Within a transaction."""
    connection.execute(
        "UPDATE spaces SET first = ?, seq = ?, crc = ?, size = ?, mtime_ns = ?, inode = ? WHERE id = ?",
        (found.first, seq, crc, stamp.size, stamp.mtime_ns, stamp.inode, found.key),
    )


def is_still(connection: sqlite3.Connection, found: Known) -> bool:
    """Whether nobody moved the row on. Within a transaction."""
    row = connection.execute("SELECT seq, crc FROM spaces WHERE id = ?", (found.key,)).fetchone()
    return row is not None and tuple(row) == (found.seq, found.crc)


def apply(connection: sqlite3.Connection, updates: Sequence[Update], pace: Pace = HURRIED) -> set[int]:
    """Take in what comes next for each of these chats; the rows of those that another process has moved elsewhere."""
    missed: set[int] = set()
    with transaction(connection):
        for update in updates:
            rest = _rest(connection, update)
            if rest is None:
                missed.add(update.known.key)
            else:
                _apply(connection, rest, pace)
    return missed


def _rest(connection: sqlite3.Connection, update: Update) -> Update | None:
    """What another process hasn't taken in already; None where the row isn't at an entry of the update."""
    found, entries = update.known, update.entries
    if is_still(connection, found):
        return update
    row = connection.execute("SELECT first, seq, crc FROM spaces WHERE id = ?", (found.key,)).fetchone()
    if row is None or not entries or row[0] != found.first:
        return None
    _, seq, crc = row
    at = seq - entries[0].seq
    if not 0 <= at < len(entries) or entries[at].crc != crc:
        return None
    return replace(update, known=replace(found, seq=seq, crc=crc), entries=entries[at + 1 :], base=None, blob=None)


def _apply(connection: sqlite3.Connection, update: Update, pace: Pace) -> None:
    found = update.known
    seq, crc = found.seq, found.crc
    if update.base is not None or update.entries:
        chat = _Chat(connection, found, pace.breathe)
        if update.base is not None:
            chat.take(update.base)
            seq, crc = update.base.seq, 0
        if update.blob is not None:
            chat.attachments.blobs[update.blob.digest] = update.blob.size
        for entry in update.entries:
            chat.apply(entry)
            seq, crc = entry.seq, entry.crc
        chat.write()
    settle(connection, found, seq, crc, update.stamp)


class _Chat:
    """A chat's row, and the state that its events change."""

    def __init__(self, connection: sqlite3.Connection, found: Known, breathe: Callable[[], None]) -> None:
        self._connection = connection
        self._key = found.key
        self._breathe = breathe
        row = connection.execute(
            "SELECT name, title, labels, messages, begun, changed, preamble, preamble_tail, preamble_edited"
            " FROM chats WHERE id = ?",
            (found.key,),
        ).fetchone()
        name, title, labels, messages, begun, changed, preamble, tail, edited = row
        self._name: str = name
        self.document = IndexedDocument(connection, found.key, messages, empty=found.seq == 0)
        self.document.head.text = unpacked(preamble)
        self.document.head.tail = None if tail is None else unpacked(tail)
        self.attachments = IndexedAttachments(connection, found.key)
        state = ChatState()
        state.seq, state.ts, state.created = found.seq, Millis(changed), Millis(begun)
        state.title, state.labels = title, tuple(orjson.loads(labels))
        state.preamble_edited = bool(edited)
        state.document, state.attachment_state = self.document, self.attachments
        self.state = state
        self._said = self._words()

    def _words(self) -> dict[int, str]:
        state = self.state
        return chat_words(self._name, state.title, state.labels, bytes(state.document.head.text))

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        self.state.apply(entry)
        if self.document.weight > HELD_BYTES:
            self.document.forget()
        self._breathe()

    def take(self, base: ChatState) -> None:
        """Take in a whole state; there is nothing else yet."""
        state, document = self.state, self.document
        state.seq, state.ts, state.created = base.seq, base.ts, base.created
        state.title, state.labels, state.preamble_edited = base.title, base.labels, base.preamble_edited
        document.head.text, document.head.tail = base.document.head.text, base.document.head.tail
        for item in base.document.messages():
            document.insert(item)
            if document.weight > HELD_BYTES:
                document.forget()
            self._breathe()
        self.attachments.read()
        self.attachments.present = dict(base.attachment_state.present)
        self.attachments.removed = dict(base.attachment_state.removed)
        kept = [*self.attachments.present.values(), *(found for _, found in self.attachments.removed.values())]
        self.attachments.blobs |= {found.digest: found.size for found in kept}

    def write(self) -> None:
        """Write everything."""
        state, head = self.state, self.document.head
        self.document.flush()
        attachments = self.attachments.flush()
        rewrite_words(self._connection, self._key, self._said, self._words())
        self._connection.execute(
            "UPDATE chats SET title = ?, labels = ?, messages = ?, attachments = COALESCE(?, attachments), begun = ?,"
            " changed = ?, preamble = ?, preamble_tail = ?, preamble_edited = ? WHERE id = ?",
            (
                state.title,
                orjson.dumps(state.labels).decode(),
                self.document.shown,
                attachments,
                state.created,
                state.ts,
                packed(bytes(head.text)),
                None if head.tail is None else packed(head.tail),
                state.preamble_edited,
                self._key,
            ),
        )


# ---- what is said of a chat itself


def chat_words(name: str, title: str, labels: Sequence[str], preamble: bytes) -> dict[int, str]:
    """What the full-text index has of a chat's title and name, its labels, and the rest of its preamble."""
    if preamble.startswith(b"# "):
        preamble = preamble.partition(b"\n")[2]
    return {
        schema.TITLE: name if title == name else f"{title}\n{name}".strip("\n"),
        schema.LABELS: "\n".join(labels),
        schema.PREAMBLE: preamble.decode(),
    }


def rewrite_words(connection: sqlite3.Connection, key: int, old: dict[int, str], new: dict[int, str]) -> None:
    """Put `new` where the full-text index has `old`."""
    for kind, words in new.items():
        if old[kind] != words:
            unsay(connection, key, kind, old[kind])
            say(connection, key, kind, words)


def words_of(connection: sqlite3.Connection, key: int) -> dict[int, str]:
    """`chat_words` as the tables have them."""
    name, title, labels, preamble = connection.execute(
        "SELECT name, title, labels, preamble FROM chats WHERE id = ?", (key,)
    ).fetchone()
    return chat_words(name, title, orjson.loads(labels), unpacked(preamble))


# ---- removing


def clear(connection: sqlite3.Connection, found: Known, *, forget: bool, pace: Pace = HURRIED) -> None:
    """Remove what is known of a chat's log; with `forget`, all that is known of the chat. In many transactions."""
    cleared = False
    while not cleared:
        with transaction(connection):
            if not is_still(connection, found):
                return
            cleared = _clear_some(connection, found.key)
            if cleared and forget:
                for kind, words in words_of(connection, found.key).items():
                    unsay(connection, found.key, kind, words)
                connection.execute("DELETE FROM chats WHERE id = ?", (found.key,))
                connection.execute("DELETE FROM spaces WHERE id = ?", (found.key,))
            else:
                found = replace(found, seq=Seq(0 if cleared else schema.CLEARING), crc=0, stamp=UNSTAMPED)
                settle(connection, found, found.seq, found.crc, found.stamp)
        pace.breathe()


def _clear_some(connection: sqlite3.Connection, chat: int) -> bool:
    """Whether nothing is left."""
    keys: list[tuple[int]] = []
    size = 0
    for key, hidden, text in connection.execute("SELECT id, hidden, text FROM messages WHERE chat = ?", (chat,)):
        if len(keys) >= CLEARED_ROWS or size > HELD_BYTES:
            break
        whole = unpacked(text)
        unsay(connection, key, schema.MESSAGE, None if hidden else content_of(whole))
        keys.append((key,))
        size += len(whole)
    connection.executemany("DELETE FROM messages WHERE id = ?", keys)
    if keys and connection.execute("SELECT 1 FROM messages WHERE chat = ?", (chat,)).fetchone() is not None:
        return False
    for key, name, removed in connection.execute(
        "SELECT id, name, removed FROM attachments WHERE chat = ?", (chat,)
    ).fetchall():
        unsay(connection, key, schema.ATTACHMENT, None if removed is not None else name)
    connection.execute("DELETE FROM attachments WHERE chat = ?", (chat,))
    connection.execute("DELETE FROM blobs WHERE chat = ?", (chat,))
    before = words_of(connection, chat)
    connection.execute(
        "UPDATE chats SET title = '', labels = '[]', messages = 0, attachments = 0, begun = 0, changed = 0,"
        " preamble = '', preamble_tail = NULL, preamble_edited = 0 WHERE id = ?",
        (chat,),
    )
    rewrite_words(connection, chat, before, words_of(connection, chat))
    return True
