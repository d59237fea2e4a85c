"""Leases as `lease.json` in a space's directory: {"holder", "epoch", "expires"}.

The file is replaced only under the flock of the space's log, so that refusing a stale epoch is atomic with the append.

Concurrency: the new record is written and synced before the lock is taken, and the lock is held for a comparison
and a rename; where another came first, it is all done again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson
import trio

from store import durability
from store.driver import Clock, Grant
from store.drivers.file import locks
from store.drivers.file.text import LOG_NAME
from store.errors import FormatError, LeaseHeld, NotHolder, SpaceNotFound
from store.model import Epoch, Millis, SpaceId

LEASE_NAME: Final = "lease.json"


def _decode(space: SpaceId, data: bytes) -> Grant:
    try:
        found = orjson.loads(data)
        return Grant(space, str(found["holder"]), Epoch(int(found["epoch"])), Millis(int(found["expires"])))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the lease of {space} can't be read: restore {LEASE_NAME} from a backup") from error


class EpochRecord:
    """The highest granted epoch of a space, as cheap to ask as one fstat: a replaced file has no links left."""

    def __init__(self, space: SpaceId, directory: Path) -> None:
        self._space = space
        self._path = directory / LEASE_NAME
        self._fd = -1
        self._epoch = Epoch(0)

    def current(self) -> Epoch:
        """0 where none was granted. Under the log's lock."""
        if self._fd >= 0:
            if os.fstat(self._fd).st_nlink:
                return self._epoch
            self.close()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return Epoch(0)
        try:
            self._epoch = _decode(self._space, os.pread(fd, 65536, 0)).epoch
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return self._epoch

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileLease:
    """See `store.driver.Lease`."""

    def __init__(self, directory_of: Callable[[SpaceId], Path], clock: Clock, limiter: trio.CapacityLimiter) -> None:
        self._directory_of = directory_of
        self._clock = clock
        self._limiter = limiter

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int) -> Grant:
        """See Lease. Raises SpaceNotFound where there is no log."""

        def decide(found: Grant | None) -> Grant:
            now = self._clock()
            if found is not None and found.holder != holder and found.expires > now:
                raise LeaseHeld(f"{found.holder} may append to {space}", holder=found.holder, expires=found.expires)
            return Grant(space, holder, Epoch(found.epoch + 1 if found else 1), Millis(now + ttl_ms))

        return await self._change(space, decide)

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """See Lease."""

        def decide(found: Grant | None) -> Grant:
            _check_holder(grant, found)
            return Grant(grant.space, grant.holder, grant.epoch, Millis(self._clock() + ttl_ms))

        return await self._change(grant.space, decide)

    async def release(self, grant: Grant) -> None:
        """See Lease."""

        def decide(found: Grant | None) -> Grant:
            _check_holder(grant, found)
            return Grant(grant.space, grant.holder, grant.epoch, Millis(min(self._clock(), grant.expires)))

        await self._change(grant.space, decide)

    async def current(self, space: SpaceId) -> Grant | None:
        """See Lease."""
        data = self._read(space)
        return None if data is None else _decode(space, data)

    def _read(self, space: SpaceId) -> bytes | None:
        try:
            return (self._directory_of(space) / LEASE_NAME).read_bytes()
        except FileNotFoundError:
            return None

    async def _change(self, space: SpaceId, decide: Callable[[Grant | None], Grant]) -> Grant:
        directory = self._directory_of(space)
        path = directory / LEASE_NAME
        while True:
            before = self._read(space)
            grant = decide(None if before is None else _decode(space, before))
            record = {"holder": grant.holder, "epoch": grant.epoch, "expires": grant.expires}
            beside = durability.temporary(path)
            renamed = False
            try:
                await self._in_thread(durability.write_new, "lease", beside, orjson.dumps(record) + b"\n")
                async with locks.waiting_lock(directory / LOG_NAME, self._limiter):
                    if self._read(space) != before:
                        continue
                    durability.system.rename("lease", beside, path)
                    renamed = True
                await self._in_thread(durability.fsync_dir, "lease", directory)
                return grant
            except FileNotFoundError as error:
                raise SpaceNotFound(f"there is no log of {space}") from error
            except OSError as error:
                raise durability.store_error(error, f"changing the lease of {space}") from error
            finally:
                if not renamed:
                    durability.discard("lease", beside)

    async def _in_thread(self, call: Callable[..., None], *args: object) -> None:
        await trio.to_thread.run_sync(call, *args, limiter=self._limiter)


def _check_holder(grant: Grant, found: Grant | None) -> None:
    if found is None or (found.holder, found.epoch) != (grant.holder, grant.epoch):
        raise NotHolder(f"{grant.holder} no longer holds the lease of {grant.space}: acquire it")
