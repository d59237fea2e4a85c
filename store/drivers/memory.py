"""The `memory:` driver: everything in this process's memory, with the same semantics as the others.

`memory:` is private to its opener; all who open `memory:name` share one store, as several processes share a directory.
It lasts until the last of them closes it. Nothing survives the process: "durable" means nothing here.

`Shared.before` is called with a label before every change; a test that makes it raise OSError sees what a failing disk
would do.

Concurrency: on the trio loop; every change is made without an await in between.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import trio

from store import durability
from store.driver import (
    ABSENT,
    RELEASED,
    BlobStore,
    Clock,
    Document,
    Etag,
    EtagConflict,
    Grant,
    JsonKv,
    KvChange,
    Lease,
)
from store.drivers.changes import Changes
from store.drivers.keys import check_key, check_space, space_in, spaces_directory
from store.drivers.memory_blobs import Blobs, MemoryBlobs
from store.drivers.memory_log import Log, MemoryLog
from store.drivers.memory_peers import Living, MemoryPeers
from store.drivers.signal import Signal
from store.errors import LeaseHeld, NotHolder, SpaceNotFound
from store.model import Epoch, Millis, SpaceId
from store.peers import Peers


def _harmless(_label: str) -> None:
    """What a disk that never fails does."""


class Shared:
    """What all openers of one name share."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = _harmless
        self.drivers: set[MemoryDriver] = set()
        self.logs: dict[SpaceId, Log] = {}
        self.documents: dict[str, tuple[bytes, Etag]] = {}
        self.kv_watchers: set[_KvChanges] = set()
        self.grants: dict[SpaceId, Grant] = {}
        self.living = Living()
        self.blobs = Blobs(self.change)
        self.directory = Path(tempfile.mkdtemp(prefix="chatfs-memory-"))

    def change(self, label: str) -> None:
        """Before a change; raises the store's error where `before` fails."""
        with durability.failing(f"changing the store ({label})"):
            self.before(label)

    def report(self, what: SpaceId) -> None:
        """Something happened in a space, or to the spaces in `what`."""
        for driver in self.drivers:
            driver.report(what)


_shared: dict[str, Shared] = {}


class MemoryKv:
    """See `store.driver.JsonKv`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def get(self, key: str) -> Document | None:
        """See JsonKv."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        return self.now(key)

    def now(self, key: str) -> Document | None:
        """What is there."""
        found = self._shared.documents.get(key)
        return None if found is None else Document(orjson.loads(found[0]), found[1])

    async def put(self, key: str, value: Any, *, if_match: Etag | None = None) -> Document | EtagConflict:
        """See JsonKv."""
        check_key(key)
        data = orjson.dumps(value)
        await trio.lowlevel.checkpoint()
        conflict = self._conflict(key, if_match)
        if conflict is not None:
            return conflict
        self._shared.change("kv.put")
        etag = Etag(secrets.token_hex(16))
        self._shared.documents[key] = (data, etag)
        self._tell(key)
        return Document(orjson.loads(data), etag)

    async def delete(self, key: str, *, if_match: Etag | None = None) -> EtagConflict | None:
        """See JsonKv."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        conflict = self._conflict(key, if_match)
        if conflict is None and key in self._shared.documents:
            self._shared.change("kv.delete")
            del self._shared.documents[key]
            self._tell(key)
        return conflict

    async def list(self, prefix: str = "") -> list[str]:
        """See JsonKv."""
        await trio.lowlevel.checkpoint()
        return sorted(key for key in self._shared.documents if key.startswith(prefix))

    @asynccontextmanager
    async def watch(self, prefix: str = "") -> AsyncIterator[AsyncIterator[KvChange]]:
        """See JsonKv."""
        changes = _KvChanges(self, prefix)
        self._shared.kv_watchers.add(changes)
        try:
            yield changes
        finally:
            self._shared.kv_watchers.discard(changes)

    def _conflict(self, key: str, if_match: Etag | None) -> EtagConflict | None:
        if if_match is None:
            return None
        found = self.now(key)
        return None if (ABSENT if found is None else found.etag) == if_match else EtagConflict(found)

    def _tell(self, key: str) -> None:
        for watcher in self._shared.kv_watchers:
            watcher.told(key)


class _KvChanges:
    """One watcher: keys that changed, read when they are asked for."""

    def __init__(self, kv: MemoryKv, prefix: str) -> None:
        self._kv = kv
        self._prefix = prefix
        self._moved: dict[str, None] = {}
        self._signal = Signal()

    def told(self, key: str) -> None:
        if key.startswith(self._prefix):
            self._moved[key] = None
            self._signal.notify()

    def __aiter__(self) -> _KvChanges:
        return self

    async def __anext__(self) -> KvChange:
        await trio.lowlevel.checkpoint()
        while not self._moved:
            await self._signal.event().wait()
        key = next(iter(self._moved))
        del self._moved[key]
        return KvChange(key, self._kv.now(key))


class MemoryLease:
    """See `store.driver.Lease`."""

    def __init__(self, shared: Shared, clock: Clock, is_dead: Callable[[str], bool]) -> None:
        self._shared = shared
        self._clock = clock
        self._is_dead = is_dead

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int, *, lapsed: Grant | None = None) -> Grant:
        """See Lease. Raises SpaceNotFound where there is no log."""
        await trio.lowlevel.checkpoint()
        if space not in self._shared.logs:
            raise SpaceNotFound(f"there is no log of {space}")
        found = self._shared.grants.get(space)
        now = self._clock()
        valid = found is not None and found != lapsed and found.expires > now
        if found is not None and valid and found.holder != holder and not self._is_dead(found.holder):
            raise LeaseHeld(f"{found.holder} may append to {space}", holder=found.holder, expires=found.expires)
        return self._set(Grant(space, holder, Epoch(found.epoch + 1 if found else 1), Millis(now + ttl_ms)))

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        self._check_holder(grant)
        return self._set(Grant(grant.space, grant.holder, grant.epoch, Millis(self._clock() + ttl_ms)))

    async def release(self, grant: Grant) -> None:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        self._check_holder(grant)
        self._set(Grant(grant.space, grant.holder, grant.epoch, RELEASED))

    async def current(self, space: SpaceId) -> Grant | None:
        """See Lease."""
        await trio.lowlevel.checkpoint()
        return self._shared.grants.get(space)

    def _set(self, grant: Grant) -> Grant:
        self._shared.change("lease")
        self._shared.grants[grant.space] = grant
        return grant

    def _check_holder(self, grant: Grant) -> None:
        found = self._shared.grants.get(grant.space)
        if found is None or (found.holder, found.epoch) != (grant.holder, grant.epoch):
            raise NotHolder(f"{grant.holder} no longer holds the lease of {grant.space}: acquire it")


class MemoryDriver:
    """See `store.driver.Driver`."""

    def __init__(self, shared: Shared, name: str, url: str, clock: Clock) -> None:
        self.url = url
        self.read_only = False
        self.made = False
        self.shared = shared
        self._name = name
        self._clock = clock
        self.kv: JsonKv = MemoryKv(shared)
        self._blobs = MemoryBlobs(shared.blobs)
        self.blobs: BlobStore = self._blobs
        self._peers = MemoryPeers(shared.living)
        self.peers: Peers = self._peers
        self.leases: Lease = MemoryLease(shared, clock, self._peers.is_dead)
        self._watched: dict[SpaceId, int] = {}
        self._changed: set[SpaceId] = set()
        self._change = Signal()
        shared.drivers.add(self)

    async def open_log(self, space: SpaceId, *, create: bool = False) -> MemoryLog:
        """See Driver."""
        check_space(space)
        await trio.lowlevel.checkpoint()
        log = self.shared.logs.get(space)
        if log is None:
            if not create:
                raise SpaceNotFound(f"there is no log of {space}")
            self.shared.change("space.make")
            log = self.shared.logs[space] = Log(space, self.shared.change, self._epoch, self.shared.report)
            self.shared.report(_parent(space))
        return MemoryLog(log, self._clock)

    def _epoch(self, space: SpaceId) -> Epoch:
        found = self.shared.grants.get(space)
        return Epoch(0) if found is None else found.epoch

    async def spaces(self, under: str = "workspace") -> list[SpaceId]:
        """See Driver."""
        directory = spaces_directory(under)
        await trio.lowlevel.checkpoint()
        names = {space[len(directory) + 1 :].partition("/")[0] for space in self.shared.logs if _in(directory, space)}
        return [space for space in (space_in(directory, name) for name in sorted(names)) if space is not None]

    async def delete_space(self, space: SpaceId) -> None:
        """See Driver."""
        check_space(space)
        await trio.lowlevel.checkpoint()
        gone = [found for found in self.shared.logs if found == space or _in(space, found)]
        if not gone:
            raise SpaceNotFound(f"there is no {space}")
        self.shared.change("space.delete")
        for found in gone:
            self.shared.logs.pop(found).delete()
            self.shared.grants.pop(found, None)
        self.shared.report(_parent(space))
        shutil.rmtree(self.local_dir(space), ignore_errors=True)

    def local_dir(self, space: SpaceId) -> Path:
        """See Driver."""
        check_space(space)
        return self.shared.directory / space

    def watch(self, space: SpaceId) -> None:
        """See Driver."""
        check_space(space)
        self._watched[space] = self._watched.get(space, 0) + 1

    def unwatch(self, space: SpaceId) -> None:
        """See Driver."""
        left = self._watched.get(space, 0) - 1
        if left > 0:
            self._watched[space] = left
        else:
            self._watched.pop(space, None)

    def watch_spaces(self, under: str = "workspace") -> None:
        """See Driver."""
        spaces_directory(under)
        self._watched[SpaceId(f"{under}/")] = 1

    def report(self, what: SpaceId) -> None:
        """Something happened in a space; with a `/` at its end: to the spaces in it."""
        if what in self._watched:
            self._changed.add(SpaceId(what.rstrip("/")))
            self._change.notify()

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """See Driver."""
        return Changes(self.take_changes)

    async def take_changes(self) -> set[SpaceId] | None:
        """The spaces that changed since the last call, when there are some; None once the driver is closed."""
        await trio.lowlevel.checkpoint()
        while not self._changed:
            event = self._change.event()
            if self not in self.shared.drivers:
                return None
            await event.wait()
        found, self._changed = self._changed, set()
        return found

    def usage(self) -> tuple[int, int, int, int]:
        """See Driver."""
        found = os.statvfs(self.shared.directory)
        return found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail

    async def sync(self) -> None:
        """See Driver: nothing here survives a power cut."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See Driver. As if the process died: stagings that were neither committed nor discarded are abandoned."""
        await trio.lowlevel.checkpoint()
        self.shared.drivers.discard(self)
        self._change.notify()
        self._blobs.abandon()
        self._peers.close()
        if not self.shared.drivers:
            if _shared.get(self._name) is self.shared:
                del _shared[self._name]
            shutil.rmtree(self.shared.directory, ignore_errors=True)


def _in(directory: str, space: SpaceId) -> bool:
    return space.startswith(f"{directory}/")


def _parent(space: SpaceId) -> SpaceId:
    """As what the making of a space is reported."""
    workspace, chats, _ = space.partition("/chats/")
    return SpaceId(f"{workspace}/" if chats else "workspace/")


async def open_memory(name: str, url: str, *, clock: Clock) -> MemoryDriver:
    """Open the store of that name; one of its own where the name is empty."""
    await trio.lowlevel.checkpoint()
    shared = _shared.get(name) if name else None
    if shared is None:
        shared = Shared()
        if name:
            _shared[name] = shared
    return MemoryDriver(shared, name, url, clock)
