"""One space in use: its log, opened when needed, and the fold of it, kept up with the log.

A Space is cheap while it is idle: `release` closes the log and drops the fold, and the next use brings both back: from
the latest snapshot that fits the log (`store.origins`), and the entries behind it. What must not vanish in between (a
handle, a running operation) holds the space with `hold`.

A log that refuses appends, since a write or a sync failed, is recovered at the next append or sync. Damage in the
middle of a log ends the fold there, and refuses appends, until the log is another (`chatfs fsck --repair`).

Concurrency: one task at a time opens or catches up (`_lock`); after that everything is in memory. State may have moved
on after any `await`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from store import snapshot_due
from store.appending import Appending
from store.authority import Authority
from store.beginning import begin, fits, state_at
from store.driver import AppendLog, Driver
from store.errors import CorruptLog, CorruptSnapshot, SpaceNotFound, StoreError, Truncated
from store.folded import Change, Moved, S, all_of, replay
from store.model import EMPTY_HEAD, Entry, Head, Seq, SpaceId
from store.snapshots import FileSource, Kind, Snapshots
from store.space_reader import Followed, Reader
from store.turns import take

logger = logging.getLogger("chatfs")

_COLLECTED: Final = 50_000
"""Of so many entries at once it is kept what each did; of more, only that they came."""


class Space(Appending[S]):
    """A space and, while it is in use, its log and fold."""

    __slots__ = (
        "_damaged_head",
        "_driver",
        "_exists",
        "_kind",
        "_name",
        "_opening",
        "_snapshot",
        "_untold",
        "_users",
        "snapshots",
        "source",
    )

    def __init__(
        self,
        driver: Driver,
        space: SpaceId,
        kind: Kind[S],
        moved: Moved,
        exists: Callable[[], Awaitable[bool]] | None = None,
        opening: Callable[[], Awaitable[None]] | None = None,
        *,
        name: Callable[[], str] | None = None,
        authority: Authority | None = None,
    ) -> None:
        self.id = space
        self.state: S | None = None
        """The fold as of the last catch-up; None while nobody needs it."""
        self.source: FileSource | None = None
        """What the fold still reads from, where it began at a snapshot."""
        self.damage: CorruptLog | None = None
        """Set where the log's middle is damaged: the fold ends before it, and appends are refused."""
        self.unsynced = False
        """Whether something was appended here since the last `sync`."""
        self.snapshots = Snapshots(kind, lambda: driver.local_dir(space), writable=not driver.read_only)
        self._authority = authority
        """Under what is appended; None: whoever can write the log may."""
        self._crc = 0
        self._text_id: int | None = None
        """Of the entry up to which the state is folded, and of the log that it was read from."""
        self._exists = exists
        self._opening = opening
        self._driver = driver
        self._kind = kind
        self._moved = moved
        self._name = name
        self._log: AppendLog | None = None
        self._head = EMPTY_HEAD
        self._damaged_head = EMPTY_HEAD
        self._snapshot: tuple[int, int] | None = (0, 0)
        """Of which seq the latest snapshot is, and how many bytes the log had; None: they can't be written."""
        self._users = 0
        self._untold = False
        """Whether the state was taking in entries when that was cancelled: nobody was told what these did."""
        self._lock = trio.Lock()

    @property
    def name(self) -> str:
        """What people call it, in messages."""
        return self.id if self._name is None else self._name()

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

    @property
    def text_id(self) -> int | None:
        return None if self._log is None else self._log.text_id

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the log and the fold in memory meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def log(self, *, make: bool = False) -> AppendLog:
        """The log, open. `make`: of a space that is new.

        Where the space exists and its log doesn't, a power cut has taken what nobody had made durable: it begins anew.
        """
        if self._log is None:
            async with self._lock:
                await self._open(make=make)
        assert self._log is not None
        return self._log

    async def _open(self, *, make: bool = False) -> None:
        if self._log is None:
            if self._opening is not None:
                await self._opening()
            self._log = await self._opened(make=make)
            self._head = self._log.head

    async def _opened(self, *, make: bool) -> AppendLog:
        if make or self._exists is None:
            return await self._driver.open_log(self.id, create=True)
        try:
            return await self._driver.open_log(self.id)
        except SpaceNotFound:
            if not await self._exists():
                raise
        return await self._driver.open_log(self.id, create=True)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[S]:
        """The fold as of now, which doesn't move meanwhile: for a thread that reads it. Others wait for it."""
        with self.hold():
            while True:
                await self.load()
                async with self._lock:
                    if self.state is not None:  # a damaged snapshot may have been dropped just now
                        yield self.state
                        return

    async def refresh(self) -> Head:
        """Where the log ends now; a loaded fold catches up. Tells `moved` when it did."""
        self._users += 1  # as `hold` does, which costs more than the rest of this
        try:
            log = self._log
            if log is None:
                log = await self.log()
            before = self._head
            head = await log.refresh()
            behind = self.state is not None and self.state.seq != head.seq
            if head != before or behind or (log.damage is not None and self.damage is None):
                await self._catch_up()
            return self.head
        finally:
            self._users -= 1

    async def load(self) -> S:
        """The fold, as of now."""
        self._users += 1  # as in `refresh`
        try:
            log = self._log
            state = self.state
            if log is not None and state is not None:
                head = await log.refresh()
                if head == self._head and state.seq == head.seq and (log.damage is None or self.damage is not None):
                    return state
            return await self._catch_up(load=True)
        finally:
            self._users -= 1

    async def _catch_up(self, *, load: bool = False) -> S:
        effect: Change | None = None
        await take(self._lock)
        try:
            await self._open()
            log = self._log
            assert log is not None
            await log.refresh()
            if self.state is not None and await self._is_another(log, self.state):
                self._forget()
                load = True
            before, fresh = self._head, self.state is None
            if fresh and load:
                await self._begin(log)
            if self.state is not None:
                effect = await self._fold_all(log, collect=not fresh)
            if log.damage is not None and self.damage is None:
                self._set_damage(log.damage, log)
            self._head = log.head
            if self.state is not None and self.state.seq == log.head.seq:
                self._crc, self._text_id = log.head.crc, log.text_id
            moved = before != self._head
        finally:
            self._lock.release()
        if moved:
            self._moved(self.id, None if fresh else effect)
        return self.state  # type: ignore[return-value]

    async def _is_another(self, opened: AppendLog, state: S) -> bool:
        """Whether the log isn't the one any more that the state was folded from: it was repaired, or brought back."""
        if self.damage is not None and opened.head != self._damaged_head:
            return True
        if state.seq > opened.head.seq:
            return True
        if opened.text_id == self._text_id or self.damage is not None:
            return False
        self._text_id = opened.text_id
        return not await fits(opened, state.seq, self._crc)

    async def _begin(self, opened: AppendLog) -> None:
        begun = await begin(self._driver, opened, self._kind, self.snapshots)
        self.source = begun.source
        if begun.source is not None:
            self._snapshot = begun.seq, begun.log_size
        if begun.damage is not None:
            with contextlib.suppress(CorruptLog):
                await replay(opened, begun.state)
            self._set_damage(begun.damage, opened)
        self.state = begun.state

    async def _fold_all(self, opened: AppendLog, *, collect: bool) -> Change | None:
        """`_fold`, until the state has all of the log, what is appended meanwhile, too.

        So the head is never ahead of the state: what is between would be told to nobody, and be read before it is told.
        """
        untold, self._untold = self._untold, True
        effect = await self._fold(opened, collect=collect)
        while self.state is not None and self.damage is None and self.state.seq < opened.head.seq:
            more = await self._fold(opened, collect=collect)
            effect = None if effect is None or more is None else all_of([effect, more])
        self._untold = False
        return None if untold else effect

    async def _fold(self, opened: AppendLog, *, collect: bool) -> Change | None:
        """Take in what the log has that the state hasn't; what that did to it, where that is known."""
        state = self.state
        assert state is not None
        if self.damage is not None or state.seq == opened.head.seq:
            return None
        try:
            if not collect or opened.head.seq - state.seq > _COLLECTED:
                await replay(opened, state)
                return None
            changes = [state.apply(entry) async for entry in opened.read(state.seq)]
        except CorruptLog as damage:
            self._set_damage(damage, opened)
            return None
        except (CorruptSnapshot, Truncated) as error:
            if isinstance(error, CorruptSnapshot):
                self._distrust(error)
            else:
                self._forget()  # what it hasn't taken in yet was compacted away
            await self._begin(opened)
            return await self._fold(opened, collect=False)
        return all_of(changes)

    def check_sound(self) -> None:
        """Raises the damage that was met, if any."""
        if self.damage is not None:
            raise self.damage.again()

    def _set_damage(self, damage: CorruptLog, opened: AppendLog) -> None:
        self.damage = damage.again(self.name)
        self._damaged_head = opened.head
        # A command that fails of it needn't say it again.
        logger.error("%s is read-only: the log %s", self.name, damage.how, extra={"error": str(self.damage)})

    def _distrust(self, damage: CorruptSnapshot) -> None:
        """The state began at a snapshot that turned out to be damaged: forget both."""
        logger.warning("%s: the chat is read from its log instead", damage)
        if self._snapshot is not None:
            self.snapshots.distrust(Seq(self._snapshot[0]))
        self._forget()

    def _forget(self) -> None:
        if self.source is not None:
            self.source.close()
        self.state = self.source = self.damage = None
        self._snapshot = (0, 0)

    async def rebuild(self, damage: CorruptSnapshot) -> None:
        """A part of the snapshot that the fold began at is damaged: drop it. The next `load` begins elsewhere."""
        async with self._lock:
            if self.source is not None:
                self._distrust(damage)

    async def state_at(self, seq: Seq) -> S:
        """A state of its own, as it was at `seq`, whole: costs the history since the last snapshot before it.

        Raises Truncated.
        """
        with self.hold():
            opened = await self.log()
            await opened.refresh()
            return await state_at(self._driver, opened, self._kind, self.snapshots, seq)

    # ---- snapshots

    def is_due(self, *, closing: bool = False) -> bool:
        """Whether the log has grown so much that a snapshot pays."""
        if self.state is None or self.damage is not None or self._snapshot is None or not self.snapshots.writable:
            return False
        return snapshot_due.is_due(self.state.seq, self.head.size, self._snapshot, closing=closing)

    async def keep_snapshot(self) -> None:
        """Write a snapshot of the present state. A disk that takes none does without."""
        async with self.frozen():
            await self._keep_snapshot()

    async def _keep_snapshot(self) -> None:
        state, head = self.state, self._head
        if state is None or self.damage is not None or self._snapshot is None or state.seq != head.seq:
            return
        try:
            await trio.to_thread.run_sync(self.snapshots.write, state, head.seq, head.crc, head.size)
            self._snapshot = head.seq, head.size
        except CorruptSnapshot as damage:
            self._distrust(damage)
        except (OSError, StoreError) as error:
            logger.debug("no snapshot of %s: %s", self.id, error)
            self._snapshot = None

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """Entries, as `AppendLog.read` has them.

        The space is held until the last one, or until the reader is dropped.
        """
        return Reader(self, since, limit, reverse=reverse)

    @asynccontextmanager
    async def subscribe(self, since: Seq | None = None) -> AsyncIterator[AsyncIterator[Entry]]:
        """Entries as they come, as `AppendLog.subscribe` has them."""
        with self.hold():
            log = await self.log()
            async with log.subscribe(since) as entries:
                yield Followed(self, entries)

    async def release(self) -> None:
        """Drop the log and the fold, unless somebody holds them. Syncs what was appended here and isn't synced yet."""
        async with self._lock:
            if self._users == 0 and self._log is not None and self.unsynced:
                await self._sync(self._log)
            if self._users == 0 and self.is_due(closing=True):
                await self._keep_snapshot()
            if self._users == 0 and self._authority is not None:
                await self._authority.give_back(self)
            if self._users == 0 and self._log is not None:
                log, self._log = self._log, None
                self._forget()
                await log.aclose()
