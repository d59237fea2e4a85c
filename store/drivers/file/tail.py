"""Where a log's text ends: the last whole batch, and what an interrupted write left behind it.

A *torn tail* (a partial line, an unfinished batch, NUL bytes as file systems leave them after a power cut) is what a
writer leaves that died; it was never acknowledged as durable. Anything else that doesn't check is *damage*. This module
finds where the whole batches end, `torn` tells what stands behind them apart; both change nothing.

A power cut may take any of the blocks that weren't synced, and leave later ones: sectors of NUL bytes with good lines
behind them. Since a log never has much more than UNSYNCED bytes that aren't synced (`log` sees to that), such a hole is
looked for there, and the tail begins with it. Further from the end, a hole is damage.

Concurrency: pure functions over an open descriptor; they read the page cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from store import codec
from store.drivers.file.holes import end_of_data, spans
from store.model import LINE_MAX, Entry, Seq

WINDOW: Final = 16 * 1024
UNSYNCED: Final = 512 * 1024
"""Bytes after which an append syncs by itself."""
LONGEST: Final = LINE_MAX + (1 << 20)
"""No line of a log is longer."""
_SHORTEST: Final = 32
"""Nor shorter."""
_NEAR: Final = 64 * WINDOW
_FAR: Final = 4 * LONGEST
"""How much is looked at from the end of a log at once: where that isn't enough, it is read from its beginning."""
_SEQ: Final = re.compile(rb'\{"seq":([0-9]{1,18}),')


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry that ends a batch: its seq, ts and crc, and the offset in the text where its line ends.

    As a log's base: the last entry that was truncated away, or zeros. The text begins at its `end`, which is 0 unless
    a truncation couldn't be finished.
    """

    seq: int
    ts: int
    crc: int
    end: int = 0


ORIGIN: Final = Mark(0, 0, 0)


def pread_all(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes, fewer only at the end of the file."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    size -= len(data)
    offset += len(data)
    while size and (data := os.pread(fd, size, offset)):
        parts.append(data)
        size -= len(data)
        offset += len(data)
    return b"".join(parts)


def seq_of(line: bytes) -> int | None:
    """The seq that a line claims to have."""
    match = _SEQ.match(line)
    return None if match is None else int(match[1])


def follows(line: bytes, entry: Entry, before: Entry) -> bool:
    """Whether `entry` (from `line`) is what must stand behind `before`."""
    if entry.seq != before.seq + 1 or (before.more and entry.more != before.more - 1):
        return False
    return codec.checks(line, entry, before.crc)


def last_batch(fd: int, size: int, base: Mark) -> Mark:
    """The last whole batch among the first `size` bytes of which every line checks with the one before.

    Reads from the end, a window that grows until it holds such a batch and the line before it, whose own crc is taken
    as it stands. `base` where there is none at all. A window that would get very large leaves out the NUL bytes at the
    end; if that isn't enough, all is read from the beginning, and what is found stands before the first damage.
    """
    window = WINDOW
    while True:
        start = max(base.end, size - window)
        text = pread_all(fd, size - start, start)
        inside = start > base.end
        if window >= _NEAR and text.count(b"\n") > len(text) // _SHORTEST:
            return _last_batch_from(fd, size, base)
        first = text.find(b"\n") + 1 if inside else 0
        found = _last_batch_in(text, first, start, base) if first or not inside else None
        if found is not None:
            return found
        if not inside:
            return base
        if window == _NEAR and (end := max(base.end, end_of_data(fd, size))) < size:
            return last_batch(fd, end, base)
        window *= 4
        if window > _FAR:
            return _last_batch_from(fd, size, base)


def _last_batch_from(fd: int, size: int, base: Mark) -> Mark:
    """The same, every line checked from `base` on. Memory is bounded by a line."""
    found = at = base
    more = 0
    for begin, end, line in lines(fd, base.end, size, _NEAR):
        entry = codec.parse(line)
        if begin != at.end or entry is None or entry.seq != at.seq + 1 or not codec.checks(line, entry, at.crc):
            break
        if more and entry.more != more - 1:
            break
        at, more = Mark(entry.seq, entry.ts, entry.crc, end), entry.more
        if not more:
            found = at
    return found


def _last_batch_in(text: bytes, first: int, offset: int, base: Mark) -> Mark | None:
    """The same within `text`, which stands at `offset` of the log and whose whole lines begin at `first`."""
    found = text[first : text.rfind(b"\n") + 1].split(b"\n")[:-1]
    window = _Window(found, base if offset + first == base.end else None)
    last = len(window.lines) - 1
    while last >= 0:
        good_from = window.batch(last)
        if good_from < 0:
            entry = window.entry(last)
            assert entry is not None
            size = sum(len(line) + 1 for line in window.lines[: last + 1])
            return Mark(entry.seq, entry.ts, entry.crc, offset + first + size)
        last = good_from - 1
    return None


class _Window:
    """Lines, parsed when they are asked for. `base` is what stands before the first one, where that is known."""

    def __init__(self, lines: list[bytes], base: Mark | None) -> None:
        self.lines = lines
        self._base = base
        self._entries: dict[int, Entry | None] = {}

    def entry(self, index: int) -> Entry | None:
        if index not in self._entries:
            self._entries[index] = codec.parse(self.lines[index])
        return self._entries[index]

    def batch(self, last: int) -> int:
        """-1 where a batch ends with line `last` and is good; else the first line that was looked at in vain."""
        entry = self.entry(last)
        if entry is None or entry.more:
            return last
        for index in range(last, 0, -1):
            before = self.entry(index - 1)
            if before is None or not follows(self.lines[index], entry, before):
                return index
            if not before.more:
                return -1
            entry = before
        base = self._base
        good = base is not None and entry.seq == base.seq + 1 and codec.checks(self.lines[0], entry, base.crc)
        return -1 if good else 0


def without_holes(fd: int, size: int, base: Mark) -> int:
    """The size of the text up to the line that has the first NUL byte among the last UNSYNCED bytes; else `size`."""
    start = max(base.end, size - UNSYNCED)
    text = pread_all(fd, size - start, start)
    hole = text.find(b"\0")
    if hole < 0:
        return size
    line = text.rfind(b"\n", 0, hole) + 1
    if line or start == base.end:
        return start + line
    return last_batch(fd, start + hole, base).end


def lines(fd: int, start: int, end: int, piece: int = WINDOW) -> Iterator[tuple[int, int, bytes]]:
    """Whole lines between two offsets, the first beginning at `start`: (begin, end, line without newline).

    What is too long to be an entry is passed over.
    """
    size = piece
    while start < end:
        text = pread_all(fd, min(size, end - start), start)
        whole = text.rfind(b"\n") + 1
        if not whole:
            if start + len(text) >= end or len(text) < size:
                return
            if size <= LONGEST:
                size *= 4
                continue
            start = _behind_newline(fd, start + len(text), end)
        at = 0
        while at < whole:
            stop = text.find(b"\n", at)
            yield start + at, start + stop + 1, text[at:stop]
            at = stop + 1
        start += whole
        size = piece


def _behind_newline(fd: int, start: int, end: int) -> int:
    """Where the next line begins; `end` where none does."""
    for span in spans(fd, start, end):
        newline = span.data.find(b"\n")
        if newline >= 0:
            return span.begin + newline + 1
    return end


def locate(fd: int, size: int, seq: Seq) -> Mark | None:
    """The line that has this seq, found by bisection; None where it can't be read. Its crc isn't checked."""
    low, high = 0, size
    while high - low > 4 * WINDOW:
        middle = _next_line(fd, (low + high) // 2, high)
        if middle is None:
            high = (low + high) // 2
            continue
        begin, found = middle
        if found <= seq:
            low = begin
        else:
            high = (low + high) // 2
    for _begin, end, line in lines(fd, low, size):
        found_seq = seq_of(line[:40])
        if found_seq == seq:
            entry = codec.parse(line)
            return None if entry is None else Mark(entry.seq, entry.ts, entry.crc, end)
        if found_seq is not None and found_seq > seq:
            return None
    return None


def _next_line(fd: int, offset: int, end: int) -> tuple[int, int] | None:
    """Begin and seq of the first line with a readable seq that begins behind `offset` and before `end`."""
    at = offset
    size = WINDOW
    text = b""
    while at < end:
        text = os.pread(fd, size, at)
        if not text:
            return None
        newline = text.find(b"\n")
        while newline >= 0:
            begin = at + newline + 1
            if begin >= end:
                return None
            head = text[newline + 1 : newline + 41]
            if len(head) < 40:
                head = os.pread(fd, 40, begin)
            found = seq_of(head)
            if found is not None:
                return begin, found
            newline = text.find(b"\n", newline + 1)
        at += len(text)
    return None
