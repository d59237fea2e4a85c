"""Reading a file that must be a regular one: no symbolic link is followed, no pipe is waited for.

Concurrency: no state; may be called from any thread.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, Final

REFUSED: Final = frozenset({errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO})
"""What `read` fails with where something else stands there."""


def read(path: str | os.PathLike[str]) -> bytes:
    """All of its bytes. Raises OSError: FileNotFoundError, or one of `REFUSED` where it is something else."""
    with opened(path) as file:
        return file.read()


def opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """The file, to read from. Raises OSError likewise."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "isn't a regular file", os.fspath(path))
    return open(fd, "rb")  # noqa: PTH123 - a descriptor
