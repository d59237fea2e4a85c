"""One attachment: a file whose bytes are a blob, and the draft of those that aren't committed yet.

Closing a written file commits it. A file of which a write failed isn't committed: nobody asked for one with a hole.

Concurrency: as in `fusefs.nodes.projected`: a commit holds the file's lock, and writes may come meanwhile.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from typing import TYPE_CHECKING

import trio
from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.callers import still_open
from fusefs.nodes.base import Change, Directory, Handle, InView, refuse
from store import attaching
from store.errors import BlobNotFound, CorruptBlob, StoreError
from store.model import Attachment, AttachmentId, BlobRef, Digest
from store.turns import take

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.views import ChatView
    from store.driver import Staging
    from store.fold import ChatState

SIZE_MAX = 64 << 30
"""Bytes in an attachment: a sparse file costs a hash for each of its chunks, empty or not."""


class AttachmentFile(InView):
    """One attachment, by its id: a rename keeps the inode. `staging` holds bytes that aren't committed."""

    __slots__ = (
        "_charged",
        "_lost",
        "_mode",
        "_mtime_ns",
        "_shown",
        "_told",
        "_writes",
        "asked",
        "changing",
        "dirty",
        "gone",
        "handles",
        "id",
        "lock",
        "staging",
        "touched_ns",
        "view",
    )

    view: ChatView
    keeps_changes = True

    def __init__(self, mount: Mount, view: ChatView, attachment: AttachmentId, parent: Directory, name: bytes) -> None:
        super().__init__(mount, f"{view.identity}/attachment/{attachment}", parent, name)
        self.view = view
        self.id = attachment
        self.staging: Staging | None = None
        self.dirty = False
        self.handles = 0
        self.changing = False
        """Whether a chmod(2) or utimensat(2) of it is under way."""
        self.gone: Attachment | None = None
        """What it was when its name was removed; open handles still read that."""
        self._mode: int | None = None
        self._mtime_ns: int | None = None
        self.touched_ns = 0
        self._charged = 0
        """What size of the draft the quota knows of."""
        self._writes = 0
        """How often the draft was changed."""
        self._lost: tuple[int, StoreError] | None = None
        """Where a write failed, and with what: a file with a hole isn't committed."""
        self.asked = False
        """Whether attributes were asked for since the last write: it makes the kernel forget size and times."""
        self._shown: BlobRef | None = None
        """The bytes that the kernel may have pages of; None: it may have others."""
        self._told: Digest | None = None
        """The bytes that can't be read, where that has been said."""
        self.lock = trio.Lock()
        """Held while it is committed, and while it loses its name."""

    async def attachment(self) -> Attachment | None:
        """What the log says of it, under whatever name; None where it was never committed."""
        if self.gone is not None:
            return self.gone
        if self.view.pending.get(self.name) is self:
            return None
        state = await self.view.chat.load()
        named = self._named(state)
        return named or next((other for other in state.attachments.values() if other.id == self.id), None)

    def _named(self, state: ChatState) -> Attachment | None:
        """What is called as this file is, if it is this one."""
        found = state.attachments.get(self.name.decode(errors="replace"))
        return found if found is not None and found.id == self.id else None

    def _known(self) -> Attachment | None:
        """What the log said of it, under its name, when the kernel was last told; None where that isn't at hand.

        Who opens the file has a look, and what changes later drops the kernel's pages.
        """
        state = self.view.chat.space.state
        return None if state is None or self.gone is not None else self._named(state)

    async def lose_name(self) -> Attachment | None:
        """Its name is removed, or means another file now; what it was, None where it was never committed."""
        found = await self.attachment()
        self.gone = found or Attachment(self.id, self.name.decode(), Digest(""), 0, "", 0)
        if self.view.pending.get(self.name) is self:
            del self.view.pending[self.name]
        return found

    async def attributes(self) -> EntryAttributes:
        found = await self.attachment()
        self.asked = True
        staging = self.staging
        if found is None and staging is None:
            raise refuse(errno.ENOENT)
        self._shown = found.ref if found is not None and staging is None else None
        mode = self._mode if self._mode is not None else found.mode if found is not None else None
        mtime_ns = self._mtime_ns
        if mtime_ns is None:
            mtime_ns = self.touched_ns if self.dirty or found is None else found.mtime_ns
        return attributes(
            self.mount.options,
            self.ino,
            self.mount.options.file_mode if mode is None else stat.S_IFREG | mode,
            size=staging.size if staging is not None else found.size if found is not None else 0,
            mtime_ns=mtime_ns,
            nlink=0 if self.gone is not None else 1,
        )

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        self.check_owner(change)
        if change.size is not None:
            if change.size > SIZE_MAX:
                raise refuse(errno.EFBIG)
            await self._truncate(change.size)
            if self._lost is not None and change.size <= self._lost[0]:
                self._lost = None
            self._touch()
            if not self.handles:
                await self.commit(caller.actor)
        mode = None if change.mode is None else change.mode & 0o777
        if mode is None and change.mtime_ns is None:
            return
        if self.staging is not None or self.handles:
            self._mode = self._mode if mode is None else mode
            self._mtime_ns = self._mtime_ns if change.mtime_ns is None else change.mtime_ns
            if self.staging is not None:
                return
        found = await self.attachment()
        if found is not None and self.gone is None:
            self.changing = True
            try:
                await self.view.chat.change_attachment(found.name, caller.actor, mode=mode, mtime_ns=change.mtime_ns)
            finally:
                self.changing = False
            self._mode = self._mtime_ns = None

    async def _truncate(self, size: int) -> None:
        staging = await self.stage(empty=size == 0)
        while size and self.view.quota.limited:
            async with self.view.quota.taking(lambda: self._growth(size)):
                if self.staging is staging:  # it wasn't committed meanwhile
                    staging.truncate(size)
                    self._charged = size
                    break
            staging = await self.stage()
        else:
            staging.truncate(size)
            self._charged = min(self._charged, size)
        self._changed()

    async def stage(self, *, empty: bool = False) -> Staging:
        """The draft to write to; `empty` if nothing of the present bytes is kept."""
        if self.staging is None:
            found = None if empty else await self.attachment()
            if self.staging is None:
                name = self.name.decode(errors="replace")
                self.staging = self.view.chat.stage(name, None if found is None else found.digest)
                self._charged = 0
        return self.staging

    async def begin(self, mode: int) -> None:
        """It is new: an empty draft."""
        await self.stage(empty=True)
        self._touch()
        permissions = mode & 0o777
        self._mode = permissions if permissions & 0o111 else None

    def _touch(self) -> None:
        self.dirty = True
        self._mtime_ns = None
        self.touched_ns = max(self.touched_ns + 1, time.time_ns())

    async def write(self, offset: int, data: bytes) -> int:
        """Take bytes into the draft. Raises QuotaExceeded, StoreFull: it isn't committed until that is repeated."""
        end = offset + len(data)
        if end > SIZE_MAX:
            raise refuse(errno.EFBIG)
        self._touch()
        try:
            if self.view.quota.limited:
                taken = await self._write_within(offset, data)
            else:
                # Only now: another handle's last close may have committed the draft meanwhile.
                taken = self._write(self.staging or await self.stage(), offset, data)
        except StoreError as error:
            self._lost = self._lost or (offset, error)
            raise
        if self._lost is not None and offset <= self._lost[0] < end:
            self._lost = None
        self.asked = False
        return taken

    async def _write_within(self, offset: int, data: bytes) -> int:
        while True:
            staging = await self.stage()
            async with self.view.quota.taking(lambda: self._growth(offset + len(data))):
                if self.staging is staging:  # it wasn't committed meanwhile
                    return self._write(staging, offset, data)

    def _write(self, staging: Staging, offset: int, data: bytes) -> int:
        taken = staging.write(offset, data)
        self._charged = max(self._charged, staging.size)
        self._changed()
        return taken

    def _changed(self) -> None:
        self._writes += 1
        self.dirty = True

    def _growth(self, end: int) -> int:
        """Bytes that a draft which reaches to `end` takes, and that aren't charged: the first change takes all."""
        return max(0, end, 0 if self.staging is None else self.staging.size) - self._charged

    async def read(self, offset: int, size: int) -> bytes:
        """The draft's bytes, or the blob's."""
        if self.staging is not None:
            return self.staging.read(offset, size)
        found = self._known() or await self.attachment()
        if found is None:
            raise refuse(errno.ESTALE)
        try:
            return await self.view.chat.workspace.driver.blobs.read(found.digest, offset, size)
        except (BlobNotFound, CorruptBlob) as error:
            # One read(2) is several requests.
            if self._told == found.digest:
                raise refuse(errno.EIO) from error
            self._told = found.digest
            raise self.view.chat.unreadable(found.name, error) from error

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.view.check_sound()
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            staging = await self.stage(empty=True)
            if staging.size:
                staging.truncate(0)
            self._charged = 0
            self._changed()
            self._touch()
        elif self.staging is None:
            await self.view.chat.load()  # for `_known`
        self.handles += 1
        return AttachmentHandle(self, flags, caller)

    async def settle(self) -> None:
        await self.commit("chatfs")

    async def commit(self, actor: str) -> None:
        """Make the draft an attachment, if there is anything to commit."""
        await take(self.lock)
        try:
            staging = self.staging
            if staging is None or not self.dirty or self.gone is not None:
                return
            if self._lost is not None:
                raise self._lost[1]
            self.dirty = False
            mode, mtime_ns = self._mode, self._mtime_ns
            # What is charged becomes the blob: of a draft that goes on, all is charged again.
            charged, self._charged = self._charged, 0
            try:
                present = await self.attachment()
                await attaching.commit(
                    self.view.chat,
                    self.name.decode(),
                    staging,
                    actor,
                    mode=mode,
                    mtime_ns=mtime_ns,
                    identity=None if present else self.id,
                    durable=self.mount.strict,
                    done=functools.partial(self._committed, staging, self._writes),
                )
            except BaseException:
                self.dirty = True
                self._charged = max(self._charged, charged)
                raise
            self._notify_attributes()
        finally:
            self.lock.release()

    async def _committed(self, staging: Staging, writes: int) -> None:
        """The log has it. What was written meanwhile awaits the next commit."""
        self.view.pending.pop(self.name, None)
        self._told = None
        if self._writes == writes:
            self.dirty = False
            self._mode = self._mtime_ns = None
            self.staging = None
            await staging.discard()

    def _notify_attributes(self) -> None:
        """Its own commit changed the times: news only to a kernel that has asked since the last write."""
        if self.asked:
            self.mount.notifier.attributes(self)

    async def closed(self, actor: str) -> None:
        """A handle was released. What can't be committed at the last close is kept as a scratch file."""
        self.handles -= 1
        if self.handles:
            return
        whole, self._lost = self._lost is None, None
        try:
            if whole and self.dirty:
                await self.commit(actor)
                await self.mount.synced(self.view.sync)
        except StoreError as error:
            name = self.name.decode(errors="replace")
            self.mount.log.error("attachment %s couldn't be stored at its last close: %s", name, error)  # noqa: TRY400
        staging, self.staging = self.staging, None
        self._mode = self._mtime_ns = None
        if staging is not None:
            if self.dirty and self.gone is None and whole:
                try:
                    # The draft's bytes are charged.
                    async with self.view.quota.taking(int):
                        await self.mount.keep_staging(self.view.scratch, f"{self.name.decode()}.recovered", staging)
                        await staging.discard()
                except OSError as error:
                    self.mount.log.error("its bytes stay a draft until the next mount: %s", error)  # noqa: TRY400
                    self.mount.unkept.append(staging)
            self.dirty = False
            if staging not in self.mount.unkept:
                await staging.discard()
            self.mount.notifier.contents(self)
            if self.view.pending.get(self.name) is self:
                # It never came to be: the kernel, too, must forget the name.
                del self.view.pending[self.name]
                assert self.parent is not None
                self.mount.notifier.entry(self.parent, self.name)
                self.mount.notifier.attributes(self.parent)

    def log_moved(self, found: Attachment | None) -> None:
        """What the log says of it is `found` now: by this file's own commit, or otherwise."""
        if self.lock.locked():
            self._notify_attributes()
        elif found is None or found.ref == self._shown:
            self.mount.notifier.attributes(self)
        else:
            self.mount.notifier.contents(self)


class AttachmentHandle(Handle):
    """An open attachment."""

    __slots__ = ("file", "unsynced")

    def __init__(self, file: AttachmentFile, flags: int, caller: Caller) -> None:
        super().__init__(file, flags, caller)
        self.file = file
        self.unsynced = False

    async def read(self, offset: int, size: int) -> bytes:
        return await self.file.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        if not self.writable:
            raise refuse(errno.EBADF)
        self.unsynced = True
        if self.appending:
            offset = (self.file.staging or await self.file.stage()).size
        return await self.file.write(offset, data)

    async def flush(self) -> None:
        if not self.writable:
            return
        # A duplicate's close (a shell's, or that of one which a fork inherited) comes before the file is whole. Where
        # that can't be told, a file that was only created or truncated commits when the handle goes.
        alone = self.file.handles == 1 and self.caller.process > 0
        open_still = still_open(self.caller.process, self.file.ino) if alone else None
        if not alone:
            self.file.asked = True  # another handle's write may not be over for the kernel
        if not open_still and (self.unsynced or (open_still is False and self.file.dirty)):
            await self.file.commit(self.caller.actor)
            self.unsynced = False
            await self.file.mount.synced(self.file.view.sync)

    async def sync(self) -> None:
        self.file.asked = True
        await self.file.commit(self.caller.actor)
        self.unsynced = False
        await self.file.mount.fsynced(self.file.view.sync)

    async def release(self) -> None:
        await self.file.closed(self.caller.actor)
