"""The pyfuse3 adapter: a request's numbers become nodes and handles, errors become errno. Nothing else.

No exception but FUSEError leaves a handler: any other would end the session, with every client hanging. What nobody
expected is logged once, with its traceback, and becomes EIO.

Concurrency: pyfuse3 runs each handler as a task.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    PollHandle,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from fusefs.attributes import absent
from fusefs.errno_map import LOGGED, errno_of
from fusefs.listing import Listing
from fusefs.nodes.base import Change, Directory, Handle, Node, refuse
from fusefs.nodes.workspace_dir import PlaceDirectory
from store.errors import StoreError
from store.model import NAME_MAX

if TYPE_CHECKING:
    from fusefs.mount import Mount

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("chatfs")


def mapped(
    handler: Callable[Concatenate[ChatOperations, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ChatOperations, P], Coroutine[Any, Any, T]]:
    """The handler, with every error as FUSEError."""

    async def guarded(self: ChatOperations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except StoreError as error:
            if isinstance(error, LOGGED):
                log.error("%s: %s", handler.__name__, error)  # noqa: TRY400 - expected kinds: one line
            raise FUSEError(errno_of(error)) from error
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from error

    functools.update_wrapper(guarded, handler)
    return guarded


class ChatOperations(pyfuse3.Operations):
    """The handlers."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, mount: Mount) -> None:
        super().__init__()
        self._mount = mount
        self._announcer = mount.announcer
        self._inodes = mount.inodes
        self._restricted = mount.options.read_only or mount.options.append_only
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, Listing] = {}
        self._next = 0

    def init(self) -> None:
        """INIT was received; its reply follows."""
        self._mount.agreed.set()

    # ---- numbers to objects

    def _directory(self, ino: int) -> Directory:
        node = self._inodes.get(ino)
        if not isinstance(node, Directory):
            raise refuse(errno.ENOTDIR)
        return node

    def _handle(self, fh: int) -> Handle:
        return self._handles[fh]

    def _writable(self, thread: int) -> None:
        """What a request of that thread changes may be changed."""
        if self._restricted and not self._announcer.is_process(thread):
            raise refuse(errno.EROFS if self._mount.options.read_only else errno.EPERM)

    async def _own(self, node: Node, name: bytes = b"") -> None:
        """The node, or what is called so in a directory of chats, is about to be changed.

        A chat that is only in a project is taken into the store before.
        """
        projections = self._mount.projections
        if projections.externals:
            if name and isinstance(node, PlaceDirectory):
                node = await node.lookup(name)
            await projections.make_own(node)

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _opened(self, handle: Handle) -> FileInfo:
        number = self._number()
        self._handles[number] = handle
        return FileInfo(fh=FileHandleT(number), direct_io=handle.direct_io, keep_cache=handle.keep_cache)

    async def _entry(self, node: Node, thread: int = 0) -> EntryAttributes:
        # First, so that the kernel is told of what changes while the reply is made: then it doesn't keep what is older.
        node = self._inodes.looked_up(node)
        node.attributes_cached = True
        try:
            return await node.attributes_for(thread)
        except BaseException:
            self._inodes.forget(node.ino, 1)
            raise

    # ---- names

    @mapped
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """A name in a directory."""
        directory = self._directory(parent_inode)
        if self._announcer.is_process(ctx.pid):
            pretended = self._announcer.looked_up(directory, name)
            if pretended is not None:
                shown = await self._entry(pretended)
                # Should the announcement fail, the kernel mustn't go on believing this.
                shown.entry_timeout = 0
                return shown
        if name == b".":
            return await self._entry(directory)
        if name == b"..":
            return await self._entry(directory.parent or directory)
        if len(name) > NAME_MAX:
            raise refuse(errno.ENAMETOOLONG)
        if directory.seems_missing(name, ctx.pid):
            raise refuse(errno.ENOENT)
        try:
            node = await directory.lookup(name)
        except FUSEError as error:
            if error.errno == errno.ENOENT and directory.keeps_absent(name):
                return absent(self._mount.options)
            raise
        return await self._entry(node, ctx.pid)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """The kernel lets nodes go."""
        for ino, count in inode_list:
            self._inodes.forget(ino, count)

    @mapped
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """mkdir(2)."""
        self._writable(ctx.pid)
        directory = self._directory(parent_inode)
        if self._announcer.is_process(ctx.pid):
            return await self._entry(await self._announcer.made("mkdir", directory, name))
        await self._own(directory)
        with self._announcer.own((directory, name)), directory.making(name):
            return await self._entry(await directory.mkdir(name, self._mount.caller(ctx)))

    @mapped
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """mknod(2): regular files only."""
        self._writable(ctx.pid)
        if not stat.S_ISREG(mode):
            raise refuse(errno.EPERM)
        directory = self._directory(parent_inode)
        if self._announcer.is_process(ctx.pid):
            return await self._entry(await self._announcer.made("mknod", directory, name))
        await self._own(directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with self._announcer.own((directory, name)):
            with directory.making(name):
                node, handle = await directory.create(name, mode, flags, self._mount.caller(ctx))
            await handle.flush()
            await handle.release()
        return await self._entry(node)

    @mapped
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """open(2) with O_CREAT of a name that the kernel doesn't know."""
        self._writable(ctx.pid)
        if len(name) > NAME_MAX:
            raise refuse(errno.ENAMETOOLONG)
        directory = self._directory(parent_inode)
        await self._own(directory)
        with directory.making(name):
            node, handle = await directory.create(name, mode, flags, self._mount.caller(ctx))
        return self._opened(handle), await self._entry(node, ctx.pid)

    @mapped
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """symlink(2)."""
        self._writable(ctx.pid)
        await self._own(self._directory(parent_inode))
        return await self._entry(await self._directory(parent_inode).symlink(name, target, self._mount.caller(ctx)))

    @mapped
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """link(2): nothing here can have two names."""
        raise refuse(errno.EPERM)

    @mapped
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """unlink(2)."""
        self._writable(ctx.pid)
        directory = self._directory(parent_inode)
        if self._announcer.is_process(ctx.pid):
            await self._announcer.removed("unlink", directory, name)
            return
        with self._announcer.own((directory, name)):
            await directory.unlink(name, self._mount.caller(ctx))

    @mapped
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """rmdir(2)."""
        self._writable(ctx.pid)
        directory = self._directory(parent_inode)
        if self._announcer.is_process(ctx.pid):
            await self._announcer.removed("rmdir", directory, name)
            return
        with self._announcer.own((directory, name)):
            await directory.rmdir(name, self._mount.caller(ctx))

    @mapped
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """rename(2); RENAME_NOREPLACE is honoured, RENAME_EXCHANGE isn't."""
        self._writable(ctx.pid)
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise refuse(errno.EINVAL)
        if len(name_new) > NAME_MAX:
            raise refuse(errno.ENAMETOOLONG)
        source, target = self._directory(parent_inode_old), self._directory(parent_inode_new)
        if self._announcer.is_process(ctx.pid):
            await self._announcer.moved(source, name_old, target, name_new)
            return
        await self._own(source, name_old)
        await self._own(target)
        exclusive = flags & pyfuse3.RENAME_NOREPLACE and not target.seems_missing(name_new, ctx.pid)
        if exclusive and await self._mount.present(target, name_new) is not None:
            raise refuse(errno.EEXIST)
        with self._announcer.own((source, name_old), (target, name_new)), target.making(name_new):
            await source.rename(name_old, target, name_new, self._mount.caller(ctx))

    @mapped
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """readlink(2)."""
        return FileNameT(await self._inodes.get(inode).readlink())

    # ---- attributes

    @mapped
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """stat(2)."""
        node = self._inodes.get(inode)
        node.attributes_cached = True
        return await node.attributes_for(ctx.pid)

    @mapped
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """chmod(2), chown(2), truncate(2), utimensat(2)."""
        self._writable(ctx.pid)
        node = self._inodes.get(inode)
        if self._announcer.is_process(ctx.pid):
            return await self._announcer.touched(node)
        change = Change(
            mode=attr.st_mode & 0o777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
        )
        handle = None if fh is None else self._handles.get(fh)
        if change.size is not None or node.keeps_changes:
            await self._own(node)
        await node.change(change, self._mount.caller(ctx), handle)
        if not node.attributes_cached:
            # The kernel takes the mtime of this reply, and would later see no reason to drop pages that are older.
            self._mount.notifier.contents(node)
        node.attributes_cached = True
        found = await node.attributes_for(ctx.pid)
        # It takes them even if they changed while the reply was on its way: it shall ask for them again.
        found.attr_timeout = 0
        return found

    @mapped
    async def getxattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> bytes:
        """None are kept. ENOSYS makes the kernel stop asking: it would before every buffered write."""
        raise refuse(errno.ENOSYS)

    @mapped
    async def setxattr(self, inode: InodeT, name: FileNameT, value: bytes, ctx: RequestContext) -> None:
        """None are kept."""
        raise refuse(errno.EOPNOTSUPP)

    @mapped
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[FileNameT]:
        """None are kept."""
        return []

    @mapped
    async def removexattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """None are kept."""
        raise refuse(errno.EOPNOTSUPP)

    @mapped
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """statfs(2): the store's disk, or the quota of the workspace that the mount shows."""
        found = StatvfsData()
        block, blocks, free, available = await self._mount.room()
        found.f_bsize = found.f_frsize = block
        found.f_blocks, found.f_bfree, found.f_bavail = blocks, free, available
        found.f_files = found.f_ffree = found.f_favail = 1 << 32
        found.f_namemax = NAME_MAX
        return found

    # ---- files

    @mapped
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """open(2) of a file that is there."""
        node = self._inodes.get(inode)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            if self._restricted and not node.may_grow(flags):
                self._writable(ctx.pid)
            await self._own(node)
        return self._opened(await node.open(flags, self._mount.caller(ctx)))

    @mapped
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """read(2), where the kernel has no pages."""
        return await self._handle(fh).read(off, size)

    @mapped
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """write(2)."""
        self._announcer.busy()
        return await self._handle(fh).write(off, buf)

    @mapped
    async def poll(self, inode: InodeT, fh: FileHandleT, poll_handle: PollHandle | None, ctx: RequestContext) -> int:
        """poll(2), select(2), epoll_wait(2)."""
        return await self._handle(fh).poll(poll_handle, ctx.pid)

    @mapped
    async def flush(self, fh: FileHandleT) -> None:
        """close(2), of any descriptor for the handle."""
        await self._handle(fh).flush()

    @mapped
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """fsync(2), fdatasync(2)."""
        handle = self._handle(fh)
        await handle.sync()
        await self._mount.projections.flush(handle.node)

    @mapped
    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor is closed."""
        self._announcer.busy()
        await self._handles.pop(fh).release()

    # ---- directories

    @mapped
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """opendir(3)."""
        number = self._number()
        self._listings[number] = Listing(self._inodes, self._directory(inode))
        return FileHandleT(number)

    @mapped
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Names with full attributes, from the `start_id`th on."""
        await self._listings[fh].reply(start_id, token)

    @mapped
    async def releasedir(self, fh: FileHandleT) -> None:
        """closedir(3)."""
        del self._listings[fh]

    @mapped
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """fsync(2) of a directory: what was named in it is in a log."""
        directory = self._listings[fh].directory
        await self._mount.projections.settle_removals(directory)
        await directory.sync()
