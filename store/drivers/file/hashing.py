"""SHA-256 of a draft's chunks, made beside the writing of what comes after them.

Only what is written from its beginning to its end, as copying does: a small file is hashed as its bytes come, a chunk
that is full in a thread. Whatever else is in a draft the commit hashes.

Concurrency: told on the loop; one thread at a time hashes, and takes back what was written again meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from store.driver import CHUNK
from store.drivers.chunks import sha256

if TYPE_CHECKING:
    from outcome import Outcome

INLINE: Final = 64 * 1024
"""So many bytes are hashed at once: a thread would take longer."""


class Digests:
    """Of the chunks of one draft, as long as no commit has begun."""

    __slots__ = ("_at", "_full", "_going", "_hash", "_index", "_ours", "_queue", "_versions")

    def __init__(self) -> None:
        self._index = -1
        """The chunk that is being written in order, as far as `_at`; `_hash` is of that, unless it is too long."""
        self._at = 0
        self._hash = hashlib.sha256()
        self._versions: dict[int, int] = {}
        """How often each chunk was full or has been changed since."""
        self._full: dict[int, tuple[int, str]] = {}
        """Version and digest of full chunks."""
        self._queue: deque[tuple[int, int, str]] = deque()
        self._going = False

    def of(self, index: int, length: int) -> str:
        """The digest of a chunk that has `length` bytes, "" where it isn't known. For any thread."""
        if length == CHUNK:
            version, found = self._full.get(index, (0, ""))
            return found if version == self._versions.get(index) else ""
        if index == self._index and length == self._at <= INLINE:
            return self._hash.hexdigest()
        return ""

    def changes(self, index: int) -> None:
        """A chunk is about to be written to: said before it is."""
        if index in self._versions:
            self._versions[index] += 1

    def forget(self) -> None:
        """Anything may have changed."""
        self._index = -1
        for index in self._versions:
            self._versions[index] += 1

    def wrote(self, index: int, begin: int, data: bytes | memoryview, path: str) -> None:
        """`data` was written to a chunk, whose file is at `path`, at `begin`."""
        if begin == 0:
            self._index, self._at = index, 0
            self._hash = hashlib.sha256()
        elif index != self._index or begin != self._at:
            self._index = -1
            return
        self._at += len(data)
        if self._at <= INLINE:
            self._hash.update(data)
        elif self._at == CHUNK:
            self._hash_later(index, path)

    def stop(self) -> None:
        """A commit hashes what isn't hashed yet."""
        self._queue.clear()

    def _hash_later(self, index: int, path: str) -> None:
        version = self._versions[index] = self._versions.get(index, 0) + 1
        self._queue.append((index, version, path))
        if not self._going:
            self._going = True
            trio.lowlevel.start_thread_soon(self._work, _raise, name="chatfs hashing")

    def _work(self) -> None:
        try:
            while True:
                try:
                    index, version, path = self._queue.popleft()
                except IndexError:
                    return
                if self._versions[index] == version:
                    # The draft may have been dropped; what can't be read, the commit meets.
                    with contextlib.suppress(OSError):
                        self._full[index] = (version, _digest(path))
        finally:
            self._going = False


def _digest(path: str) -> str:
    """Of a full chunk's file; "" where it isn't full."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        data = os.pread(fd, CHUNK + 1, 0)
    finally:
        os.close(fd)
    return sha256(data) if len(data) == CHUNK else ""


def _raise(done: Outcome[None]) -> None:
    done.unwrap()
