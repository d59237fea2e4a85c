"""Scratch files: editors' swap, backup, lock and temporary files. Kept in the store's scratch area, never logged."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes_of
from fusefs.nodes.base import Change, Directory, Handle, Node, refuse
from fusefs.scratch import identity
from store import unlinked
from store.errors import StoreError

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.scratch import ScratchArea
    from store.quota import Quota


class ScratchFile(Node):
    """A regular file or a symbolic link in a scratch area. Its identity is the backing file's inode."""

    __slots__ = ("area", "backing", "handles", "quota")

    def __init__(
        self,
        mount: Mount,
        area: ScratchArea,
        backing: os.stat_result,
        parent: Directory,
        name: bytes,
        quota: Quota,
    ) -> None:
        super().__init__(mount, identity(area.path(name), backing), parent, name)
        self.area = area
        self.backing = (backing.st_dev, backing.st_ino)
        self.handles: list[ScratchHandle] = []
        self.quota = quota
        """What its bytes count for."""

    async def attributes(self) -> EntryAttributes:
        backing = self.area.stat(self.name)
        if backing is None or (backing.st_dev, backing.st_ino) != self.backing:
            if not self.handles:
                raise refuse(errno.ENOENT)
            backing = os.fstat(self.handles[0].descriptor)
        return attributes_of(self.mount.options, self.ino, backing)

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        self.check_owner(change)
        if isinstance(handle, ScratchHandle):
            target: int | bytes = handle.descriptor
        elif self.handles:
            target = self.handles[0].descriptor
        else:
            target = self.area.path(self.name)
        if change.size is not None:
            if not isinstance(handle, ScratchHandle) or not handle.writable:
                descriptor = self.area.open(self.name, os.O_WRONLY)
                try:
                    await self._truncate(descriptor, change.size)
                finally:
                    os.close(descriptor)
            else:
                await self._truncate(handle.descriptor, change.size)
        if change.mode is not None:
            if isinstance(target, int):
                os.fchmod(target, change.mode)
            else:
                self.area.chmod(self.name, change.mode)
        if change.mtime_ns is not None or change.atime_ns is not None:
            now = os.stat(target) if isinstance(target, int) else os.lstat(target)
            times = (
                now.st_atime_ns if change.atime_ns is None else change.atime_ns,
                now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns,
            )
            if isinstance(target, int):
                os.utime(target, ns=times)
            else:
                os.utime(target, ns=times, follow_symlinks=False)

    def loses_name(self) -> None:
        """Its name is about to be removed, or to mean another file: who has it open keeps its bytes, which count."""
        if self.quota.limited and self.area.is_file(self.name):
            # Where the disk is full, it must be possible to remove it all the same.
            with contextlib.suppress(OSError, StoreError):
                unlinked.keep(self.area.directory.parent, self.area.path(self.name))

    def closed(self, handle: ScratchHandle) -> None:
        """A handle is released."""
        self.handles.remove(handle)
        try:
            nameless = os.fstat(handle.descriptor).st_nlink and not self._has_name()
        finally:
            os.close(handle.descriptor)
        if nameless and not self.handles:
            unlinked.sweep(self.area.directory.parent)

    def _has_name(self) -> bool:
        backing = self.area.stat(self.name)
        return backing is not None and (backing.st_dev, backing.st_ino) == self.backing

    async def _truncate(self, descriptor: int, size: int) -> None:
        async with self.quota.taking(lambda: max(0, size - os.fstat(descriptor).st_size)):
            os.ftruncate(descriptor, size)

    async def open(self, flags: int, caller: Caller) -> Handle:
        return ScratchHandle(self, self.area.open(self.name, flags & ~os.O_CREAT), flags, caller)

    async def readlink(self) -> bytes:
        return os.readlink(self.area.path(self.name))


class ScratchHandle(Handle):
    """An open scratch file."""

    __slots__ = ("descriptor", "file")

    def __init__(self, file: ScratchFile, descriptor: int, flags: int, caller: Caller) -> None:
        super().__init__(file, flags, caller)
        self.file = file
        self.descriptor = descriptor
        unlinked.hold(descriptor)
        file.handles.append(self)

    async def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    async def write(self, offset: int, data: bytes) -> int:
        quota = self.file.quota
        if not quota.limited:
            return self._write(offset, data)
        async with quota.taking(lambda: max(0, self._offset(offset) + len(data) - os.fstat(self.descriptor).st_size)):
            return self._write(offset, data)

    def _offset(self, offset: int) -> int:
        return os.fstat(self.descriptor).st_size if self.appending else offset

    def _write(self, offset: int, data: bytes) -> int:
        return os.pwrite(self.descriptor, data, self._offset(offset))

    async def sync(self) -> None:
        await self.node.mount.in_thread(os.fsync, self.descriptor)

    async def release(self) -> None:
        self.file.closed(self)
