"""Logs of the `memory:` driver: the text as other drivers have it, beside its decoded entries.

Truncating puts a new text in the place of the old one; an instance keeps the one it knows until it looks again, as
other drivers' instances do.

Concurrency: on the trio loop; every change is made without an await in between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from store.driver import Clock
from store.drivers.batch import behind, encode, verbatim
from store.drivers.signal import Signal
from store.errors import CorruptLog, SeqConflict, SpaceNotFound, StaleEpoch, StoreError, StoreFailed, Truncated
from store.model import EMPTY_HEAD, Entries, Entry, Epoch, Head, NewEntry, Seq, SpaceId

_BATCH: Final = 256


class _Text:
    """What a file is elsewhere: entry `first_seq + i` is `entries[i]`, its line ends at `ends[i]`."""

    def __init__(self, head: Head, base: Head) -> None:
        self.base = base
        self.head = head
        self.entries: list[Entry] = []
        self.ends: list[int] = []
        self.data = bytearray()

    def add(self, lines: bytes, entries: list[Entry], head: Head) -> None:
        end = self.head.size
        for line in lines.split(b"\n")[:-1]:
            end += len(line) + 1
            self.ends.append(end)
        self.entries += entries
        self.data += lines
        self.head = head


class Log:
    """One space's log, shared by its instances."""

    def __init__(
        self,
        space: SpaceId,
        change: Callable[[str], None],
        epoch: Callable[[SpaceId], Epoch],
        report: Callable[[SpaceId], None],
    ) -> None:
        self.space = space
        self.change = change
        self.epoch = epoch
        self.report = report
        self.text = _Text(EMPTY_HEAD, EMPTY_HEAD)
        self.signal = Signal()
        self.deleted = False

    def check_there(self) -> None:
        """Raises SpaceNotFound."""
        if self.deleted:
            raise SpaceNotFound(f"there is no log of {self.space}")

    def moved(self) -> None:
        """Wake who follows."""
        self.signal.notify()
        self.report(self.space)

    def delete(self) -> None:
        """The space was deleted."""
        self.deleted = True
        self.signal.notify()


class MemoryLog:
    """An opened log; see `store.driver.AppendLog`."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self.space = log.space
        self._log = log
        self._clock = clock
        self._text = log.text
        self._head = log.text.head
        self._closed = False
        self._failure: str | None = None

    @property
    def head(self) -> Head:
        """See AppendLog."""
        return self._head

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the log of {self.space} was closed")

    def _look(self) -> Head:
        self._check_open()
        self._log.check_there()
        self._text = self._log.text
        self._head = self._text.head
        return self._head

    async def refresh(self) -> Head:
        """See AppendLog."""
        return self._look()

    async def append(
        self,
        batch: Sequence[NewEntry],
        *,
        expected_seq: Seq | None = None,
        epoch: Epoch | None = None,
        intent: Callable[[Head], None] | None = None,
    ) -> Seq:
        """See AppendLog."""
        head = self._look()
        self._check_failure()
        if expected_seq is not None and head.seq != expected_seq:
            raise SeqConflict(f"{self.space} is at entry {head.seq}, not {expected_seq}", current=head.seq)
        self._check_epoch(epoch)
        return self._write(batch, intent)[-1].seq if batch else head.seq

    def append_now(self, batch: Sequence[NewEntry], *, epoch: Epoch | None = None) -> list[Entry] | None:
        """See AppendLog."""
        known = self._head
        if self._failure is not None or self._look() != known:
            return None
        self._check_epoch(epoch)
        return self._write(batch, None)

    def _check_epoch(self, epoch: Epoch | None) -> None:
        if epoch is not None and (granted := self._log.epoch(self.space)) > epoch:
            raise StaleEpoch(f"the lease of {self.space} was granted anew: acquire it", current=granted)

    def _write(self, batch: Sequence[NewEntry], intent: Callable[[Head], None] | None) -> list[Entry]:
        lines, head, entries = encode(batch, self._head, self._clock, self.space)
        if intent is not None:
            intent(head)
        self._log.change("log.append")
        self._text.add(lines, entries, head)
        self._head = head
        self._log.moved()
        return entries

    async def adopt(self, entries: Sequence[Entry], *, after: Head | None = None) -> Seq:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        known = self._look()
        self._check_failure()
        begin = known if after is None else behind(known, after, self.space)
        lines, head = verbatim(entries, begin, self.space)
        if entries or after is not None:
            self._log.change("log.adopt")
            if after is not None:
                self._text = self._log.text = _Text(begin, begin)
            self._text.add(lines, list(entries), head)
            self._head = head
            self._log.moved()
        return head.seq

    @property
    def base(self) -> Head:
        """See AppendLog."""
        return self._text.base

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """See AppendLog."""
        self._check_open()
        if since:
            _check_since(self._head, since, self.space)
        return _Entries(self, self._head, since, limit, reverse=reverse)

    def entry(self, seq: int) -> Entry:
        """One entry of what this instance knows."""
        self._check_open()
        _check_since(self._head, seq - 1, self.space)
        return self._text.entries[seq - self._head.first_seq]

    @asynccontextmanager
    async def subscribe(self, since: Seq | None = None) -> AsyncIterator[AsyncIterator[Entry]]:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        own = MemoryLog(self._log, self._clock)
        if since:
            _check_since(own.head, since, self.space)
        yield _Subscription(self, own, since)

    async def truncate_before(self, seq: Seq) -> None:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        head = self._look()
        self._check_failure()
        if seq > head.seq + 1:
            raise ValueError(f"{self.space} ends at entry {head.seq}: nothing to truncate before {seq}")
        if seq <= head.first_seq:
            return
        self._log.change("log.truncate")
        old = self._text
        dropped = seq - head.first_seq
        start = old.ends[dropped - 1]
        last = old.entries[dropped - 1]
        base = Head(last.seq, last.ts, last.crc, seq, 0)
        new = _Text(Head(head.seq, head.ts, head.crc, seq, head.size - start), base)
        new.entries = old.entries[dropped:]
        new.ends = [end - start for end in old.ends[dropped:]]
        new.data = old.data[start:]
        self._log.text = new
        self._look()
        self._log.moved()

    async def sync(self) -> None:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._check_failure()
        try:
            self._log.change("log.sync")
        except StoreError as error:
            self._failure = (
                f"syncing the log of {self.space} failed ({error}): nothing is appended until it has been recovered"
            )
            raise

    @property
    def damage(self) -> CorruptLog | None:
        """See AppendLog: there is no disk that could change anything."""
        return None

    @property
    def failure(self) -> StoreFailed | None:
        """See AppendLog."""
        return None if self._failure is None else StoreFailed(self._failure)

    def _check_failure(self) -> None:
        if (failure := self.failure) is not None:
            raise failure

    async def recover(self) -> None:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._failure is not None:
            self._log.change("log.recover")
            self._failure = None

    @property
    def text_id(self) -> int:
        """See AppendLog."""
        return self._head.first_seq

    async def read_batches(self, since: Seq = Seq(0)) -> AsyncGenerator[Entries, None]:
        """See AppendLog."""
        found: list[Entry] = []
        async for entry in self.read(since):
            found.append(entry)
            if len(found) == _BATCH:
                yield Entries.of(found)
                found = []
        if found:
            yield Entries.of(found)

    def read_text(self, offset: int, size: int) -> bytes:
        """See AppendLog."""
        self._check_open()
        return bytes(self._text.data[offset : max(offset, min(offset + size, self._head.size))])

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    async def aclose(self) -> None:
        """See AppendLog."""
        self._closed = True
        self._log.signal.notify()


def _check_since(head: Head, since: int, space: SpaceId) -> None:
    if since < head.first_seq - 1:
        raise Truncated(f"entries of {space} before {head.first_seq} were dropped", first_seq=head.first_seq)


class _Entries:
    """`AppendLog.read`."""

    def __init__(self, log: MemoryLog, head: Head, since: int, limit: int | None, *, reverse: bool) -> None:
        self._log = log
        self._left = limit
        self._low = max(since + 1, head.first_seq)
        self._high: int = head.seq
        self._reverse = reverse

    def __aiter__(self) -> _Entries:
        return self

    async def __anext__(self) -> Entry:
        if self._left == 0 or self._low > self._high:
            raise StopAsyncIteration
        await trio.lowlevel.checkpoint()
        if self._reverse and self._high < self._log.head.first_seq:
            raise StopAsyncIteration
        entry = self._log.entry(self._high if self._reverse else self._low)
        if self._reverse:
            self._high -= 1
        else:
            self._low += 1
        if self._left is not None:
            self._left -= 1
        return entry


class _Subscription:
    """`AppendLog.subscribe`: a place in a view of its own."""

    def __init__(self, parent: MemoryLog, log: MemoryLog, since: int | None) -> None:
        self._parent = parent
        self._log = log
        head = log.head
        self._seq: int = head.seq if since is None else since or head.first_seq - 1

    def __aiter__(self) -> _Subscription:
        return self

    async def __anext__(self) -> Entry:
        while True:
            await trio.lowlevel.checkpoint()
            moved = self._log._log.signal.event()  # noqa: SLF001
            if self._parent.closed:
                raise trio.ClosedResourceError(f"the log of {self._log.space} was closed")
            await self._log.refresh()
            if self._seq < self._log.head.seq:
                entry = self._log.entry(self._seq + 1)
                self._seq = entry.seq
                return entry
            _check_since(self._log.head, self._seq, self._log.space)
            await moved.wait()
