"""When a snapshot pays: it costs what the state is long, and saves what the log has grown by. Pure."""

from __future__ import annotations

from typing import Final

EVENTS: Final = 10_000
BYTES: Final = 4 * 1024 * 1024
SHARE: Final = 4
"""The log has grown by so many events or bytes, and by a quarter of what it was before."""
CLOSING_EVENTS: Final = 500
CLOSING_BYTES: Final = 256 * 1024
CLOSING_SHARE: Final = 50
"""The same when the space is released: what would be replayed at the next use."""


def is_due(seq: int, size: int, last: tuple[int, int], *, closing: bool = False) -> bool:
    """Whether a log of `seq` entries in `size` bytes asks for one; `last` is both when the last one was taken."""
    events, grown = seq - last[0], size - last[1]
    least, length, share = (CLOSING_EVENTS, CLOSING_BYTES, CLOSING_SHARE) if closing else (EVENTS, BYTES, SHARE)
    return events > 0 and (events >= max(least, last[0] // share) or grown >= max(length, last[1] // share))
