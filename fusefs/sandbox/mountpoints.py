"""Where the mounts of sandboxes are, and taking away what is left of those whose processes were killed.

Each mount point is a directory of its own that its sandbox's process holds a lock on. The kernel gives the lock back
however that process ends, so what isn't locked is left over.

Concurrency: the directory above is locked while one is made, or what is left is taken away; neither waits for a mount.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusefs.cli import mount_records
from fusefs.cli.errors import CommandFailed
from fusefs.unmount import lazy_unmount, mounts
from store.errors import StoreError


def mounts_directory() -> Path:
    """Where the mounts of this user's sandboxes are (XDG Base Directory Specification).

    A runtime directory that is another user's, as `su` and `sudo` may leave it, isn't used: its owner could put a link
    in the place of a mount point.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return (Path(base) / "chatfs" if _is_own(base) else mount_records.state_directory()) / "sandboxes"


def _is_own(directory: str | Path) -> bool:
    """Whether nobody else can change what is in a directory."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _own_directory() -> Path:
    """`mounts_directory`, made. Raises CommandFailed where others could change what is in it."""
    path = mounts_directory()
    for each in (path.parent, path):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(each):
            raise CommandFailed(
                f"{each} is a link, or others may write to it: make it a directory of mode 0700 of yours"
            )
    return path.resolve()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """A descriptor of the directory; nobody else makes or takes away mount points in it meanwhile."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def sweep() -> None:
    """Take away what sandboxes have left whose processes were killed."""
    with contextlib.suppress(FileNotFoundError):
        base = mounts_directory().resolve()
        with _locked(base):
            mounted = {each.mountpoint for each in mounts()}
            for path in base.iterdir():
                if _is_left(path, is_mounted=path in mounted):
                    with contextlib.suppress(OSError):
                        path.rmdir()


def _is_left(path: Path, *, is_mounted: bool) -> bool:
    """Whether nobody runs any more who made a mount point. A dead mount on it is taken away."""
    if is_mounted:
        try:
            os.statvfs(path)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                return False
        else:
            return False
        try:
            lazy_unmount(path)
        except StoreError:
            return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its sandbox is only just starting, or ending
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def mount_point() -> Iterator[Path]:
    """A fresh directory, locked for as long as this process has a use for it."""
    base = _own_directory()
    with _locked(base):
        path = Path(tempfile.mkdtemp(prefix="", dir=base))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()
        os.close(fd)
