"""Entries of a log, oldest first, from a place that moves with it: what drivers that read text in pieces share.

A driver's cursor says how the next piece is read (`fill`). Nothing here looks whether the log has grown.

Concurrency: one task per reader; it gives the loop a turn at each piece.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Final

import trio

from store.errors import CorruptLog
from store.model import Entries, Entry

NONE: Final = Entries.of(())


class Cursor:
    """A place in a log, behind entry `seq`."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self._entries = NONE
        """Of what was read last."""
        self._damage: CorruptLog | None = None
        """What stands behind them."""

    def fill(self) -> bool:
        """Read more; False at the head. Raises Truncated."""
        raise NotImplementedError

    def ready(self) -> Entry | None:
        """The next entry of what was read last. Raises CorruptLog."""
        at = max(0, self.seq + 1 - self._entries.first)
        if at < len(self._entries):
            entry = self._entries[at]
            self.seq = entry.seq
            return entry
        self._raise_damage()
        return None

    def batch(self, until: int) -> Entries:
        """All entries up to `until` that `ready` would still give. Raises CorruptLog."""
        found = self._entries.between(self.seq, until)
        if found:
            self.seq = found[-1].seq
        else:
            self._raise_damage()
        return found

    def _raise_damage(self) -> None:
        damage, self._damage = self._damage, None
        if damage is not None:
            raise damage


class Forward:
    """Oldest first, up to `until`. `at_end` raises the damage that stands behind the head, if any."""

    def __init__(self, cursor: Cursor, until: int, limit: int | None, at_end: Callable[[], None]) -> None:
        self._cursor = cursor
        self._until = until
        self._left = limit
        self._at_end = at_end

    def __aiter__(self) -> Forward:
        return self

    async def __anext__(self) -> Entry:
        cursor = self._cursor
        if self._left == 0 or cursor.seq > self._until:
            raise StopAsyncIteration
        while (entry := cursor.ready()) is None:
            await trio.lowlevel.checkpoint()
            if cursor.seq >= self._until or not cursor.fill():
                self._at_end()
                raise StopAsyncIteration
        if entry.seq > self._until:
            raise StopAsyncIteration
        if self._left is not None:
            self._left -= 1
        return entry

    async def batches(self) -> AsyncGenerator[Entries, None]:
        """The same entries, as many at once as were read at once: for who takes them all."""
        cursor, until = self._cursor, self._until
        if self._left is not None:
            until = min(until, cursor.seq + self._left)
        while cursor.seq < until or self._left is None:
            entries = cursor.batch(until)
            if entries:
                yield entries
                continue
            await trio.lowlevel.checkpoint()
            if cursor.seq >= self._until or not cursor.fill():
                self._at_end()
                return
