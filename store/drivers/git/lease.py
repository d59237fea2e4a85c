"""Leases: a grant is a commit on the log's ref with a higher epoch, so the ref's compare-and-set is the fence.

The commit says who and until when. What changes after that is `lease-<epoch>.json` in the space's local directory:
{"holder", "epoch", "expires"}. The commits behind a grant's carry its epoch alone; where the file isn't there, as after
`git fetch`, an epoch's grant has expired.

Concurrency: on the trio loop; a grant as an append (`turn`), a renewal replaces the file and then looks at the ref.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson
import trio

from store import durability
from store.driver import RELEASED, Clock, Grant
from store.drivers.git import commits
from store.drivers.git.commits import Commit
from store.drivers.git.objects import COMMIT
from store.drivers.git.place import Place
from store.drivers.git.turn import PATIENCE, Moved
from store.errors import FormatError, LeaseHeld, NotHolder, ReadOnly, SpaceNotFound
from store.model import Epoch, Millis, SpaceId

_LEASE: Final = re.compile(r"lease-([0-9]{1,18})\.json")


def _never(_holder: str) -> bool:
    return False


class GitLease:
    """See `store.driver.Lease`. `place` gives what belongs to a space; `local` its directory."""

    def __init__(
        self,
        place: Callable[[SpaceId], Place],
        local: Callable[[SpaceId], Path],
        clock: Clock,
        is_dead: Callable[[str], bool] = _never,
        *,
        read_only: bool = False,
    ) -> None:
        self._place = place
        self._local = local
        self._clock = clock
        self._is_dead = is_dead
        self._read_only = read_only

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int, *, lapsed: Grant | None = None) -> Grant:
        """See Lease. Raises SpaceNotFound where there is no log."""
        self._check_writable(space)
        await trio.lowlevel.checkpoint()
        since: float | None = None
        with durability.failing(f"acquiring the lease of {space}"), contextlib.closing(self._place(space)) as place:
            while True:
                name, info = self._read(place)
                found = self._grant(space, info)
                now = self._clock()
                if (
                    found is not None
                    and found != lapsed
                    and found.holder != holder
                    and found.expires > now
                    and not self._is_dead(found.holder)
                ):
                    raise LeaseHeld(f"{found.holder} may append to {space}", holder=found.holder, expires=found.expires)
                grant = Grant(space, holder, Epoch(info.epoch + 1), Millis(now + ttl_ms))
                new = replace(
                    info,
                    parents=(name,),
                    seconds=max(info.seconds, now // 1000),
                    epoch=grant.epoch,
                    holder=holder,
                    expires=grant.expires,
                )
                moved = Moved.ELSEWHERE
                if not place.turn.try_take():
                    await place.turn.take()
                try:
                    if place.refs.read(space) == name:
                        subject = f"lease, epoch {grant.epoch}"
                        commit = place.objects.write("lease", COMMIT, commits.encode(new, "chatfs", subject))[0]
                        moved = place.turn.move("lease", name, commit)
                    if moved is Moved.DONE:
                        self._write(grant)
                        return grant
                finally:
                    place.turn.give_back()
                if moved is Moved.LOCKED:
                    since = trio.current_time() if since is None else since
                    if trio.current_time() - since > PATIENCE:
                        raise place.turn.locked_by_git()
                    await trio.sleep(0.002)

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """See Lease."""
        return await self._change(grant, Millis(self._clock() + ttl_ms))

    async def release(self, grant: Grant) -> None:
        """See Lease."""
        await self._change(grant, RELEASED)

    async def _change(self, grant: Grant, expires: Millis) -> Grant:
        self._check_writable(grant.space)
        await trio.lowlevel.checkpoint()
        with durability.failing(f"changing the lease of {grant.space}"), self._placed(grant.space) as place:
            self._check_holder(grant, place)
            changed = replace(grant, expires=expires)
            self._write(changed)
            # Where it was granted anew meanwhile, what was written is of an epoch that has ended.
            self._check_holder(grant, place)
            return changed

    async def current(self, space: SpaceId) -> Grant | None:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        with durability.failing(f"reading the lease of {space}"), self._placed(space) as place:
            name = place.refs.read(space)
            return None if name is None else self._grant(space, place.texts.commit(name))

    # ---- inside

    def _placed(self, space: SpaceId) -> contextlib.AbstractContextManager[Place]:
        return contextlib.closing(self._place(space))

    def _check_writable(self, space: SpaceId) -> None:
        if self._read_only:
            raise ReadOnly(f"changing the lease of {space}: the store was opened read-only")

    def _read(self, place: Place) -> tuple[str, Commit]:
        name = place.refs.read(place.space)
        if name is None:
            raise SpaceNotFound(f"there is no log of {place.space}")
        return name, place.texts.commit(name)

    def _check_holder(self, grant: Grant, place: Place) -> None:
        info = self._read(place)[1]
        found = self._grant(grant.space, info)
        if found is None or (found.holder, found.epoch) != (grant.holder, grant.epoch):
            raise NotHolder(f"{grant.holder} no longer holds the lease of {grant.space}: acquire it")

    def _grant(self, space: SpaceId, info: Commit) -> Grant | None:
        """The latest grant: as the file of its epoch says, else as its commit does."""
        if not info.epoch:
            return None
        path = self._local(space) / f"lease-{info.epoch}.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Grant(space, info.holder or "", Epoch(info.epoch), Millis(info.expires))
        if not data.strip(b"\0"):  # after a power cut: whoever held it has ended
            return Grant(space, info.holder or "", Epoch(info.epoch), Millis(0))
        try:
            found = orjson.loads(data)
            grant = Grant(space, str(found["holder"]), Epoch(int(found["epoch"])), Millis(int(found["expires"])))
            if grant.epoch == info.epoch:
                return grant
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            pass
        raise FormatError(f"the lease of {space} can't be read: remove {path} when nothing uses the store")

    def _write(self, grant: Grant) -> None:
        local = self._local(grant.space)
        path = local / f"lease-{grant.epoch}.json"
        record = {"holder": grant.holder, "epoch": grant.epoch, "expires": grant.expires}
        durability.make_dirs("lease", local, Path("/"))
        durability.atomic_replace("lease", path, orjson.dumps(record) + b"\n", durable=False)
        for name in os.listdir(local):
            match = _LEASE.fullmatch(name)
            if match is not None and int(match[1]) < grant.epoch:
                durability.discard("lease", local / name)
