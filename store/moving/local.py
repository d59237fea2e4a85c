"""Files that belong to a space without being logged: scratch files, among them what was rejected, or recovered.

A file comes over whole, under its name, or not at all. One that is there already stays unless it is older.

Concurrency: for a thread.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from store import durability

_AREAS: Final = ("scratch", "scratch-attachments")


def copy_local(source: Path, target: Path) -> int:
    """Copy the files of one space's directory; how many. Raises OSError."""
    copied = 0
    for area in _AREAS:
        try:
            with os.scandir(source / area) as found:
                entries = [entry for entry in found if not entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        if (source / area).is_symlink():
            continue
        for entry in entries:
            (target / area).mkdir(mode=durability.DIRECTORY_MODE, parents=True, exist_ok=True)
            copied += _copy(Path(entry.path), target / area / entry.name)
    return copied


def _copy(source: Path, target: Path) -> bool:
    try:
        status = source.lstat()
        if os.path.lexists(target) and target.lstat().st_mtime_ns >= status.st_mtime_ns:
            return False
        beside = durability.temporary(target)
        if stat.S_ISLNK(status.st_mode):
            durability.system.symlink("moving.local", str(source.readlink()), beside)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(source, beside)
        else:
            return False
    except FileNotFoundError:
        return False  # editors take their files away at any time
    os.utime(beside, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    durability.system.rename("moving.local", beside, target)
    return True


def _copy_file(source: Path, beside: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with (
            os.fdopen(fd, "rb", closefd=False) as reading,
            os.fdopen(durability.create("moving.local", beside), "wb") as writing,
        ):
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            os.fchmod(writing.fileno(), stat.S_IMODE(os.fstat(fd).st_mode))
            durability.system.fsync("moving.local", writing.fileno())
    except BaseException:
        durability.discard("moving.local", beside)
        raise
    finally:
        os.close(fd)
