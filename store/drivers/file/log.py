"""Append to a log, truncate it, make it durable, follow it. The text itself is `text`'s, what ends it is `tail`'s.

Between taking and giving back an uncontended flock there is no await, so appends of one process never interleave. The
flock of one who was stopped meanwhile is broken: every write is followed by a look whether it still counts
(`takeover`).

A failed append is undone with ftruncate. Where that fails, or an fsync does, nobody knows what the disk has: the
instance refuses appends and syncs until `recover` has looked, and written again what may be lost (`stable`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from store import durability, locks
from store.drivers.batch import behind, encode, verbatim
from store.drivers.file import adopting, takeover, truncating
from store.drivers.file.fence import EpochRecord
from store.drivers.file.locked import LockedLog, Surroundings
from store.drivers.file.stable import checked
from store.drivers.file.subscription import Subscription
from store.drivers.file.tail import Mark, pread_all
from store.drivers.file.takeover import Overtaken
from store.drivers.file.text import is_left
from store.errors import CorruptLog, ReadOnly, SeqConflict, SpaceNotFound, StaleEpoch, StoreError, StoreFailed
from store.model import Entry, Epoch, Head, NewEntry, Seq, SpaceId

_BESIDE_DATA: Final = 100
"""Bytes of a line beside its data, about."""


class FileLog(LockedLog):
    """An opened log; see `store.driver.AppendLog`."""

    def __init__(self, around: Surroundings, space: SpaceId) -> None:
        super().__init__(around, space)
        self._epochs = EpochRecord(space, self.text.directory)
        self._attempted = b""
        """What a failed append tried to write behind the head, where it couldn't be undone."""
        self._subscriptions: set[Subscription] = set()

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
        self,
        batch: Sequence[NewEntry],
        *,
        expected_seq: Seq | None = None,
        epoch: Epoch | None = None,
        intent: Callable[[Head], None] | None = None,
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
                    seq = self._append(batch, expected_seq, epoch, intent, stat.st_size)
            except Overtaken:
                pass
            finally:
                text.unlock()
        while seq is None:
            with contextlib.suppress(Overtaken):
                async with self._locked():
                    seq = self._append(batch, expected_seq, epoch, intent, os.fstat(text.fd).st_size)
        if text.head.size > self._stable.due:
            await self._sync_due()
        return seq

    async def _sync_due(self) -> None:
        """What was appended stays so, whatever becomes of the sync: a failure meets the next append or sync."""
        with trio.CancelScope(shield=True), contextlib.suppress(StoreError):
            await self.sync()

    def append_now(self, batch: Sequence[NewEntry], *, epoch: Epoch | None = None) -> list[Entry] | None:
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
            # Whether the file was replaced meanwhile, `_put` finds out.
            if os.lseek(text.fd, 0, os.SEEK_END) != head.size:
                return None
            self._check_epoch(epoch)
            return self._write(batch, None)
        except Overtaken:
            return None
        finally:
            text.unlock()

    def _append(
        self,
        batch: Sequence[NewEntry],
        expected_seq: Seq | None,
        epoch: Epoch | None,
        intent: Callable[[Head], None] | None,
        size: int,
    ) -> Seq:
        """Under the lock, with the file that is there now."""
        text = self.text
        if (failure := self._stable.failure) is not None:
            raise failure
        if size != text.head.size or text.damage is not None:
            self._settle()
            text.raise_damage()
            if is_left(text.fd, text.path):
                raise Overtaken
        head = text.head
        if expected_seq is not None and head.seq != expected_seq:
            raise SeqConflict(f"{self.space} is at entry {head.seq}, not {expected_seq}", current=head.seq)
        self._check_epoch(epoch)
        if not batch:
            return head.seq
        if not text.writable:
            raise ReadOnly(f"the log of {self.space} can't be written")
        return self._write(batch, intent)[-1].seq

    def _check_epoch(self, epoch: Epoch | None) -> None:
        if epoch is not None and (granted := self._epochs.current()) > epoch:
            raise StaleEpoch(f"the lease of {self.space} was granted anew: acquire it", current=granted)

    def _write(self, batch: Sequence[NewEntry], intent: Callable[[Head], None] | None) -> list[Entry]:
        """Under the lock, where the file ends with the head."""
        data, head, entries = encode(batch, self.text.head, self._around.clock, self.space)
        if intent is not None:
            intent(head)
        self._put(data, head)
        return entries

    def _put(self, data: bytes, head: Head) -> None:
        """Under the lock: write lines, behind which the head is that one."""
        text = self.text
        try:
            durability.write_all("log.append", text.fd, data)
        except BaseException as error:
            self._undo(data)
            if isinstance(error, OSError):
                raise durability.store_error(error, f"appending to {self.space}") from error
            raise
        if is_left(text.fd, text.path):
            self._find_again(head)
        else:
            text.advance(head)
        self.signal.notify()

    def _find_again(self, head: Head) -> None:
        """The log was taken over while lines were written: are they in the new one? Raises Overtaken if not."""
        text = self.text
        attached = False
        while not attached:
            try:
                fd = takeover.hold_now(text.directory, self.space)
            except FileNotFoundError as error:
                raise SpaceNotFound(f"there is no log of {self.space}") from error
            except StoreFailed as error:
                what = f"the log of {self.space} was taken over during an append"
                self._stable.failed(what, TimeoutError(str(error)))
                raise
            try:
                attached = self._attach(fd)
            finally:
                os.close(fd)
        with durability.failing(f"reading the log of {self.space}"):
            found = text.position(head.seq)
        if found is None or (found.seq, found.crc) != (head.seq, head.crc):
            raise Overtaken

    def _undo(self, data: bytes) -> None:
        fd, size = self.text.fd, self.text.head.size
        try:
            if os.fstat(fd).st_size > size:
                durability.system.ftruncate("log.undo", fd, size)
                durability.system.fdatasync("log.undo", fd)  # as in `_cut`
        except OSError as error:
            self._attempted = data
            self._stable.failed(f"undoing a failed append to {self.space} failed", error)

    async def adopt(self, entries: Sequence[Entry], *, after: Head | None = None) -> Seq:
        """See AppendLog."""
        text = self.text
        async with self._locked(maintained=True):
            self._append((), None, None, None, os.fstat(text.fd).st_size)  # looks, and raises what is in the way
            if not text.writable:
                raise ReadOnly(f"the log of {self.space} can't be written")
            if after is not None:
                begin = behind(text.shown, after, self.space)
                data, _ = verbatim(entries, begin, self.space)
                with durability.failing(f"appending to {self.space}"):
                    await self._in_thread(adopting.begin, text, self._stable, begin, data)
                    text.attach()
                self.signal.notify()
            elif entries:
                data, head = verbatim(entries, text.head, self.space)
                self._put(data, head)
        if text.head.size > self._stable.due:
            await self._sync_due()
        return text.head.seq

    @property
    def base(self) -> Head:
        """See AppendLog."""
        return adopting.base_of(self.text)

    # ---- truncating

    async def truncate_before(self, seq: Seq) -> None:
        """See AppendLog."""
        async with self._locked(maintained=True):
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
                await self._in_thread(truncating.replace, text, self._stable, base, True)
                text.attach()
            self.signal.notify()

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
        async with self._locked(maintained=True):
            if self._stable.failure is None:
                return
            text = self.text
            with durability.failing(f"recovering the log of {self.space}"):
                if not text.writable:
                    raise ReadOnly(f"the log of {self.space} can't be written")
                since = self._stable.stable_mark()
                known, inode = text.head.seq, text.inode
                self._cut_attempted()
                text.attach()
                if text.interrupted:
                    self._finish_truncation(maintained=True)
                self._attached()
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
            truncating.replace(fd, text, self._stable, text.base, False)

    async def aclose(self) -> None:
        """See AppendLog."""
        self.text.close()
        self._epochs.close()
        for subscription in self._subscriptions:
            subscription.end()
        self.signal.notify()
