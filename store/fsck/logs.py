"""Read a log and check every line, as fast as Python can: whole pieces of text at once, single lines only on suspicion.

The chained crc covers all that a line says, so a piece whose lines all have the crcs that they must have is what was
written, byte for byte; then the last line's seq says that none is missing. JSON is decoded only where a line may refer
to something outside the log. Judges nothing: where the text isn't as it must be, `Checked.end` says how far it is.

Concurrency: for any thread; reads a descriptor that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from store import codec
from store.drivers.file.tail import Mark, pread_all, seq_of
from store.model import LINE_MAX

PIECE: Final = 256 * 1024
_LONGEST: Final = LINE_MAX + (1 << 20)
_TELLING: Final = (b'"attachment.put"', b'"type":"log.', b'"chat.deleted"')
"""What the line of an event has that is about something outside the log. Long words are found fast."""
_TYPES: Final = ("attachment.put", "log.compacted", "log.lost", "chat.deleted")


class Telling(NamedTuple):
    """An event that is about something outside the log."""

    seq: int
    actor: str
    value: dict[str, Any]


@dataclass(slots=True)
class Checked:
    """What a log says of itself, as far as it is whole."""

    first_seq: int
    seq: int
    crc: int
    end: int
    """Where the last whole batch ends in the text."""
    complete: bool = False
    """Whether that is where the text ends."""
    crcs: dict[int, int] = field(default_factory=dict)
    """Of the entries that were asked for."""
    truncated_at: int = 0
    """Which seq the base has."""


def check(
    fd: int,
    size: int,
    base: Mark,
    tell: Callable[[Telling], None],
    *,
    wanted: Collection[int] = (),
    read: Callable[[int], None] = lambda _size: None,
) -> Checked:
    """Check the first `size` bytes behind `base`. `tell` gets the telling events, `read` the bytes as they are read."""
    at = base.end
    seq, crc, more = base.seq, base.crc, 0
    found = Checked(base.seq + 1, base.seq, base.crc, at, truncated_at=base.seq)
    found.crcs[base.seq] = base.crc
    for text, lines, length in _split(fd, at, size):
        read(length)
        crcs = codec.chain(lines, crc)
        if crcs is None or seq_of(lines[-1][:40]) != seq + len(lines):
            # Some line isn't right: the text is whole as far as single lines are.
            _check_singly(found, lines, at, seq, crc, more)
            return found
        crc = crcs[-1]
        if more or b',"more":' in text:
            good, more, ends = _batches(lines, more)
            if ends:
                found.seq, found.crc = seq + ends, crcs[ends - 1]
                found.end = at + length - sum(len(line) + 1 for line in lines[ends:])
            if not good:
                return found
        else:
            found.seq, found.crc, found.end = seq + len(lines), crc, at + length
        for each in wanted:
            if seq < each <= seq + len(lines):
                found.crcs[each] = crcs[each - seq - 1]
        _tell(text, lines, tell)
        seq += len(lines)
        at += length
    found.complete = found.end == size
    return found


def _check_singly(found: Checked, lines: list[bytes], end: int, seq: int, crc: int, more: int) -> None:
    for line in lines:
        entry = codec.parse(line)
        if entry is None or entry.seq != seq + 1 or not codec.checks(line, entry, crc):
            return
        if more and entry.more != more - 1:
            return
        seq, crc, more = entry.seq, entry.crc, entry.more
        end += len(line) + 1
        if not more:
            found.seq, found.crc, found.end = seq, crc, end


def _batches(lines: list[bytes], more: int) -> tuple[bool, int, int]:
    """(whether the marks fit each other, what the last line's says, how many lines end with a whole batch).

    `more` is what the line before these says.
    """
    ends = 0
    for number, says in enumerate(codec.marks(lines)):
        if more and says != more - 1:
            return False, more, ends
        more = says
        if not says:
            ends = number + 1
    return True, more, ends


def _tell(text: bytes, lines: list[bytes], tell: Callable[[Telling], None]) -> None:
    marks = [mark for mark in _TELLING if mark in text]
    if not marks:
        return
    for line in lines:
        if any(mark in line for mark in marks):
            telling = telling_of(line)
            if telling is not None:
                tell(telling)


def telling_of(line: bytes) -> Telling | None:
    """The event of a line, where it is about something outside the log."""
    entry = codec.parse(line)
    if entry is None:
        return None
    try:
        value = orjson.loads(entry.data)
    except orjson.JSONDecodeError:
        return None
    if isinstance(value, dict) and value.get("type") in _TYPES:
        return Telling(entry.seq, entry.actor if entry.origin is None else "", value)
    return None


def _split(fd: int, start: int, end: int) -> Iterator[tuple[bytes, list[bytes], int]]:
    """The text between two offsets: (a piece of it, the whole lines in it, their bytes).

    A piece may end with the beginning of the next line. Ends early where no line ends any more.
    """
    size = PIECE
    while start < end:
        text = pread_all(fd, min(size, end - start), start)
        lines = text.split(b"\n")
        length = len(text) - len(lines.pop())
        if length:
            yield text, lines, length
            start += length
            size = PIECE
        elif start + len(text) >= end or size > _LONGEST:
            return
        else:
            size *= 4


def pieces(fd: int, start: int, end: int) -> Iterator[bytes]:
    """The text between two offsets, in pieces of whole lines."""
    for text, _lines, length in _split(fd, start, end):
        yield text[:length]


def lines_between(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Whole lines, without newlines."""
    for _text, lines, _length in _split(fd, start, end):
        yield from lines
