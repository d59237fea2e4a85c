r"""The portable log: a chat's log as lines that are the same bytes in everybody's copy. Pure.

::

    {"ts":1795241582000,"actor":"uid:1000/vim","data":{…}}\n

Keys stand in this order, without spaces; `data` is the entry's, byte for byte. An entry that was copied from another
log is written with its origin's `actor` and `ts`: so its line is the one that it came from. There is no seq and no
checksum, which are each copy's own: a git merge that takes both sides' lines gives a valid log.

**No line stands there twice.** The second of two entries that would have the same line gets `"repeat":2` before `data`,
the third 3, and so on. So a line that a merge has brought in twice is known as such, and counts once. Whoever reads
them numbers them by their order: a merge may have turned them round, and somebody may have removed the first.

What a log says of its own copy isn't part of it: resets, repairs, compactions, and whether the chat is projected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from store import events as ev
from store.beginning import COMPACTED, COMPACTOR
from store.intake import fits
from store.model import LINE_MAX, TS_MAX, Entries, Entry, Millis, NewEntry, Origin, Seq

_LINE: Final = re.compile(
    rb'\{"ts":(0|[1-9][0-9]{0,14}),"actor":("(?:[^"\\]|\\.)*")(?:,"repeat":([1-9][0-9]{0,8}))?,"data":(.*)\}',
    re.DOTALL,
)
_REPEAT: Final = b',"repeat":'
_MARKERS: Final = (b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>")
_OWN_TYPES: Final = {
    COMPACTOR: (COMPACTED,),
    ev.REPAIRER: ("log.repaired", ev.LOG_LOST, "blob.quarantined"),
    ev.PROJECTOR: (ev.LogReset.TYPE,),
}
"""What chatfs itself says of one copy, by the actors that nobody else can have."""


class Portable(NamedTuple):
    """A line, decoded. `repeat` is 1 for the first of its kind."""

    ts: Millis
    actor: str
    data: bytes
    repeat: int = 1

    def new_entry(self) -> NewEntry:
        """The entry that takes it into a log."""
        return NewEntry(self.data, ev.PROJECTOR, Origin(self.actor, self.ts))


def encode(found: Portable) -> bytes:
    """The line, without its newline."""
    repeat = b',"repeat":%d' % found.repeat if found.repeat > 1 else b""
    return b'{"ts":%d,"actor":%b%b,"data":%b}' % (found.ts, orjson.dumps(found.actor), repeat, found.data)


def decode(line: bytes) -> Portable | None:
    """What a line says; None where it isn't one."""
    match = _LINE.fullmatch(line)
    if match is None or len(line) > LINE_MAX + 4096:
        return None
    ts, actor, repeat, data = int(match[1]), match[2], int(match[3] or 1), match[4].strip(b" \t\r")
    if ts > TS_MAX or len(data) > LINE_MAX or not fits(data):
        return None
    try:
        orjson.loads(data)
        name = orjson.loads(actor)
    except orjson.JSONDecodeError:
        return None
    return Portable(Millis(ts), name, data, repeat)


def is_own(entry: Entry) -> bool:
    """Whether an entry speaks of this copy alone."""
    if entry.origin is not None:
        return False
    types = _OWN_TYPES.get(entry.actor)
    if types is None and b'"projection"' not in entry.data:
        return False
    event = ev.parse(entry.data)
    if isinstance(event, ev.ChatChanged):
        return event.projection is not None and event.title is None and event.labels is None
    kind = ev.LogReset.TYPE if isinstance(event, ev.LogReset) else None
    if isinstance(event, ev.Unknown) and isinstance(event.value, dict):
        kind = event.value.get("type")
    return types is not None and kind in types


def is_reset(entry: Entry) -> bool:
    """Whether the chat begins anew behind this entry."""
    return entry.actor == ev.PROJECTOR and entry.origin is None and isinstance(ev.parse(entry.data), ev.LogReset)


class Writer:
    """Makes the lines of consecutive entries."""

    __slots__ = ("_names", "_seen")

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}
        self._names: dict[str, bytes] = {}

    def write(self, entries: Entries, lines: list[bytes]) -> bool:
        """Put the entries' lines behind those of the entries before; whether the chat begins anew among them."""
        seen, names = self._seen, self._names
        again = False
        for ts, (actor, origin, _), data in zip(entries.ts, entries.who, entries.data, strict=True):
            if origin is not None:
                actor, ts = origin.actor, origin.ts  # noqa: PLW2901 - who wrote it, and when
            elif actor in _OWN_TYPES or b'"projection"' in data:
                entry = Entry(Seq(0), Millis(ts), actor, data, 0)
                if is_own(entry):
                    if is_reset(entry):
                        again = True
                        lines.clear()
                        seen.clear()
                    continue
            name = names.get(actor)
            if name is None:
                name = names[actor] = orjson.dumps(actor)
            line = b'{"ts":%d,"actor":%b,"data":%b}' % (ts, name, data)
            number = seen[line] = seen.get(line, 0) + 1
            lines.append(line if number == 1 else encode(Portable(Millis(ts), actor, data, number)))
        return again


def stream(entries: Iterable[Entry]) -> list[bytes]:
    """The portable log of a whole log."""
    lines: list[bytes] = []
    Writer().write(Entries.of(entries), lines)
    return lines


def join(lines: Iterable[bytes]) -> bytes:
    """The file."""
    return b"".join([b"%b\n" % line for line in lines])


@dataclass(frozen=True, slots=True)
class Read:
    """What a file says.

    `problem`: why nothing can be taken from it, in words that follow the file's name. `unfinished`: its last line is
    cut off, and isn't among `lines`.
    """

    lines: list[bytes]
    problem: str = ""
    unfinished: bool = False


def read(text: bytes, known: Collection[bytes] = ()) -> Read:
    """The lines of a file, each once. Those that are in `known` aren't looked at any closer."""
    raw = text.split(b"\n")
    tail = raw.pop()
    lines: dict[bytes, None] = {}
    for number, line in enumerate(raw, 1):
        if line in known:
            lines[line] = None
            continue
        if line.startswith(_MARKERS):
            return Read([], f"has a merge conflict at line {number}: resolve it (both sides' lines belong there)")
        if not line.strip():
            continue
        found = decode(line.rstrip(b"\r"))
        if found is None:
            return Read([], f"can't be read at line {number}: restore it from version control, or remove that line")
        lines[encode(found)] = None
    unfinished = False
    if tail.strip():
        found = decode(tail)
        unfinished = found is None
        if found is not None:
            lines[encode(found)] = None
    return Read(_numbered(lines), unfinished=unfinished)


def _numbered(lines: Collection[bytes]) -> list[bytes]:
    """Distinct lines, with each `repeat` as its place among its equals is: as `Writer` has them."""
    if not any(_REPEAT in line for line in lines):
        return list(lines)
    numbered: list[bytes] = []
    counts: dict[bytes, int] = {}
    for line in lines:
        found = decode(line) if _REPEAT in line else None
        if found is not None:
            line = encode(found._replace(repeat=1))  # noqa: PLW2901 - the first of its kind
        number = counts[line] = counts.get(line, 0) + 1
        if number > 1:
            found = found or decode(line)
            assert found is not None, "it was read before"
            line = encode(found._replace(repeat=number))  # noqa: PLW2901
        numbered.append(line)
    return numbered


def entries_of(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The lines as the entries of a log that has nothing else: for a fold, not for a driver."""
    for seq, line in enumerate(lines, 1):
        found = decode(line)
        assert found is not None, "these lines were read before"
        yield Entry(Seq(seq), found.ts, ev.PROJECTOR, found.data, 0, Origin(found.actor, found.ts))
