"""Look at a damaged log, and say which entries can be kept, which restored, and which are lost. Changes nothing.

A line is trusted if it chains from the crc of the line before, stated or computed, or if the line behind chains from
its own. Where only a line's crc field or its newline was hit, the entry is whole: what stands behind it, or a single
wrong character, says so. What is to be done about it is `salvage`'s.

Concurrency: pure functions over an open descriptor, but for what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from zlib import crc32

import orjson

from store import codec
from store.drivers.file.tail import ORIGIN, Mark, pread_all, seq_of
from store.model import LINE_MAX, Entry

_LONGEST: Final = LINE_MAX + (1 << 20)
"""No line of a log is longer."""
_WINDOW: Final = 1 << 20
_CRC: Final = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')
_MERGED: Final = re.compile(rb'"\}.(?=\{"seq":[0-9])', re.DOTALL)


class Line(NamedTuple):
    """A physical line: where it stands, with its newline, and its bytes without."""

    begin: int
    end: int
    text: bytes


@dataclass(slots=True)
class Kept:
    """Lines that stay as they are, but for their crcs."""

    begin: int
    end: int


@dataclass(slots=True)
class Restored:
    """A line of which only the crc field or the newline was hit: its body ends at `body`."""

    begin: int
    end: int
    body: int
    seq: int


@dataclass(slots=True)
class Lost:
    """Bytes that can't be read, and the entries that stood there: none where `first > last`."""

    begin: int
    end: int
    first: int
    last: int


Piece = Kept | Restored | Lost


@dataclass(slots=True)
class Plan:
    """What is to become of a log's text, in its order."""

    base: Mark
    """What the log begins behind; its entries begin at `base.end`."""
    start: Mark
    """The entry, the last of a batch, behind which this was looked at: what stands before is whole."""
    pieces: list[Piece] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)
    """Entries behind a gap, whose own crc only the line behind vouches for."""
    hidden_tail: bool = False
    """Damage stands at the very end: how many entries it hid is only known at least."""
    end: Mark = ORIGIN
    """The last whole batch."""

    @property
    def damaged(self) -> bool:
        """Whether anything has to be repaired."""
        return any(not isinstance(piece, Kept) for piece in self.pieces)

    @property
    def lost(self) -> list[list[int]]:
        """First and last seq of the entries that can't be read."""
        return [
            [piece.first, piece.last] for piece in self.pieces if isinstance(piece, Lost) and piece.first <= piece.last
        ]

    @property
    def restored(self) -> list[int]:
        """The entries that are whole again."""
        return [piece.seq for piece in self.pieces if isinstance(piece, Restored)]


class _Lines:
    """The physical lines of a file, one after the other."""

    def __init__(self, fd: int, size: int, start: int) -> None:
        self._lines = _physical(fd, size, start)
        self._ahead: list[Line] = []

    def take(self) -> Line | None:
        return self._ahead.pop() if self._ahead else next(self._lines, None)

    def push(self, line: Line) -> None:
        self._ahead.append(line)

    def peek(self) -> Line | None:
        line = self.take()
        if line is not None:
            self.push(line)
        return line


def _physical(fd: int, size: int, at: int) -> Iterator[Line]:
    """Lines from `at` on; what is too long to be one comes in pieces, with empty bytes."""
    text = b""
    while at + len(text) < size or text:
        newline = text.find(b"\n")
        if newline < 0:
            if len(text) > _LONGEST:
                yield Line(at, at + len(text), b"")
                at, text = at + len(text), b""
                continue
            more = pread_all(fd, min(max(_WINDOW, len(text)), size - at - len(text)), at + len(text))
            if not more:
                yield Line(at, at + len(text), text)
                return
            text += more
            continue
        start = 0
        while newline >= 0:
            yield Line(at + start, at + newline + 1, text[start:newline])
            start = newline + 1
            newline = text.find(b"\n", start)
        at, text = at + start, text[start:]


class _Scan:
    """Goes through the lines and makes the plan."""

    def __init__(self, lines: _Lines, plan: Plan, size: int) -> None:
        self._lines = lines
        self._plan = plan
        self._size = size
        self._seq = plan.start.seq
        self._crc = plan.start.crc
        self._more = 0
        self._bad: list[Line] = []
        """What couldn't be read since the last entry; only the last line keeps its bytes."""
        self._ends = 0
        """How many of them end as an entry does."""
        self._hint = 0
        """The greatest seq that one of them claims."""

    def run(self) -> None:
        while (line := self._lines.take()) is not None:
            if not self._take(line):
                self._put_aside(line)
        if self._bad:
            self._end()

    def _take(self, line: Line) -> bool:
        unfinished = line.end == self._size and line.end - line.begin == len(line.text)
        entry = None if unfinished else codec.parse(line.text)
        if not self._bad:
            if entry is not None and entry.seq == self._seq + 1 and codec.checks(line.text, entry, self._crc):
                self._whole(line, entry)
                return True
            if self._take_nearly_whole(line):
                return True
            if entry is None or entry.seq <= self._seq + 1 or not self._vouched(entry):
                return False
            # Lines are missing, and left no trace.
            self._plan.pieces.append(Lost(line.begin, line.begin, self._seq + 1, entry.seq - 1))
            self._whole(line, entry)
            return True
        if entry is None or entry.seq <= self._seq:
            return False
        if entry.seq == self._seq + 1:
            if not codec.checks(line.text, entry, self._crc):
                return False
            self._close()
        elif not self._follows_restored(line, entry):
            if not self._follows_gap(line, entry):
                return False
            self._close(entry.seq - 1)
        self._whole(line, entry)
        return True

    def _take_nearly_whole(self, line: Line) -> bool:
        """Whether only the crc field or the newline was hit, which this line alone shows."""
        for text, rest in self._readings(line):
            body = text[: -codec.CRC_FIELD]
            crc = crc32(body, self._crc)
            tail = b',"crc":"%08x"}' % crc
            stated = text[-codec.CRC_FIELD :]
            if len(stated) != codec.CRC_FIELD or sum(a != b for a, b in zip(tail, stated, strict=True)) > 1:
                continue
            entry = codec.parse(body + tail)
            if entry is None or entry.seq != self._seq + 1 or (rest is None and line.end == self._size and entry.more):
                continue
            end = line.end if rest is None else rest
            self._restore(Line(line.begin, end, body + tail), entry)
            if rest is not None:
                self._lines.push(Line(rest, line.end, line.text[rest - line.begin :]))
            return True
        return False

    def _readings(self, line: Line) -> Iterator[tuple[bytes, int | None]]:
        """The ways to read a line: as it is, without a wrong last character, or as two whose newline was hit."""
        if line.end == self._size and line.end - line.begin == len(line.text):
            yield line.text[:-1], None
        else:
            yield line.text, None
        for match in _MERGED.finditer(line.text):
            yield line.text[: match.end() - 1], line.begin + match.end()

    def _follows_restored(self, line: Line, entry: Entry) -> bool:
        """Whether one line is bad, and this one chains from the crc that its body has: only its crc field was hit."""
        if len(self._bad) != 1 or entry.seq != self._seq + 2:
            return False
        bad = self._bad[0]
        body = bad.text[: -codec.CRC_FIELD]
        crc = crc32(body, self._crc)
        if not codec.checks(line.text, entry, crc):
            return False
        text = b'%b,"crc":"%08x"}' % (body, crc)
        found = codec.parse(text)
        if found is None or found.seq != self._seq + 1:
            return False
        self._clear()
        self._restore(bad._replace(text=text), found)
        return True

    def _follows_gap(self, line: Line, entry: Entry) -> bool:
        stated = _CRC.search(self._bad[-1].text)
        if stated is not None and codec.checks(line.text, entry, int(stated[1], 16)):
            return True
        return self._vouched(entry)

    def _vouched(self, entry: Entry) -> bool:
        """Whether the line behind chains from the crc that this one states."""
        behind = self._lines.peek()
        follower = None if behind is None else codec.parse(behind.text)
        if behind is None or follower is None or follower.seq != entry.seq + 1:
            return False
        if not codec.checks(behind.text, follower, entry.crc) or not _is_json(entry.data):
            return False
        self._plan.unverified.append(entry.seq)
        return True

    def _whole(self, line: Line, entry: Entry) -> None:
        pieces = self._plan.pieces
        last = pieces[-1] if pieces else None
        if isinstance(last, Kept) and last.end == line.begin:
            last.end = line.end
        else:
            pieces.append(Kept(line.begin, line.end))
        self._seq, self._crc, self._more = entry.seq, entry.crc, entry.more
        self._end_batch(line, entry)

    def _end_batch(self, line: Line, entry: Entry) -> None:
        if not entry.more:
            self._plan.end = Mark(self._seq, entry.ts, self._crc, line.end)

    def _restore(self, line: Line, entry: Entry) -> None:
        body = line.begin + len(line.text) - codec.CRC_FIELD
        self._plan.pieces.append(Restored(line.begin, line.end, body, entry.seq))
        self._seq, self._more = entry.seq, entry.more
        self._crc = crc32(line.text[: -codec.CRC_FIELD], self._crc)
        self._end_batch(line, entry)

    def _put_aside(self, line: Line) -> None:
        if self._bad:
            self._bad[-1] = self._bad[-1]._replace(text=b"")
        self._bad.append(line)
        self._ends += _CRC.search(line.text) is not None
        claimed = seq_of(line.text[:40])
        if claimed is not None and self._seq < claimed <= self._seq + len(self._bad):
            self._hint = max(self._hint, claimed)

    def _close(self, last: int | None = None) -> None:
        """The bad lines are one gap, of the entries up to `last` (none: they were no entries)."""
        first = self._seq + 1
        self._plan.pieces.append(
            Lost(self._bad[0].begin, self._bad[-1].end, first, self._seq if last is None else last)
        )
        self._clear()

    def _clear(self) -> None:
        self._bad, self._ends, self._hint = [], 0, 0

    def _end(self) -> None:
        """Nothing that can be read follows: as many entries are lost as the batch, or what is left of them, says."""
        count = max(self._more, self._ends, self._hint - self._seq, 1)
        self._plan.hidden_tail = True
        self._close(self._seq + count)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def examine(fd: int, size: int, base: Mark, start: Mark | None = None) -> Plan:
    """What is damaged among the first `size` bytes, and what can be done. Memory is bounded by a line.

    `start`: an entry up to which all is known to be whole.
    """
    start = start or base
    plan = Plan(base, start, end=start)
    _Scan(_Lines(fd, size, start.end), plan, size).run()
    return plan


def rebuilt_base(fd: int, size: int) -> Mark | None:
    """The base that the log's first two lines show; None where they don't check with each other."""
    lines = _Lines(fd, size, 0)
    first, second = lines.take(), lines.take()
    entry = None if first is None else codec.parse(first.text)
    if first is None or entry is None:
        return None
    if second is not None:
        follower = codec.parse(second.text)
        if follower is None or follower.seq != entry.seq + 1 or not codec.checks(second.text, follower, entry.crc):
            return None
    if entry.seq == 1:
        return Mark(0, 0, 0) if codec.checks(first.text, entry, 0) else None
    before = _crc_before(first.text[: -codec.CRC_FIELD], entry.crc)
    return Mark(entry.seq - 1, entry.ts, before)


def _crc_before(body: bytes, crc: int) -> int:
    """The seed with which `body` has this crc. crc32 is linear in its seed over GF(2): Gaussian elimination."""
    zero = crc32(body, 0)
    wanted = crc ^ zero
    rows: list[tuple[int, int]] = []
    for bit in range(32):
        image, source = crc32(body, 1 << bit) ^ zero, 1 << bit
        for pivot, from_ in rows:
            if image ^ pivot < image:
                image, source = image ^ pivot, source ^ from_
        rows.append((image, source))
        rows.sort(reverse=True)
    found = 0
    for pivot, from_ in rows:
        if wanted ^ pivot < wanted:
            wanted, found = wanted ^ pivot, found ^ from_
    return found
