"""Leases of the `file:` driver: who may append to a space. The files are `fence`'s.

No lock is needed to get one, since its owner may be stopped while it has it: a grant is made by link(2) of a file of
the next epoch, which only one can do. Then it is installed: under the log's flock, which can be broken (`takeover`),
all lower ones are removed, and from then on appends of lower epochs are refused. Only then is it returned. Who dies in
between leaves a grant that the next one surpasses.

Nothing is synced: a power cut ends every holder.

Concurrency: on the trio loop, without threads but for a takeover; any other process may do the same at any moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import trio

from store import durability
from store.driver import RELEASED, Clock, Grant
from store.drivers.file import fence, takeover
from store.drivers.file.text import LOG_NAME, is_left
from store.errors import LeaseHeld, NotHolder, SpaceNotFound
from store.model import Epoch, Millis, SpaceId

IsDead = Callable[[str], bool]
"""Whether a holder has ended, for certain."""


def _nobody(_holder: str) -> bool:
    return False


class FileLease:
    """See `store.driver.Lease`."""

    def __init__(
        self,
        directory_of: Callable[[SpaceId], Path],
        clock: Clock,
        limiter: trio.CapacityLimiter,
        is_dead: IsDead = _nobody,
    ) -> None:
        self._directory_of = directory_of
        self._clock = clock
        self._limiter = limiter
        self._is_dead = is_dead

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int, *, lapsed: Grant | None = None) -> Grant:
        """See Lease. Raises SpaceNotFound where there is no log."""
        await trio.lowlevel.checkpoint()
        with _Failing(space):
            directory = self._directory_of(space)
            while True:
                os.lstat(directory / LOG_NAME)
                found = fence.present(space, directory)
                grant = self._next(space, found, holder, ttl_ms, lapsed)
                if not _make(directory, grant):
                    continue
                try:
                    installed = await self._install(directory, grant)
                except BaseException:
                    with contextlib.suppress(OSError, NotHolder):
                        _write_over(directory, _released(grant))
                    raise
                if installed:
                    return grant

    def _next(self, space: SpaceId, found: Grant | None, holder: str, ttl_ms: int, lapsed: Grant | None) -> Grant:
        now = self._clock()
        valid = found is not None and found != lapsed and found.expires > now
        if found is not None and valid and found.holder != holder and not self._is_dead(found.holder):
            raise LeaseHeld(f"{found.holder} may append to {space}", holder=found.holder, expires=found.expires)
        return Grant(space, holder, Epoch(found.epoch + 1 if found else 1), Millis(now + ttl_ms))

    async def _install(self, directory: Path, grant: Grant) -> bool:
        """Refuse lower epochs from now on. False: a higher one has been granted meanwhile."""
        while True:
            fd = await takeover.hold(directory, grant.space, self._limiter)
            try:
                highest = _surpass(directory, grant.epoch)
                # Else the lock was broken, and somebody may have looked at a lower one under the new one.
                if not is_left(fd, directory / LOG_NAME):
                    return highest
            finally:
                os.close(fd)

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        return self._change(grant, lambda now: Millis(now + ttl_ms))

    async def release(self, grant: Grant) -> None:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        self._change(grant, lambda _now: RELEASED)

    def _change(self, grant: Grant, expires: Callable[[Millis], Millis]) -> Grant:
        with _Failing(grant.space):
            directory = self._directory_of(grant.space)
            _check_holder(grant, fence.present(grant.space, directory))
            changed = Grant(grant.space, grant.holder, grant.epoch, expires(self._clock()))
            _write_over(directory, changed)
            return changed

    async def current(self, space: SpaceId) -> Grant | None:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        with _Failing(space):
            try:
                return fence.present(space, self._directory_of(space))
            except FileNotFoundError:
                return None


class _Failing:
    """Turns an OSError of the block into the store's error for it."""

    def __init__(self, space: SpaceId) -> None:
        self._space = space

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise SpaceNotFound(f"there is no log of {self._space}") from error
        if isinstance(error, OSError):
            raise durability.store_error(error, f"changing the lease of {self._space}") from error


def _released(grant: Grant) -> Grant:
    return Grant(grant.space, grant.holder, grant.epoch, RELEASED)


def _make(directory: Path, grant: Grant) -> bool:
    """Make the file of a grant; False where another came first."""
    path = directory / fence.name_of(grant.epoch)
    beside = durability.temporary(path)
    durability.write_new("lease", beside, fence.encode(grant), durable=False)
    try:
        durability.system.link("lease", beside, path)
    except (FileExistsError, FileNotFoundError):  # the latter: another has removed what it took for a leftover
        return False
    finally:
        durability.discard("lease", beside)
    return True


def _surpass(directory: Path, epoch: Epoch) -> bool:
    """Under the log's flock: remove the files of lower grants; or that of this one, and False, if there is a higher."""
    there = fence.names(directory)
    if max(there, default=0) != epoch:
        # Or its own is gone: somebody has removed it by hand.
        _remove(directory, fence.name_of(epoch))
        return False
    for lower, name in there.items():
        if lower < epoch:
            _remove(directory, name)
    for name in fence.temporaries(directory, epoch):
        _remove(directory, name)
    return True


def _write_over(directory: Path, grant: Grant) -> None:
    """Put another file in the place of the grant's. Raises NotHolder."""
    name = fence.name_of(grant.epoch)
    try:
        durability.atomic_replace("lease", directory / name, fence.encode(grant), durable=False)
    except FileNotFoundError:
        # As in `_make`, unless the space is gone.
        if max(fence.names(directory), default=0) > grant.epoch:
            raise _not_holder(grant) from None
        raise
    if max(fence.names(directory)) > grant.epoch:
        # It may have been removed before: then it is there again, and says nothing any more.
        _remove(directory, name)
        raise _not_holder(grant)


def _remove(directory: Path, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        durability.system.unlink("lease", directory / name)


def _check_holder(grant: Grant, found: Grant | None) -> None:
    if found is None or (found.holder, found.epoch) != (grant.holder, grant.epoch):
        raise _not_holder(grant)


def _not_holder(grant: Grant) -> NotHolder:
    return NotHolder(f"{grant.holder} no longer holds the lease of {grant.space}: acquire it")
