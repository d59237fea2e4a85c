"""Entries of a log, one after the other: forward, backward, and from a place that moves with the log.

They read what the log's instance shows (`GitLog.view`), piece by piece, and never look whether it has grown.

Concurrency: one task per reader. A reader holds the entries of a few segments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from store import codec
from store.drivers import cursor
from store.drivers.file.tail import Mark
from store.drivers.git.text import Texts, View
from store.errors import CorruptLog, StoreFailed, Truncated
from store.model import Entry, Seq, SpaceId

_MOST: Final = 16
"""Segments that are read at once."""


class Shown:
    """What an instance shows: asked for anew at each piece. `view` raises where the instance was closed."""

    def __init__(self, space: SpaceId, texts: Texts, view: Callable[[], View]) -> None:
        self.space = space
        self.texts = texts
        self.view = view

    def check_since(self, view: View, seq: int) -> None:
        """Raises Truncated where entries behind `seq` were dropped."""
        first = view.head.first_seq
        if seq < first - 1:
            raise Truncated(f"entries of {self.space} before {first} were dropped", first_seq=first)

    def raise_damage(self) -> None:
        """Raises CorruptLog where the log is damaged behind the head."""
        if (damage := self.view().damage) is not None:
            raise damage.again()


class Cursor(cursor.Cursor):
    """A place in a log, behind entry `seq`. 0 is the oldest entry's that is there at this moment."""

    def __init__(self, shown: Shown, since: int) -> None:
        view = shown.view()
        if since:
            shown.check_since(view, since)
        super().__init__(since or view.base.seq)
        self._shown = shown
        self._at: Mark | None = None
        self._base: Mark | None = None
        """Of the text that `_at` is a place in."""
        self._pieces = 1

    def fill(self) -> bool:
        """Read the next pieces; False at the head. Raises Truncated."""
        view, texts = self._shown.view(), self._shown.texts
        if self.seq >= view.head.seq:
            return False
        self._shown.check_since(view, self.seq)
        at = self._at
        if at is None or at.seq != self.seq or self._base != view.base:
            at, self._base = texts.mark(view, self.seq), view.base
        number = texts.number_of(view, at.seq + 1)
        start = texts.start(view, number)
        found = [texts.piece(view, number)[at.end - start :]]
        for _ in range(self._pieces - 1):
            number += 1
            if number > view.segments:
                break
            found.append(texts.piece(view, number))
        self._pieces = min(_MOST, self._pieces * 4)
        text = b"".join(found)
        if not text:
            raise StoreFailed(f"the log of {self._shown.space} ends before entry {view.head.seq}: run git fsck")
        self._entries, damage = codec.decode(text, after=Seq(at.seq), previous_crc=at.crc, offset=at.end)
        if damage is not None:
            self._damage = damage.again(self._shown.space)
        else:
            last = self._entries[-1]
            self._at = Mark(last.seq, last.ts, last.crc, at.end + len(text))
        return True


class Forward(cursor.Forward):
    """Oldest first, up to where the head was when this was made."""

    def __init__(self, shown: Shown, since: int, limit: int | None) -> None:
        until = shown.view().head.seq
        super().__init__(Cursor(shown, since), until, limit, shown.raise_damage)


class Backward:
    """Newest first; a piece is checked against the line before it."""

    def __init__(self, shown: Shown, since: int, limit: int | None) -> None:
        view = shown.view()
        if since:
            shown.check_since(view, since)
        self._shown = shown
        self._since = since
        self._left = limit
        self._ready: deque[Entry] = deque()
        self._seq: int = view.head.seq
        self._crc: int = view.head.crc

    def __aiter__(self) -> Backward:
        return self

    async def __anext__(self) -> Entry:
        if self._left == 0:
            raise StopAsyncIteration
        while not self._ready:
            await trio.lowlevel.checkpoint()
            view = self._shown.view()
            if self._seq <= self._since or self._seq < view.head.first_seq:
                raise StopAsyncIteration
            self._fill(view)
        if self._left is not None:
            self._left -= 1
        return self._ready.popleft()

    def _fill(self, view: View) -> None:
        texts = self._shown.texts
        number = texts.number_of(view, self._seq)
        before = texts.before(view, number)
        piece = texts.piece(view, number)
        entries, damage = codec.decode(piece, after=Seq(before.seq), previous_crc=before.crc, offset=before.end)
        if damage is not None and (not entries or before.seq + len(entries) < self._seq):
            raise damage.again(self._shown.space)
        found = entries.between(self._since, self._seq)
        if not found or (found[-1].seq, found[-1].crc) != (self._seq, self._crc):
            raise CorruptLog(
                f"is damaged at entry {self._seq}: run git fsck, and fetch its ref from a backup",
                seq=self._seq - 1,
                offset=before.end,
                log=self._shown.space,
            )
        self._ready.extend(reversed(found))
        self._seq, self._crc = (before.seq, before.crc) if found.first == entries.first else (found.first - 1, 0)
