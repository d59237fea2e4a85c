"""Ranges of blobs for the loop: files stay open, and what is in the page cache is read without a thread.

A chunk is hashed before its first byte is given out, once per process as long as its file stays what it is (`Objects`
remembers). Whoever else wants it meanwhile waits for that one thread. The chunks that were hashed last stay in memory:
the kernel asks for one in pieces, and for several at once.

Concurrency: on the trio loop. Threads have descriptors of their own.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import Final, NamedTuple

import trio

from store.driver import CHUNK
from store.drivers.chunks import Manifest, split_digest
from store.drivers.file.objects import CHUNK_SUFFIX, MANIFEST_SUFFIX, SMALL_SUFFIX, Objects
from store.model import Digest

_OPEN: Final = 64
"""How many files stay open."""
_FRESH: Final = 8
"""How many long blobs' chunks stay in memory after they were hashed."""
_INLINE: Final = 64 * 1024
"""Files of at most this many bytes are hashed at once: a thread would take longer."""
_CANT_TELL: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
"""The file system, or the kernel, doesn't know RWF_NOWAIT."""


class _Opened(NamedTuple):
    fd: int
    path: str
    identity: tuple[int, int, int]
    """As `Objects.read` takes it: of these bytes it is known whether they are right."""


class _Known(NamedTuple):
    name: str
    identity: tuple[int, int, int]
    """Of the file called `name`, when the manifest was read."""
    manifest: Manifest


class Reading:
    """Ranges of the objects' files."""

    def __init__(self, objects: Objects, limiter: trio.CapacityLimiter) -> None:
        self._objects = objects
        self._limiter = limiter
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._fresh: OrderedDict[str, tuple[tuple[int, int, int], bytes]] = OrderedDict()
        self._coming: dict[str, trio.Event] = {}
        self._manifests: OrderedDict[Digest, _Known] = OrderedDict()
        self._can_tell = True
        """Whether the file system says what is in the page cache. tmpfs doesn't: there everything is in memory."""

    def close(self) -> None:
        """Let go of files and chunks."""
        while self._opened:
            os.close(self._opened.popitem()[1].fd)
        self._fresh.clear()

    def manifest(self, digest: Digest) -> Manifest:
        """As `Objects.manifest`; costs one system call where the blob was read lately."""
        known = self._manifests.get(digest)
        if known is not None and self._open(known.name).identity == known.identity:
            return known.manifest
        is_long, name = split_digest(digest)
        name += MANIFEST_SUFFIX if is_long else SMALL_SUFFIX
        identity = self._open(name).identity
        found = self._objects.manifest(digest)
        self._manifests[digest] = _Known(name, identity, found)
        if len(self._manifests) > _OPEN:
            self._manifests.popitem(last=False)
        return found

    async def part(self, manifest: Manifest, index: int, begin: int, count: int) -> bytes:
        """A range of a chunk. Raises BlobNotFound, CorruptBlob, OSError."""
        name = manifest.chunks[index] + (CHUNK_SUFFIX if manifest.size > CHUNK else SMALL_SUFFIX)
        while True:
            opened = self._open(name)
            if self._objects.is_right(opened.path, opened.identity):
                fresh = self._fresh.get(name)
                if fresh is not None and fresh[0] == opened.identity:
                    data = fresh[1]
                    return data if count == len(data) else data[begin : begin + count]
                return self._read_at_once(opened.fd, begin, count) or await self._read_in_thread(name, begin, count)
            if opened.identity[2] <= _INLINE:
                return self._objects.read(name, begin, count)
            coming = self._coming.get(name)
            if coming is None:
                data = await self._hash(name)
                return data if count == len(data) else data[begin : begin + count]
            # Where that one fails, the next takes its turn, and learns for itself what is wrong.
            await coming.wait()

    def _open(self, name: str) -> _Opened:
        opened = self._opened.get(name)
        if opened is not None:
            stat = os.fstat(opened.fd)
            if stat.st_nlink and (stat.st_ino, stat.st_mtime_ns, stat.st_size) == opened.identity:
                self._opened.move_to_end(name)
                return opened
            # Deleted, replaced or touched.
            os.close(self._opened.pop(name).fd)
        fd, identity = self._objects.open(name)
        opened = self._opened[name] = _Opened(fd, self._objects.path(name), identity)
        if len(self._opened) > _OPEN:
            os.close(self._opened.popitem(last=False)[1].fd)
        return opened

    async def _hash(self, name: str) -> bytes:
        done = self._coming[name] = trio.Event()
        try:
            identity, data = await trio.to_thread.run_sync(self._objects.read_whole, name, limiter=self._limiter)
            self._fresh[name] = (identity, data)
            if len(self._fresh) > _FRESH:
                self._fresh.popitem(last=False)
        finally:
            del self._coming[name]
            done.set()
        return data

    async def _read_in_thread(self, name: str, begin: int, count: int) -> bytes:
        return await trio.to_thread.run_sync(self._objects.read, name, begin, count, limiter=self._limiter)

    def _read_at_once(self, fd: int, offset: int, size: int) -> bytes:
        """All of the range from the page cache; b"" where it would have to be waited for."""
        if self._can_tell:
            buffer = bytearray(size)
            try:
                count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                return b""
            except OSError as error:
                if error.errno not in _CANT_TELL:
                    raise
                self._can_tell = False
            else:
                return bytes(buffer) if count == size else b""
        return os.pread(fd, size, offset)
