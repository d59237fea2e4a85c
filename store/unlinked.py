"""Scratch files that have lost their names and are still open: they take room until they are closed.

Whoever has a scratch file open has a shared flock on it, in whatever process. One that is open when its name goes gets
another in `scratch-unlinked/` of its space; without a lock it is what a crash has left, or somebody has closed, and
goes when somebody measures.

Concurrency: no state; plain system calls on local files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from pathlib import Path
from typing import Final

from store import durability

UNLINKED: Final = "scratch-unlinked"


def hold(descriptor: int) -> None:
    """Who has this open counts as having it open. A file system without locks does without."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def keep(space: Path, path: bytes) -> None:
    """The file at `path` is about to lose that name: give it another if somebody has it open. Raises OSError."""
    fd = _opened(path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or _is_closed(fd):
            return
        directory = space / UNLINKED
        for again in (True, True, False):
            durability.make_dirs("scratch.unlinked", directory, Path("/"))
            try:
                durability.system.link("scratch.unlinked", os.fsdecode(path), directory / str(uuid.uuid4()))
                return
            except FileNotFoundError:
                if not again:  # else somebody's `sweep` has just removed the directory
                    raise
    finally:
        os.close(fd)


def sweep(space: Path) -> int:
    """Bytes in such files; what nobody has open any more is removed."""
    total = 0
    try:
        with os.scandir(space / UNLINKED) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for entry in entries:
        # Another process may just be doing the same; and what can't be removed counts.
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and not remove_closed("scratch.unlinked", entry.path):
                total += status.st_size
    if not total:
        with contextlib.suppress(OSError):
            durability.system.rmdir("scratch.unlinked", space / UNLINKED)
    return total


def _opened(path: bytes | str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _is_closed(fd: int) -> bool:
    """Whether nobody has the file open, but with this descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_closed(label: str, path: str) -> bool:
    """Remove the file if nobody has it open; whether that was done."""
    try:
        fd = _opened(path)
    except PermissionError:
        return False
    try:
        if not _is_closed(fd):
            return False
        durability.system.unlink(label, path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    finally:
        os.close(fd)
    return True
