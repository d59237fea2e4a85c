"""A file's bytes that were written and aren't committed yet.

They are kept in a staging of the blob store (`drafts/` on disk), so that they outlive a crash. A draft either stands
for the whole file, or, while everything was written through appending handles, only for what was added at its end.

Concurrency: no awaits but in `discard` and where a quota is asked; who commits holds the node's lock, and takes bytes
and marks in one step.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from store.errors import QuotaExceeded, StoreError

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.nodes.projected import Base
    from store.driver import Staging
    from store.quota import Quota


class Draft:
    """Uncommitted bytes. `written`: since the last commit. `emptied`: truncated since, which alone commits only at the
    last close, because a shell closes a duplicate of `> file` before anything is written to it. `lost`: where a write
    failed, and with what, until it is repeated: a text with a hole isn't committed. `told`: a close was refused, so the
    program knows that it isn't saved. `charged`: up to which size it takes room of the quota, if it is `counted`.
    """

    __slots__ = (
        "actor",
        "base",
        "charged",
        "counted",
        "emptied",
        "lost",
        "mtime_ns",
        "partial",
        "process",
        "staging",
        "told",
        "written",
    )

    def __init__(
        self, staging: Staging, caller: Caller, *, partial: bool = False, base: Base = None, counted: bool = True
    ) -> None:
        self.staging = staging
        self.actor = caller.actor
        self.process = caller.process
        self.partial = partial
        self.base = base
        self.written = False
        self.emptied = False
        self.told = False
        self.lost: tuple[int, Exception] | None = None
        self.mtime_ns = time.time_ns()
        self.counted = counted
        self.charged = 0

    @property
    def dirty(self) -> bool:
        """Whether anything awaits a commit."""
        return self.written or self.emptied

    def write(self, offset: int, data: bytes) -> int:
        """Take bytes."""
        try:
            taken = self.staging.write(offset, data)
        except StoreError as error:
            self.lose(offset, error)
            raise
        if self.lost is not None and offset <= self.lost[0] < offset + len(data):
            self.lost = None
        self.written = True
        self.told = False
        self.mtime_ns = max(self.mtime_ns + 1, time.time_ns())
        return taken

    async def write_within(
        self, quota: Quota, offset: int | None, data: bytes, valid: Callable[[], bool]
    ) -> int | None:
        """`write` within a quota, at the end where there is no offset. None: by then it wasn't `valid` any more."""
        try:
            async with self.reaching(quota, lambda: (self.staging.size if offset is None else offset) + len(data)):
                # It may have been committed meanwhile.
                return self.write(self.staging.size if offset is None else offset, data) if valid() else None
        except QuotaExceeded as error:
            self.lose(self.staging.size if offset is None else offset, error)
            raise

    @asynccontextmanager
    async def reaching(self, quota: Quota, end: Callable[[], int]) -> AsyncIterator[None]:
        """Let it reach to `end()` in the block. Raises QuotaExceeded."""
        if not self.counted or not quota.limited:
            yield
            return
        async with quota.taking(lambda: max(0, end(), self.staging.size) - self.charged):
            yield
            self.charged = max(self.charged, self.staging.size)

    async def resize(self, quota: Quota, size: int) -> None:
        """`truncate`, within a quota."""
        if size <= self.staging.size:
            self.truncate(size)
            return
        async with self.reaching(quota, lambda: size):
            self.truncate(size)

    def lose(self, offset: int, error: StoreError) -> None:
        """A write to there failed."""
        self.lost = self.lost or (offset, error)

    def truncate(self, size: int) -> None:
        """Cut, or lengthen with zeros."""
        if size != self.staging.size:
            self.staging.truncate(size)
        self.charged = min(self.charged, size)
        self.emptied = True
        if self.lost is not None and size <= self.lost[0]:
            self.lost = None
        self.mtime_ns = max(self.mtime_ns + 1, time.time_ns())

    def take(self) -> bytes:
        """All bytes, for a commit: what is written from now on awaits the next. Raises what a write failed with."""
        if self.lost is not None:
            raise self.lost[1]
        data = self.staging.read(0, self.staging.size)
        # Not before: what can't be read now still awaits a commit.
        self.written = False
        self.emptied = False
        return data

    def rescued(self) -> bytes:
        """The bytes that there are, complete or not."""
        return self.staging.read(0, self.staging.size)

    def put_back(self) -> None:
        """The commit failed: the bytes still await one."""
        self.written = True

    async def discard(self) -> None:
        """Drop it."""
        await self.staging.discard()
