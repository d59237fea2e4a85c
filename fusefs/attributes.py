"""Attributes as the kernel wants them."""

from __future__ import annotations

import os
import stat
from typing import Final

from pyfuse3 import EntryAttributes, InodeT, ModeT

from fusefs.options import MountOptions

BLOCK: Final = 512
SYMLINK_MODE: Final = stat.S_IFLNK | 0o777
_RIGHTS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


def attributes(
    options: MountOptions,
    ino: int,
    mode: int,
    *,
    size: int = 0,
    mtime_ns: int = 0,
    ctime_ns: int | None = None,
    nlink: int = 1,
    timeout: float | None = None,
) -> EntryAttributes:
    """One node's attributes. Times are nanoseconds since the epoch; `timeout` replaces both of the mount's.

    Nothing here runs with its owner's rights: root's copy of it (`cp -a`, `tar`) must be no set-user-ID program.
    """
    found = EntryAttributes()
    found.st_ino = InodeT(ino)
    found.st_mode = ModeT(mode & ~_RIGHTS)
    found.st_nlink = nlink
    found.st_uid = options.uid
    found.st_gid = options.gid
    found.st_size = size
    found.st_blksize = 4096
    found.st_blocks = -(-size // BLOCK)
    found.st_atime_ns = mtime_ns
    found.st_mtime_ns = mtime_ns
    found.st_ctime_ns = mtime_ns if ctime_ns is None else ctime_ns
    found.entry_timeout = options.entry_timeout if timeout is None else timeout
    found.attr_timeout = options.attr_timeout if timeout is None else timeout
    return found


def absent(options: MountOptions) -> EntryAttributes:
    """The reply to a lookup of a name that isn't there, for the kernel to keep."""
    found = EntryAttributes()
    found.st_ino = InodeT(0)
    found.entry_timeout = options.entry_timeout
    found.attr_timeout = 0
    return found


def attributes_of(options: MountOptions, ino: int, backing: os.stat_result) -> EntryAttributes:
    """The attributes of a file that stands in the store's scratch area."""
    found = attributes(
        options,
        ino,
        backing.st_mode,
        size=backing.st_size,
        mtime_ns=backing.st_mtime_ns,
        ctime_ns=backing.st_ctime_ns,
        nlink=backing.st_nlink,
        timeout=options.scratch_timeout,
    )
    found.st_atime_ns = backing.st_atime_ns
    return found
