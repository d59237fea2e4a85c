"""The seam between the store and the disk: every system call that changes a file goes through here, with a label.

The label says what the call is for (`log.append`, `kv.put` …); tests replace `system` by one that fails or writes short
for a label, or that records what a power cut could undo. Reading doesn't pass here, and nothing here decides what is to
be written.

A failed fsync is never done again and believed: Linux drops the pages' dirty flag all the same, so the next one finds
nothing to write and succeeds. What it was for is written again (https://wiki.postgresql.org/wiki/Fsync_Errors).

Concurrency: no state; may be called from any thread.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from store.errors import ReadOnly, StoreError, StoreFailed, StoreFull

_libc: Final = ctypes.CDLL(None, use_errno=True)

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class System:
    """The system calls themselves. `label` is for whoever stands in for this class."""

    def open(self, label: str, path: str | Path, flags: int) -> int:
        """Close-on-exec; a file that this makes has mode 0600 whatever the umask."""
        fd = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
        # Without O_EXCL it may have been there: only what its owner couldn't use must be one that this made.
        if flags & os.O_EXCL or (flags & os.O_CREAT and os.fstat(fd).st_mode & FILE_MODE != FILE_MODE):
            os.fchmod(fd, FILE_MODE)
        return fd

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        """May write less than all."""
        return os.write(fd, data)

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        """May write less than all."""
        return os.pwrite(fd, data, offset)

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        """Cut or lengthen."""
        os.ftruncate(fd, size)

    def fchmod(self, label: str, fd: int, mode: int) -> None:
        """Change a file's mode."""
        os.fchmod(fd, mode)

    def fsync(self, label: str, fd: int) -> None:
        """Make a file, or the names in a directory, durable."""
        os.fsync(fd)

    def fdatasync(self, label: str, fd: int) -> None:
        """Make a file's bytes and size durable."""
        os.fdatasync(fd)

    def syncfs(self, label: str, fd: int) -> None:
        """syncfs(2), of the file system that `fd` is on."""
        if _libc.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        """Replaces `target`."""
        os.rename(source, target)

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        """Raises FileExistsError; follows no symbolic link."""
        os.link(source, target, follow_symlinks=False)

    def unlink(self, label: str, path: str | bytes | Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def unlink_in(self, label: str, directory: int, path: str) -> None:
        """Remove the file that is in `directory`, an open one, and is called `path`: whatever leads there by now."""
        os.unlink(os.path.basename(path), dir_fd=directory)

    def rmdir_in(self, label: str, directory: int, path: str) -> None:
        """The same for an empty directory."""
        os.rmdir(os.path.basename(path), dir_fd=directory)

    def mkdir(self, label: str, path: str | Path) -> None:
        """Make a directory, mode 0700 whatever the umask."""
        os.mkdir(path, DIRECTORY_MODE)
        os.chmod(path, DIRECTORY_MODE)

    def rmdir(self, label: str, path: str | Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def symlink(self, label: str, target: str | bytes, path: str | bytes | Path) -> None:
        """A symbolic link at `path`. Raises FileExistsError."""
        os.symlink(target, path)

    def utime(self, label: str, path: str | Path) -> None:
        """Make a file's times the present one."""
        os.utime(path)


system = System()


def store_error(error: OSError, what: str) -> StoreError:
    """What the store raises for `error`, in one line. The caller chains it (`raise … from error`)."""
    if error.errno in _FULL:
        return StoreFull(f"{what}: no space left: free some, then try again")
    if error.errno in _READ_ONLY:
        return ReadOnly(f"{what}: {os.strerror(error.errno or 0)}: the store can't be written")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StoreFailed(f"{what}: {reason}")


class _Failing(contextlib.AbstractContextManager[None]):
    """Not a generator: it is entered for every small write."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise store_error(error, self._what) from error


def failing(what: str) -> contextlib.AbstractContextManager[None]:
    """Turn an OSError of the block into the store's error for it."""
    return _Failing(what)


def create(label: str, path: str | Path, flags: int = os.O_WRONLY) -> int:
    """Open a new file with mode 0600 whatever the umask; raises FileExistsError."""
    return system.open(label, path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)


def write_all(label: str, fd: int, data: bytes) -> None:
    """Write all of `data` at the file's position, in one call where the kernel takes it whole."""
    done = system.write(label, fd, data)
    size = len(data)
    if done != size:
        view = memoryview(data)
        while done < size:
            count = system.write(label, fd, view[done:])
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            done += count


def pwrite_all(label: str, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    done = system.pwrite(label, fd, data, offset)
    size = len(data)
    if done != size:
        view = memoryview(data)
        while done < size:
            count = system.pwrite(label, fd, view[done:], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written")
            done += count


def fsync_dir(label: str, path: str | Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(label, fd)
    finally:
        os.close(fd)


def sync_names_again(label: str, path: str | Path) -> None:
    """Make the names in a directory durable after an fsync of it has failed, or may have.

    Another fsync alone would find nothing to write. So something is changed first.
    """
    beside = os.path.join(path, f".sync.{secrets.token_hex(8)}.tmp")
    os.close(create(label, beside))
    system.unlink(label, beside)
    fsync_dir(label, path)


def discard(label: str, path: str | Path) -> None:
    """Remove a file that doesn't count, if that is possible."""
    with contextlib.suppress(OSError):
        system.unlink(label, path)


def remove_tree(label: str, path: str | Path) -> None:
    """Remove a directory with all that is in it, following no symbolic link, not even one that comes just now."""
    fd = open_directory(path)
    try:
        _empty(label, fd, os.fspath(path))
    finally:
        os.close(fd)
    system.rmdir(label, path)


def _empty(label: str, fd: int, path: str) -> None:
    with os.scandir(fd) as found:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in names:
        called = os.path.join(path, name)
        if is_directory:
            inner = open_directory(name, fd)
            try:
                _empty(label, inner, called)
            finally:
                os.close(inner)
            system.rmdir_in(label, fd, called)
        else:
            system.unlink_in(label, fd, called)


def open_directory(path: str | Path, beneath: int | None = None) -> int:
    """A descriptor of a directory, in the open one `beneath`. Raises OSError where it is a symbolic link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=beneath)


def make_dirs(label: str, path: Path, root: Path) -> list[Path]:
    """Make `path` and what is missing above it, below `root`, mode 0700; return the directories that got a new name.

    For the new names to be durable, those directories have to be synced.
    """
    missing = []
    while path != root and not path.is_dir():
        missing.append(path)
        path = path.parent
    changed = []
    for directory in reversed(missing):
        try:
            system.mkdir(label, directory)
        except FileExistsError:
            continue
        changed.append(directory.parent)
    return changed


def write_new(label: str, path: Path, data: bytes, *, durable: bool = True) -> None:
    """Make a file that holds `data`; nothing is left of it if that fails."""
    fd = create(label, path)
    try:
        write_all(label, fd, data)
        if durable:
            system.fsync(label, fd)
    except BaseException:
        discard(label, path)
        raise
    finally:
        os.close(fd)


def temporary(path: Path) -> Path:
    """A fresh name beside `path`."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def replacing(
    label: str, path: Path, *, durable: bool = True, before_rename: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """A descriptor of a new file, which takes the place of `path` at the block's end; nothing is left if that fails.

    Its bytes are durable before it gets the name (unless `durable` is False), and so is what `before_rename` does: both
    in this order. The name is durable after `fsync_dir`, which is the caller's.
    """
    beside = temporary(path)
    fd = create(label, beside)
    try:
        yield fd
        if durable:
            system.fsync(label, fd)
        before_rename()
        system.rename(label, beside, path)
    except BaseException:
        discard(label, beside)
        raise
    finally:
        os.close(fd)


def atomic_replace(label: str, path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path`: whoever reads meets all of the old bytes or all of the new ones, also after a power cut."""
    with replacing(label, path, durable=durable) as fd:
        write_all(label, fd, data)
    if durable:
        fsync_dir(label, path.parent)
