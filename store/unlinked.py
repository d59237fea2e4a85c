"""Scratch files that have lost their names and are still open: they take room until they are closed.

Such a file gets a name in `scratch-unlinked/` of its space. Whoever has it open has a shared flock on it: without that
it is what a crash has left, and goes when somebody measures.

Concurrency: no state; plain system calls on local files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from store import durability

UNLINKED: Final = "scratch-unlinked"


def keep(space: Path, path: bytes, descriptors: Sequence[int]) -> Path:
    """Give the file at `path`, which these descriptors have open, another name, which is returned."""
    directory = space / UNLINKED
    durability.make_dirs("scratch.unlinked", directory, Path("/"))
    for descriptor in descriptors:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    kept = directory / str(uuid.uuid4())
    durability.system.link("scratch.unlinked", os.fsdecode(path), kept)
    return kept


def closed(kept: Path) -> None:
    """The last of them is closed."""
    durability.discard("scratch.unlinked", kept)
    with contextlib.suppress(OSError):
        durability.system.rmdir("scratch.unlinked", kept.parent)


def held_bytes(space: Path) -> int:
    """Bytes in such files; what nobody has open any more is removed."""
    total = 0
    try:
        with os.scandir(space / UNLINKED) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                continue
            total += entry.stat(follow_symlinks=False).st_size - _swept(entry.path)
    return total


def _swept(path: str) -> int:
    """Remove the file if nobody has it open: how many bytes that frees."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        durability.system.unlink("scratch.unlinked", path)
        return os.fstat(fd).st_size
    except OSError:
        return 0  # it is open, or can't be removed
    finally:
        os.close(fd)
