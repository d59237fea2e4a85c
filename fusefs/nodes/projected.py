"""Files that show a projection of the log, and whose saved bytes become events: history.md, chat.json, workspace.json.

What a process writes goes to a draft of its own: it alone reads that, and everybody else what is committed, so that no
program ever takes half a save for the file, and two that save at once don't write into each other's text. Closing (or
fsync, or a rename over the file) commits the draft: the subclass turns the bytes into events. Where that fails for good
(not UTF-8, not JSON) the bytes are kept beside the file as `NAME.rejected-N`, and the file shows what it showed before.

Writing handles are `direct_io`, and so are reading ones that are opened while there is a draft, or while the file is
lively: the kernel's pages hold nothing but committed text that has come to rest.

Concurrency: `_lock` is held while a draft is begun or committed; writes may come meanwhile, and stay in the draft. A
last close that commits is awaited by whoever looks at the file next (`_settled`).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.callers import process_of, still_open
from fusefs.drafts import Draft
from fusefs.nodes.base import Change, Directory, Handle, InView, refuse
from store.errors import InvalidInput, QuotaExceeded, StoreError

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.views import ChatView, WorkspaceView
    from store.driver import Staging
    from store.fold import ChatState
    from store.metadata import Wanted
    from store.model import Seq

Base: TypeAlias = "Seq | ChatState | Wanted | None"
"""What a writer has before it: of history.md the log's seq then, or the state as it sees it after a merge; of the
others the values. None: no matter.
"""

READERS_SECONDS: Final = 0.05
"""How long a save waits for others to close the file that they read."""

log = logging.getLogger(__name__)


SIZE_MAX = 1 << 30
"""Bytes that may be saved at once: a save is compared in memory."""


class ProjectedFile(InView):
    """A projected, editable file. Subclasses say what it shows and what a save means."""

    __slots__ = ("_beginning", "_closing", "_left", "_lock", "_moves", "_saving", "_told", "drafts", "handles", "view")

    view: ChatView | WorkspaceView

    size_max = SIZE_MAX
    counted = True
    """Whether its drafts take room of the quota."""

    def __init__(self, mount: Mount, view: ChatView | WorkspaceView, parent: Directory, name: bytes) -> None:
        super().__init__(mount, f"{view.identity}/{name.decode()}", parent, name)
        self.view = view
        self.drafts: dict[int, Draft] = {}
        """Uncommitted bytes, by who wrote them: a process, or a handle where the process can't be known."""
        self.handles: list[ProjectedHandle] = []
        self._beginning = 0
        self._closing = 0
        self._saving = False
        self._moves = 0
        """How often the log moved while a save was under way: its own events are one move."""
        self._told: Base = None
        """As of what the kernel was last told the size: until it is told to ask again, it shows no more than that."""
        self._left = trio.Event()
        self._lock = trio.Lock()

    # ---- for subclasses

    async def shown_size(self) -> tuple[int, int]:
        """The projection's size in bytes, and its mtime in nanoseconds."""
        raise NotImplementedError

    async def shown(self, offset: int, size: int) -> bytes:
        """A range of the projection."""
        raise NotImplementedError

    async def save(self, saved: bytes, draft: Draft) -> None:
        """Turn bytes into events; leaves in `draft.base` what its writer now has before it."""
        raise NotImplementedError

    def stage(self, *, counted: bool = True) -> Staging:
        """Where a draft's bytes go; `counted` as `Chat.stage` has it."""
        raise NotImplementedError

    async def present(self) -> Base:
        """What a writer has before it who opens the file now."""
        return None

    async def last_read(self, process: int) -> Base:
        """What `process` last read: its next save of a whole new text is compared with that."""
        return await self.present()

    async def is_lively(self) -> bool:
        """Whether it is likely to change while it is read: then it isn't read through the kernel's cache.

        The kernel takes in that a file has grown in two steps, the size and then the pages. Who reads in between gets
        NUL bytes.
        """
        return True

    async def text_of(self, base: Base) -> bytes | None:
        """The text at `base`; None where that is what the file shows."""
        return None

    def was_read(self, process: int, base: Base) -> None:
        """`process` has read the file as of `base`."""

    # ---- the file

    def announce(self) -> None:
        """What it shows changed. What a process writes here the kernel reports by itself."""
        if self._saving:
            self._moves += 1
        else:
            self.mount.announcer.modified(self)

    async def attributes(self) -> EntryAttributes:
        return await self.attributes_for(0)

    async def attributes_for(self, thread: int) -> EntryAttributes:
        await self._settled()
        self._told = await self.present()
        size, mtime_ns = await self.shown_size()
        if not self.drafts:
            return attributes(self.mount.options, self.ino, self.mount.options.file_mode, size=size, mtime_ns=mtime_ns)
        process = process_of(thread)
        draft = self.drafts.get(process)
        # The kernel has one size for all: while another process may be reading through its cache, it must be right.
        if draft is not None and not any(handle.cached_by_other(process) for handle in self.handles):
            size = draft.staging.size + (size if draft.partial else 0)
            mtime_ns = max(mtime_ns, draft.mtime_ns)
        return attributes(
            self.mount.options, self.ino, self.mount.options.file_mode, size=size, mtime_ns=mtime_ns, timeout=0
        )

    async def _readers_left(self, key: int) -> None:
        """Wait, for a moment, until nobody else reads through the kernel's cache.

        An O_TRUNC makes the kernel's size of the file 0 for every process, and a read that is on its way then may find
        the file empty. Who reads, closes soon; who doesn't, as tail(1), isn't waited for again.
        """
        with trio.move_on_after(READERS_SECONDS) as patience:
            while any(handle.cached_by_other(key) and not handle.lasting for handle in self.handles):
                await self._left.wait()
        if patience.cancelled_caught:
            for handle in self.handles:
                handle.lasting = True

    async def _settled(self) -> None:
        while self._closing:
            async with self._lock:
                pass

    async def read(self, key: int, offset: int, size: int) -> bytes:
        """What a reader sees: its own draft, if it has one."""
        draft = self.drafts.get(key)
        if draft is None:
            await self._settled()
            return await self.shown(offset, size)
        if not draft.partial:
            return draft.staging.read(offset, size)
        before, _ = await self.shown_size()
        head = await self.shown(offset, size) if offset < before else b""
        return head + draft.staging.read(max(0, offset - before), size - len(head))

    async def draft_for(
        self,
        key: int,
        caller: Caller,
        base: Base,
        *,
        partial: bool = False,
        empty: bool = False,
        counted: bool = True,
    ) -> Draft:
        """The draft to write to: `partial` if only its end will be written, `empty` if nothing of the file is kept."""
        counted = counted and self.counted
        if not partial and key not in self.drafts:
            self._beginning += 1
            try:
                await self._readers_left(key)
            finally:
                self._beginning -= 1
        async with self._lock:
            draft = self.drafts.get(key)
            if draft is None:
                draft = Draft(self.stage(counted=counted), caller, partial=partial, base=base, counted=counted)
                if not partial and not empty:
                    await self._fill(draft, await self.text_of(base))
                self.drafts[key] = draft
            elif draft.partial and not partial:
                whole = Draft(self.stage(counted=counted), caller, base=await self.present(), counted=counted)
                if not empty:
                    await self._fill(whole, None, draft.staging.read(0, draft.staging.size))
                whole.written = draft.written
                await draft.discard()
                self.drafts[key] = draft = whole
            return draft

    async def _fill(self, draft: Draft, text: bytes | None, rest: bytes = b"") -> None:
        """Begin a draft with `text` (None: what the file shows), and `rest` behind it."""
        staging = draft.staging
        size = (await self.shown_size())[0] if text is None else len(text)
        async with draft.reaching(self.view.quota, lambda: size + len(rest)):
            if text is not None:
                staging.write(0, text)
            while text is None and staging.size < size:
                piece = await self.shown(staging.size, min(1 << 20, size - staging.size))
                if not piece:
                    break
                staging.write(staging.size, piece)
            staging.write(staging.size, rest)

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        self.check_owner(change)
        if change.size is None:
            return
        if change.size > self.size_max:
            raise refuse(errno.EFBIG)
        if isinstance(handle, ProjectedHandle):
            await handle.truncate(change.size)
            return
        key = caller.process
        base = await (self.last_read(key) if change.size == 0 else self.present())
        draft = await self.draft_for(key, caller, base, empty=change.size == 0)
        await draft.resize(self.view.quota, change.size)
        if not any(handle.key == key and handle.writable for handle in self.handles):
            await self.commit(key, emptied=True)

    async def open(self, flags: int, caller: Caller) -> Handle:
        await self._settled()
        handle = ProjectedHandle(self, flags, caller)
        if handle.writable:
            await self.present()
            self.view.check_sound()
        if handle.writable and flags & os.O_TRUNC:
            handle.base = await self.last_read(caller.process)
            await handle.truncate(0)
        else:
            handle.base = await self.present()
        lively = handle.writable or await self.is_lively()
        # From here on nothing is waited for: who begins a draft then finds this handle.
        # A write past its cache makes the kernel ignore the size that it is told meanwhile: it would cut reads short.
        written = any(other.writable for other in self.handles)
        handle.direct_io = lively or written or bool(self.drafts or self._beginning)
        if not handle.writable:
            if not handle.direct_io and self.attributes_cached and self._told is not None:
                handle.base = self._told
            self.was_read(caller.process, handle.base)
        self.handles.append(handle)
        return handle

    async def replace(self, caller: Caller, pieces: Iterable[bytes]) -> None:
        """Save a whole new text at once, whose bytes are charged as what they stand in now."""
        key = caller.process or -id(pieces)
        draft = await self.draft_for(key, caller, await self.last_read(caller.process), empty=True, counted=False)
        draft.truncate(0)
        try:
            for piece in pieces:
                draft.write(draft.staging.size, piece)
            await self.commit(key, emptied=True)
        except BaseException:
            if self.drafts.get(key) is draft:
                await self._drop(key)
            raise

    async def settle(self) -> None:
        for key in list(self.drafts):
            await self.commit(key, emptied=True)

    async def commit(self, key: int, *, emptied: bool = False) -> None:
        """Make events of a draft. With `emptied`, also of one that was only truncated."""
        async with self._lock:
            draft = self.drafts.get(key)
            if draft is None or not (draft.written or (draft.emptied and emptied)):
                return
            saved = draft.take()
            self._saving, self._moves = True, 0
            try:
                await self.save(saved, draft)
            except InvalidInput as error:
                try:
                    what = f"its bytes are kept as {await self._keep('rejected', draft, saved)}"
                except QuotaExceeded as full:
                    what = f"its bytes aren't kept: {full}"
                log.warning("a save of %s was refused (%s); %s", self.name.decode(), error, what)
                await self._drop(key)
                raise
            except BaseException:
                draft.put_back()
                raise
            finally:
                self._saving = False
                if self._moves > 1:
                    self.announce()
                self.mount.notifier.attributes(self)
            for handle in self.handles:
                if handle.key == key:
                    handle.base = draft.base
            if not draft.dirty:
                await self._drop(key)
            elif draft.partial:
                # What was just saved is in the file now; what came meanwhile is all that is left to add.
                rest = draft.staging.read(len(saved), draft.staging.size)
                draft.staging.truncate(0)
                draft.staging.write(0, rest)

    async def _keep(self, why: str, draft: Draft, data: bytes) -> str:
        """Keep what can't be saved as a scratch file, in place of its draft. Raises OSError, QuotaExceeded."""
        async with self.view.quota.taking(lambda: 0 if draft.counted else len(data)):
            kept = self.view.scratch.keep(f"{self.name.decode()}.{why}", data)
            await draft.discard()
        return kept

    async def _drop(self, key: int) -> None:
        await self.drafts.pop(key).discard()

    async def closed(self, handle: ProjectedHandle) -> None:
        """A handle was released. A writer's last one commits what is left, or leaves it to be recovered."""
        self.handles.remove(handle)
        self._left.set()
        self._left = trio.Event()
        key = handle.key
        if key not in self.drafts or any(other.key == key and other.writable for other in self.handles):
            return
        self._closing += 1
        try:
            await self._finish(key)
        finally:
            self._closing -= 1

    async def _finish(self, key: int) -> None:
        name = self.name.decode()
        if not self.drafts[key].told:
            try:
                await self.commit(key, emptied=True)
            except StoreError as error:
                log.error("%s couldn't be saved at its last close: %s", name, error)  # noqa: TRY400
        async with self._lock:
            draft = self.drafts.get(key)
            if draft is None:
                return
            if draft.dirty and draft.staging.size:
                try:
                    log.error("its bytes are kept as %s", await self._keep("recovered", draft, draft.rescued()))
                except (OSError, QuotaExceeded) as error:
                    log.error("its bytes stay a draft until the next mount: %s", error)  # noqa: TRY400
                    self.mount.unkept.append(draft.staging)
                    del self.drafts[key]
            if key in self.drafts:
                await self._drop(key)
            self.mount.notifier.attributes(self)

    async def sync(self, key: int) -> None:
        """fsync: commit, then wait for the disk."""
        await self.commit(key, emptied=True)
        draft = self.drafts.get(key)
        if draft is not None:
            await draft.staging.sync()
        await self.view.sync()


class ProjectedHandle(Handle):
    """An open projected file. `base` is what its opener has before it: what its writes change."""

    __slots__ = ("base", "file", "key", "lasting")

    def __init__(self, file: ProjectedFile, flags: int, caller: Caller) -> None:
        super().__init__(file, flags, caller)
        self.file = file
        self.key = caller.process or -id(self)
        self.base: Base = None
        self.lasting = False

    def cached_by_other(self, process: int) -> bool:
        """Whether another process than that reads through the kernel's cache here."""
        return not self.direct_io and self.key != process

    async def read(self, offset: int, size: int) -> bytes:
        # What fills the kernel's pages may be newer than the size up to which the kernel shows them: then the base is
        # what was there at open. A save sees by itself what it has that is newer.
        if self.direct_io and self.key not in self.file.drafts:
            self.base = await self.file.present()
            self.file.was_read(self.caller.process, self.base)
        return await self.file.read(self.key, offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        if not self.writable:
            raise refuse(errno.EBADF)
        if not self.appending and offset + len(data) > self.file.size_max:
            raise refuse(errno.EFBIG)
        while True:
            draft = self.file.drafts.get(self.key)
            if draft is None or (draft.partial and not self.appending):
                draft = await self.file.draft_for(self.key, self.caller, self.base, partial=self.appending)
            if not self.file.view.quota.limited:
                return draft.write(draft.staging.size if self.appending else offset, data)
            taken = await draft.write_within(
                self.file.view.quota,
                None if self.appending else offset,
                data,
                lambda: self.file.drafts.get(self.key) is draft,  # noqa: B023 - ends before
            )
            if taken is not None:
                return taken

    async def truncate(self, size: int) -> None:
        """ftruncate(2), or O_TRUNC."""
        draft = await self.file.draft_for(self.key, self.caller, self.base, empty=size == 0)
        await draft.resize(self.file.view.quota, size)

    async def flush(self) -> None:
        draft = self.file.drafts.get(self.key)
        if draft is None or not self.writable:
            return
        others = any(other is not self and other.writable and other.key == self.key for other in self.file.handles)
        # A duplicate's close (a shell's, or that of one which a fork inherited) comes before the text is whole.
        open_still = None if others or self.key < 0 else still_open(self.key, self.file.ino)
        if open_still or not draft.dirty:
            return
        try:
            await self.file.commit(self.key, emptied=open_still is False)
        except BaseException:
            draft.told = True
            raise
        await self.file.mount.synced(self.file.view.sync)

    async def sync(self) -> None:
        await self.file.sync(self.key)

    async def release(self) -> None:
        await self.file.closed(self)
