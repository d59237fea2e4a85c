"""The blob store: streams in and out, listing, watching. The files are `objects`', drafts are `staging`'s.

Concurrency: on the trio loop; hashing and whatever waits for the disk runs in threads.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from store import durability
from store.driver import CHUNK
from store.drivers.chunks import LONG, SMALL, Manifest, parts, sha256
from store.drivers.file.labels import SUFFIX as LABEL
from store.drivers.file.labels import Labels, draft_of, is_alone
from store.drivers.file.objects import MANIFEST_SUFFIX, SMALL_SUFFIX, Objects
from store.drivers.file.reading import Reading
from store.drivers.file.staging import FileStaging
from store.drivers.file.watch import FILE, Watches
from store.drivers.signal import Signal
from store.errors import StoreError
from store.model import BlobRef, Digest

T = TypeVar("T")

_CHUNK_NAME: Final = re.compile(r"[0-9a-f-]+\.[0-9]+\.[0-9]+")
_HELD: Final = 64
"""How many labels are held at once, until it is known which of them have drafts."""
_SWEEP_SECONDS: Final = 3600
"""Temporary files and drafts without a label that are older were left by a crash."""


class FileBlobs:
    """See `store.driver.BlobStore`."""

    def __init__(self, root: Path, watches: Watches, limiter: trio.CapacityLimiter) -> None:
        self._objects = Objects(root)
        self._watches = watches
        self._limiter = limiter
        self._labels = Labels(self._objects)
        self._reading = Reading(self._objects, limiter)

    def close(self) -> None:
        """Let go of files."""
        self._labels.close()
        self._reading.close()
        self._objects.close()

    def sync_all(self) -> None:
        """See `Objects.sync_all`."""
        self._objects.sync_all("store.sync")

    # ---- adding

    async def put(self, source: AsyncIterator[bytes] | bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        if isinstance(source, bytes):
            if len(source) <= CHUNK:
                return await self._put_small(source, durable=durable)
            source = _Pieces(source)
        held = bytearray()
        staging: FileStaging | None = None
        at = 0
        try:
            async for piece in source:
                held += piece
                while len(held) > CHUNK:
                    staging = staging or self._staging(None, None)
                    at += await self._in_thread(staging.write, at, bytes(held[:CHUNK]))
                    del held[:CHUNK]
            if staging is None:
                return await self._put_small(bytes(held), durable=durable)
            await self._in_thread(staging.write, at, bytes(held))
            return await staging.commit(durable=durable)
        finally:
            if staging is not None:
                await _drop(staging)

    async def _put_small(self, data: bytes, *, durable: bool) -> BlobRef:
        manifest = Manifest(len(data), (sha256(data) if len(data) < 65536 else await self._in_thread(sha256, data),))

        def add() -> None:
            with self._objects.held():
                if self._objects.add(manifest.chunks[0] + SMALL_SUFFIX, data, durable=durable):
                    self._objects.announce(manifest.digest)

        with durability.failing("storing a blob"):
            await self._in_thread(add)
        return manifest.ref

    async def append(self, digest: Digest, data: bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        return await self._changed(digest, None, data, durable=durable)

    async def patch(self, digest: Digest, offset: int, data: bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        return await self._changed(digest, offset, data, durable=durable)

    async def _changed(self, digest: Digest, offset: int | None, data: bytes, *, durable: bool) -> BlobRef:
        staging = self._staging(self._objects.manifest(digest), None)
        try:
            await self._in_thread(staging.write, staging.size if offset is None else offset, data)
            return await staging.commit(durable=durable)
        finally:
            await _drop(staging)

    # ---- reading

    def get(self, digest: Digest, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """See BlobStore."""
        return _Range(self, digest, offset, size)

    async def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """See BlobStore."""
        reading = self._reading
        try:
            manifest = reading.known(digest)
            size = min(size, manifest.size - offset)
            if size <= 0:
                return b""
            index, begin = divmod(offset, CHUNK)
            if begin + size <= CHUNK:
                return await reading.part(manifest, index, begin, size)
            return b"".join([await reading.part(manifest, *part) for part in parts(offset, size)])
        except OSError as error:
            raise durability.store_error(error, f"reading {digest}") from error

    async def stat(self, digest: Digest) -> BlobRef:
        """See BlobStore."""
        return self.manifest(digest).ref

    def manifest(self, digest: Digest) -> Manifest:
        """See `Objects.manifest`."""
        with durability.failing(f"reading {digest}"):
            return self._reading.manifest(digest)

    async def chunk(self, manifest: Manifest, index: int, begin: int, count: int) -> bytes:
        """A range of one chunk."""
        with durability.failing("reading a blob"):
            return await self._reading.part(manifest, index, begin, count)

    # ---- listing, deleting, watching

    def list(self, prefix: str = "") -> AsyncIterator[BlobRef]:
        """See BlobStore."""
        return _Listing(self._objects, self._limiter, prefix)

    async def delete(self, digest: Digest) -> None:
        """See BlobStore."""

        def remove() -> None:
            with self._objects.held(alone=True):
                self._objects.remove(digest)

        with durability.failing(f"deleting {digest}"):
            await self._in_thread(remove)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Digest]]:
        """See BlobStore."""
        with durability.failing("watching blobs"):
            await self._in_thread(self._make_announced)
            self._objects.begin_anew()
            arrivals = _Arrivals(self._objects.announced)
        remove = self._watches.add(self._objects.announced, FILE, lambda _mask, _name: arrivals.signal.notify())
        try:
            yield arrivals
        finally:
            remove()
            arrivals.close()

    def _make_announced(self) -> None:
        self._objects.make()
        with contextlib.suppress(FileExistsError):
            durability.write_new("blob.announce", self._objects.announced, b"", durable=False)

    # ---- staging

    def stage(self, base: Digest | None = None, *, label: dict[str, Any]) -> FileStaging:
        """See BlobStore."""
        return self._staging(None if base is None else self.manifest(base), label)

    def _staging(self, base: Manifest | None, label: dict[str, Any] | None) -> FileStaging:
        return FileStaging(self._objects, self._labels, self._limiter, base, label)

    def drafts(self) -> Sequence[tuple[dict[str, Any], int]]:
        """See BlobStore."""
        names = self._names_of_drafts()
        chunks: dict[str, list[str]] = {}
        for name in names:
            if _CHUNK_NAME.fullmatch(name):
                stem, _, rest = name.partition(".")
                chunks.setdefault(stem, []).append(rest)
        stems = [name.removesuffix(LABEL) for name in names if name.endswith(LABEL)]
        with durability.failing("looking at drafts"):
            found = [draft_of(f"{self._objects.drafts}/{stem}", chunks.get(stem, [])) for stem in stems]
        return [draft for draft in found if draft is not None]

    async def abandoned(self) -> Sequence[FileStaging]:
        """See BlobStore."""
        with durability.failing("looking for abandoned drafts"):
            return await self._in_thread(self._take_over)

    def _take_over(self) -> Sequence[FileStaging]:
        labels = [name for name in self._names_of_drafts() if name.endswith(LABEL)]
        found: list[FileStaging] = []
        for begin in range(0, max(1, len(labels)), _HELD):
            found += self._take_over_some(labels[begin : begin + _HELD])
        return found

    def _take_over_some(self, labels: Sequence[str]) -> Sequence[FileStaging]:
        held: dict[str, int] = {}
        found: list[FileStaging] = []
        try:
            for label in labels:
                if (fd := self._hold(label)) is not None:
                    held[label.removesuffix(LABEL)] = fd
            # Only now: until its label was held, somebody may have worked on a draft.
            chunks = self._chunks_of_drafts()
            for stem in [*held]:
                staging = self._take_over_one(stem, held[stem], chunks.get(stem, []))
                if staging is not None:
                    del held[stem]
                    found.append(staging)
        finally:
            for fd in held.values():
                os.close(fd)
        return found

    def _names_of_drafts(self) -> Sequence[str]:
        try:
            return sorted(os.listdir(self._objects.drafts))
        except FileNotFoundError:
            return []

    def _hold(self, label: str) -> int | None:
        """A descriptor with a label's lock; None where its process lives, or has just ended the draft."""
        try:
            fd = os.open(self._objects.drafts / label, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            # Nobody links a label anew: without links it was committed or discarded just now.
            if is_alone(fd) and os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _chunks_of_drafts(self) -> Mapping[str, Sequence[str]]:
        """The chunk files' names without their stems, by stem. Sweeps what belongs to no draft."""
        chunks: dict[str, list[str]] = {}
        stems: set[str] = set()
        for name in self._names_of_drafts():
            stem, _, rest = name.partition(".")
            if _CHUNK_NAME.fullmatch(name):
                chunks.setdefault(stem, []).append(rest)
            elif rest == "json":
                stems.add(stem)
            else:
                self._sweep(self._objects.drafts / name)
        for stem in chunks.keys() - stems:
            for rest in chunks[stem]:
                self._sweep(self._objects.drafts / f"{stem}.{rest}")
        return chunks

    def _take_over_one(self, name: str, fd: int, chunks: Sequence[str]) -> FileStaging | None:
        stem = f"{self._objects.drafts}/{name}"
        staging = FileStaging.take_over(self._objects, self._labels, self._limiter, stem, fd, chunks)
        if staging is None and self._sweep(Path(stem + LABEL)):
            for chunk in chunks:
                durability.system.unlink("draft.drop", f"{stem}.{chunk}")
        return staging

    def _sweep(self, path: Path) -> bool:
        """Remove what is old enough not to be in the making."""
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _SWEEP_SECONDS:
                durability.system.unlink("draft.sweep", path)
                return True
        return False

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)


async def _drop(staging: FileStaging) -> None:
    """Discard a draft without a label; what can't be removed is swept one day."""
    with trio.CancelScope(shield=True), contextlib.suppress(StoreError):
        await staging.discard()


class _Pieces:
    """Bytes as a stream; unlike a generator it needs no closing where storing them fails."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = self._data[self._at : self._at + CHUNK]
        if not piece:
            raise StopAsyncIteration
        self._at += len(piece)
        return piece


class _Range:
    """`BlobStore.get`."""

    def __init__(self, blobs: FileBlobs, digest: Digest, offset: int, size: int | None) -> None:
        self._blobs = blobs
        self._digest = digest
        self._offset = offset
        self._left = size
        self._manifest: Manifest | None = None

    def __aiter__(self) -> _Range:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._manifest is None:
            self._manifest = self._blobs.manifest(self._digest)
        left = self._manifest.size - self._offset
        if self._left is not None:
            left = min(left, self._left)
        if left <= 0:
            raise StopAsyncIteration
        index, begin, count = next(parts(self._offset, left))
        data = await self._blobs.chunk(self._manifest, index, begin, count)
        self._offset += count
        if self._left is not None:
            self._left -= count
        return data


class _Listing:
    """`BlobStore.list`: one directory at a time."""

    def __init__(self, objects: Objects, limiter: trio.CapacityLimiter, prefix: str) -> None:
        self._objects = objects
        self._limiter = limiter
        self._prefix = prefix
        self._groups: list[str] | None = None
        self._found: list[BlobRef] = []

    def __aiter__(self) -> _Listing:
        return self

    async def __anext__(self) -> BlobRef:
        while not self._found:
            with durability.failing("listing blobs"):
                if self._groups is None:
                    self._groups = self._objects.groups()[::-1]
                if not self._groups:
                    raise StopAsyncIteration
                self._found = await trio.to_thread.run_sync(self._load, self._groups.pop(), limiter=self._limiter)
        return self._found.pop()

    def _load(self, group: str) -> list[BlobRef]:
        found = []
        for name in self._objects.names_in(group):
            hexed, dot, suffix = name.partition(".")
            if dot + suffix not in {SMALL_SUFFIX, MANIFEST_SUFFIX}:
                continue
            digest = Digest((LONG if suffix else SMALL) + hexed)
            if not digest.startswith(self._prefix):
                continue
            with contextlib.suppress(FileNotFoundError):
                path = self._objects.path(name)
                if suffix:
                    with open(path, "rb") as file:
                        found.append(BlobRef(digest, int(file.readline())))
                else:
                    found.append(BlobRef(digest, os.lstat(path).st_size))
        return found[::-1]


class _Arrivals:
    """`BlobStore.watch`: follows the file of announcements, also when it begins anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._at = os.fstat(self._fd).st_size
        self._text = b""
        self.signal = Signal()

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def __aiter__(self) -> _Arrivals:
        return self

    async def __anext__(self) -> Digest:
        while True:
            await trio.lowlevel.checkpoint()
            line, newline, rest = self._text.partition(b"\n")
            if newline:
                self._text = rest
                return Digest(line.decode())
            event = self.signal.event()
            replaced = not os.fstat(self._fd).st_nlink
            data = os.pread(self._fd, 65536, self._at)
            self._at += len(data)
            self._text += data
            if not data:
                if replaced:
                    self._reopen()
                else:
                    await event.wait()

    def _reopen(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        os.close(self._fd)
        self._fd, self._at = fd, 0
