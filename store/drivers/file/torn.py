"""Judge what stands behind a log's last whole batch: what an interrupted write leaves, or damage (see `tail`).

However much it is, and be it gigabytes of NUL bytes: it is read in pieces, and no more than a line of it is held.

Concurrency: pure functions over an open descriptor, whose position they may move.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Final, NamedTuple

from store import codec
from store.drivers.file.holes import spans
from store.drivers.file.tail import LONGEST, UNSYNCED, Mark
from store.model import Entry

_SECTOR: Final = 512
_HOLE: Final = re.compile(rb"\0+")


class _Line(NamedTuple):
    """A line; `text` is without its newline, and empty where that is longer than any entry is."""

    begin: int
    text: bytes
    ended: bool
    has_nul: bool


def _lines(fd: int, begin: int, end: int) -> Iterator[_Line]:
    """All lines between two offsets; the last one may lack its newline."""
    text, length, has_nul = bytearray(), 0, False

    def take(data: bytes) -> None:
        nonlocal length, has_nul
        length += len(data)
        has_nul = has_nul or b"\0" in data
        if length <= LONGEST:
            text.extend(data)
        else:
            text.clear()

    for span in spans(fd, begin, end):
        if not span.data:
            length += span.end - span.begin
            has_nul = True
            text.extend(bytes(span.end - span.begin)) if length <= LONGEST else text.clear()
            continue
        *whole, rest = span.data.split(b"\n")
        for data in whole:
            take(data)
            yield _Line(begin, bytes(text), True, has_nul)
            begin += length + 1
            text, length, has_nul = bytearray(), 0, False
        take(rest)
    if length:
        yield _Line(begin, bytes(text), False, has_nul)


def is_torn(fd: int, after: Mark, end: int) -> bool:
    """Whether what stands between the last whole batch (`after`) and `end` is what an interrupted write leaves."""
    seq, crc = after.seq, after.crc
    last: Entry | None = None
    lines = _lines(fd, after.end, end)
    for line in lines:
        entry = codec.parse(line.text) if line.ended else None
        if entry is None or entry.seq != seq + 1 or not codec.checks(line.text, entry, crc):
            break
        if last is not None and entry.more != last.more - 1:
            break
        if not entry.more:
            return False  # a whole batch
        last = entry
        seq, crc = entry.seq, entry.crc
    else:
        return True
    if not line.ended:
        # Part of a line. Were it whole, something else stood where its newline was written.
        text = line.text[:-1]
        entry = codec.parse(text)
        return entry is None or entry.seq != seq + 1 or not codec.checks(text, entry, crc)
    if not line.has_nul or not _holes_are_sectors(fd, after.end, end):
        return False
    batch_end = None if last is None else last.seq + last.more
    return _lost_at_once(chain((line,), lines), seq, batch_end, end - line.begin)


def _holes_are_sectors(fd: int, begin: int, end: int) -> bool:
    """Whether all NUL bytes are of blocks that didn't reach the disk: whole sectors, or what the text had of one."""
    before = b"\n"
    for at, to, data in spans(fd, begin, end):
        if not data:
            if before not in {b"\0", b"\n"} and at % _SECTOR:
                return False
            before = b"\0"
            continue
        if before == b"\0" and data[0] and at % _SECTOR:
            return False
        for hole in _HOLE.finditer(data):
            first, last = hole.span()
            previous = data[first - 1 : first] if first else before
            if previous not in {b"\0", b"\n"} and (at + first) % _SECTOR:
                return False
            if at + last != to and (at + last) % _SECTOR:
                return False
        before = data[-1:]
    return True


def _lost_at_once(bad: Iterator[_Line], seq: int, batch_end: int | None, size: int) -> bool:
    """Whether what stands between and behind the holes may have been written, and not synced, together with them.

    `bad` are the lines from the first hole on, `size` their bytes, and `seq` the entry before them.
    """
    previous: Entry | None = None
    same_batch = True
    for line in bad:
        if not line.ended:
            break
        if line.has_nul:
            previous = None
            continue
        entry = codec.parse(line.text)
        if entry is None or entry.seq <= seq:
            return False
        if previous is not None and (entry.seq != previous.seq + 1 or not codec.checks(line.text, entry, previous.crc)):
            return False
        same_batch = same_batch and batch_end in {None, entry.seq + entry.more}
        batch_end = entry.seq + entry.more
        previous = entry
    return same_batch or size <= 2 * UNSYNCED
