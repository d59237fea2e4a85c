"""Directories of a project, by descriptor: nothing outside is reached, whatever somebody has put there.

A name is one component; it is looked up in its directory alone, and a symbolic link is never followed: a link, a device
or a pipe in a file's place counts as a stranger's (`Strange`). Changes pass the durability seam as
`/proc/self/fd/N/name`, which is what openat(2) would do, with a label such as `projection.write`: what stands before
the dot is the directory's.

Files have the modes that the user's umask gives, as git's have: not the store's.

Concurrency: blocking; for any thread, one at a time per chat.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from types import EllipsisType
from typing import Final, NamedTuple, Self

from store import durability
from store.errors import StoreError

READ_MAX: Final = 1 << 31
_SUFFIX: Final = ".tmp"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Strange(StoreError):
    """Something else stands where a file or a directory of chatfs should be."""


class Moved(Exception):
    """Somebody changed the file meanwhile."""


class Stamp(NamedTuple):
    """How a file looked: another one has other bytes, or was written again."""

    size: int
    mtime_ns: int
    inode: int


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _umask() -> int:
    # Reading it by setting it would race with other threads.
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def is_temporary(name: str) -> bool:
    """Whether a name is one that a crash in the middle of a write leaves."""
    return name.startswith(".") and name.endswith(_SUFFIX)


class Directory:
    """An open directory. `shown` is its path, for messages; `label` the beginning of those of its system calls."""

    def __init__(self, fd: int, shown: str, label: str = "projection") -> None:
        self.fd = fd
        self.shown = shown
        self._label = label

    @classmethod
    def at(cls, path: str, label: str = "projection") -> Directory:
        """Open a directory by its path, whose last component isn't a link. Raises OSError."""
        return cls(os.open(path, _DIRECTORY), path, label)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def path(self, name: str) -> str:
        """For the seam."""
        if "/" in name or name in {"", ".", ".."} or "\0" in name:
            raise Strange(f"{name!r} in {self.shown} can't be a file's name")
        return f"/proc/self/fd/{self.fd}/{name}"

    def _strange(self, name: str, what: str) -> Strange:
        return Strange(f"{self.shown}/{name} isn't {what}: chatfs leaves it alone; move it elsewhere")

    # ---- looking

    def sub(self, name: str) -> Directory:
        """A directory in it. Raises FileNotFoundError, Strange."""
        try:
            return Directory(os.open(name, _DIRECTORY, dir_fd=self.fd), f"{self.shown}/{name}", self._label)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise self._strange(name, "a directory") from error
            raise

    def make(self, name: str) -> Directory:
        """The same, made where it isn't there."""
        with contextlib.suppress(FileExistsError):
            durability.system.mkdir(f"{self._label}.mkdir", self.path(name))
            made = self.sub(name)
            os.fchmod(made.fd, 0o777 & ~_umask())
            return made
        return self.sub(name)

    def names(self) -> list[str]:
        """What is in it, in no order; names that aren't UTF-8 are left out."""
        found = []
        for name in os.listdir(self.fd):
            with contextlib.suppress(UnicodeEncodeError):
                name.encode()
                found.append(name)
        return found

    def directories(self) -> list[str]:
        """The directories in it, links not counted, without those that are being made."""
        with os.scandir(self.fd) as entries:
            return [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and entry.name.isprintable() and not is_temporary(entry.name)
            ]

    def stamp(self, name: str) -> Stamp | None:
        """How a regular file looks; None where there is none."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return stamp_of(found) if stat.S_ISREG(found.st_mode) else None

    def stamp_in(self, directory: str, name: str) -> Stamp | None:
        """How anything in one of its directories looks: only to be compared, nothing is read through this."""
        try:
            found = os.stat(f"{directory}/{name}", dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None
        return stamp_of(found)

    def is_directory(self, name: str) -> bool:
        """Whether that is a directory itself."""
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def mode(self, name: str) -> int | None:
        """A regular file's permissions; None where there is none."""
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return stat.S_IMODE(found.st_mode) if stat.S_ISREG(found.st_mode) else None

    @property
    def changed_ns(self) -> int:
        """When a name in it last came or went."""
        return os.fstat(self.fd).st_mtime_ns

    def open(self, name: str) -> int:
        """A descriptor of a regular file. Raises FileNotFoundError, Strange."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:
                raise self._strange(name, "a file") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._strange(name, "a file")
        return fd

    def read(self, name: str, most: int = READ_MAX) -> tuple[bytes, Stamp] | None:
        """A file's bytes, at most so many, and how it looked before; None where there is none."""
        try:
            fd = self.open(name)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            stamp = stamp_of(os.fstat(fd))
            return file.read(most), stamp

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file's bytes, a MiB at a time."""
        with open(self.open(name), "rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    # ---- changing

    def replace(
        self,
        name: str,
        pieces: Iterable[bytes],
        *,
        executable: bool = False,
        mode: int | None = None,
        beside: Directory,
        expected: Stamp | EllipsisType | None = ...,
    ) -> Stamp:
        """Put bytes in place of a file, whole or not at all; `beside` is where they are until then. Durable bytes.

        The file's mode is `mode`, or what the umask gives. `expected` is how the file that is replaced looks (None:
        there is none). Raises Moved where it looks otherwise.
        """
        temporary = f".{name[:100]}.{secrets.token_hex(8)}{_SUFFIX}"
        path = beside.path(temporary)
        fd = durability.create(f"{self._label}.create", path)
        try:
            os.fchmod(fd, (0o777 if executable else 0o666) & ~_umask() if mode is None else mode)
            for piece in pieces:
                durability.write_all(f"{self._label}.write", fd, piece)
            durability.system.fsync(f"{self._label}.fsync", fd)
            self._require_file(name)
            self._require_stamp(name, expected)
            durability.system.rename(f"{self._label}.rename", path, self.path(name))
            return stamp_of(os.fstat(fd))
        except BaseException:
            durability.discard(f"{self._label}.discard", path)
            raise
        finally:
            os.close(fd)

    def _require_file(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                raise self._strange(name, "a file")

    def _require_stamp(self, name: str, expected: Stamp | EllipsisType | None) -> None:
        if expected is not ... and self.stamp(name) != expected:
            raise Moved

    def put(self, name: str, data: bytes, expected: Stamp | EllipsisType | None = ...) -> Stamp:
        """`replace`, unless the file has just these bytes: then nothing is touched."""
        there = self.stamp(name)
        if there is not None and there.size == len(data):
            found = self.read(name)
            if found is not None and found[0] == data:
                return found[1]
        return self.replace(name, [data], beside=self, expected=expected)

    def append(self, name: str, data: bytes, expected: Stamp) -> Stamp | None:
        """Add bytes to a file that looks as expected, in one write; None, where it looks otherwise, before or after.

        A file that has another name, too, is replaced: that may be somebody's copy of it.
        """
        if self.stamp(name) != expected:
            return None
        if not data:
            return expected
        try:
            fd = durability.system.open(
                f"{self._label}.append", self.path(name), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
            )
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
            if stamp_of(found) != expected:
                return None
            if found.st_nlink > 1:
                return self.extend(name, data, expected)
            durability.write_all(f"{self._label}.append", fd, data)
            durability.system.fdatasync(f"{self._label}.fsync", fd)
            after = stamp_of(os.fstat(fd))
            # Somebody may have put another file in its place meanwhile, or have written to it.
            return after if after.size == expected.size + len(data) and self.stamp(name) == after else None
        finally:
            os.close(fd)

    def extend(self, name: str, data: bytes, expected: Stamp) -> Stamp | None:
        """As `append`, by a file with all of it in the place of the old one: nobody ever sees half of what is added."""
        found = self.read(name)
        if found is None or found[1] != expected:
            return None
        try:
            return self.replace(name, [found[0], data], beside=self, expected=expected)
        except Moved:
            return None

    def rename(self, name: str, to: str) -> None:
        """Give a directory another name, which nobody has. Raises FileExistsError."""
        if self.exists(to):
            raise FileExistsError(errno.EEXIST, "exists", to)
        durability.system.rename(f"{self._label}.move", self.path(name), self.path(to))

    def move(self, name: str, other: Directory, to: str) -> None:
        """The same into another directory."""
        if other.exists(to):
            raise FileExistsError(errno.EEXIST, "exists", to)
        durability.system.rename(f"{self._label}.move", self.path(name), other.path(to))

    def exists(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            durability.system.unlink(f"{self._label}.unlink", self.path(name))

    def remove_tree(self, name: str) -> None:
        """Remove a directory with all that is in it: under another name first, so that half of it is never seen."""
        gone = name
        if not is_temporary(name):
            gone = f".{name[:100]}.{secrets.token_hex(8)}{_SUFFIX}"
            durability.system.rename(f"{self._label}.remove", self.path(name), self.path(gone))
        self._remove(gone)

    def _remove(self, name: str) -> None:
        with self.sub(name) as directory:
            for inner in os.listdir(directory.fd):
                if directory.is_directory(inner):
                    directory._remove(inner)  # noqa: SLF001 - its own class
                else:
                    durability.system.unlink(f"{self._label}.remove", f"/proc/self/fd/{directory.fd}/{inner}")
        durability.system.rmdir(f"{self._label}.remove", self.path(name))

    def sync(self) -> None:
        """Make the names in it durable."""
        durability.system.fsync(f"{self._label}.fsync", self.fd)

    def sweep(self) -> None:
        """Remove what crashes have left here."""
        for name in self.names():
            if is_temporary(name):
                if self.is_directory(name):
                    self.remove_tree(name)
                else:
                    self.unlink(name)
