"""Follow a log: replay, then live.

Concurrency: on the trio loop; one reader each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from store.drivers.file.readers import Cursor
from store.model import Entry

if TYPE_CHECKING:
    from store.drivers.file.log import FileLog


class Subscription:
    """A cursor over a view of its own, so that a slow reader costs one piece of text."""

    def __init__(self, log: FileLog, since: int | None) -> None:
        self._log = log
        self._text = log.text
        self._cursor = Cursor(log.text, log.head.seq if since is None else since)
        self._ended = False

    def end(self) -> None:
        """The log that was subscribed to is closed."""
        self._ended = True

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Entry:
        cursor = self._cursor
        while (entry := cursor.ready()) is None:
            await trio.lowlevel.checkpoint()
            if cursor.fill():
                continue
            # The event first: what is appended between the look and the wait wakes.
            moved = self._log.signal.event()
            if self._ended:
                raise trio.ClosedResourceError(f"the log of {self._log.space} was closed")
            await self._log.refresh()
            if cursor.seq < self._text.head.seq:
                continue
            self._text.raise_damage()
            await moved.wait()
        return entry
