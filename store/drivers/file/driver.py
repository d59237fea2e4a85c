"""The `file:` driver: one directory. It hands out logs, documents, blobs and leases, and knows the layout.

Layout: `store.json`, `workspace/<id>/[chats/<id>/]history.jsonl`, `objects/`, `kv/`, `drafts/`, `quarantine/`. Whatever
begins with a dot is being made or deleted.

Concurrency: on the trio loop; files that several processes change are protected by whoever owns them here.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import uuid
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import orjson
import trio

from store import durability
from store.driver import BlobStore, Clock, JsonKv, Lease
from store.drivers.changes import Changes
from store.drivers.file.blobs import FileBlobs
from store.drivers.file.kv import FileKv
from store.drivers.file.lease import FileLease
from store.drivers.file.log import FileLog
from store.drivers.file.text import LOG_NAME
from store.drivers.file.watch import FILE, NAMES, Watches
from store.drivers.keys import check_space, space_in, spaces_directory
from store.drivers.signal import Signal
from store.errors import FormatError, SpaceNotFound
from store.model import SpaceId

FORMAT: Final = 1
THREADS: Final = 8
_OURS: Final = (".store.json.", "lost+found")
"""How names begin that may stand in a directory that becomes a store."""


class FileDriver:
    """See `store.driver.Driver`."""

    def __init__(self, root: Path, url: str, clock: Clock) -> None:
        self.url = url
        self.root = root
        self.clock = clock
        self.limiter = trio.CapacityLimiter(THREADS)
        self._watches = Watches()
        self._signals: weakref.WeakValueDictionary[SpaceId, Signal] = weakref.WeakValueDictionary()
        self._changed: set[SpaceId] = set()
        self._change = Signal()
        self._watched: dict[SpaceId, list[Callable[[], None]]] = {}
        self._listed: set[str] = set()
        self._closed = False
        self.kv: JsonKv = FileKv(root, self._watches, self.limiter)
        self._blobs = FileBlobs(root, self._watches, self.limiter)
        self.blobs: BlobStore = self._blobs
        self.leases: Lease = FileLease(self.local_dir, clock, self.limiter)

    async def open_log(self, space: SpaceId, *, create: bool = False) -> FileLog:
        """See Driver."""
        directory = self.local_dir(space)
        if create and not (directory / LOG_NAME).exists():
            with durability.failing(f"making {space}"):
                await trio.to_thread.run_sync(self._make_space, directory, limiter=self.limiter)
        log = FileLog(self, space)
        try:
            await log.open()
        except BaseException:
            await log.aclose()
            raise
        return log

    async def spaces(self, under: str = "workspace") -> list[SpaceId]:
        """See Driver."""
        directory = spaces_directory(under)
        await trio.lowlevel.checkpoint()
        with durability.failing(f"listing {under}"):
            try:
                names = sorted(entry.name for entry in os.scandir(self.root / directory) if entry.is_dir())
            except FileNotFoundError:
                return []
        return [space for space in (space_in(directory, name) for name in names) if space is not None]

    async def delete_space(self, space: SpaceId) -> None:
        """See Driver."""
        directory = self.local_dir(space)
        with durability.failing(f"deleting {space}"):
            try:
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
        remove = self._watches.add(path, FILE, lambda _mask, _name: self._report(space))
        self._watched.setdefault(space, []).append(remove)

    def unwatch(self, space: SpaceId) -> None:
        """See Driver."""
        removes = self._watched.get(space)
        if removes:
            removes.pop()()
            if not removes:
                del self._watched[space]

    def watch_spaces(self, under: str = "workspace") -> None:
        """See Driver."""
        directory = self.root / spaces_directory(under)
        with durability.failing(f"watching {under}"), contextlib.suppress(FileNotFoundError, PermissionError):
            # Where it can't be made, its parent is missing or can't be written: the watch begins when it appears.
            if directory.parent.is_dir() and not directory.is_dir():
                durability.make_dirs("space.make", directory, self.root)

        def told(_mask: int, name: str) -> None:
            if not name.startswith("."):
                self._report(SpaceId(under))

        if under not in self._listed:
            self._listed.add(under)
            self._watches.add(directory, NAMES, told)

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """See Driver."""
        return Changes(self.take_changes)

    def usage(self) -> tuple[int, int, int, int]:
        """See Driver."""
        with durability.failing("asking for free space"):
            found = os.statvfs(self.root)
        return found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail

    async def sync(self) -> None:
        """See Driver."""
        with durability.failing("syncing the store"):
            await trio.to_thread.run_sync(self._sync_all, limiter=self.limiter)

    def _sync_all(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            durability.system.syncfs("store.sync", fd)
        finally:
            os.close(fd)

    async def aclose(self) -> None:
        """See Driver. Logs and stagings are their holders' to close."""
        self._closed = True
        self._change.notify()
        self._watched.clear()
        await self._watches.aclose()
        self._blobs.close()

    # ---- for the logs

    def signal(self, space: SpaceId) -> Signal:
        """One per space: every instance in this process wakes the others."""
        found = self._signals.get(space)
        if found is None:
            found = self._signals[space] = Signal()
        return found

    def follow(self, space: SpaceId) -> Callable[[], None]:
        """See `log.Surroundings`."""
        signal = self.signal(space)
        return self._watches.add(self.local_dir(space) / LOG_NAME, FILE, lambda _mask, _name: signal.notify())

    # ---- inside

    def _report(self, space: SpaceId) -> None:
        self._changed.add(space)
        self._change.notify()

    async def take_changes(self) -> set[SpaceId] | None:
        """The spaces that changed since the last call, when there are some; None once the driver is closed."""
        await trio.lowlevel.checkpoint()
        while not self._changed:
            event = self._change.event()
            if self._closed:
                return None
            await event.wait()
        found, self._changed = self._changed, set()
        return found

    def _make_space(self, directory: Path) -> None:
        """A space's directory appears under its name with the log in it, unless the directory was there before."""
        durability.make_dirs("space.make", directory.parent, self.root)
        fresh = directory.parent / f".new-{secrets.token_hex(8)}"
        durability.system.mkdir("space.make", fresh)
        fresh.chmod(durability.DIRECTORY_MODE)
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
            shutil.rmtree(fresh, ignore_errors=True)

    def _delete_space(self, directory: Path) -> None:
        gone = self.root / f".deleted-{secrets.token_hex(8)}"
        durability.system.rename("space.delete", directory, gone)
        durability.fsync_dir("space.delete", directory.parent)
        durability.fsync_dir("space.delete", self.root)
        shutil.rmtree(gone)


async def open_file(path: Path, url: str, *, clock: Clock) -> FileDriver:
    """Open the store at `path`, or make one there if there is nothing. Raises FormatError."""
    with durability.failing(f"opening the store at {path}"):
        await trio.to_thread.run_sync(_open_root, path)
    return FileDriver(path, url, clock)


def _open_root(path: Path) -> None:
    described = path / "store.json"
    if not described.exists():
        _make_root(path, described)
    try:
        found = orjson.loads(described.read_bytes())
        version = found["format"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"{described} doesn't describe a chatfs store: restore it from a backup") from error
    if version != FORMAT:
        raise FormatError(f"the store at {path} has format {version}, this chatfs knows {FORMAT}: use a newer chatfs")
    for name in os.listdir(path):
        if name.startswith(".deleted-"):
            # A crash came between: what is deleted stays deleted.
            shutil.rmtree(path / name, ignore_errors=True)


def _make_root(path: Path, described: Path) -> None:
    missing = path
    while not missing.exists():
        missing = missing.parent
    changed = durability.make_dirs("store.make", path, missing)
    strangers = [name for name in os.listdir(path) if not name.startswith(_OURS)]
    if strangers and not described.exists():
        raise FormatError(f"{path} isn't empty and isn't a chatfs store: choose another directory")
    beside = durability.temporary(described)
    durability.write_new("store.make", beside, orjson.dumps({"format": FORMAT, "id": str(uuid.uuid4())}) + b"\n")
    try:
        # Of several processes that make the store at once, one's description stays.
        with contextlib.suppress(FileExistsError):
            durability.system.link("store.make", beside, described)
    finally:
        beside.unlink()
    for directory in {path, *changed}:
        durability.fsync_dir("store.make", directory)
