"""Ranges of blobs for the loop: files stay open, and what is in the page cache is read without a thread.

A chunk is hashed before its first byte is given out, once per process as long as its file stays what it is (`Objects`
remembers). Whoever else wants it meanwhile waits for that one thread. The chunks that were hashed last stay in memory:
the kernel asks for one in pieces, and for several at once.

Who reads a long blob in order has its next chunks hashed by another thread meanwhile. What fails there is forgotten:
whoever wants the chunk meets it again.

Concurrency: on the trio loop. Threads have descriptors of their own.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from store.driver import CHUNK
from store.drivers.chunks import Manifest, split_digest
from store.drivers.file.objects import CHUNK_SUFFIX, MANIFEST_SUFFIX, SMALL_SUFFIX, Objects
from store.errors import StoreError
from store.model import Digest

if TYPE_CHECKING:
    from outcome import Outcome

_OPEN: Final = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
"""How many files stay open: a large attachment is one for each MiB."""
_MANIFESTS: Final = 64
"""Of how many blobs it is remembered what they consist of."""
_FRESH: Final = 8
"""How many long blobs' chunks stay in memory after they were hashed."""
_AHEAD: Final = 4
"""At most how many chunks are hashed ahead of a reader; fewer at first."""
_STREAMS: Final = 16
"""Of how many long blobs it is remembered where they were read last."""
_INLINE: Final = 64 * 1024
"""Files of at most this many bytes are hashed at once: a thread would take longer."""
_CANT_TELL: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
"""The file system, or the kernel, doesn't know RWF_NOWAIT."""


class _Opened(NamedTuple):
    fd: int
    path: str
    identity: tuple[int, int, int]
    """As `Objects.read` takes it: of these bytes it is known whether they are right."""


class Reading:
    """Ranges of the objects' files."""

    def __init__(self, objects: Objects, limiter: trio.CapacityLimiter) -> None:
        self._objects = objects
        self._limiter = limiter
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._fresh: OrderedDict[str, tuple[tuple[int, int, int], bytes]] = OrderedDict()
        self._coming: dict[str, trio.Event] = {}
        """Chunks that are being hashed, or are in `_queue` to be."""
        self._queue: deque[str] = deque()
        """What is to be hashed ahead. The thread takes from its left; who waits for one takes it out."""
        self._awaited: set[str] = set()
        """Chunks that somebody waits for, or is about to: the thread wakes up nobody else."""
        self._hashes_ahead = False
        self._streams: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """By a long blob's first chunk: which chunk comes next, and how many are hashed ahead of it."""
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._can_tell = True
        """Whether the file system says what is in the page cache. tmpfs doesn't: there everything is in memory."""

    def close(self) -> None:
        """Let go of files and chunks."""
        while self._opened:
            os.close(self._opened.popitem()[1].fd)
        while self._queue:
            self._coming.pop(self._queue.pop()).set()
        self._fresh.clear()

    def manifest(self, digest: Digest) -> Manifest:
        """As `Objects.manifest`; costs one system call where the blob was read lately."""
        is_long, name = split_digest(digest)
        self._open(name + (MANIFEST_SUFFIX if is_long else SMALL_SUFFIX))
        return self.known(digest)

    def known(self, digest: Digest) -> Manifest:
        """The same, perhaps of a blob that was deleted meanwhile: a digest never means anything else."""
        found = self._manifests.get(digest)
        if found is None:
            found = self._manifests[digest] = self._objects.manifest(digest)
            if len(self._manifests) > _MANIFESTS:
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
                    self._look_ahead(manifest, index)
                    data = fresh[1]
                    if count == len(data):
                        # The kernel has it now.
                        self._fresh.pop(name, None)
                    return data if count == len(data) else data[begin : begin + count]
                return self._read_at_once(opened.fd, begin, count) or await self._read_in_thread(name, begin, count)
            if opened.identity[2] <= _INLINE:
                return self._objects.read(name, begin, count)
            self._look_ahead(manifest, index)
            # First: the thread looks the other way round.
            self._awaited.add(name)
            coming = self._coming.get(name)
            if coming is None or self._withdrawn(name):
                await self._hash(name)
            else:
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

    async def _hash(self, name: str) -> None:
        done = self._coming.setdefault(name, trio.Event())
        try:
            await trio.to_thread.run_sync(self._objects.check, name, self._keep, limiter=self._limiter)
        finally:
            del self._coming[name]
            self._awaited.discard(name)
            done.set()

    def _keep(self, name: str, identity: tuple[int, int, int], data: bytes) -> None:
        """For any thread."""
        self._fresh[name] = (identity, data)
        if len(self._fresh) > _FRESH:
            self._fresh.popitem(last=False)

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

    # ---- ahead

    def _look_ahead(self, manifest: Manifest, index: int) -> None:
        """Chunk `index` is being read: have those behind it hashed, if its reader seems to go on."""
        first = manifest.chunks[0]
        expected, window = self._streams.get(first, (0, 0))
        if index == expected - 1:
            return
        window = min(max(1, 2 * window), _AHEAD) if index == expected else 0
        self._streams[first] = (index + 1, window)
        self._streams.move_to_end(first)
        if len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)
        for chunk in manifest.chunks[index + 1 : index + 1 + window]:
            name = chunk + CHUNK_SUFFIX
            if name not in self._coming and name not in self._fresh:
                self._coming[name] = trio.Event()
                self._queue.append(name)
        if self._queue and not self._hashes_ahead:
            self._hashes_ahead = True
            token = trio.lowlevel.current_trio_token()
            trio.lowlevel.start_thread_soon(lambda: self._hash_ahead(token), _raise, name="chatfs hashing ahead")

    def _withdrawn(self, name: str) -> bool:
        """Take a chunk that isn't begun out of the queue; whether it was there."""
        try:
            self._queue.remove(name)
        except ValueError:
            return False
        return True

    def _hash_ahead(self, token: trio.lowlevel.TrioToken) -> None:
        """In a thread, until nothing is left. What is queued just when it ends waits for the next one."""
        try:
            while True:
                try:
                    name = self._queue.popleft()
                except IndexError:
                    return
                self._hash_one_ahead(name, token)
        finally:
            self._hashes_ahead = False

    def _hash_one_ahead(self, name: str, token: trio.lowlevel.TrioToken) -> None:
        try:
            with contextlib.suppress(StoreError, OSError):
                self._objects.check(name, self._keep)
        finally:
            done = self._coming.pop(name)
            if name in self._awaited:
                self._awaited.discard(name)
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(done.set)


def _raise(done: Outcome[None]) -> None:
    done.unwrap()
