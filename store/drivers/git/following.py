"""Subscriptions: replay, then live.

Concurrency: on the trio loop.
"""

from __future__ import annotations

from typing import Protocol

import trio

from store.drivers.git.readers import Cursor, Shown
from store.drivers.signal import Signal
from store.errors import CorruptLog
from store.model import Entry, Head, SpaceId


class Followed(Protocol):
    """A log's instance that is the subscription's own."""

    space: SpaceId
    signal: Signal

    @property
    def head(self) -> Head:
        """See AppendLog."""
        ...

    @property
    def damage(self) -> CorruptLog | None:
        """See AppendLog."""
        ...

    async def refresh(self) -> Head:
        """See AppendLog."""
        ...


class Subscription:
    """A cursor over a view of its own, so that a slow reader costs a few segments of text."""

    def __init__(self, log: Followed, shown: Shown, since: int | None) -> None:
        self._log = log
        self._cursor = Cursor(shown, log.head.seq if since is None else since)
        self._ended = False

    def end(self) -> None:
        """The log that was subscribed to is closed."""
        self._ended = True

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Entry:
        cursor, log = self._cursor, self._log
        while (entry := cursor.ready()) is None:
            await trio.lowlevel.checkpoint()
            if cursor.fill():
                continue
            # The event first: what is appended between the look and the wait wakes.
            moved = log.signal.event()
            if self._ended:
                raise trio.ClosedResourceError(f"the log of {log.space} was closed")
            await log.refresh()
            if cursor.seq < log.head.seq:
                continue
            if log.damage is not None:
                raise log.damage.again()
            await moved.wait()
        return entry
