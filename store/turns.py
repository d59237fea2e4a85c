"""Taking a lock that mostly nobody has."""

from __future__ import annotations

import trio


async def take(lock: trio.Lock) -> None:
    """`lock.acquire`, which would go round the scheduler even when nobody has it."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
