"""Blobs as files under `objects/ab/`: `<hex>` a small blob, `<hex>.chunk` a chunk, `<hex>.chunks` a manifest.

A small blob and an equal chunk are two links to be listed and deleted apart. Files are never changed once they are
there; one whose bytes are not what its name says (a power cut before they were synced), or that somebody else put there
and may not have synced, is replaced by one that is synced, where that is asked for.

What was added without that is `pending` until syncfs(2) has succeeded. Where it fails, those files are written again:
another syncfs would prove nothing (`store.durability`).

Adding a blob, also one that is there, makes its mtime the present: what was added lately is never swept, since the
event that will name it may not be in a log yet.

Concurrency: for any thread. Who adds holds `objects/.lock` shared, who deletes holds it alone, so that nobody relies on
a chunk that is being deleted. Reading takes no lock.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from store import durability, regular
from store.driver import CHUNK
from store.drivers.chunks import Manifest, decode_manifest, sha256, split_digest
from store.drivers.file.held import Held
from store.errors import BlobNotFound, CorruptBlob
from store.model import Digest

SMALL_SUFFIX: Final = ""
CHUNK_SUFFIX: Final = ".chunk"
MANIFEST_SUFFIX: Final = ".chunks"

_CHECKED: Final = 65536
"""How many files are remembered as checked."""
_MANIFESTS: Final = 64
_ANNOUNCED: Final = 1024 * 1024
"""Bytes of `objects/announced` after which it begins anew."""

Keep: TypeAlias = Callable[[str, tuple[int, int, int], bytes], None]


def suffix_of(manifest: Manifest) -> str:
    """How the files of a blob's chunks end."""
    return CHUNK_SUFFIX if manifest.size > CHUNK else SMALL_SUFFIX


class Objects:
    """The files; digests and staging are built on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "objects"
        self.drafts = root / "drafts"
        self.announced = self.directory / "announced"
        self._lock = os.fspath(self.directory / ".lock")
        self._guard = threading.Lock()
        self._checked: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        self._durable: OrderedDict[str, None] = OrderedDict()
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._announce_fd = -1
        self._syncing = threading.Lock()
        self._root_fd = -1
        self._pending: OrderedDict[str, None] = OrderedDict()
        self._lost = False
        """Whether a syncfs has failed since what is pending was added."""
        self._doubtful: set[str] = set()
        """Directories and drafts of which an fsync has failed."""

    def path(self, name: str) -> str:
        """Where the object `name` (hex and suffix) is."""
        return f"{self.directory}/{name[:2]}/{name}"

    def close(self) -> None:
        """Let go of the file of announcements."""
        with self._guard:
            for fd in (self._announce_fd, self._root_fd):
                if fd >= 0:
                    os.close(fd)
            self._announce_fd = self._root_fd = -1

    # ---- locking

    def held(self, *, alone: bool = False, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        """Hold the lock; raises BlockingIOError where it isn't free and `wait` is off."""
        return Held(self.open_lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))

    def open_lock(self) -> int:
        """A descriptor that can be locked."""
        try:
            return os.open(self._lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.make()
            return durability.system.open("blob.lock", self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)

    def make(self) -> None:
        """Make the directory where it is missing."""
        for changed in durability.make_dirs("blob.make", self.directory, self.root):
            durability.fsync_dir("blob.make", changed)

    # ---- reading

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A range of an object whose bytes have been checked. Raises BlobNotFound, CorruptBlob."""
        fd, identity = self.open(name)
        try:
            if self.is_right(self.path(name), identity):
                return os.pread(fd, size, offset)
            data = self._right(name, fd, identity)
        finally:
            os.close(fd)
        return data[offset : offset + size]

    def check(self, name: str, keep: Keep) -> None:
        """Hash an object, unless its bytes are known to be right. Raises BlobNotFound, CorruptBlob.

        `keep` gets its name, what `open` says of it and its bytes, before these are known to anybody to be right.
        """
        fd, identity = self.open(name)
        try:
            if not self.is_right(self.path(name), identity):
                self._right(name, fd, identity, keep)
        finally:
            os.close(fd)

    def open(self, name: str) -> tuple[int, tuple[int, int, int]]:
        """A descriptor, and what stays the same as long as the bytes do. Raises BlobNotFound."""
        fd = self._open(self.path(name), name)
        try:
            stat = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd, (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def is_right(self, path: str, identity: tuple[int, int, int]) -> bool:
        """Whether the bytes of the object at `path` are known to be what its name says."""
        return self._checked.get(path) == identity

    def _right(self, name: str, fd: int, identity: tuple[int, int, int], keep: Keep | None = None) -> bytes:
        data = self._whole(fd, identity[2])
        self._check(name, data)
        if keep is not None:
            keep(name, identity, data)
        self._remember(self.path(name), identity)
        return data

    def _open(self, path: str, name: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise BlobNotFound(f"no blob {name.partition('.')[0]}") from error
        except OSError as error:
            raise durability.store_error(error, f"reading {path}") from error

    def _whole(self, fd: int, size: int) -> bytes:
        parts = []
        at = 0
        while at < size and (part := os.pread(fd, size - at, at)):
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, name: str, data: bytes) -> None:
        if sha256(data) != name[:64]:
            raise CorruptBlob(f"{self.path(name)} isn't what its name says: restore it from a backup")

    def _remember(self, path: str, identity: tuple[int, int, int]) -> None:
        with self._guard:
            self._checked[path] = identity
            if len(self._checked) > _CHECKED:
                self._checked.popitem(last=False)

    def manifest(self, digest: Digest) -> Manifest:
        """A blob's manifest; for a small one it is made from its file. Raises BlobNotFound, CorruptBlob."""
        is_long, name = split_digest(digest)
        if not is_long:
            try:
                size = os.lstat(self.path(name)).st_size
            except FileNotFoundError as error:
                raise BlobNotFound(f"no blob {digest}") from error
            if size > CHUNK:
                raise CorruptBlob(f"{self.path(name)} is too long: restore it from a backup")
            return Manifest(size, (name,))
        name += MANIFEST_SUFFIX
        fd = self._open(self.path(name), name)
        try:
            found = self._manifests.get(digest)
            if found is None:
                found = decode_manifest(digest, self._whole(fd, os.fstat(fd).st_size))
                with self._guard:
                    self._manifests[digest] = found
                    if len(self._manifests) > _MANIFESTS:
                        self._manifests.popitem(last=False)
        finally:
            os.close(fd)
        return found

    def has(self, manifest: Manifest) -> bool:
        """Whether the blob is still there."""
        digest = manifest.digest
        is_long, name = split_digest(digest)
        return os.path.lexists(self.path(name + (MANIFEST_SUFFIX if is_long else SMALL_SUFFIX)))

    # ---- adding, with the lock held

    def install(self, name: str, source: str, *, durable: bool, right: bool = False, fresh: bool = False) -> bool:
        """Link `source`, a complete file (synced, if `durable`), under `name`; return whether it wasn't there.

        `right`: it is known to hold what the name says; `fresh`: it was written just now.
        """
        path = self.path(name)
        try:
            self._link(source, path)
            new = True
            # One that was there before may have been deleted by another process.
            self._not_durable(path)
        except FileExistsError:
            new = False
            if not self._is_intact(name) or (durable and path not in self._durable):
                beside = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
                durability.system.link("blob.heal", source, beside)
                durability.system.rename("blob.heal", beside, path)
                self._not_durable(path)
        if not (new and fresh):
            durability.system.utime("blob.touch", path)
        if right or not new:
            stat = os.lstat(path)
            self._remember(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
        if not durable:
            self._put_off(name, path)
        elif path not in self._durable:
            self._sync_names(path)
        return new

    def touch(self, digest: Digest) -> bool:
        """Make a blob that is there as young as one that was added; return whether it is there."""
        is_long, name = split_digest(digest)
        path = self.path(name + (MANIFEST_SUFFIX if is_long else SMALL_SUFFIX))
        try:
            before = os.lstat(path)
            durability.system.utime("blob.touch", path)
            after = os.lstat(path)
        except FileNotFoundError:
            return False
        if self._checked.get(path) == (before.st_ino, before.st_mtime_ns, before.st_size):
            self._remember(path, (after.st_ino, after.st_mtime_ns, after.st_size))
        return True

    def add(self, name: str, data: bytes, *, durable: bool) -> bool:
        """Write `data` as the object `name`; return whether it wasn't there."""
        beside = self.drafts / f".put-{os.getpid()}-{threading.get_ident()}-{name[:64]}"
        try:
            durability.write_new("blob.write", beside, data, durable=durable)
        except FileNotFoundError:
            durability.make_dirs("draft.make", self.drafts, self.root)
            durability.write_new("blob.write", beside, data, durable=durable)
        try:
            return self.install(name, str(beside), durable=durable, right=True, fresh=True)
        finally:
            durability.discard("blob.write", beside)

    def _link(self, source: str, path: str) -> None:
        try:
            durability.system.link("blob.link", source, path)
        except FileNotFoundError:
            durability.make_dirs("blob.make", Path(path).parent, self.root)
            durability.system.link("blob.link", source, path)

    def _not_durable(self, path: str) -> None:
        with self._guard:
            self._durable.pop(path, None)

    def _is_intact(self, name: str) -> bool:
        try:
            self.read(name, 0, 0)
        except (CorruptBlob, BlobNotFound):
            return False
        return True

    def _sync_names(self, path: str) -> None:
        parent = Path(path).parent
        self.sync_dir("blob.sync", parent)
        if str(parent) not in self._durable:
            # Whoever made the directories may not have synced their names: once per process.
            self.sync_dir("blob.sync", self.directory)
            self.sync_dir("blob.sync", self.root)
        with self._guard:
            self._durable[path] = self._durable[str(parent)] = None
            while len(self._durable) > _CHECKED:
                self._durable.popitem(last=False)

    def sync_dir(self, label: str, path: Path) -> None:
        """Make the names in a directory durable."""
        with self.synced(str(path)) as failed_before:
            (durability.sync_names_again if failed_before else durability.fsync_dir)(label, path)

    @contextlib.contextmanager
    def synced(self, path: str) -> Iterator[bool]:
        """An fsync of a file or directory; gives whether one has failed before."""
        try:
            yield path in self._doubtful
        except OSError:
            self._doubtful.add(path)
            raise
        self._doubtful.discard(path)

    # ---- what was added and isn't synced

    def _put_off(self, name: str, path: str) -> None:
        if path not in self._durable:
            with self._guard:
                if self._root_fd < 0:
                    # An error is told once to every open descriptor, so this one has to be open from now on.
                    self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._pending[name] = None
                if len(self._pending) > _CHECKED:
                    self._pending.popitem(last=False)

    def require(self, names: Iterable[str]) -> None:
        """Return when these objects, that were there already, survive a power cut."""
        paths = [path for path in map(self.path, names) if path not in self._durable]
        if paths:
            self.sync_all("blob.require")
            with self._guard:
                self._durable.update(dict.fromkeys(paths))

    def sync_all(self, label: str) -> None:
        """Return when everything on the file system that was written before survives a power cut. Costly."""
        with self._syncing:
            with self._guard:
                if self._root_fd < 0:
                    self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                pending = list(self._pending)
            if self._lost:
                for name in pending:
                    self._write_again(label, name)
            try:
                durability.system.syncfs(label, self._root_fd)
            except OSError:
                self._lost = True
                raise
            self._lost = False
            with self._guard:
                for name in pending:
                    self._pending.pop(name, None)

    def _write_again(self, label: str, name: str) -> None:
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        self._check(name, data)
        durability.atomic_replace(label, Path(path), data)
        self._sync_names(path)

    def announce(self, digest: Digest) -> None:
        """Tell watchers in all processes that a blob is there now."""
        with self._guard:
            if self._announce_fd < 0 or not os.fstat(self._announce_fd).st_nlink:
                if self._announce_fd >= 0:
                    os.close(self._announce_fd)
                self._announce_fd = -1
                self._announce_fd = durability.system.open(
                    "blob.announce", self.announced, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
                )
            durability.write_all("blob.announce", self._announce_fd, f"{digest}\n".encode())

    def begin_anew(self) -> None:
        """Replace a long file of announcements by an empty one, unless somebody is adding right now."""
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if os.stat(self.announced).st_size < _ANNOUNCED:
                return
            with self.held(alone=True, wait=False):
                durability.atomic_replace("blob.announce", self.announced, b"", durable=False)

    # ---- deleting, with the lock held alone

    def remove(self, digest: Digest) -> None:
        """Delete a blob, and those of its chunks that no other blob has."""
        is_long, name = split_digest(digest)
        if not is_long:
            self.drop(name)
            return
        try:
            chunks = set(self.manifest(digest).chunks)
        except BlobNotFound:
            return
        except CorruptBlob:
            chunks = set()
        self.drop(name + MANIFEST_SUFFIX)
        with self._guard:
            self._manifests.pop(digest, None)
        for other in self.names(MANIFEST_SUFFIX):
            if not chunks:
                return
            chunks.difference_update(line.decode() for line in regular.read(self.path(other)).split(b"\n")[1:])
        for chunk in chunks:
            self.drop(chunk + CHUNK_SUFFIX)

    def drop(self, name: str) -> None:
        """Delete one object."""
        path = self.path(name)
        with contextlib.suppress(FileNotFoundError):
            durability.system.unlink("blob.delete", path)
        with self._guard:
            self._checked.pop(path, None)
            self._durable.pop(path, None)

    # ---- listing

    def groups(self) -> list[str]:
        """The directories, sorted."""
        try:
            with os.scandir(self.directory) as found:
                return sorted(each.name for each in found if len(each.name) == 2 and each.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def names_in(self, group: str) -> list[str]:
        """The objects of a directory, sorted."""
        return sorted(name for name in os.listdir(self.directory / group) if not name.endswith(".tmp"))

    def names(self, suffix: str) -> Iterator[str]:
        """All objects whose name ends so."""
        for group in self.groups():
            yield from (name for name in self.names_in(group) if name.endswith(suffix))
