"""The `git:` driver: a repository, bare or a work tree's. It hands out logs, documents, blobs and leases.

A log is a ref. Documents, blobs and what belongs to this machine alone are in `chatfs` in the repository's directory,
laid out as in a `file:` store. HEAD, branches, the index and the work tree are never touched.

Opened read-only, nothing in the repository is changed.

Concurrency: on the trio loop; files that several processes change are protected by whoever owns them here.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Final

import trio

from store import durability
from store.driver import Access, BlobStore, Clock, JsonKv, Lease
from store.drivers.file.blobs import FileBlobs
from store.drivers.file.kv import FileKv
from store.drivers.file.peers import FilePeers
from store.drivers.file.read_only import ReadOnlyBlobs, ReadOnlyKv
from store.drivers.file.watch import NAMES, Watches
from store.drivers.git import commits, repository, trees
from store.drivers.git.commits import Commit
from store.drivers.git.lease import GitLease
from store.drivers.git.log import GitLog
from store.drivers.git.objects import BLOB, COMMIT, TREE, Objects
from store.drivers.git.packing import loose, pack
from store.drivers.git.place import Place
from store.drivers.git.refs import LOG, ROOT, Refs, ref_name
from store.drivers.git.trees import Root
from store.drivers.git.turn import PATIENCE
from store.drivers.keys import check_space, space_in, spaces_directory
from store.drivers.reports import Reports
from store.drivers.signal import Signal
from store.errors import ReadOnly, SpaceNotFound, StoreError
from store.model import SpaceId
from store.peers import Peers

THREADS: Final = 8
PACK: Final = 4096
"""Objects that this instance has written after which they are packed."""
_TRIES: Final = 20
_PACK_AT_END: Final = 1024
"""The same when it is closed."""

log = logging.getLogger("chatfs")


class GitDriver:
    """See `store.driver.Driver`."""

    def __init__(self, git: Path, url: str, clock: Clock, *, read_only: bool, made: bool) -> None:
        self.url = url
        self.made = made
        self.git = git
        self.root = git / repository.DIRECTORY
        self.clock = clock
        self.read_only = read_only
        self.limiter = trio.CapacityLimiter(THREADS)
        self.refs = Refs(git)
        self.objects = Objects(git, self.root / repository.ODB)
        self._watches = Watches()
        self._reports = Reports()
        self._counted = False
        self._packed: trio.Event | None = None
        self.kv: JsonKv = (ReadOnlyKv if read_only else FileKv)(self.root, self._watches, self.limiter)
        self._blobs = (ReadOnlyBlobs if read_only else FileBlobs)(self.root, self._watches, self.limiter)
        self.blobs: BlobStore = self._blobs
        self._peers = FilePeers(self.root, read_only=read_only)
        self.peers: Peers = self._peers
        self.leases: Lease = GitLease(self._place, self.local_dir, clock, self._peers.is_dead, read_only=read_only)

    def _place(self, space: SpaceId) -> Place:
        return Place(
            space,
            self.refs,
            self.objects,
            self.local_dir(space),
            self.limiter,
            self._moved,
            read_only=self.read_only,
        )

    async def open_log(self, space: SpaceId, *, create: bool = False) -> GitLog:
        """See Driver."""
        place = self._place(space)
        await trio.lowlevel.checkpoint()
        with durability.failing(f"making {space}"):
            if create and not self._is_there(space):
                self._check_writable(f"making {space}")
                self._make_space(place)
        found = GitLog(place, self.clock, self.signal(space), lambda: self.follow(space))
        try:
            await found.open()
        except BaseException:
            await found.aclose()
            raise
        return found

    def _is_there(self, space: SpaceId) -> bool:
        return os.path.lexists(self.refs.path(space)) or ref_name(space) in self.refs.packed()

    async def spaces(self, under: str = "workspace") -> list[SpaceId]:
        """See Driver."""
        directory = spaces_directory(under)
        await trio.lowlevel.checkpoint()
        with durability.failing(f"listing {under}"):
            names = self.refs.names(directory)
        return [space for space in (space_in(directory, name) for name in names) if space is not None]

    async def delete_space(self, space: SpaceId) -> None:
        """See Driver. Its objects stay in the repository."""
        check_space(space)
        self._check_writable(f"deleting {space}")
        await trio.lowlevel.checkpoint()
        with durability.failing(f"deleting {space}"):
            inside = [] if "/chats/" in space else await self.spaces(space)
            if not inside and not self._is_there(space):
                raise SpaceNotFound(f"there is no {space}")
            for each in [*inside, space]:
                await self._delete_ref(each)
            local = self.local_dir(space)
            if local.exists():
                gone = self.root / f".deleted-{secrets.token_hex(8)}"
                durability.system.rename("space.delete", local, gone)
                await trio.to_thread.run_sync(durability.remove_tree, "space.delete", gone, limiter=self.limiter)

    async def _delete_ref(self, space: SpaceId) -> None:
        with contextlib.closing(self._place(space)) as place:
            since = trio.current_time()
            while self._is_there(space):
                try:
                    await place.turn.take()
                except SpaceNotFound:
                    return
                try:
                    if place.turn.remove():
                        return
                finally:
                    place.turn.give_back()
                if trio.current_time() - since > PATIENCE:
                    raise place.turn.locked_by_git()
                await trio.sleep(0.002)

    def local_dir(self, space: SpaceId) -> Path:
        """See Driver."""
        check_space(space)
        return self.root / space

    # ---- watching

    def watch(self, space: SpaceId) -> None:
        """See Driver."""
        self._reports.watched(space, self._watch_ref(space, lambda: self._reports.report(space)))

    def unwatch(self, space: SpaceId) -> None:
        """See Driver."""
        self._reports.unwatch(space)

    def _watch_ref(self, space: SpaceId, moved: Callable[[], None]) -> Callable[[], None]:
        """Git and chatfs put another file in the place of a ref's: the directory tells of it."""

        def told(_mask: int, name: str) -> None:
            if name in {LOG, ""}:
                moved()

        return self._watches.add(Path(self.refs.path(space)).parent, NAMES, told)

    def watch_spaces(self, under: str = "workspace") -> None:
        """See Driver."""
        directory = self.git / ROOT / spaces_directory(under)
        with durability.failing(f"watching {under}"), contextlib.suppress(FileNotFoundError, PermissionError):
            if not directory.is_dir() and not self.read_only:
                durability.make_dirs("space.make", directory, self.git)
        self._reports.watch_names(under, lambda told: self._watches.add(directory, NAMES, told))

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """See Driver."""
        return self._reports.changes()

    def signal(self, space: SpaceId) -> Signal:
        """One per space: every instance in this process wakes the others."""
        return self._reports.signal(space)

    def follow(self, space: SpaceId) -> Callable[[], None]:
        """Notify the space's signal when another process moves its ref, until what is returned is called."""
        return self._watch_ref(space, self.signal(space).notify)

    # ---- the rest

    def usage(self) -> tuple[int, int, int, int]:
        """See Driver."""
        with durability.failing("asking for free space"):
            found = os.statvfs(self.git)
        return found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail

    async def sync(self) -> None:
        """See Driver."""
        if not self.read_only:
            with durability.failing("syncing the store"):
                await trio.to_thread.run_sync(self._blobs.sync_all, limiter=self.limiter)

    async def aclose(self) -> None:
        """See Driver. Logs and stagings are their holders' to close."""
        self._reports.close()
        await self._watches.aclose()
        if self.objects.written >= _PACK_AT_END:
            self._pack()
        with trio.CancelScope(shield=True):
            while self._packed is not None:
                await self._packed.wait()
        self._blobs.close()
        self._peers.close()
        self.objects.close()

    def _check_writable(self, what: str) -> None:
        if self.read_only:
            raise ReadOnly(f"{what}: the store was opened read-only")

    def _moved(self) -> None:
        if not self._counted:
            # Those of others, too: a program that appends little and often leaves a few each time.
            self._counted = True
            self.objects.written += loose(self.objects.path)
        if self.objects.written >= PACK:
            self._pack()

    def _pack(self) -> None:
        """Pack in a thread; appends go on."""
        self.objects.written = 0
        if self._packed is None:
            self._packed = trio.Event()
            trio.lowlevel.spawn_system_task(self._pack_now, name="chatfs pack")

    async def _pack_now(self) -> None:
        assert self._packed is not None
        done = self._packed
        try:
            with durability.failing("packing the store's git objects"):
                await trio.to_thread.run_sync(pack, "git.pack", self.objects.path, limiter=self.limiter)
        except StoreError as error:
            log.warning("%s: they stay as they are", error)
        finally:
            self._packed = None
            done.set()

    def _make_space(self, place: Place) -> None:
        """The ref's directory appears with the ref in it, unless it is there, or somebody else is quicker."""
        write = place.objects.write
        newest = write("space.make", BLOB, b"")[0]
        tree = write("space.make", TREE, trees.encode_root(Root(newest, None, None)))[0]
        info = Commit(tree, (), self.clock() // 1000)
        name = write("space.make", COMMIT, commits.encode(info, "chatfs", f"make {place.space}"))[0]
        path = Path(self.refs.path(place.space))
        fresh = self.root / f".new-{secrets.token_hex(8)}"
        durability.system.mkdir("space.make", fresh)
        try:
            durability.write_new("space.make", fresh / LOG, name.encode() + b"\n", durable=False)
            for attempt in count(1):
                self.refs.make_directory("space.make", str(path.parent.parent))
                try:
                    durability.system.rename("space.make", fresh, path.parent)
                    return
                except FileNotFoundError:  # git has removed the empty directory
                    if attempt == _TRIES:
                        raise
                except OSError:
                    if not path.parent.is_dir():
                        raise
                    # Its directory is there: a workspace's chats came first.
                    with contextlib.suppress(FileExistsError):
                        durability.system.link("space.make", fresh / LOG, path)
                    return
        finally:
            with contextlib.suppress(OSError):
                durability.remove_tree("space.make", fresh)


async def open_git(path: Path, url: str, *, clock: Clock, access: Access) -> GitDriver:
    """Open the store in the repository at `path`, see `Access`. Raises as `repository.prepare` does."""
    git, read_only, made = await trio.to_thread.run_sync(repository.prepare, path, access)
    return GitDriver(git, url, clock, read_only=read_only, made=made)
