"""One instance's log: what can be read of it, and its locks.

Lock order: an instance's `_mutex`, the space's maintenance lock where the log is rewritten, then the flock of the log
file. The flock excludes other instances, in this process as in others; whoever holds it may append and repair.
Appending is `log`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from store import durability, locks
from store.driver import Clock
from store.drivers.file import repair, takeover, truncating
from store.drivers.file.readers import Backward, Forward
from store.drivers.file.stable import Pace, Stable
from store.drivers.file.tail import UNSYNCED
from store.drivers.file.text import Look, Text
from store.drivers.signal import Signal
from store.errors import SpaceNotFound
from store.model import Entries, Entry, Head, Seq, SpaceId


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


class LockedLog:
    """See `store.driver.AppendLog`."""

    def __init__(self, around: Surroundings, space: SpaceId) -> None:
        self.space = space
        self._around = around
        self.text = Text(space, around.root / space, read_only=around.read_only)
        self.signal = around.signal(space)
        self._mutex = trio.Lock()
        self._stable = Stable(self.text, around.root, around.pace, around.limiter)

    async def open(self) -> None:
        """Find the end, finish what a crash interrupted."""
        while True:
            async with self._flock() as fd:
                if self._attach(fd):
                    self._stable.opened()
                    return

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

    # ---- under the lock

    @asynccontextmanager
    async def _flock(self, *, maintained: bool = False) -> AsyncIterator[int]:
        """Hold the flock of the file that is there now; awaits whoever has it."""
        around, directory = self._around, self.text.directory
        with self._failing("locking"):
            fd = await takeover.hold(
                directory, self.space, around.limiter, writable=not around.read_only, maintained=maintained
            )
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise SpaceNotFound(f"there is no log of {self.space}") from error
        except OSError as error:
            raise durability.store_error(error, f"{what} the log of {self.space}") from error

    @asynccontextmanager
    async def _locked(self, *, maintained: bool = False) -> AsyncIterator[None]:
        """The same, with the text attached to that file; with the maintenance lock before it, if `maintained`."""
        async with self._mutex, AsyncExitStack() as held:
            if maintained:
                with self._failing("locking"):
                    await held.enter_async_context(takeover.maintenance(self.text.directory, self.space))
            while True:
                async with self._flock(maintained=maintained) as fd:
                    self.text.check_open()
                    if not self._is_attached(fd) and not self._attach(fd, maintained=maintained):
                        continue
                    yield
                    return

    def _is_attached(self, fd: int) -> bool:
        return os.fstat(self.text.fd).st_ino == os.fstat(fd).st_ino

    def _attach(self, fd: int, *, maintained: bool = False) -> bool:
        """Attach the text to the file that is there now; False: that isn't the one whose flock `fd` has (any more)."""
        with durability.failing(f"opening the log of {self.space}"):
            if not self.text.attach(fd):
                return False
            if self.text.interrupted and self._finish_truncation(maintained=maintained):
                return False
            self._attached()
            return True

    def _attached(self) -> None:
        self._settle()
        self._stable.due = self.text.head.size + UNSYNCED

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

    def _finish_truncation(self, *, maintained: bool) -> bool:
        """The base is written, the log isn't shortened yet: do that where it can be written. Whether it was replaced.

        Else the text begins behind the base.
        """
        text = self.text
        text.skip_dropped()
        if not text.writable:
            return False
        with takeover.maintained_now(text.directory, already=maintained) as ours:
            # Before that lock was got, the log may have been taken over.
            if not ours or not locks.is_at(text.fd, text.path):
                return ours
            truncating.replace(text.fd, text, self._stable, text.base, False)
            text.attach()
            return True
