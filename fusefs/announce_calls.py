"""The program of the process that makes an announcer's system calls: see `fusefs.announce_process`.

It runs by itself, with nothing of chatfs imported, and stays small. Commands come on standard input, each with its
length before it; an errno (0: done) goes back on standard output. It ends when standard input does.

A name is only touched beneath a directory that the mount's own daemon has vouched for, by answering the look-up of a
name that nobody else knows with `VOUCHED`. The directory is held open meanwhile, so it can't become another file
system's in between: what was mounted over it, or in its place, is never changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LENGTH: Final = struct.Struct("=I")
ANSWER: Final = struct.Struct("=I")
VOUCHED: Final = errno.EOWNERDEAD
"""What the daemon answers to the look-up of the secret name, and no file system otherwise."""

_PR_SET_PDEATHSIG: Final = 1
_AT_EMPTY_PATH: Final = 0x1000
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_OPENAT2: Final = 437
_RESOLVE_NO_XDEV: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_Times = ctypes.c_long * 4
_How = ctypes.c_uint64 * 3
_MODIFIED = _Times(0, _UTIME_OMIT, 0, _UTIME_NOW)
_CHANGED = _Times(0, _UTIME_NOW, 0, _UTIME_NOW)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextmanager
def _vouched(path: bytes, secret: bytes) -> Iterator[int]:
    """A descriptor of the directory at `path`, which is one of the mount's. Raises EXDEV where it isn't."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            os.stat(secret, dir_fd=descriptor, follow_symlinks=False)
        except OSError as error:
            if error.errno != VOUCHED:
                raise OSError(errno.EXDEV, "not the mount's") from None
        else:
            raise OSError(errno.EXDEV, "not the mount's")
        yield descriptor
    finally:
        os.close(descriptor)


def _touch(directory: int, name: bytes, times: ctypes.Array[ctypes.c_long]) -> None:
    """utimensat(2) of a name, or of the directory itself; what is mounted on the name isn't touched."""
    if not name:
        _checked(_libc.utimensat(directory, b"", times, _AT_EMPTY_PATH))
        return
    how = _How(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_NO_XDEV)
    found = _checked(_libc.syscall(_OPENAT2, directory, name, how, ctypes.sizeof(how)))
    try:
        _checked(_libc.utimensat(found, b"", times, _AT_EMPTY_PATH))
    finally:
        os.close(found)


def call(fields: list[bytes]) -> None:
    """Make the system call of one command. Raises OSError."""
    kind, secret, path, name = fields[:4]
    if any(b"/" in each or each in {b".", b".."} for each in (name, *fields[5:])):
        raise OSError(errno.EINVAL, "not a name")
    with _vouched(path, secret) as directory:
        match kind:
            case b"modify":
                _touch(directory, name, _MODIFIED)
            case b"attributes":
                _touch(directory, name, _CHANGED)
            case b"mkdir":
                os.mkdir(name, 0o700, dir_fd=directory)
            case b"mknod":
                os.mknod(name, stat.S_IFREG | 0o600, dir_fd=directory)
            case b"rmdir":
                os.rmdir(name, dir_fd=directory)
            case b"unlink":
                os.unlink(name, dir_fd=directory)
            case b"rename":
                with _vouched(fields[4], secret) as target:
                    os.rename(name, fields[5], src_dir_fd=directory, dst_dir_fd=target)
            case _:
                raise OSError(errno.ENOSYS, "no such command")


def _read(size: int) -> bytes:
    """Exactly so many bytes; fewer at the end."""
    found = b""
    while len(found) < size:
        piece = os.read(0, size - len(found))
        if not piece:
            break
        found += piece
    return found


def main() -> None:
    """Serve commands until standard input ends, or the daemon does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    while len(head := _read(LENGTH.size)) == LENGTH.size:
        fields = _read(LENGTH.unpack(head)[0]).split(b"\0")
        try:
            call(fields)
        except OSError as error:
            code = error.errno or errno.EIO
        else:
            code = 0
        try:
            os.write(1, ANSWER.pack(code))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
