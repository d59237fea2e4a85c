"""Hold a log's flock, also where its owner was stopped in the middle of an append and never gives it back.

Who waits for the flock for STUCK_SECONDS while the log doesn't change puts a copy in the log's place: another inode,
so another lock. The owner may go on at any moment, with the old inode, and must neither lose an entry that it
acknowledges nor acknowledge one that is lost:

1. The old inode gets a second name (TAKEN_NAME), so that a crash from here on loses nothing.
2. What it has in whole batches is copied, the copy is locked and renamed over `history.jsonl`.
3. The old inode is sealed: no longer writable by its mode. Whoever appends looks behind the write whether its inode is
   sealed or has lost its names (`text.is_left`, one fstat). If it isn't, the write came before step 4.
4. What else it has got meanwhile is appended to the copy, and its second name is removed.

An owner that finds its inode left looks for its entry in the new log: there, or never made. Who finds a takeover that a
crash interrupted finishes it before anything else is appended to the new inode.

The maintenance lock is a flock on the space's directory. Whoever replaces or rewrites the log for longer (a truncation,
a recovery, a repair, a deletion, a takeover) holds it, so that only appends are ever overtaken. Lock order: the
maintenance lock, then the log's flock; under the flock it is only tried.

Concurrency: `hold` and `maintenance` wait on the trio loop and copy in a thread; the rest never waits but for the disk.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from store import durability, locks
from store.drivers.file.tail import last_batch
from store.drivers.file.text import LOG_NAME, read_base
from store.errors import StoreFailed
from store.model import SpaceId

TAKEN_NAME: Final = "history.taken"
"""The old inode's second name, while a takeover goes on or after a crash in the middle of one."""

STUCK_SECONDS = 1.0
"""How long a lock may be held while nothing happens to the log."""
PATIENCE_SECONDS = 30.0
"""How long a lock is waited for at all."""
_QUICK_TRIES: Final = 3
"""Locks are held for microseconds: most waits end with the next turn of the loop."""
_FIRST_PAUSE: Final = 0.001
_LAST_PAUSE: Final = 0.01
TRIES_NOW = 2000
_PAUSE_NOW: Final = 0.001
_PIECE: Final = 1024 * 1024
_SETTLING: Final = 10
"""Tries to read the old inode between two changes; its owner makes at most a few when it wakes."""
_SEALED_MODE: Final = 0o400
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Overtaken(Exception):
    """The log was taken over under an append, and what was written isn't in the new one: it is to be appended anew."""


# ---- the log's flock


async def hold(
    directory: Path, space: SpaceId, limiter: trio.CapacityLimiter, *, writable: bool = True, maintained: bool = False
) -> int:
    """Hold the flock of the log that is there now; closing the descriptor that is returned gives it back.

    `maintained`: the caller has the maintenance lock. Raises OSError; StoreFailed where the lock can't be had.
    """
    path = directory / LOG_NAME
    pauses = _Pauses()
    seen: tuple[int, int, int] | None = None
    since = trio.current_time()
    while True:
        fd = _try_hold(directory, writable=writable, maintained=maintained)
        if fd >= 0:
            return fd
        found = os.lstat(path)
        now = trio.current_time()
        if seen != (seen := (found.st_ino, found.st_size, found.st_mtime_ns)):
            since = now
        if writable and now - since >= STUCK_SECONDS:
            fd = await _take_over(directory, limiter, maintained=maintained)
            if fd >= 0:
                return fd
            since = now
        if pauses.are_over:
            raise _kept(path, f"the log of {space}")
        await pauses.next()


def hold_now(directory: Path, space: SpaceId) -> int:
    """The same without giving the loop a turn, for the one who was overtaken: whoever did it is about to be done."""
    for _ in range(TRIES_NOW):
        fd = _try_hold(directory, writable=True, maintained=False)
        if fd >= 0:
            return fd
        time.sleep(_PAUSE_NOW)
    raise _kept(directory / LOG_NAME, f"the log of {space}")


def _try_hold(directory: Path, *, writable: bool, maintained: bool) -> int:
    """-1 where the lock isn't free, or can't be used yet."""
    path = directory / LOG_NAME
    fd = os.open(path, _READ)
    try:
        if locks.try_lock(fd) and locks.is_at(fd, path) and (not writable or _finish(fd, directory, maintained)):
            held, fd = fd, -1
            return held
    finally:
        if fd >= 0:
            os.close(fd)
    return -1


def _kept(path: Path, what: str) -> StoreFailed:
    who = "another process"
    for place in (path.parent, path):
        with contextlib.suppress(OSError):
            fd = os.open(place, _READ)
            try:
                if locks.try_lock(fd):
                    continue
                who = locks.owner(fd)
                break
            finally:
                os.close(fd)
    return StoreFailed(f"{who} keeps {what} locked: let it go on (kill -CONT), or end it, then try again")


class _Pauses:
    def __init__(self) -> None:
        self._until = trio.current_time() + PATIENCE_SECONDS
        self._tries = 0
        self._pause = _FIRST_PAUSE

    @property
    def are_over(self) -> bool:
        return trio.current_time() >= self._until

    async def next(self) -> None:
        self._tries += 1
        if self._tries < _QUICK_TRIES:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self._pause)
            self._pause = min(self._pause * 2, _LAST_PAUSE)


# ---- the maintenance lock


@asynccontextmanager
async def maintenance(directory: Path, space: SpaceId) -> AsyncIterator[None]:
    """Hold the maintenance lock of a space. Raises OSError; StoreFailed where it can't be had."""
    pauses = _Pauses()
    while (fd := _try_maintenance(directory)) < 0:
        if pauses.are_over:
            raise _kept(directory / LOG_NAME, str(space))
        await pauses.next()
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def maintenance_now(directory: Path, patience: float) -> Iterator[None]:
    """The same for threads. Raises OSError; TimeoutError after `patience` seconds."""
    until = time.monotonic() + patience
    while (fd := _try_maintenance(directory)) < 0:
        if time.monotonic() > until:
            raise TimeoutError(f"{_owner(directory)} keeps it locked")
        time.sleep(_PAUSE_NOW)
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def maintained_now(directory: Path, *, already: bool = False) -> Iterator[bool]:
    """Whether the maintenance lock is held in the block: because the caller has it `already`, or it was free."""
    fd = -1 if already else _try_maintenance(directory)
    try:
        yield already or fd >= 0
    finally:
        if fd >= 0:
            os.close(fd)


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        fd = os.open(path, _READ)
        try:
            return locks.owner(fd)
        finally:
            os.close(fd)
    return "another process"


def _try_maintenance(directory: Path) -> int:
    fd = os.open(directory, _READ | os.O_DIRECTORY)
    try:
        if locks.try_lock(fd):
            held, fd = fd, -1
            return held
    finally:
        if fd >= 0:
            os.close(fd)
    return -1


# ---- taking over


async def _take_over(directory: Path, limiter: trio.CapacityLimiter, *, maintained: bool) -> int:
    """The flock of a new inode; -1 where the old one is free by now, or somebody else maintains the space."""
    with maintained_now(directory, already=maintained) as ours:
        return await trio.to_thread.run_sync(_replace, directory, limiter=limiter) if ours else -1


def _replace(directory: Path) -> int:
    """Under the maintenance lock."""
    path, taken = directory / LOG_NAME, directory / TAKEN_NAME
    old = os.open(path, _READ)
    try:
        if locks.try_lock(old):
            return -1
        if _is_unfinished(old, taken):
            _complete(directory)
        _unlink(taken)
        end = _end(old, directory)
        beside = durability.temporary(path)
        new = durability.create("log.take", beside, os.O_RDWR | os.O_APPEND)
        try:
            _check_seals(new)
            locks.try_lock(new)
            _copy(old, new, 0, end)
            durability.system.fsync("log.take", new)
            _check_copy(_end(new, directory), end)
            durability.system.link("log.take", path, taken)
            durability.fsync_dir("log.take", directory)
            durability.system.rename("log.take", beside, path)
        except BaseException:
            os.close(new)
            durability.discard("log.take", beside)
            durability.discard("log.take", taken)
            raise
        try:
            durability.fsync_dir("log.take", directory)
            _complete(directory)
        except BaseException:
            # Whoever holds the new one's flock next finishes it.
            os.close(new)
            raise
        return new
    finally:
        os.close(old)


def _end(fd: int, directory: Path) -> int:
    """Where the last whole batch ends: what stands before is never changed again."""
    return last_batch(fd, os.fstat(fd).st_size, read_base(directory)).end


def _copy(source: int, target: int, begin: int, end: int | None = None) -> None:
    while piece := os.pread(source, _PIECE if end is None else min(_PIECE, end - begin), begin):
        durability.write_all("log.take", target, piece)
        begin += len(piece)


def _check_copy(end: int, wanted: int) -> None:
    if end != wanted:
        raise StoreFailed("what was copied of the log isn't what was read: see to the disk, then try again")


def _check_seals(fd: int) -> None:
    """Raises StoreFailed where the file system doesn't keep modes."""
    durability.system.fchmod("log.take", fd, _SEALED_MODE)
    kept = os.fstat(fd).st_mode & 0o777 == _SEALED_MODE
    durability.system.fchmod("log.take", fd, durability.FILE_MODE)
    if not kept:
        raise StoreFailed("the file system keeps no modes of files: end the process that keeps the log locked")


# ---- finishing


def _is_unfinished(fd: int, taken: Path) -> bool:
    """Whether the log was taken over, and not all of the old inode may be in it."""
    return os.path.lexists(taken) and not locks.is_at(fd, taken)


def _finish(fd: int, directory: Path, maintained: bool) -> bool:  # noqa: FBT001
    """Under the log's flock: finish a takeover that a crash interrupted; False where somebody else is about to."""
    taken = directory / TAKEN_NAME
    if not _is_unfinished(fd, taken):
        return True
    with maintained_now(directory, already=maintained) as ours:
        if ours and _is_unfinished(fd, taken):
            _complete(directory)
        return ours


def _complete(directory: Path) -> None:
    """Under the maintenance lock: seal the old inode, append what the new one hasn't got, drop the old one.

    Nobody else appends to the new one before the old one's second name is gone.
    """
    taken = directory / TAKEN_NAME
    old = os.open(taken, _READ)
    try:
        durability.system.fchmod("log.take", old, _SEALED_MODE)
        new = os.open(directory / LOG_NAME, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            end = _end(new, directory)
            for _ in range(_SETTLING):
                before = _state(old)
                if os.fstat(new).st_size != end:
                    durability.system.ftruncate("log.take", new, end)
                _copy(old, new, end)
                if _state(old) == before:
                    break
                # Its owner has just woken up: what was read may be of two moments.
            durability.system.fdatasync("log.take", new)
        finally:
            os.close(new)
    finally:
        os.close(old)
    _unlink(taken)


def _state(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def is_interrupted(directory: Path) -> bool:
    """Whether a takeover isn't finished, and nobody is about to. Raises nothing."""
    if not os.path.lexists(directory / TAKEN_NAME):
        return False
    with contextlib.suppress(OSError), maintained_now(directory) as ours:
        return ours and os.path.lexists(directory / TAKEN_NAME)
    return False


def finish_now(directory: Path) -> None:
    """Under both locks: finish a takeover that a crash interrupted, or drop the name that a beginning one left."""
    taken = directory / TAKEN_NAME
    fd = os.open(directory / LOG_NAME, _READ)
    try:
        if _is_unfinished(fd, taken):
            _complete(directory)
        else:
            _unlink(taken)
    finally:
        os.close(fd)


def _unlink(taken: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        durability.system.unlink("log.take", taken)
