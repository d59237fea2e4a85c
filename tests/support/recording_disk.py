"""A disk that remembers: a FUSE file system of one file, which records every write and flush that it is asked for.

`python recording_disk.py MOUNTPOINT IMAGE RECORDS COUNT`. `MOUNTPOINT/disk` shows IMAGE, for a loop device to stand on:
what a file system on that device writes comes here, and its flushes (barriers, fsync) come as fsync. RECORDS gets one
record after another: `<kind, offset, length>` and the bytes written, kind 0 being a flush. COUNT is a file of 8 bytes,
mapped by whoever wants to know how many records there are: a record is counted before its request is answered, so what
a program has seen acknowledged by time T is within the count at T.

Concurrency: one request at a time.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyfuse3
import trio

RECORD: Final = struct.Struct("<BQI")
COUNT: Final = struct.Struct("<Q")
FLUSH, WRITE = 0, 1


@dataclass(frozen=True, slots=True)
class Record:
    """One write, or (without bytes) one flush."""

    offset: int
    data: bytes

    @property
    def is_flush(self) -> bool:
        return not self.data


def records(path: Path) -> Iterator[Record]:
    """All that were recorded."""
    with path.open("rb") as file:
        while header := file.read(RECORD.size):
            kind, offset, length = RECORD.unpack(header)
            yield Record(offset, file.read(length) if kind == WRITE else b"")


def main() -> None:  # noqa: C901 - its handlers
    mountpoint, image, recorded, count = sys.argv[1:]
    backing = os.open(image, os.O_RDWR)
    size = os.fstat(backing).st_size
    out = open(recorded, "wb", buffering=0)  # noqa: SIM115 - for as long as the process lives
    with open(count, "r+b") as file:
        counter = mmap.mmap(file.fileno(), COUNT.size)

    class Disk(pyfuse3.Operations):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        def _record(self, kind: int, offset: int, data: bytes) -> None:
            out.write(RECORD.pack(kind, offset, len(data)) + data)
            self.number += 1
            counter[:] = COUNT.pack(self.number)

        async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
            found = pyfuse3.EntryAttributes()
            found.st_ino = inode
            found.st_mode = stat.S_IFDIR | 0o700 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
            found.st_size = 0 if inode == pyfuse3.ROOT_INODE else size
            found.st_uid, found.st_gid = os.getuid(), os.getgid()
            found.attr_timeout = found.entry_timeout = 3600
            return found

        async def lookup(
            self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
        ) -> pyfuse3.EntryAttributes:
            if name != b"disk":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(pyfuse3.InodeT(2), ctx)

        async def setattr(
            self,
            inode: pyfuse3.InodeT,
            attr: pyfuse3.EntryAttributes,
            fields: pyfuse3.SetattrFields,
            fh: pyfuse3.FileHandleT | None,
            ctx: pyfuse3.RequestContext,
        ) -> pyfuse3.EntryAttributes:
            return await self.getattr(inode, ctx)

        async def open(
            self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
        ) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

        async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
            return os.pread(backing, size, off)

        async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
            os.pwrite(backing, buf, off)
            self._record(WRITE, off, buf)
            return len(buf)

        async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
            self._record(FLUSH, 0, b"")

        async def flush(self, fh: pyfuse3.FileHandleT) -> None:
            pass

        async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
            found = pyfuse3.StatvfsData()
            found.f_bsize = found.f_frsize = 4096
            found.f_blocks = size // 4096
            found.f_namemax = 255
            return found

    pyfuse3.init(Disk(), mountpoint, {"fsname=recording-disk", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
