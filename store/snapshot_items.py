"""The older messages of a dumped chat: columns, which refer to the rendered text. Pure.

::

    8 bytes for each message: BLAKE2b-64 of its id, as a little-endian number, in ascending order
    lines of JSON, each for up to 4096 messages in order

A line is `{"id", "role", "ts", "seq", "lead", "text", "odd", "roles"}`: columns. `role` are indices into `roles`, `ts`
and `seq` differences to the one before (the first in a line is whole). `lead` are the bytes between a text and the one
shown before it (0 for the very first), `text` those of the text; both are 0 for a hidden message. What few messages
have is in `odd`: [index, lead, tail, hidden, edited], with a hidden message's text, and null for what isn't so.

So whether an id is taken costs a bisection, and the messages are read only where one of them is needed.
"""

from __future__ import annotations

import sys
from array import array as typed_array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple, Protocol

import orjson

from store.document import Item
from store.errors import CorruptSnapshot
from store.model import is_uuid
from store.snapshot_shapes import encoded, flag, number, numbers, rows, shaped, text, texts

LINE: Final = 4096
_HASH: Final = 8
_PIECE: Final = 1 << 20


class Placed(NamedTuple):
    """A message, where its text begins in the rendered text, and how many bytes part it from the one before."""

    item: Item
    start: int
    lead: int


class _Source(Protocol):
    def items(self) -> bytes: ...

    def text(self, offset: int, size: int) -> bytes: ...


def decoded(said: bytes | None) -> str | None:
    """Bytes for JSON."""
    return None if said is None else said.decode()


# ---- dump


def dump_items(places: Sequence[Placed]) -> bytes:
    """The bytes for these messages; b"" for none."""
    placed = list(places)
    first = next((index for index, place in enumerate(placed) if not place.item.hidden), None)
    if first is not None:
        placed[first] = placed[first]._replace(lead=0)
    lines = (_line(placed[at : at + LINE]) for at in range(0, len(placed), LINE))
    return b"".join((_hashes(place.item.id for place in placed), *lines))


def _hash(id_: str) -> int:
    return int.from_bytes(blake2b(id_.encode(), digest_size=_HASH).digest(), "little")


def _hashes(ids: Iterable[str]) -> bytes:
    found = typed_array("Q", sorted(map(_hash, ids)))
    if sys.byteorder == "big":
        found.byteswap()
    return found.tobytes()


def _line(places: Sequence[Placed]) -> bytes:
    items = [place.item for place in places]
    roles = {role: index for index, role in enumerate(dict.fromkeys(item.role for item in items))}
    return orjson.dumps(
        {
            "id": [item.id for item in items],
            "role": [roles[item.role] for item in items],
            "ts": _differences([item.ts for item in items]),
            "seq": _differences([item.seq for item in items]),
            "lead": [place.lead for place in places],
            "text": [0 if item.hidden else len(item.text) for item in items],
            "odd": [
                [index, decoded(item.lead), decoded(item.tail), _hidden(item), item.edited or None]
                for index, item in enumerate(items)
                if item.lead is not None or item.tail is not None or item.hidden or item.edited
            ],
            "roles": list(roles),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _differences(values: list[int]) -> list[int]:
    return values[:1] + [after - before for before, after in pairwise(values)]


def _hidden(item: Item) -> str | None:
    return item.text.decode() if item.hidden else None


# ---- load


class StoredItems:
    """Older messages in a source (`store.document.Older`): `count`, `shown` of them between `start` and `end`."""

    __slots__ = ("_count", "_end", "_known", "_newest", "_shown", "_source", "_start")

    def __init__(self, source: _Source, count: int, shown: int, start: int, end: int, newest: str) -> None:
        self._source = source
        self._count = count
        self._shown = shown
        self._start = start
        self._end = end
        self._newest = newest
        self._known: Sequence[int] | None = None

    def may_have(self, id_: str) -> bool:
        """False: no message here has that id. The time in a UUIDv7 tells most new ids without a look at the hashes."""
        if id_ > self._newest and is_uuid(id_):
            return False
        if self._known is None:
            self._known = self._hashes(self._source.items())
        wanted = _hash(id_)
        at = bisect_left(self._known, wanted)
        return at < self._count and self._known[at] == wanted

    def _hashes(self, data: bytes) -> Sequence[int]:
        if len(data) < self._count * _HASH:
            raise CorruptSnapshot("a snapshot whose older messages are cut off")
        found = typed_array("Q", data[: self._count * _HASH])
        if sys.byteorder == "big":
            found.byteswap()
        return found

    def text(self, offset: int) -> Iterator[bytes]:
        """Its part of the rendered text."""
        for at in range(self._start + offset, self._end, _PIECE):
            yield self._read(at, min(_PIECE, self._end - at))

    def _read(self, offset: int, size: int) -> bytes:
        found = self._source.text(offset, size)
        if len(found) != size:
            raise CorruptSnapshot("a snapshot's text is shorter than it was")
        return found

    def load(self) -> list[Item]:
        """The messages in order."""
        items: list[Item] = []
        at = self._start
        with shaped():
            data = self._source.items()
            self._hashes(data)
            start = self._count * _HASH
            while start < len(data):
                end = data.find(b"\n", start) + 1 or len(data)
                line = orjson.loads(data[start:end])
                at = self._load_line(line, at, items)
                start = end
        shown = sum(not item.hidden for item in items)
        if (len(items), shown, at) != (self._count, self._shown, self._end):
            raise CorruptSnapshot("a snapshot whose older messages aren't as many, or not as long, as they were")
        if len({item.id for item in items}) != len(items):
            raise CorruptSnapshot("a snapshot has one message twice")
        return items

    def _load_line(self, line: dict[str, Any], at: int, items: list[Item]) -> int:
        """Add a line's messages to `items`; where their text ends, which begins at `at`."""
        leads, sizes = numbers(line["lead"]), numbers(line["text"])
        region = self._read(at, sum(leads) + sum(sizes))
        roles = texts(line["roles"])
        end, first = 0, len(items)
        for id_, role, ts, seq, lead, size in zip(
            texts(line["id"]),
            numbers(line["role"]),
            accumulate(numbers(line["ts"], negative=True)),
            accumulate(numbers(line["seq"], negative=True)),
            leads,
            sizes,
            strict=True,
        ):
            start = end + lead
            end = start + size
            items.append(Item(id_, roles[role], ts, seq, region[start:end]))
        if not region.isascii():
            for item in items[first:]:
                item.text.decode()
        for index, lead_text, tail, hidden, edited in rows(line["odd"], 5):
            item = items[first + number(index)]
            item.lead, item.tail = encoded(lead_text), encoded(tail)
            if hidden is not None:
                item.hidden, item.text = True, text(hidden).encode()
            item.edited = edited is not None and flag(edited)
        return at + len(region)
