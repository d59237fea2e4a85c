"""Scratch files: editors' swap, backup, lock and temporary files. Kept in the store's scratch area, never logged."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes_of
from fusefs.nodes.base import Change, Directory, Handle, Node, refuse
from fusefs.scratch import identity

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.scratch import ScratchArea


class ScratchFile(Node):
    """A regular file or a symbolic link in a scratch area. Its identity is the backing file's inode."""

    __slots__ = ("area", "backing", "handles")

    def __init__(
        self, mount: Mount, area: ScratchArea, backing: os.stat_result, parent: Directory, name: bytes
    ) -> None:
        super().__init__(mount, identity(area.path(name), backing), parent, name)
        self.area = area
        self.backing = (backing.st_dev, backing.st_ino)
        self.handles: list[ScratchHandle] = []

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
            if change.size > (backing.st_size if (backing := self.area.stat(self.name)) else 0):
                await self.require_room(change.size)
            if not isinstance(handle, ScratchHandle) or not handle.writable:
                descriptor = self.area.open(self.name, os.O_WRONLY)
                try:
                    os.ftruncate(descriptor, change.size)
                finally:
                    os.close(descriptor)
            else:
                os.ftruncate(handle.descriptor, change.size)
        if change.mode is not None and (isinstance(target, int) or not stat.S_ISLNK(os.lstat(target).st_mode)):
            os.chmod(target, change.mode & 0o7777)
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

    async def require_room(self, size: int) -> None:
        """Raises QuotaExceeded where the workspace has no room for `size` bytes more."""
        view = getattr(self.parent, "view", None)
        if view is not None:
            await view.workspace.check_quota(size)

    async def open(self, flags: int, caller: Caller) -> Handle:
        return ScratchHandle(self, self.area.open(self.name, flags & ~os.O_CREAT), flags, caller)

    async def readlink(self) -> bytes:
        return os.readlink(self.area.path(self.name))


class ScratchHandle(Handle):
    """An open scratch file."""

    __slots__ = ("_checked", "descriptor", "file")

    def __init__(self, file: ScratchFile, descriptor: int, flags: int, caller: Caller) -> None:
        super().__init__(file, flags, caller)
        self.file = file
        self.descriptor = descriptor
        self._checked = os.fstat(descriptor).st_size
        file.handles.append(self)

    async def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    async def write(self, offset: int, data: bytes) -> int:
        if self.appending:
            offset = os.fstat(self.descriptor).st_size
        end = offset + len(data)
        if end > self._checked:
            await self.file.require_room(end - self._checked)
            self._checked = end
        return os.pwrite(self.descriptor, data, offset)

    async def sync(self) -> None:
        await self.node.mount.in_thread(os.fsync, self.descriptor)

    async def release(self) -> None:
        self.file.handles.remove(self)
        os.close(self.descriptor)
