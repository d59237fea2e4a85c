"""attachments/: flat, one file per attachment. Renaming copies no bytes.

Names that begin with a dot are scratch (rsync's and GLib's temporary files) until they are renamed.

Concurrency: no state between awaits but the nodes', which see to themselves.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.nodes.attachment_file import AttachmentFile
from fusefs.nodes.base import Change, Directory, Handle, InView, Node, refuse, text_name
from fusefs.nodes.logged_names import LoggedNames
from fusefs.nodes.scratch import ScratchFile, ScratchHandle
from store.errors import AttachmentNotFound
from store.model import Attachment, AttachmentId, attachment_name, uuid7

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.views import ChatView


class AttachmentsDirectory(InView, LoggedNames):
    """The directory of a chat's attachments."""

    __slots__ = ("_known", "view")

    view: ChatView

    holds_files = True

    def __init__(self, mount: Mount, view: ChatView, parent: Directory) -> None:
        super().__init__(mount, f"{view.identity}/attachments", parent, b"attachments")
        self.view = view
        self._known: dict[str, Attachment] | None = None
        """While the kernel holds it: what the log said last, to see what changes; None: nobody has asked yet."""

    def vanished(self) -> None:
        super().vanished()
        self._known = None

    async def attributes(self) -> EntryAttributes:
        when = await self._changed_ns()
        if self.view.attachments_mtime is not None and self.view.attachments_mtime[1] == when:
            when = self.view.attachments_mtime[0]
        mode = self.view.attachments_mode
        shown = self.mount.options.directory_mode if mode is None else stat.S_IFDIR | mode
        return attributes(self.mount.options, self.ino, shown, mtime_ns=when, nlink=2)

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        self.check_owner(change)
        if change.mode is not None:
            self.view.attachments_mode = change.mode
        if change.mtime_ns is not None:
            self.view.attachments_mtime = (change.mtime_ns, await self._changed_ns())

    def seems_missing(self, name: bytes, thread: int) -> bool:
        return self.view.is_unmade(name, thread)

    async def _changed_ns(self) -> int:
        state = await self.view.chat.load()
        if self._known is None and self.lookups and self.mount.announcer.enabled:
            # The kernel is about to hold it, and whoever watches it, to take it for what it is now.
            self._known = dict(state.attachments)
        return max(state.attachments_changed_ns or self.view.created_ns, _newest(self.view))

    async def names(self) -> list[bytes]:
        state = await self.view.chat.load()
        found = [name.encode() for name in state.attachments]
        found += [name for name in self.view.pending if name.decode() not in state.attachments]
        return found + self.view.scratch_attachments.names()

    async def lookup(self, name: bytes) -> Node:
        if name.startswith(b"."):
            backing = self.view.scratch_attachments.stat(name)
            if backing is None:
                raise refuse(errno.ENOENT)
            return self.child(name, self._scratch(backing, name))
        node = await self._present(name)
        if node is None:
            raise refuse(errno.ENOENT)
        return node

    def _scratch(self, backing: os.stat_result, name: bytes) -> ScratchFile:
        return ScratchFile(self.mount, self.view.scratch_attachments, backing, self, name, self.view.quota)

    async def _present(self, name: bytes) -> AttachmentFile | None:
        pending = self.view.pending.get(name)
        if pending is not None:
            return pending
        try:
            found = (await self.view.chat.load()).attachments.get(name.decode())
        except UnicodeDecodeError:
            return None
        return None if found is None else self.node_of(found)

    def node_of(self, found: Attachment) -> AttachmentFile:
        """The node of an attachment."""
        name = found.name.encode()
        known = self.children.get(name)
        if isinstance(known, AttachmentFile) and known.id == found.id and known.became is None:
            return known
        node = self.child(name, AttachmentFile(self.mount, self.view, found.id, self, name))
        assert isinstance(node, AttachmentFile)
        return node

    def keeps_absent(self, name: bytes) -> bool:
        # Temporary files are in no log: another mount of the store may make one unheard.
        return not name.startswith(b".") and super().keeps_absent(name)

    async def create(self, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Node, Handle]:
        if name.startswith(b"."):
            area = self.view.scratch_attachments
            descriptor = area.open(name, flags | os.O_CREAT, mode & ~self.mount.options.umask)
            scratch = self.child(name, self._scratch(os.fstat(descriptor), name))
            assert isinstance(scratch, ScratchFile)
            self.mount.notifier.attributes(self)
            return scratch, ScratchHandle(scratch, descriptor, flags, caller)
        checked_name(name)
        node = await self._present(name)
        self.view.check_sound()
        if node is None:
            node = AttachmentFile(self.mount, self.view, AttachmentId(uuid7()), self, name)
            await node.begin(mode)
            self.view.pending[name] = node
            self.mount.notifier.attributes(self)
        elif self.seems_missing(name, caller.process):
            flags |= os.O_TRUNC
        elif flags & os.O_EXCL:
            raise refuse(errno.EEXIST)
        self.view.unmade.discard(name)
        return node, await node.open(flags, caller)

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        if not name.startswith(b"."):
            raise refuse(errno.EPERM)
        async with self.view.quota.taking(lambda: len(target)):
            self.view.scratch_attachments.symlink(name, target)
        return await self.lookup(name)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        if isinstance(node, ScratchFile):
            node.loses_name()
            self.view.scratch_attachments.unlink(name)
            self.mount.notifier.attributes(self)
            return
        assert isinstance(node, AttachmentFile)
        async with node.lock:
            await self._remove(node, name, caller)

    async def _remove(self, node: AttachmentFile, name: bytes, caller: Caller) -> None:
        chat = self.view.chat
        found = await node.lose_name()
        if found is None:
            return
        # The kernel drops the name itself: it isn't told.
        held = self.children.pop(name, None)
        with chat.hold():
            before = (await chat.load()).seq
            try:
                after = await chat.remove_attachment(text_name(name), caller.actor)
            except BaseException as error:
                node.gone = None
                if held is not None:
                    self.hold(name, held)
                if isinstance(error, AttachmentNotFound):
                    raise refuse(errno.ENOENT) from None
                raise
            self.view.removed_attachment(caller.process, before, after)
        if self.view.external:
            self.mount.projections.removed_in(self.view)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        await self.mount.moves.from_attachments(self, name, target, new, caller)

    async def sync(self) -> None:
        await self.view.sync()

    def log_moved(self, names: Iterable[bytes] | None) -> None:
        """`names` (None: any) mean something else now, or their attachments changed."""
        state = self.view.chat.space.state
        for name in [*self.children, *self.absent] if names is None else names:
            child = self.children.get(name)
            if child is None and (state is None or name.decode(errors="replace") in state.attachments):
                self.came(name)
            if child is None or name.startswith(b".") or name in self.view.pending:
                continue
            found = None if state is None else state.attachments.get(name.decode(errors="replace"))
            if not isinstance(child, AttachmentFile) or found is None or found.id != child.id:
                self.mount.notifier.entry(self, name)
            if isinstance(child, AttachmentFile):
                child.log_moved(found)
        self.mount.notifier.attributes(self)
        self.announce(names)

    def announce(self, names: Iterable[bytes] | None) -> None:
        """Tell watchers what changed; `names` (None: any) may have."""
        announcer = self.mount.announcer
        if not announcer.enabled or not self.lookups:
            return
        state = self.view.chat.space.state
        if state is None:
            announcer.look(self)
            return
        present, known = state.attachments, self._known
        if known is None:
            return
        changed = known.keys() | present.keys() if names is None else [name.decode(errors="replace") for name in names]
        for text in changed:
            before, found = known.get(text), present.get(text)
            if before == found:
                continue
            if found is None:
                del known[text]
            else:
                known[text] = found
            name = text.encode()
            if name in self.view.pending:
                # It was made here.
                continue
            if before is None or found is None or before.id != found.id:
                announcer.renamed(self, name, None if before is None else before.id)
            elif not self._changed_here(name):
                announcer.modified(self.node_of(found), "attributes" if before.ref == found.ref else "modify")

    def _changed_here(self, name: bytes) -> bool:
        child = self.children.get(name)
        return isinstance(child, AttachmentFile) and (child.lock.locked() or child.changing)

    async def compare_names(self) -> None:
        """Look at what the log says, where nobody does otherwise."""
        await self.view.chat.load()
        self.announce(None)

    def meaning(self, name: bytes) -> AttachmentId | None:
        found = None if self._known is None else self._known.get(name.decode(errors="replace"))
        return None if found is None else found.id

    def meaning_of(self, child: Node) -> AttachmentId | None:
        return child.id if isinstance(child, AttachmentFile) else None


def _newest(view: ChatView) -> int:
    pending = max((node.touched_ns for node in view.pending.values()), default=0)
    return max(pending, view.scratch_attachments.changed_ns())


def checked_name(name: bytes) -> str:
    """`name`, if an attachment can have it. EPERM for those of the chat's own files, else InvalidName, NameTooLong."""
    text = text_name(name)
    if text in {"history.md", "history.jsonl", "chat.json"}:
        raise refuse(errno.EPERM)
    return attachment_name(text)
