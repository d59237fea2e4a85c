"""Blobs of the `memory:` driver: chunks and manifests in dicts.

Concurrency: on the trio loop; every change is made without an await in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from store.driver import CHUNK
from store.drivers.chunks import Manifest, chunk_count, manifest_of, parts, sha256, split_digest
from store.drivers.signal import Signal
from store.errors import BlobNotFound, CorruptBlob
from store.model import BlobRef, Digest


class Blobs:
    """What all openers share."""

    def __init__(self, change: Callable[[str], None]) -> None:
        self.change = change
        self.chunks: dict[str, bytes] = {}
        self.manifests: dict[Digest, Manifest] = {}
        self.watchers: set[_Arrivals] = set()
        self.abandoned: list[MemoryStaging] = []
        self.stagings: list[set[MemoryStaging]] = []
        """Each opener's."""

    def manifest(self, digest: Digest) -> Manifest:
        """Raises BlobNotFound."""
        split_digest(digest)
        try:
            return self.manifests[digest]
        except KeyError:
            raise BlobNotFound(f"no blob {digest}") from None

    def chunk(self, name: str) -> bytes:
        """A chunk's bytes. Raises BlobNotFound, CorruptBlob."""
        data = self.chunks.get(name)
        if data is None:
            raise BlobNotFound(f"no blob {name}")
        if sha256(data) != name:
            raise CorruptBlob(f"the bytes of {name} are damaged")
        return data

    def add_chunk(self, data: bytes) -> str:
        """Store a chunk; return its name."""
        name = sha256(data)
        self.change("blob.write")
        self.chunks.setdefault(name, data)
        return name

    def add(self, manifest: Manifest) -> BlobRef:
        """The chunks are there: now the blob is, too."""
        ref = manifest.ref
        if ref.digest not in self.manifests:
            self.change("blob.link")
            self.manifests[ref.digest] = manifest
            for watcher in self.watchers:
                watcher.told(ref.digest)
        return ref

    def remove(self, digest: Digest) -> None:
        """Delete a blob, and the chunks that no other has."""
        manifest = self.manifests.get(digest)
        if manifest is None:
            return
        self.change("blob.delete")
        del self.manifests[digest]
        chunks = set(manifest.chunks)
        for other in self.manifests.values():
            chunks.difference_update(other.chunks)
        for name in chunks:
            self.chunks.pop(name, None)


class MemoryBlobs:
    """See `store.driver.BlobStore`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._stagings: set[MemoryStaging] = set()
        blobs.stagings.append(self._stagings)

    async def put(self, source: AsyncIterator[bytes] | bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        await trio.lowlevel.checkpoint()
        held = bytearray()
        names: list[str] = []
        if isinstance(source, bytes):
            held += source
        else:
            async for piece in source:
                held += piece
                while len(held) > CHUNK:
                    names.append(self._blobs.add_chunk(bytes(held[:CHUNK])))
                    del held[:CHUNK]
        while len(held) > CHUNK:
            names.append(self._blobs.add_chunk(bytes(held[:CHUNK])))
            del held[:CHUNK]
        names.append(self._blobs.add_chunk(bytes(held)))
        return self._blobs.add(manifest_of((len(names) - 1) * CHUNK + len(held), names))

    async def append(self, digest: Digest, data: bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        return await self._changed(digest, self._blobs.manifest(digest).size, data, durable=durable)

    async def patch(self, digest: Digest, offset: int, data: bytes, *, durable: bool = True) -> BlobRef:
        """See BlobStore."""
        return await self._changed(digest, offset, data, durable=durable)

    async def _changed(self, digest: Digest, offset: int, data: bytes, *, durable: bool) -> BlobRef:
        staging = MemoryStaging(self._blobs, self._blobs.manifest(digest), {}, set())
        staging.write(offset, data)
        return await staging.commit(durable=durable)

    async def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """See BlobStore."""
        await trio.lowlevel.checkpoint()
        manifest = self._blobs.manifest(digest)
        size = max(0, min(size, manifest.size - offset))
        return b"".join(self.part(manifest, *part) for part in parts(offset, size))

    def part(self, manifest: Manifest, index: int, begin: int, count: int) -> bytes:
        """A range of one chunk."""
        return self._blobs.chunk(manifest.chunks[index])[begin : begin + count]

    async def get(self, digest: Digest, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """See BlobStore."""
        manifest = self._blobs.manifest(digest)
        left = manifest.size - offset if size is None else min(size, manifest.size - offset)
        for part in parts(offset, max(0, left)):
            await trio.lowlevel.checkpoint()
            yield self.part(manifest, *part)

    async def stat(self, digest: Digest) -> BlobRef:
        """See BlobStore."""
        await trio.lowlevel.checkpoint()
        return self._blobs.manifest(digest).ref

    async def list(self, prefix: str = "") -> AsyncIterator[BlobRef]:
        """See BlobStore."""
        for digest, manifest in sorted(self._blobs.manifests.items()):
            if digest.startswith(prefix):
                await trio.lowlevel.checkpoint()
                yield BlobRef(digest, manifest.size)

    async def delete(self, digest: Digest) -> None:
        """See BlobStore."""
        await trio.lowlevel.checkpoint()
        self._blobs.remove(digest)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Digest]]:
        """See BlobStore."""
        arrivals = _Arrivals()
        self._blobs.watchers.add(arrivals)
        try:
            yield arrivals
        finally:
            self._blobs.watchers.discard(arrivals)

    def stage(self, base: Digest | None = None, *, label: dict[str, Any]) -> MemoryStaging:
        """See BlobStore."""
        return MemoryStaging(self._blobs, None if base is None else self._blobs.manifest(base), label, self._stagings)

    def drafts(self) -> Sequence[tuple[dict[str, Any], int]]:
        """See BlobStore."""
        stagings = [*self._blobs.abandoned, *(staging for own in self._blobs.stagings for staging in own)]
        return [(staging.label, staging.size) for staging in stagings]

    async def abandoned(self) -> Sequence[MemoryStaging]:
        """See BlobStore."""
        await trio.lowlevel.checkpoint()
        found, self._blobs.abandoned = self._blobs.abandoned, []
        for staging in found:
            staging.move(self._stagings)
        return found

    def abandon(self) -> None:
        """The opener is gone: what it was making is anybody's."""
        self._blobs.abandoned.extend(self._stagings)
        self._stagings.clear()
        self._blobs.stagings = [own for own in self._blobs.stagings if own is not self._stagings]


class MemoryStaging:
    """See `store.driver.Staging`. `alive` has it while there is something that would be lost."""

    def __init__(self, blobs: Blobs, base: Manifest | None, label: dict[str, Any], alive: set[MemoryStaging]) -> None:
        self.label = label
        self._blobs = blobs
        self._base = base
        self._limit = self._size = base.size if base else 0
        self._touched: dict[int, bytearray] = {}
        self._alive = alive
        self._discarded = False

    @property
    def size(self) -> int:
        """See Staging."""
        return self._size

    def move(self, alive: set[MemoryStaging]) -> None:
        """Somebody else takes it over."""
        self._alive = alive
        alive.add(self)

    def read(self, offset: int, size: int) -> bytes:
        """See Staging."""
        size = max(0, min(size, self._size - offset))
        return b"".join(
            self._part(index, begin, count).ljust(count, b"\0") for index, begin, count in parts(offset, size)
        )

    def _part(self, index: int, begin: int, count: int) -> bytes:
        if index in self._touched:
            return bytes(self._touched[index][begin : begin + count])
        count = min(count, self._limit - index * CHUNK - begin)
        if self._base is None or count <= 0:
            return b""
        return self._blobs.chunk(self._base.chunks[index])[begin : begin + count]

    def _change(self) -> None:
        if self._discarded:
            raise trio.ClosedResourceError("the draft was discarded")
        self._blobs.change("draft.chunk")
        self._alive.add(self)

    def write(self, offset: int, data: bytes) -> int:
        """See Staging."""
        if data:
            self._change()
        at = 0
        for index, begin, count in parts(offset, len(data)):
            chunk = self._touched.get(index)
            if chunk is None:
                chunk = self._touched[index] = bytearray(self._part(index, 0, CHUNK))
            if len(chunk) < begin:
                chunk.extend(bytes(begin - len(chunk)))
            chunk[begin : begin + count] = data[at : at + count]
            at += count
        self._size = max(self._size, offset + at) if data else self._size
        return at

    def truncate(self, size: int) -> None:
        """See Staging."""
        self._change()
        if size < self._size:
            for index, chunk in list(self._touched.items()):
                del chunk[max(0, size - index * CHUNK) :]
            self._limit = min(self._limit, size)
        self._size = size

    async def sync(self) -> None:
        """See Staging."""
        await trio.lowlevel.checkpoint()

    async def commit(self, *, durable: bool = True) -> BlobRef:
        """See Staging."""
        await trio.lowlevel.checkpoint()
        if self._discarded:
            raise trio.ClosedResourceError("the draft was discarded")
        names = [self._name(index) for index in range(chunk_count(self._size))]
        manifest = manifest_of(self._size, names)
        ref = self._blobs.add(manifest)
        self._base, self._limit = manifest, manifest.size
        self._touched.clear()
        return ref

    def _name(self, index: int) -> str:
        length = min(CHUNK, self._size - index * CHUNK)
        base = self._base
        kept = base is not None and index < len(base.chunks) and base.length(index) == length
        if kept and index not in self._touched and self._limit >= index * CHUNK + length:
            assert base is not None
            self._blobs.chunk(base.chunks[index])
            return base.chunks[index]
        return self._blobs.add_chunk(self._part(index, 0, length).ljust(length, b"\0"))

    async def discard(self) -> None:
        """See Staging."""
        await trio.lowlevel.checkpoint()
        self._discarded = True
        self._alive.discard(self)
        self._touched.clear()


class _Arrivals:
    """`BlobStore.watch`. What nobody reads is bounded by how many blobs there are."""

    def __init__(self) -> None:
        self._digests: dict[Digest, None] = {}
        self._signal = Signal()

    def told(self, digest: Digest) -> None:
        self._digests[digest] = None
        self._signal.notify()

    def __aiter__(self) -> _Arrivals:
        return self

    async def __anext__(self) -> Digest:
        await trio.lowlevel.checkpoint()
        while not self._digests:
            await self._signal.event().wait()
        digest = next(iter(self._digests))
        del self._digests[digest]
        return digest
