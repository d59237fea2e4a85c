"""One space in use: its log, opened when needed, and the fold of it, kept up with the log.

A Space is cheap while it is idle: `release` closes the log and drops the fold, and the next use brings both back. What
must not vanish in between (a handle, a running operation) holds the space with `hold`.

Concurrency: one task at a time opens or catches up (`_lock`); after that everything is in memory. State may have moved
on after any `await`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import trio

from store.driver import AppendLog, Driver
from store.errors import CorruptLog
from store.fold import Effect
from store.model import EMPTY_HEAD, Entry, Head, NewEntry, Seq, SpaceId
from store.workspace_state import Names

Change = Effect | Names
"""What entries did to a chat's or a workspace's state."""


class Folded(Protocol):
    """What a Space folds into."""

    seq: Seq

    def apply(self, entry: Entry) -> Change:
        """Take in the next entry."""
        ...


S = TypeVar("S", bound=Folded)

Moved = Callable[[SpaceId, Change | None], None]
"""Called after a log has moved and the fold (if it is loaded) with it; the change is None where it isn't known."""


class Space(Generic[S]):
    """A space and, while it is in use, its log and fold."""

    __slots__ = (
        "_driver",
        "_head",
        "_lock",
        "_log",
        "_make",
        "_moved",
        "_users",
        "damage",
        "id",
        "state",
        "unsynced",
    )

    def __init__(self, driver: Driver, space: SpaceId, make: Callable[[], S], moved: Moved) -> None:
        self.id = space
        self.state: S | None = None
        """The fold as of the last catch-up; None while nobody needs it."""
        self.damage: CorruptLog | None = None
        """Set where the log's middle is damaged: the fold ends before it, and appends are refused."""
        self.unsynced = False
        """Whether something was appended here since the last `sync`."""
        self._driver = driver
        self._make = make
        self._moved = moved
        self._log: AppendLog | None = None
        self._head = EMPTY_HEAD
        self._users = 0
        self._lock = trio.Lock()

    @property
    def idle(self) -> bool:
        """Whether nobody holds it."""
        return self._users == 0 and not self._lock.locked()

    @property
    def loaded(self) -> bool:
        """Whether there is something that `release` would drop."""
        return self._log is not None

    @property
    def head(self) -> Head:
        """Where the log was when last looked at."""
        return self._head if self._log is None else self._log.head

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the log and the fold in memory meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def log(self) -> AppendLog:
        """The log, open."""
        if self._log is None:
            async with self._lock:
                await self._open()
        assert self._log is not None
        return self._log

    async def _open(self) -> None:
        if self._log is None:
            self._log = await self._driver.open_log(self.id, create=True)
            self._head = self._log.head

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[S]:
        """The fold as of now, which doesn't move meanwhile: for a thread that reads it. Others wait for it."""
        with self.hold():
            await self.load()
            async with self._lock:
                assert self.state is not None
                yield self.state

    async def refresh(self) -> Head:
        """Where the log ends now; a loaded fold catches up. Tells `moved` when it did."""
        with self.hold():
            log = await self.log()
            before = self._head
            head = await log.refresh()
            if head != before or (self.state is not None and self.state.seq != head.seq):
                await self._catch_up()
            return self.head

    async def load(self) -> S:
        """The fold, as of now."""
        with self.hold():
            log = self._log
            state = self.state
            if log is not None and state is not None:
                head = await log.refresh()
                if head == self._head and state.seq == head.seq:
                    return state
            return await self._catch_up(load=True)

    async def _catch_up(self, *, load: bool = False) -> S:
        effect: Change | None = None
        try:
            self._lock.acquire_nowait()  # `acquire` would go round the scheduler, even when nobody has it
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            await self._open()
            log = self._log
            assert log is not None
            await log.refresh()
            before, fresh = self._head, self.state is None
            if fresh and load:
                self.state = self._make()
            state = self.state
            if state is not None:
                effect = await self._fold(log, state, collect=not fresh)
            self._head = log.head
            moved = before != self._head
        finally:
            self._lock.release()
        if moved:
            self._moved(self.id, None if fresh else effect)
        return state  # type: ignore[return-value]

    async def _fold(self, log: AppendLog, state: S, *, collect: bool) -> Change | None:
        if self.damage is not None or state.seq == log.head.seq:
            return None
        changes: list[Any] = []
        try:
            async for entry in log.read(state.seq):
                change = state.apply(entry)
                if collect:
                    changes.append(change)
        except CorruptLog as damage:
            self.damage = damage
        total: Change | None = functools.reduce(operator.or_, changes) if changes else None
        return total

    async def append(self, batch: Sequence[NewEntry], *, expected_seq: Seq | None = None) -> Seq:
        """Append one batch; a loaded fold has it when this returns. Errors as `AppendLog.append` has them."""
        with self.hold():
            log = await self.log()
            if self.damage is not None:
                raise self.damage
            last = await log.append(batch, expected_seq=expected_seq)
            self.unsynced = True
            if self.state is not None:
                await self._catch_up()
            elif self._head != log.head:
                self._head = log.head
                self._moved(self.id, None)
        return last

    async def sync(self) -> None:
        """Return when all that was appended survives a power cut. What was appended here was so before a `release`."""
        if self._log is not None:
            with self.hold():
                await self._sync(self._log)

    async def _sync(self, log: AppendLog) -> None:
        self.unsynced = False
        try:
            await log.sync()
        except BaseException:
            self.unsynced = True
            raise

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """Entries, as `AppendLog.read` has them.

        The space is held until the last one, or until the reader is dropped.
        """
        return _Reader(self, since, limit, reverse=reverse)

    @asynccontextmanager
    async def subscribe(self, since: Seq | None = None) -> AsyncIterator[AsyncIterator[Entry]]:
        """Entries as they come, as `AppendLog.subscribe` has them."""
        with self.hold():
            log = await self.log()
            async with log.subscribe(since) as entries:
                yield entries

    async def release(self) -> None:
        """Drop the log and the fold, unless somebody holds them. Syncs what was appended here and isn't synced yet."""
        async with self._lock:
            if self._users == 0 and self._log is not None and self.unsynced:
                await self._sync(self._log)
            if self._users == 0 and self._log is not None:
                log, self._log, self.state, self.damage = self._log, None, None, None
                await log.aclose()


class _Reader:
    """A read that has yet to open its log."""

    __slots__ = ("_entries", "_holding", "_limit", "_reverse", "_since", "_space")

    def __init__(self, space: Space[Any], since: Seq, limit: int | None, *, reverse: bool) -> None:
        self._space = space
        self._since = since
        self._limit = limit
        self._reverse = reverse
        self._entries: AsyncIterator[Entry] | None = None
        self._holding = contextlib.ExitStack()

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Entry:
        if self._entries is None:
            self._holding.enter_context(self._space.hold())
            log = await self._space.log()
            self._entries = log.read(self._since, self._limit, reverse=self._reverse)
        try:
            return await anext(self._entries)
        except BaseException:
            self._holding.close()
            raise

    def __del__(self) -> None:
        self._holding.close()
