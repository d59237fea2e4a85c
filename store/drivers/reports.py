"""Which spaces changed, for `Driver.changes`, and the signals by which a driver's instances of a log wake each other.

The driver says what it hears (`report`); how it hears it is its own.

Concurrency: on the trio loop; one task takes the changes.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable

import trio

from store.drivers.changes import Changes
from store.drivers.signal import Signal
from store.model import SpaceId


class Reports:
    """What one opened driver has heard, and whom it watches."""

    def __init__(self) -> None:
        self._signals: weakref.WeakValueDictionary[SpaceId, Signal] = weakref.WeakValueDictionary()
        self._changed: set[SpaceId] = set()
        self._change = Signal()
        self._watched: dict[SpaceId, list[Callable[[], None]]] = {}
        self._listed: set[str] = set()
        self._closed = False

    def watched(self, space: SpaceId, remove: Callable[[], None]) -> None:
        """The driver watches the space once more; `remove` ends that."""
        self._watched.setdefault(space, []).append(remove)

    def unwatch(self, space: SpaceId) -> None:
        """See Driver."""
        removes = self._watched.get(space)
        if removes:
            removes.pop()()
            if not removes:
                del self._watched[space]

    def report(self, space: SpaceId) -> None:
        """The space changed."""
        self._changed.add(space)
        self._change.notify()

    def watch_names(self, under: str, watch: Callable[[Callable[[int, str], None]], object]) -> None:
        """Report names that come and go there, as a change of `under`; `watch` begins that, once."""

        def told(_mask: int, name: str) -> None:
            if not name.startswith("."):
                self.report(SpaceId(under))

        if under not in self._listed:
            self._listed.add(under)
            watch(told)

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """See Driver."""
        return Changes(self._take)

    async def _take(self) -> set[SpaceId] | None:
        """The spaces that changed since the last call, when there are some; None once the driver is closed."""
        await trio.lowlevel.checkpoint()
        while not self._changed:
            event = self._change.event()
            if self._closed:
                return None
            await event.wait()
        found, self._changed = self._changed, set()
        return found

    def signal(self, space: SpaceId) -> Signal:
        """One per space: every instance in this process wakes the others."""
        found = self._signals.get(space)
        if found is None:
            found = self._signals[space] = Signal()
        return found

    def close(self) -> None:
        """Whoever waits for changes gets no more."""
        self._closed = True
        self._change.notify()
        self._watched.clear()
