"""Append to a log, truncate it, make it durable, follow it. The text itself is `text`'s, what ends it is `tail`'s.

Lock order: an instance's `_mutex`, then the flock of the log file. The flock excludes other instances, in this process
as in others; whoever holds it may append, repair and replace the file. Between taking and giving back an uncontended
flock there is no await, so appends of one process never interleave.

A failed append is undone with ftruncate. Where that fails, or an fsync does, nobody knows what the disk has: the
instance refuses appends and syncs until `recover` has looked, and written again what may be lost (`stable`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import trio

from store import durability
from store.driver import Clock
from store.drivers.batch import encode
from store.drivers.file import locks, repair
from store.drivers.file.lease import EpochRecord
from store.drivers.file.readers import Backward, Cursor, Forward
from store.drivers.file.stable import Pace, Stable, checked
from store.drivers.file.tail import UNSYNCED, Mark, pread_all
from store.drivers.file.text import BASE_NAME, Look, Text, encode_base
from store.drivers.signal import Signal
from store.errors import CorruptLog, ReadOnly, SeqConflict, SpaceNotFound, StaleEpoch, StoreError, StoreFailed
from store.model import Entries, Entry, Epoch, Head, NewEntry, Seq, SpaceId

_BESIDE_DATA: Final = 100
"""Bytes of a line beside its data, about."""


class Surroundings(Protocol):
    """What a log needs of its driver."""

    root: Path
    clock: Clock
    limiter: trio.CapacityLimiter
    pace: Pace
    read_only: bool

    def signal(self, space: SpaceId) -> Signal:
        """The space's, shared by all instances in this driver."""
        ...

    def follow(self, space: SpaceId) -> Callable[[], None]:
        """Notify the space's signal when another process changes the log, until what is returned is called."""
        ...


class FileLog:
    """An opened log; see `store.driver.AppendLog`."""

    def __init__(self, around: Surroundings, space: SpaceId) -> None:
        self.space = space
        self._around = around
        self.text = Text(space, around.root / space, read_only=around.read_only)
        self._epochs = EpochRecord(space, self.text.directory)
        self.signal = around.signal(space)
        self._mutex = trio.Lock()
        self._stable = Stable(self.text, around.root, around.pace, around.limiter)
        self._attempted = b""
        """What a failed append tried to write behind the head, where it couldn't be undone."""
        self._subscriptions: set[Subscription] = set()

    async def open(self) -> None:
        """Find the end, finish what a crash interrupted."""
        async with self._flock():
            with durability.failing(f"opening the log of {self.space}"):
                self._attach()
                self._stable.opened()

    # ---- looking

    @property
    def head(self) -> Head:
        """See AppendLog."""
        return self.text.shown

    async def refresh(self) -> Head:
        """See AppendLog."""
        while True:
            seen = self.text.look()
            if seen is Look.SEEN:
                return self.text.shown
            if seen is Look.MORE:
                await trio.lowlevel.checkpoint()
                continue
            async with self._locked():
                self._settle()

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """See AppendLog."""
        return Backward(self.text, since, limit) if reverse else Forward(self.text, since, limit)

    @property
    def text_id(self) -> int:
        """See AppendLog."""
        return hash((self.text.inode, self.text.head.first_seq))

    def read_batches(self, since: Seq = Seq(0)) -> AsyncGenerator[Entries, None]:
        """See AppendLog."""
        return Forward(self.text, since, None).batches()

    def read_text(self, offset: int, size: int) -> bytes:
        """See AppendLog."""
        return self.text.read_text(offset, size)

    @asynccontextmanager
    async def subscribe(self, since: Seq | None = None) -> AsyncIterator[AsyncIterator[Entry]]:
        """See AppendLog."""
        own = FileLog(self._around, self.space)
        unfollow = self._around.follow(self.space)
        try:
            await own.open()
            subscription = Subscription(own, since)
            self._subscriptions.add(subscription)
            try:
                yield subscription
            finally:
                self._subscriptions.discard(subscription)
        finally:
            unfollow()
            await own.aclose()

    # ---- appending

    async def append(
        self, batch: Sequence[NewEntry], *, expected_seq: Seq | None = None, epoch: Epoch | None = None
    ) -> Seq:
        """See AppendLog."""
        text = self.text
        text.check_open()
        seq = None
        if not self._mutex.locked() and locks.try_lock(text.fd):
            # No await before it is given back.
            try:
                stat = os.fstat(text.fd)
                if stat.st_nlink:
                    seq = self._append(batch, expected_seq, epoch, stat.st_size)
            finally:
                locks.unlock(text.fd)
        if seq is None:
            async with self._locked():
                seq = self._append(batch, expected_seq, epoch, os.fstat(text.fd).st_size)
        if text.head.size > self._stable.due:
            # What was appended stays so, whatever becomes of the sync: a failure meets the next append or sync.
            with trio.CancelScope(shield=True), contextlib.suppress(StoreError):
                await self.sync()
        return seq

    def append_now(self, batch: Sequence[NewEntry]) -> list[Entry] | None:
        """See AppendLog."""
        text, head, stable = self.text, self.text.head, self._stable
        if (
            text.fd < 0
            or head.size + sum(len(new.data) + _BESIDE_DATA for new in batch) > stable.due
            or stable.failure is not None
            or text.damage is not None
            or not text.writable
            or self._mutex.locked()
            or not locks.try_lock(text.fd)
        ):
            return None
        try:
            stat = os.fstat(text.fd)
            if stat.st_size != head.size or not stat.st_nlink:
                return None
            return self._write(batch)
        finally:
            locks.unlock(text.fd)

    def _append(self, batch: Sequence[NewEntry], expected_seq: Seq | None, epoch: Epoch | None, size: int) -> Seq:
        """Under the lock, with the file that is there now."""
        text = self.text
        if (failure := self._stable.failure) is not None:
            raise failure
        if size != text.head.size or text.damage is not None:
            self._settle()
            text.raise_damage()
        head = text.head
        if expected_seq is not None and head.seq != expected_seq:
            raise SeqConflict(f"{self.space} is at entry {head.seq}, not {expected_seq}", current=head.seq)
        if epoch is not None and (granted := self._epochs.current()) > epoch:
            raise StaleEpoch(f"the lease of {self.space} was granted anew: acquire it", current=granted)
        if not batch:
            return head.seq
        if not text.writable:
            raise ReadOnly(f"the log of {self.space} can't be written")
        return self._write(batch)[-1].seq

    def _write(self, batch: Sequence[NewEntry]) -> list[Entry]:
        """Under the lock, where the file ends with the head."""
        text = self.text
        data, head, entries = encode(batch, text.head, self._around.clock, self.space)
        try:
            durability.write_all("log.append", text.fd, data)
        except BaseException as error:
            self._undo(data)
            if isinstance(error, OSError):
                raise durability.store_error(error, f"appending to {self.space}") from error
            raise
        text.advance(head)
        self.signal.notify()
        return entries

    def _undo(self, data: bytes) -> None:
        fd, size = self.text.fd, self.text.head.size
        try:
            if os.fstat(fd).st_size > size:
                durability.system.ftruncate("log.undo", fd, size)
                durability.system.fdatasync("log.undo", fd)  # as in `_cut`
        except OSError as error:
            self._attempted = data
            self._stable.failed(f"undoing a failed append to {self.space} failed", error)

    # ---- under the lock

    @asynccontextmanager
    async def _flock(self) -> AsyncIterator[None]:
        """Hold the flock of the file that is there now; awaits whoever has it."""
        try:
            fd = await locks.acquire(self.text.path, self._around.limiter)
        except FileNotFoundError as error:
            raise SpaceNotFound(f"there is no log of {self.space}") from error
        except OSError as error:
            raise durability.store_error(error, f"locking the log of {self.space}") from error
        try:
            yield
        finally:
            os.close(fd)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """The same, with the text attached to that file."""
        async with self._mutex, self._flock():
            self.text.check_open()
            if not os.fstat(self.text.fd).st_nlink:
                with durability.failing(f"opening the log of {self.space}"):
                    self._attach()
            yield

    def _attach(self) -> None:
        text = self.text
        text.attach()
        if text.interrupted:
            self._finish_truncation()
        self._settle()
        self._stable.due = text.head.size + UNSYNCED

    def _settle(self) -> None:
        """Take in what others appended; move a torn tail to quarantine."""
        text = self.text
        torn = text.settle()
        if torn and text.writable:
            with durability.failing(f"repairing the log of {self.space}"):
                self._cut(torn)

    def _cut(self, size: int) -> None:
        """Move the `size` bytes behind the head, which are all there are, to quarantine."""
        text = self.text
        repair.quarantine(self._around.root, self.space, text.fd, text.head, size, self._around.clock())
        durability.system.ftruncate("log.repair", text.fd, text.head.size)
        # Else a power cut could leave old bytes among those that are appended next, which isn't a torn tail.
        with self._stable.decisive("repairing"):
            durability.system.fdatasync("log.repair", text.fd)

    # ---- truncating

    async def truncate_before(self, seq: Seq) -> None:
        """See AppendLog."""
        async with self._locked():
            if (failure := self._stable.failure) is not None:
                raise failure
            self._settle()
            text = self.text
            text.raise_damage()
            head = text.head
            if seq > head.seq + 1:
                raise ValueError(f"{self.space} ends at entry {head.seq}: nothing to truncate before {seq}")
            if seq <= head.first_seq:
                return
            if not text.writable:
                raise ReadOnly(f"the log of {self.space} can't be written")
            base = text.position(seq - 1)
            if base is None:
                async for _ in self.read(Seq(0)):  # raises CorruptLog, saying where
                    pass
                raise StoreFailed(f"entry {seq - 1} of {self.space} can't be found: run chatfs fsck --repair")
            with durability.failing(f"truncating the log of {self.space}"):
                await self._in_thread(self._replace, base, True)
                text.attach()
            self.signal.notify()

    async def _in_thread(self, work: Callable[..., None], *args: object) -> None:
        """Let a thread work on the text, on a descriptor of its own. The flock stays held: other instances wait.

        What attaches the text to another file is done here, on the loop: readers use its descriptor at any time.
        """
        fd = os.dup(self.text.fd)
        try:
            await trio.to_thread.run_sync(work, fd, *args, limiter=self._around.limiter)
        finally:
            os.close(fd)
        self.text.check_open()

    def _replace(self, fd: int, base: Mark, record: bool) -> None:  # noqa: FBT001
        """Put what stands behind `base` in `fd` in the log's place. In a thread, or while opening; under the lock."""
        text = self.text
        directory = text.directory
        if record:
            with self._stable.decisive("truncating"):
                durability.system.fdatasync("log.truncate", fd)

        def write_base() -> None:
            if record:
                durability.atomic_replace("log.base", directory / BASE_NAME, encode_base(base))

        with durability.replacing("log.truncate", text.path, before_rename=write_base) as target:
            offset = base.end
            while piece := os.pread(fd, 1024 * 1024, offset):
                durability.write_all("log.truncate", target, piece)
                offset += len(piece)
        with self._stable.decisive("truncating"):
            durability.fsync_dir("log.truncate", directory)

    def _finish_truncation(self) -> None:
        """The base is written, the log isn't shortened yet: do that where it can be written."""
        text = self.text
        text.skip_dropped()
        if text.writable:
            self._replace(text.fd, text.base, False)
            text.attach()

    # ---- durability

    async def sync(self) -> None:
        """See AppendLog."""
        await self._stable.sync()

    @property
    def damage(self) -> CorruptLog | None:
        """See AppendLog."""
        return self.text.damage

    @property
    def failure(self) -> StoreFailed | None:
        """See AppendLog."""
        return self._stable.failure

    async def recover(self) -> None:
        """See AppendLog."""
        async with self._locked():
            if self._stable.failure is None:
                return
            text = self.text
            with durability.failing(f"recovering the log of {self.space}"):
                if not text.writable:
                    raise ReadOnly(f"the log of {self.space} can't be written")
                since = self._stable.stable_mark()
                known, inode = text.head.seq, text.inode
                self._cut_attempted()
                self._attach()
                if text.inode != inode:  # a truncation was finished
                    since = None
                if text.head.seq < known:
                    text.shrank()
                text.raise_damage()
                await self._in_thread(self._write_again, since)
                if since is None:
                    text.attach()
                await self._in_thread(lambda _fd: self._stable.rewritten())

    def _cut_attempted(self) -> None:
        """Undo a failed append now, unless another instance has appended behind it."""
        text = self.text
        rest = pread_all(text.fd, len(self._attempted) + 1, text.head.size) if self._attempted else b""
        if rest and self._attempted.startswith(rest):
            self._cut(len(rest))
        self._attempted = b""

    def _write_again(self, fd: int, since: Mark | None) -> None:
        """In a thread."""
        text = self.text
        if since is not None:
            self._stable.rewrite(since)
        else:
            for _ in checked(text, fd, text.base):
                pass
            self._replace(fd, text.base, False)

    async def aclose(self) -> None:
        """See AppendLog."""
        self.text.close()
        self._epochs.close()
        for subscription in self._subscriptions:
            subscription.end()
        self.signal.notify()


class Subscription:
    """Replay, then live: a cursor over a view of its own, so that a slow reader costs one piece of text."""

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
