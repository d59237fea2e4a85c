"""`Driver.changes` for drivers that can be asked for the spaces that changed. Concurrency: one reader."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from store.model import SpaceId


class Changes:
    """What `take` gives, again and again, until it gives None."""

    def __init__(self, take: Callable[[], Awaitable[set[SpaceId] | None]]) -> None:
        self._take = take

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> set[SpaceId]:
        found = await self._take()
        if found is None:
            raise StopAsyncIteration
        return found
