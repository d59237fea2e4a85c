"""What was asked for, as hits: where each is, and what it says around the words.

Concurrency: blocking; for threads.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from store.document import Item, default_lead
from store.index import schema
from store.index.document import unpacked
from store.index.update import chat_words
from store.index.words import match_expression
from store.markdown import content_of, heading_of, skip_blanks
from store.model import ChatId, Millis
from store.workspace_state import Place

_AROUND: Final = 24
"""Words of a snippet."""
_LINE: Final = 400
"""Characters of a snippet: a word may be long."""


class Kind(StrEnum):
    """What was found."""

    MESSAGE = "message"
    TITLE = "title"
    LABEL = "label"
    ATTACHMENT = "attachment"


_KINDS: Final = {
    schema.MESSAGE: Kind.MESSAGE,
    schema.PREAMBLE: Kind.MESSAGE,
    schema.TITLE: Kind.TITLE,
    schema.LABELS: Kind.LABEL,
    schema.ATTACHMENT: Kind.ATTACHMENT,
}
_COLUMNS: Final = {Kind.MESSAGE: "message", Kind.TITLE: "title", Kind.LABEL: "labels", Kind.ATTACHMENT: "attachment"}


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for: `words` as `store.index.words` reads them, within `kinds` (none: all).

    With a `role`, only messages are found.
    """

    words: str
    workspace: str | None = None
    role: str | None = None
    kinds: frozenset[Kind] = frozenset()
    limit: int = 20
    trash: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """Where something was found: `chat` is the name that its `place` shows.

    `snippet` is one line, and `marks` are where in it the words begin and end. Of a message: its id, `number` (from 1)
    in the chat, role and time; `line` of history.md is where the snippet's first word stands. The text before the first
    message has number 0 and no id. `attachment` is an attachment's name.
    """

    kind: Kind
    workspace: str
    chat: str
    chat_id: ChatId
    place: Place
    snippet: str
    marks: tuple[tuple[int, int], ...]
    score: float
    message: str = ""
    number: int = 0
    line: int = 0
    role: str = ""
    ts: Millis = Millis(0)
    attachment: str = ""

    @property
    def path(self) -> str:
        """The file or directory in a mount."""
        chat = f"{self.workspace}/{self.place}/{self.chat}"
        match self.kind:
            case Kind.MESSAGE:
                return f"{chat}/history.md"
            case Kind.ATTACHMENT:
                return f"{chat}/attachments/{self.attachment}"
            case Kind.LABEL:
                return f"{chat}/chat.json"
            case Kind.TITLE:
                return chat


_FOUND: Final = f"""
    SELECT words.rowid % {schema.KINDS} AS kind, words.rowid / {schema.KINDS} AS key, chats.id AS chat, words.rank
    FROM words
    LEFT JOIN messages ON words.rowid % {schema.KINDS} = {schema.MESSAGE}
        AND messages.id = words.rowid / {schema.KINDS}
    LEFT JOIN attachments ON words.rowid % {schema.KINDS} = {schema.ATTACHMENT}
        AND attachments.id = words.rowid / {schema.KINDS}
    JOIN chats ON chats.id = COALESCE(messages.chat, attachments.chat, words.rowid / {schema.KINDS})
    JOIN workspaces ON workspaces.id = chats.workspace
    WHERE words MATCH ?
"""  # noqa: S608 - own numbers


def hits(connection: sqlite3.Connection, search: Search) -> list[Hit]:
    """The best ones first. Raises InvalidInput."""
    expression = match_expression(search.words)
    kinds = frozenset({Kind.MESSAGE}) if search.role is not None else search.kinds
    columns = " ".join(_COLUMNS[kind] for kind in Kind if kind in kinds)
    statement, values = _FOUND, [f"{{{columns}}} : ({expression})" if columns else expression]
    if not search.trash:
        statement += f" AND chats.place != '{Place.TRASH}'"
    if search.workspace is not None:
        statement += " AND ? IN (workspaces.name, workspaces.uuid)"
        values.append(search.workspace)
    if search.role is not None:
        statement += " AND messages.role = ?"
        values.append(search.role)
    statement += " ORDER BY words.rank, words.rowid DESC LIMIT ?"
    rows = connection.execute(statement, (*values, search.limit)).fetchall()
    with closing(_Snippets(expression)) as snippets:
        found = [_hit(connection, snippets, *row) for row in rows]
    return _placed(connection, found)


class _Snippets:
    """Marks the words in a text, as the index would find them: with a table for that one text."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.execute(f"CREATE VIRTUAL TABLE one USING fts5 (text, tokenize = '{schema.TOKENIZER}')")
        # What no text has by chance.
        self._open, self._close = (f"\x02{secrets.token_hex(8)}\x03" for _ in range(2))

    def close(self) -> None:
        """See sqlite3."""
        self._connection.close()

    def of(self, text: str) -> tuple[str, tuple[tuple[int, int], ...], int]:
        """One line with the words, where they are in it, and before which line end of `text` the first one is."""
        self._connection.execute("DELETE FROM one")
        self._connection.execute("INSERT INTO one (rowid, text) VALUES (1, ?)", (text,))
        row = self._connection.execute(
            "SELECT snippet(one, 0, ?, ?, '', ?) FROM one WHERE one MATCH ?",
            (self._open, self._close, _AROUND, self._expression),
        ).fetchone()
        if row is None:  # can't be, unless the index is out of step
            return _clipped(text, 0, len(text), [], 0)
        pieces = str(row[0]).split(self._open)
        plain = pieces[0]
        marks: list[tuple[int, int]] = []
        for piece in pieces[1:]:
            word, _, rest = piece.partition(self._close)
            marks.append((len(plain), len(plain) + len(word)))
            plain += word + rest
        start = max(0, text.find(plain))
        marks = [(start + begin, start + end) for begin, end in marks]
        return _clipped(text, start, start + len(plain), marks, marks[0][0] if marks else start)


def _clipped(
    text: str, start: int, end: int, marks: Sequence[tuple[int, int]], first: int
) -> tuple[str, tuple[tuple[int, int], ...], int]:
    """`text[start:end]` around `first` as one line, blanks run together."""
    line = text.count("\n", 0, first)
    cut = max(start, first - _LINE // 4) if end - start > _LINE else start
    stop = min(end, cut + _LINE)
    shown = "" if cut == 0 else "… "
    places: list[tuple[int, int]] = []
    at = cut
    for begin, finish in [*marks, (stop, stop)]:
        begin, finish = min(begin, stop), min(finish, stop)  # noqa: PLW2901
        shown = _joined(shown, text[at:begin])
        if finish > begin:
            word = _joined(shown, text[begin:finish])
            places.append((len(shown), len(word)))
            shown = word
        at = finish
    shown = shown.rstrip()
    return (shown if stop == len(text) else f"{shown} …"), tuple(places), line


def _joined(before: str, piece: str) -> str:
    """`piece` behind `before`, every run of blanks one blank."""
    words = " ".join(piece.split())
    if piece[:1].isspace() and before and not before.endswith(" "):
        words = f" {words}"
    if words.strip() and piece[-1:].isspace():
        words += " "
    return before + (words.lstrip(" ") if not before or before.endswith(" ") else words)


def _hit(connection: sqlite3.Connection, snippets: _Snippets, kind: int, key: int, chat: int, rank: float) -> _Found:
    workspace, name, shown, uuid, place, title, labels, preamble = connection.execute(
        "SELECT workspaces.name, chats.name, shown, chats.uuid, place, chats.title, chats.labels, preamble"
        " FROM chats JOIN workspaces ON workspaces.id = chats.workspace WHERE chats.id = ?",
        (chat,),
    ).fetchone()
    fields: dict[str, Any] = {}
    key_of_message = line = 0
    if kind == schema.MESSAGE:
        key_of_message = key
        message, role, ts, text = connection.execute(
            "SELECT message, role, ts, text FROM messages WHERE id = ?", (key,)
        ).fetchone()
        whole = unpacked(text)
        words = content_of(whole)
        line = _lines_before(whole)
        fields = {"message": message, "role": role, "ts": Millis(ts)}
    elif kind == schema.ATTACHMENT:
        words = connection.execute("SELECT name FROM attachments WHERE id = ?", (key,)).fetchone()[0]
        fields = {"attachment": words}
    else:
        head = unpacked(preamble)
        words = chat_words(name, title, orjson.loads(labels), head)[kind]
        if kind == schema.PREAMBLE:
            fields["line"] = 1 + head.count(b"\n") - words.count("\n")
    snippet, marks, below = snippets.of(words)
    if kind == schema.PREAMBLE:
        fields["line"] += below
    hit = Hit(_KINDS[kind], workspace, shown, ChatId(uuid), Place(place), snippet, marks, -rank, **fields)
    return _Found(hit, chat, key_of_message, line + below)


@dataclass(frozen=True, slots=True)
class _Found:
    """A hit that isn't placed yet: `below` is in which line of the message's text the first word is, from 0."""

    hit: Hit
    chat: int
    key: int
    below: int


def _lines_before(text: bytes) -> int:
    """How many lines of a message's text are above its content."""
    start = 0
    if heading_of(text) is not None:
        end = text.find(b"\n")
        start = end + 1 if end >= 0 else len(text)
    body = text[start:]
    return text.count(b"\n", 0, start + body.rfind(b"\n", 0, skip_blanks(body, 0)) + 1)


# ---- where in history.md

_NUMBERED: Final = """
    WITH shown AS (
        SELECT id, position, lines, COALESCE(before, LAG(behind, 1, ?) OVER (ORDER BY position)) AS gap
        FROM messages WHERE chat = ? AND NOT hidden
            AND position <= (SELECT max(position) FROM messages WHERE id IN (SELECT value FROM json_each(?)))
    ), numbered AS (
        SELECT id, row_number() OVER (ORDER BY position) AS number,
            sum(gap + lines) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) - lines AS above
        FROM shown
    )
    SELECT id, number, above FROM numbered WHERE id IN (SELECT value FROM json_each(?))
"""


def _placed(connection: sqlite3.Connection, found: Sequence[_Found]) -> list[Hit]:
    """The hits with numbers and lines: each chat's messages are counted once."""
    numbers: dict[int, tuple[int, int]] = {}
    for chat in {each.chat for each in found if each.key}:
        keys = orjson.dumps([each.key for each in found if each.chat == chat and each.key]).decode()
        numbers.update(_numbers(connection, chat, keys))
    return [_with_place(each, numbers) for each in found]


def _numbers(connection: sqlite3.Connection, chat: int, keys: str) -> Iterator[tuple[int, tuple[int, int]]]:
    preamble, tail = connection.execute("SELECT preamble, preamble_tail FROM chats WHERE id = ?", (chat,)).fetchone()
    head = Item("", "", 0, 0, unpacked(preamble), tail=None if tail is None else unpacked(tail))
    first = default_lead(head).count(b"\n")
    for key, number, above in connection.execute(_NUMBERED, (first, chat, keys, keys)):
        yield key, (number, above + head.text.count(b"\n"))


def _with_place(found: _Found, numbers: dict[int, tuple[int, int]]) -> Hit:
    if not found.key:
        return found.hit
    number, above = numbers[found.key]
    return replace(found.hit, number=number, line=above + found.below + 1)
