"""Whole-file locks (flock) that several processes and several instances in one process respect.

A flock belongs to an open file description: each instance has its own, so instances exclude each other as processes do.
Locks nothing by itself and knows nothing of what is locked.

Concurrency: `try_lock`, `unlock`, `is_at` and `owner` never wait; `blocking_lock` is for threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


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


def is_at(fd: int, path: Path) -> bool:
    """Whether `path` names the file that `fd` has open."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_ino, named.st_dev) == (opened.st_ino, opened.st_dev)


def owner(fd: int) -> str:
    """Who has the lock of a file, in words; as well as /proc/locks says it."""
    found = os.fstat(fd)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    pids: dict[bool, str] = {}
    with contextlib.suppress(OSError), Path("/proc/locks").open(encoding="ascii") as file:
        for line in file:
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{found.st_ino}") and int(words[4]) > 0:
                # Some file systems show another device number there than fstat has.
                pids[words[5].startswith(f"{device}:")] = words[4]
    pid = pids.get(True) or pids.get(False)
    if pid is None:
        return "another process"
    name = ""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/comm").open(encoding="utf-8", errors="replace") as file:
        name = f" ({file.read().strip()})"
    return f"process {pid}{name if name.isprintable() else ''}"


@contextlib.contextmanager
def blocking_lock(path: Path, opened: Callable[[], int], *, shared: bool = False) -> Iterator[int]:
    """For threads: hold the lock of a file that nobody replaces. `opened` makes it where it is missing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        fd = opened()
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
