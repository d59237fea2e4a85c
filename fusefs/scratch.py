"""Where scratch files are kept: real files in the store's local area, one directory per chat directory shown.

Names are single path components as the kernel checked them; nothing here follows a symbolic link.

Concurrency: plain system calls on local files, inline.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from store import durability

SCRATCH: Final = "scratch"
"""The directory's name in that of a chat or a workspace."""
FILES_MAX: Final = 10_000
"""How many files a directory has at most: quotas count bytes, and empty files would use up the disk's inodes."""
_COUNTED_EVERY: Final = 256
"""After how many new ones they are counted again: other mounts of the store make some, too."""
_LOOK_SECONDS: Final = 0.5
"""How long what a look at a directory said is taken for true: other mounts of the store use it, too."""
_AT_EMPTY_PATH: Final = 0x1000
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_BTIME_OFFSET: Final = 0x50
"""Of `stx_btime` in struct statx (statx(2), linux/stat.h): 64-bit seconds, 32-bit nanoseconds."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def birth_ns(file: bytes | int) -> int:
    """When a file was made, in nanoseconds; 0 where the file system below doesn't keep that.

    A path isn't followed if it is a symbolic link. With the inode number, which the file system below uses again at
    once, it names a file for good.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if isinstance(file, int):
        done = _libc.statx(file, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer)
    else:
        done = _libc.statx(_AT_FDCWD, file, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer)
    if done or not int.from_bytes(buffer.raw[:4], "little") & _STATX_BTIME:
        return 0
    seconds = int.from_bytes(buffer.raw[_BTIME_OFFSET : _BTIME_OFFSET + 8], "little", signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(buffer.raw[_BTIME_OFFSET + 8 : _BTIME_OFFSET + 12], "little")


def changed_ns(directory: str | bytes) -> int:
    """When a file last came to or went from a directory, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(directory).st_mtime_ns
    except FileNotFoundError:
        return 0


def identity(file: bytes | int, backing: os.stat_result) -> str:
    """What tells a scratch file from all others, past and present, through renames and remounts."""
    return f"scratch:{backing.st_dev}:{backing.st_ino}:{birth_ns(file)}"


class ScratchArea:
    """The scratch files behind one directory of the mount."""

    __slots__ = ("_changed_ns", "_directory", "_encoded", "_looked", "_name", "_parent", "_room")

    def __init__(self, parent: Callable[[], Path], name: str = SCRATCH) -> None:
        self._parent = parent
        self._name = name
        self._directory: Path | None = None
        self._encoded = b""
        self._changed_ns = 0
        self._looked = -math.inf
        """When `_changed_ns` was found out, by the monotonic clock."""
        self._room = 0
        """How many files may be made before they are counted again."""

    @property
    def directory(self) -> Path:
        """Where the files are. It may not exist yet."""
        if self._directory is None:
            self._directory = self._parent() / self._name
        return self._directory

    def _is_link(self) -> bool:
        return os.path.islink(self.directory) or os.path.islink(self.directory.parent)

    def _refuse_link(self) -> None:
        """A link in the place of the directory, or of the chat's, leads out of the store."""
        if self._is_link():
            raise OSError(errno.ELOOP, "a symbolic link stands in the place of a directory", str(self.directory))

    def changed_ns(self) -> int:
        """When a file last came or went, in nanoseconds; 0: never. What others do is seen a moment later."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._changed_ns, self._looked = changed_ns(self._encoded or self._encode()), now
        return self._changed_ns

    def path(self, name: bytes) -> bytes:
        """Where the file called `name` stands: for whoever makes, moves or removes it now."""
        self._looked = -math.inf
        return b"%b/%b" % (self._encoded or self._encode(), name)

    def _encode(self) -> bytes:
        self._encoded = os.fsencode(self.directory)
        return self._encoded

    def stat(self, name: bytes) -> os.stat_result | None:
        """Its attributes, None where it isn't there."""
        if self._is_link():
            return None
        try:
            return os.lstat(self.path(name))
        except FileNotFoundError:
            return None

    def names(self) -> list[bytes]:
        """All names, sorted."""
        if self._is_link():
            return []
        try:
            return sorted(os.listdir(os.fsencode(self.directory)))
        except FileNotFoundError:
            return []

    def open(self, name: bytes, flags: int, mode: int = 0o600) -> int:
        """A file descriptor. O_APPEND is taken off: the kernel's offsets are right for files that only it changes."""
        wanted = (flags & ~(os.O_APPEND | os.O_DIRECT)) | os.O_NOFOLLOW | os.O_CLOEXEC
        if flags & os.O_ACCMODE == os.O_WRONLY:
            wanted = wanted & ~os.O_ACCMODE | os.O_RDWR
        if flags & os.O_CREAT:
            self._make(name)
        self._refuse_link()
        # Whoever planted a pipe there shall not have chatfs wait for its other end.
        descriptor = os.open(self.path(name), wanted | os.O_NONBLOCK, mode & 0o777 | 0o600)
        if flags & os.O_CREAT and os.fstat(descriptor).st_mode & 0o600 != 0o600:
            os.fchmod(descriptor, 0o600)  # the umask took it
        return descriptor

    def chmod(self, name: bytes, mode: int) -> None:
        """Change the permissions of a regular file; of nothing else, also where another takes its place just now."""
        descriptor = os.open(self.path(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.chmod(f"/proc/self/fd/{descriptor}", mode)
        finally:
            os.close(descriptor)

    def _make(self, name: bytes | None) -> None:
        """Make the directory, and see whether it may have a file `name`: None is one that isn't there yet."""
        self._refuse_link()
        durability.make_dirs("scratch.make", self.directory, Path("/"))
        self._room -= 1
        if self._room < 0:
            self._room = min(FILES_MAX - len(os.listdir(self.directory)), _COUNTED_EVERY) - 1
            if self._room < 0 and (name is None or self.stat(name) is None):
                raise OSError(errno.EDQUOT, f"{FILES_MAX} scratch files are in it: remove some", str(self.directory))

    def symlink(self, name: bytes, target: bytes) -> None:
        """A symbolic link: kept, never followed by chatfs."""
        self._make(name)
        durability.system.symlink("scratch.symlink", target, self.path(name))

    def unlink(self, name: bytes) -> None:
        """Remove one."""
        self._refuse_link()
        durability.system.unlink("scratch.unlink", self.path(name))

    def read(self, name: bytes) -> bytes:
        """All bytes of a regular file."""
        descriptor = self.open(name, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def pieces(self, name: bytes, size: int) -> Iterator[bytes]:
        """The bytes of a regular file, in pieces."""
        with os.fdopen(self.open(name, os.O_RDONLY), "rb", buffering=0) as file:
            while piece := file.read(size):
                yield piece

    def is_file(self, name: bytes) -> bool:
        """Whether it is a regular file."""
        found = self.stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    def keep(self, stem: str, data: bytes) -> str:
        """Write `data` as `stem-N` with the first free N, and return that name. Durable."""
        return self.keep_pieces(stem, [data])

    def keep_pieces(self, stem: str, pieces: Iterable[bytes]) -> str:
        """The same with bytes that come in pieces. Nothing is left where that fails."""
        self._make(None)
        number = 0
        while True:
            number += 1
            name = f"{stem}-{number}"
            path = os.fsdecode(self.path(name.encode()))
            try:
                descriptor = durability.create("scratch.keep", path)
            except FileExistsError:
                continue
            try:
                for piece in pieces:
                    durability.write_all("scratch.keep", descriptor, piece)
                durability.system.fsync("scratch.keep", descriptor)
                durability.fsync_dir("scratch.keep", self.directory)
                durability.fsync_dir("scratch.keep", self.directory.parent)
            except BaseException:
                durability.discard("scratch.keep", path)
                raise
            finally:
                os.close(descriptor)
            return name
