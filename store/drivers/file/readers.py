"""Entries of a log's text, one after the other: forward, backward, and from a place that moves with the log.

They never look whether the log has grown: what they read ends at the text's head.

Concurrency: one task per reader. A reader holds one piece of the text and notices when the text was replaced
by a shorter one (a truncation) between two pieces.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from store import codec
from store.drivers import cursor
from store.drivers.file.tail import ORIGIN, Mark, pread_all
from store.drivers.file.text import PIECE, Text
from store.errors import CorruptLog, StoreFailed
from store.model import Entry, Seq

_FIRST_WINDOW: Final = 16 * 1024


class Cursor(cursor.Cursor):
    """A place in a text, behind entry `seq`. 0 is the oldest entry's that is there at this moment."""

    def __init__(self, text: Text, since: int) -> None:
        text.check_open()
        if since:
            text.check_since(since)
        super().__init__(since or text.base.seq)
        self._text = text
        self._generation = -1
        self._piece = _FIRST_WINDOW
        self._at = ORIGIN

    def fill(self) -> bool:
        """Read the next piece; False at the head. Raises Truncated."""
        text = self._text
        text.check_open()
        if self.seq >= text.head.seq:
            return False
        if self._generation != text.generation:
            # Where bisection fails there is damage before the entry: reading from the start says where.
            self._at = text.position(self.seq) or text.base
            self._generation = text.generation
        at = self._at.end
        left = text.head.size - at
        size = self._piece
        self._piece = min(PIECE, size * 4)
        while True:
            piece = pread_all(text.fd, min(size, left), at)
            whole = piece.rfind(b"\n") + 1
            if whole or size >= left:
                break
            size *= 4
        if not whole:
            raise StoreFailed(f"the log of {text.space} ends before entry {text.head.seq}: run chatfs fsck --repair")
        before = self._at
        entries, self._damage = codec.decode(piece[:whole], after=Seq(before.seq), previous_crc=before.crc, offset=at)
        if self._damage is None:
            last = entries[-1]
            self._at = Mark(last.seq, last.ts, last.crc, at + whole)
        self._entries = entries
        return True


class Forward(cursor.Forward):
    """Oldest first, up to where the head was when this was made."""

    def __init__(self, text: Text, since: int, limit: int | None) -> None:
        super().__init__(Cursor(text, since), text.head.seq, limit, text.raise_damage)


class Backward:
    """Newest first. Reads windows from the end; an entry is checked against the line before it."""

    def __init__(self, text: Text, since: int, limit: int | None) -> None:
        text.check_open()
        if since:
            text.check_since(since)
        self._text = text
        self._since = since
        self._left = limit
        self._ready: deque[Entry] = deque()
        self._window = _FIRST_WINDOW
        self._generation = text.generation
        self._seq: int = text.head.seq
        self._crc: int = text.head.crc
        self._end = text.head.size

    def __aiter__(self) -> Backward:
        return self

    async def __anext__(self) -> Entry:
        if self._left == 0:
            raise StopAsyncIteration
        while not self._ready:
            await trio.lowlevel.checkpoint()
            if self._seq <= self._since or self._seq < self._text.head.first_seq:
                raise StopAsyncIteration
            self._fill()
        if self._left is not None:
            self._left -= 1
        return self._ready.popleft()

    def _fill(self) -> None:
        text = self._text
        text.check_open()
        if self._generation != text.generation:
            found = text.position(self._seq)
            if found is None:
                raise self._corrupt(self._end)
            self._end, self._crc = found.end, found.crc
            self._generation = text.generation
        start = max(text.base.end, self._end - self._window)
        inside = start > text.base.end
        window = pread_all(text.fd, self._end - start, start)
        first = window.find(b"\n") + 1 if inside else 0
        found_lines = window[first:].split(b"\n")[:-1] if first or not inside else []
        # Unless the window begins at the start, its first line only tells what the second is checked against.
        oldest = 1 if inside else 0
        if len(found_lines) <= oldest:
            if not inside:
                raise self._corrupt(start)
            self._window *= 4
            return
        for index in range(len(found_lines) - 1, oldest - 1, -1):
            if self._seq <= self._since:
                return
            line = found_lines[index]
            entry = codec.parse(line)
            before = self._before(found_lines[index - 1] if index else None)
            if (
                entry is None
                or before is None
                or (entry.seq, entry.crc) != (self._seq, self._crc)
                or not codec.checks(line, entry, before)
            ):
                if not self._ready:
                    raise self._corrupt(self._end - len(line) - 1)
                # What was good comes first; the next call meets the damage again.
                return
            self._end -= len(line) + 1
            self._seq -= 1
            self._crc = before
            self._ready.append(entry)
        self._window = min(PIECE, self._window * 2)

    def _before(self, line: bytes | None) -> int | None:
        """The crc that the line before claims to have."""
        if line is None:
            return self._text.base.crc
        entry = codec.parse(line)
        return None if entry is None else entry.crc

    def _corrupt(self, offset: int) -> CorruptLog:
        return CorruptLog(
            f"is damaged at or before entry {self._seq}, at byte {offset}: run chatfs fsck --repair",
            seq=self._seq - 1,
            offset=offset,
            log=self._text.space,
        )
