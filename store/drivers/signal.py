"""A wake-up that may be given many times.

Concurrency: on the trio loop.
"""

from __future__ import annotations

import trio


class Signal:
    """Wakes all who wait. Take the event before looking: what happens after the look then wakes."""

    __slots__ = ("__weakref__", "_event")

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def event(self) -> trio.Event:
        """Set at the next `notify`."""
        if self._event is None:
            self._event = trio.Event()
        return self._event

    def notify(self) -> None:
        """Something moved."""
        if self._event is not None:
            self._event.set()
            self._event = None
