"""The `file:` driver: one directory. It hands out logs, documents, blobs and leases, and knows the layout.

Layout: `store.json`, `workspace/<id>/[chats/<id>/]history.jsonl`, `objects/`, `kv/`, `drafts/`, `quarantine/`,
`backup/`. Whatever begins with a dot is being made or deleted.

Opened read-only, nothing in the directory is changed, not even by mistake: whatever would, raises ReadOnly.

Concurrency: on the trio loop; files that several processes change are protected by whoever owns them here.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import trio

from store import durability
from store.driver import Access, BlobStore, Clock, JsonKv, Lease, Progress
from store.drivers.file import format as store_format
from store.drivers.file import migration, takeover
from store.drivers.file.blobs import FileBlobs
from store.drivers.file.kv import FileKv
from store.drivers.file.lease import FileLease
from store.drivers.file.log import FileLog
from store.drivers.file.peers import FilePeers
from store.drivers.file.read_only import ReadOnlyBlobs, ReadOnlyKv, ReadOnlyLease
from store.drivers.file.stable import Pace
from store.drivers.file.text import LOG_NAME
from store.drivers.file.watch import FILE, NAMES, Watches
from store.drivers.keys import check_space, space_in, spaces_directory
from store.drivers.reports import Reports
from store.drivers.signal import Signal
from store.errors import FormatError, ReadOnly, SpaceNotFound, StoreNotFound
from store.model import SpaceId
from store.peers import Peers

THREADS: Final = 8
_REPORT_SECONDS: Final = 0.1
_DELETED: Final = ".deleted-"
"""How a space's directory is called while it is being deleted."""


class FileDriver:
    """See `store.driver.Driver`."""

    def __init__(self, root: Path, url: str, clock: Clock, *, read_only: bool = False, made: bool = False) -> None:
        self.url = url
        self.made = made
        self.root = root
        self.clock = clock
        self.read_only = read_only
        self.limiter = trio.CapacityLimiter(THREADS)
        self.pace = Pace()
        self._watches = Watches()
        self._reports = Reports()
        self.kv: JsonKv = (ReadOnlyKv if read_only else FileKv)(root, self._watches, self.limiter)
        self._blobs = (ReadOnlyBlobs if read_only else FileBlobs)(root, self._watches, self.limiter)
        self.blobs: BlobStore = self._blobs
        self._peers = FilePeers(root, read_only=read_only)
        self.peers: Peers = self._peers
        self.leases: Lease = (ReadOnlyLease if read_only else FileLease)(
            self._own_dir, clock, self.limiter, self.peers.is_dead
        )

    async def open_log(self, space: SpaceId, *, create: bool = False) -> FileLog:
        """See Driver."""
        directory = self.local_dir(space)
        self._refuse_links(space)
        if create and not (directory / LOG_NAME).exists():
            self._check_writable(f"making {space}")
            with durability.failing(f"making {space}"):
                await trio.to_thread.run_sync(self._make_space, directory, limiter=self.limiter)
        log = FileLog(self, space)
        try:
            await log.open()
        except BaseException:
            await log.aclose()
            raise
        return log

    def _own_dir(self, space: SpaceId) -> Path:
        """Where a space is. Raises FormatError where a link would lead elsewhere."""
        self._refuse_links(space)
        return self.local_dir(space)

    def _refuse_links(self, space: SpaceId) -> None:
        """A link in the place of a directory would lead out of the store."""
        path = str(self.root)
        for part in space.split("/"):
            path = f"{path}/{part}"
            if os.path.islink(path):
                raise FormatError(
                    f"{path} is a symbolic link, which isn't followed: put the store's own directory there"
                )

    async def spaces(self, under: str = "workspace") -> list[SpaceId]:
        """See Driver."""
        directory = spaces_directory(under)
        await trio.lowlevel.checkpoint()
        with durability.failing(f"listing {under}"):
            try:
                names = sorted(
                    entry.name for entry in os.scandir(self.root / directory) if entry.is_dir(follow_symlinks=False)
                )
            except FileNotFoundError:
                return []
        return [space for space in (space_in(directory, name) for name in names) if space is not None]

    async def delete_space(self, space: SpaceId) -> None:
        """See Driver."""
        directory = self.local_dir(space)
        self._check_writable(f"deleting {space}")
        with durability.failing(f"deleting {space}"):
            try:
                async with takeover.maintenance(directory, space):
                    await trio.to_thread.run_sync(self._delete_space, directory, limiter=self.limiter)
            except FileNotFoundError as error:
                raise SpaceNotFound(f"there is no {space}") from error

    def local_dir(self, space: SpaceId) -> Path:
        """See Driver."""
        check_space(space)
        return self.root / space

    def watch(self, space: SpaceId) -> None:
        """See Driver."""
        path = self.local_dir(space) / LOG_NAME
        remove = self._watches.add(path, FILE, lambda _mask, _name: self._reports.report(space))
        self._reports.watched(space, remove)

    def unwatch(self, space: SpaceId) -> None:
        """See Driver."""
        self._reports.unwatch(space)

    def watch_spaces(self, under: str = "workspace") -> None:
        """See Driver."""
        directory = self.root / spaces_directory(under)
        with durability.failing(f"watching {under}"), contextlib.suppress(FileNotFoundError, PermissionError):
            # Where it can't be made, its parent is missing or can't be written: the watch begins when it appears.
            if directory.parent.is_dir() and not directory.is_dir() and not self.read_only:
                durability.make_dirs("space.make", directory, self.root)
        self._reports.watch_names(under, lambda told: self._watches.add(directory, NAMES, told))

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """See Driver."""
        return self._reports.changes()

    def usage(self) -> tuple[int, int, int, int]:
        """See Driver."""
        with durability.failing("asking for free space"):
            found = os.statvfs(self.root)
        return found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail

    async def sync(self) -> None:
        """See Driver."""
        with durability.failing("syncing the store"):
            await trio.to_thread.run_sync(self._blobs.sync_all, limiter=self.limiter)

    async def aclose(self) -> None:
        """See Driver. Logs and stagings are their holders' to close."""
        self._reports.close()
        await self._watches.aclose()
        self._blobs.close()
        self._peers.close()

    # ---- for the logs

    def signal(self, space: SpaceId) -> Signal:
        """One per space: every instance in this process wakes the others."""
        return self._reports.signal(space)

    def follow(self, space: SpaceId) -> Callable[[], None]:
        """See `log.Surroundings`."""
        signal = self.signal(space)
        return self._watches.add(self.local_dir(space) / LOG_NAME, FILE, lambda _mask, _name: signal.notify())

    # ---- inside

    def _check_writable(self, what: str) -> None:
        if self.read_only:
            raise ReadOnly(f"{what}: the store was opened read-only")

    def _make_space(self, directory: Path) -> None:
        """A space's directory appears under its name with the log in it, unless the directory was there before."""
        durability.make_dirs("space.make", directory.parent, self.root)
        fresh = directory.parent / f".new-{secrets.token_hex(8)}"
        durability.system.mkdir("space.make", fresh)
        try:
            durability.write_new("space.make", fresh / LOG_NAME, b"", durable=False)
            try:
                durability.system.rename("space.make", fresh, directory)
            except OSError:
                if not directory.is_dir():
                    raise
                with contextlib.suppress(FileExistsError):
                    durability.write_new("space.make", directory / LOG_NAME, b"", durable=False)
        finally:
            with contextlib.suppress(OSError):
                durability.remove_tree("space.make", fresh)

    def _delete_space(self, directory: Path) -> None:
        gone = self.root / f"{_DELETED}{secrets.token_hex(8)}"
        durability.system.rename("space.delete", directory, gone)
        durability.fsync_dir("space.delete", directory.parent)
        durability.fsync_dir("space.delete", self.root)
        durability.remove_tree("space.delete", gone)


async def open_file(path: Path, url: str, *, clock: Clock, access: Access, progress: Progress | None) -> FileDriver:
    """Open the store at `path`, see `Access`. Raises FormatError, StoreNotFound, ReadOnly, BackendError."""
    read_only, made = await trio.to_thread.run_sync(_open_root, path, access, _Reports(progress))
    return FileDriver(path, url, clock, read_only=read_only, made=made)


class _Reports:
    """Takes what a thread reports to the trio loop, now and then; raises Cancelled where its caller was cancelled."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        trio.from_thread.check_cancelled()
        now = time.monotonic()
        if self._progress is not None and (now >= self._next or done == total > 0):
            self._next = now + _REPORT_SECONDS
            trio.from_thread.run_sync(self._progress, done, total)


def _open_root(path: Path, access: Access, report: migration.Report) -> tuple[bool, bool]:
    """Whether it is opened read-only, and whether it was made."""
    found = store_format.read(path)
    made = False
    if found is None:
        if access in {Access.MAKE, Access.MAKE_INSIDE}:
            if access is Access.MAKE_INSIDE and not path.parent.is_dir():
                raise StoreNotFound(
                    f"there is no store at {path}, nor a directory {path.parent} to make one in: name another, or "
                    "make that directory"
                )
            with durability.failing(f"making a store at {path}"):
                made = store_format.make(path)
        found = store_format.require(path)
    store_format.refuse_links(path)
    if access is Access.READ:
        return True, False
    why = store_format.why_read_only(path)
    if why and access is not Access.LOOK:
        raise ReadOnly(f"the store at {path} can't be written ({why}): it can only be read")
    if why or (found.format < store_format.FORMAT and access is Access.LOOK):
        return True, False
    if found.format < store_format.FORMAT:
        with durability.failing(f"migrating the store at {path} to format {store_format.FORMAT}"):
            migration.migrate(path, report)
    with contextlib.suppress(OSError):
        _finish(path)
    return False, made


def _finish(path: Path) -> None:
    """What a crash interrupted: what is deleted stays deleted."""
    migration.finish(path, store_format.FORMAT)
    for name in os.listdir(path):
        if name.startswith(_DELETED):
            durability.remove_tree("space.delete", path / name)
