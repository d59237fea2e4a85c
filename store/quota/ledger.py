"""How much of a quota is charged: one number for all processes, in `quota.ledger` of the workspace's local directory.

::

    {"charged":N,"measured":ID,"at":MS,"over":N,"boot":ID}      padded with spaces, so that it is overwritten in place

`charged` is what the measurement ID found and all that was let through since: never less than what is used. `over` is
how much of that went beyond the quota, of lines that aren't refused for that (`store.quota.TIDYING_MAX`). Two locks
guard it. Who changes the number has the flock of `quota.ledger`, for microseconds. Who lets bytes through has a shared
flock of `quota.lock`, "in flight", from then until the bytes are where a measurement finds them. Who measures has the
first lock, so that nobody takes off meanwhile, and the second one alone, so that nothing is missed.

What a crash leaves is at most too much charged: the locks go with the process, and the next measurement finds what is
really there. What a power cut leaves isn't believed: the boot's id is another then.

Concurrency: trio. The lock order is `_turn`, `quota.ledger`, `quota.lock`: who is in flight must not wait for either of
the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import orjson
import trio

from store import durability
from store.errors import StoreFailed
from store.locks import owner, try_lock, unlock
from store.model import clock_ms

LEDGER: Final = "quota.ledger"
LOCK: Final = "quota.lock"
_SIZE: Final = 256
PATIENCE: Final = 10.0
"""Seconds until a ledger that another process keeps locked is given up, unless a measurement goes on meanwhile."""
_SILENCE: Final = 2.0
"""Seconds until it is said who is waited for."""
_POLLS: Final = (0.0002, 0.005)
"""Seconds between two tries to lock, at first and at most."""


log = logging.getLogger("chatfs")


class Record(NamedTuple):
    """What the ledger says."""

    charged: int
    measured: str
    at: int
    over: int = 0


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Ledger:
    """The ledger of one workspace, as one opened store uses it. Its files are made by the first that needs them."""

    __slots__ = ("_boot", "_directory", "_fd", "_flight", "_flying", "_landed", "_turn")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boot = ""
        self._fd = self._flight = -1
        self._flying = 0
        """How many of this store's tasks are in flight: they share one lock."""
        self._landed = trio.Event()
        self._turn = trio.Lock()

    # ---- the number

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Nobody else changes the number meanwhile, or takes off. Raises StoreFailed where another doesn't let go."""
        async with self._turn:
            await self._lock()
            try:
                yield
            finally:
                if self._fd >= 0:
                    unlock(self._fd)

    async def _lock(self) -> None:
        since = trio.current_time()
        touched, told = 0, False
        pause = _POLLS[0]
        while True:
            with durability.failing("opening a quota's ledger"):
                self._open()
            if try_lock(self._fd):
                if os.fstat(self._fd).st_nlink:
                    return
                self._close_ledger()  # somebody has removed it
                continue
            if (at := os.fstat(self._fd).st_mtime_ns) != touched:
                touched, since = at, trio.current_time()
            waited = trio.current_time() - since
            if waited > PATIENCE:
                raise StoreFailed(
                    f"{owner(self._fd)} keeps {self._directory / LEDGER} locked: what the quota leaves isn't known; "
                    "end that process"
                )
            if waited > _SILENCE and not told:
                told = True
                log.warning("waiting for %s, which keeps %s locked", owner(self._fd), self._directory / LEDGER)
            await trio.sleep(pause)
            pause = min(2 * pause, _POLLS[1])

    def _open(self) -> None:
        if self._fd < 0:
            self._boot = self._boot or _boot()
            self._fd = self._opened(LEDGER)
        if self._flight < 0:
            self._flight = self._opened(LOCK)

    def _opened(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            return durability.system.open("quota.open", self._directory / name, flags)
        except FileNotFoundError:
            durability.make_dirs("quota.open", self._directory, Path("/"))
            return durability.system.open("quota.open", self._directory / name, flags)

    def read(self) -> Record | None:
        """What it says; None where that means nothing. Within `locked`."""
        return self._parsed(os.pread(self._fd, _SIZE, 0))

    def peek(self) -> Record | None:
        """The same without any lock, and without making files."""
        if self._fd >= 0:
            return self.read()
        try:
            fd = os.open(self._directory / LEDGER, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            self._boot = self._boot or _boot()
            return self._parsed(os.pread(fd, _SIZE, 0))
        finally:
            os.close(fd)

    def _parsed(self, text: bytes) -> Record | None:
        try:
            found = orjson.loads(text)
            record = Record(found["charged"], found["measured"], found["at"], found.get("over", 0))
            whole = type(record.measured) is str and all(
                type(number) is int and number >= 0 for number in (record.charged, record.at, record.over)
            )
            return record if whole and found["boot"] == self._boot else None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return None

    def write(self, record: Record) -> None:
        """Let it say something else. Within `locked`."""
        text = orjson.dumps({**record._asdict(), "boot": self._boot}).ljust(_SIZE - 1) + b"\n"
        with durability.failing("writing a quota's ledger"):
            durability.pwrite_all("quota.write", self._fd, text, 0)

    def measured(self, used: int, over: int = 0, *, age: int = 0) -> Record:
        """What a measurement found is what is charged from now on; `age` ms old at once. Within `locked`."""
        record = Record(used, secrets.token_hex(8), clock_ms() - age, over)
        self.write(record)
        return record

    def void(self) -> None:
        """What it says counts no more. Within `locked`."""
        with durability.failing("writing a quota's ledger"):
            durability.pwrite_all("quota.write", self._fd, b" " * (_SIZE - 1) + b"\n", 0)

    def touch(self) -> None:
        """A long measurement goes on: who waits for it goes on waiting. Within `locked`."""
        with contextlib.suppress(OSError):
            os.utime(self._fd)

    # ---- bytes on their way

    def take_off(self) -> None:
        """Something that was charged is on its way. Within `locked`."""
        if not self._flying:
            # Nobody has it alone: for that, too, the ledger must be locked.
            fcntl.flock(self._flight, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._flying += 1

    def land(self) -> None:
        """It is where a measurement finds it, or never comes."""
        self._flying -= 1
        if not self._flying:
            if self._flight >= 0:
                unlock(self._flight)
            self._landed.set()
            self._landed = trio.Event()

    @asynccontextmanager
    async def alone(self, patience: float) -> AsyncIterator[bool]:
        """Whether nothing is in flight meanwhile; False where that took longer than `patience`. Within `locked`."""
        alone = False
        with trio.move_on_after(patience):
            while self._flying:
                await self._landed.wait()
            pause = _POLLS[0]
            while not (alone := try_lock(self._flight)):
                await trio.sleep(pause)
                pause = min(2 * pause, _POLLS[1])
        try:
            yield alone
        finally:
            if alone and self._flight >= 0:
                unlock(self._flight)

    # ---- the end

    def _close_ledger(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let go of the files."""
        self._close_ledger()
        fd, self._flight = self._flight, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
