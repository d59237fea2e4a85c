"""Whole-file locks (flock) that several processes and several instances in one process respect.

A flock belongs to an open file description: each instance has its own, so instances exclude each other as processes do.
Locks nothing by itself and knows nothing of what is locked.

Concurrency: `try_lock` and `unlock` never wait. `acquire` waits in a thread; a caller that is cancelled leaves the
thread to give the lock back by itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

_TRIES = 3
_PATIENCE = 30.0
"""Seconds after which a lock counts as stuck: its holder was stopped, or the file system below hangs."""


def try_lock(fd: int) -> bool:
    """Take the exclusive lock if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give it back."""
    fcntl.flock(fd, fcntl.LOCK_UN)


class _Wait:
    """One thread's wait for a lock, on a descriptor of its own: closing that gives the lock back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._abandoned = False
        self._fd = -1

    def run(self) -> int:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        with self._guard:
            if self._abandoned:
                os.close(fd)
            else:
                self._fd = fd
        return fd

    def abandon(self) -> None:
        with self._guard:
            self._abandoned = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


@asynccontextmanager
async def waiting_lock(path: Path, limiter: trio.CapacityLimiter) -> AsyncIterator[None]:
    """Hold the lock of the file that is at `path` when it is got (not of one that was replaced meanwhile)."""
    fd = await acquire(path, limiter)
    try:
        yield
    finally:
        os.close(fd)


async def acquire(path: Path, limiter: trio.CapacityLimiter) -> int:
    """As `waiting_lock`; closing what is returned gives the lock back. Raises OSError."""
    while True:
        fd = -1
        # Locks are held for microseconds: most waits end before a thread would have begun.
        for _ in range(_TRIES):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            if try_lock(fd):
                break
            os.close(fd)
            fd = -1
            await trio.lowlevel.checkpoint()
        if fd < 0:
            wait = _Wait(path)
            try:
                with trio.fail_after(_PATIENCE):
                    fd = await trio.to_thread.run_sync(wait.run, abandon_on_cancel=True, limiter=limiter)
            except trio.TooSlowError as error:
                wait.abandon()
                raise TimeoutError(errno.ETIMEDOUT, f"another process holds the lock of {path.name}") from error
            except BaseException:
                wait.abandon()
                raise
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


@contextlib.contextmanager
def blocking_lock(path: Path, opened: Callable[[], int], *, shared: bool = False) -> Iterator[int]:
    """For threads: hold the lock of a file that nobody replaces. `opened` makes it where it is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        fd = opened()
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
