"""A chat's directory: the projected files, attachments/, and scratch files."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.inodes import chat_identity
from fusefs.nodes.attachments import AttachmentsDirectory
from fusefs.nodes.base import Directory, Handle, Node, refuse
from fusefs.nodes.log_file import LogFile
from fusefs.nodes.metadata_files import ChatJson
from fusefs.nodes.scratch import ScratchFile, ScratchHandle
from fusefs.nodes.text_file import HistoryText
from fusefs.scratch import SCRATCH, ScratchArea, changed_ns
from store.model import chat_space

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.views import ChatView, WorkspaceView
    from store.model import ChatId
    from store.quota import Quota
    from store.workspace_state import ChatRecord

PROJECTED: Final = (b"history.jsonl", b"history.md", b"chat.json", b"attachments")
"""In the order of a listing: a copy then brings the log before what the log renders."""
_NONE: Final[Mapping[bytes, Node]] = MappingProxyType({})


class ScratchDirectory(Directory):
    """A directory with some fixed, projected names, in which everything else is scratch."""

    __slots__ = ()

    fixed: tuple[bytes, ...] = ()

    @property
    def area(self) -> ScratchArea:
        """Where its scratch files are."""
        raise NotImplementedError

    @property
    def quota(self) -> Quota:
        """What scratch files count for."""
        raise NotImplementedError

    async def shows(self, name: bytes) -> bool:
        """Whether the fixed `name` is there (it may have been removed in this mount)."""
        raise NotImplementedError

    def projected(self, name: bytes) -> Node:
        """The node of a fixed name."""
        raise NotImplementedError

    async def hide(self, name: bytes) -> None:
        """Stop showing a fixed name, until it is created again."""
        raise NotImplementedError

    def show(self, name: bytes) -> None:
        """Show a fixed name again."""
        raise NotImplementedError

    def scratch_node(self, name: bytes, backing: os.stat_result) -> ScratchFile:
        """The node of a scratch file."""
        found = self.child(name, ScratchFile(self.mount, self.area, backing, self, name, self.quota))
        assert isinstance(found, ScratchFile)
        return found

    async def lookup(self, name: bytes) -> Node:
        if name in self.fixed:
            if not await self.shows(name):
                raise refuse(errno.ENOENT)
            return self.projected(name)
        backing = self.area.stat(name)
        if backing is None:
            raise refuse(errno.ENOENT)
        return self.scratch_node(name, backing)

    async def names(self) -> list[bytes]:
        shown = [name for name in self.fixed if await self.shows(name)]
        return shown + self.area.names()

    async def create(self, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Node, Handle]:
        if name not in self.fixed:
            descriptor = self.area.open(name, flags | os.O_CREAT, mode & ~self.mount.options.umask)
            node = self.scratch_node(name, os.fstat(descriptor))
            self.mount.notifier.attributes(self)
            return node, ScratchHandle(node, descriptor, flags, caller)
        projected = self.projected(name)
        if isinstance(projected, Directory):
            raise refuse(errno.EISDIR)
        hidden = self.seems_missing(name, caller.process) or not await self.shows(name)
        if not hidden and flags & os.O_EXCL:
            raise refuse(errno.EEXIST)
        if hidden and not isinstance(projected, LogFile):
            # It was removed: what is created in its place begins empty, whatever the log would render.
            flags |= os.O_TRUNC
        handle = await projected.open(flags & ~(os.O_CREAT | os.O_EXCL), caller)
        self.show(name)
        return projected, handle

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        if name in self.fixed:
            raise refuse(errno.EEXIST)
        async with self.quota.taking(lambda: len(target)):
            self.area.symlink(name, target)
        self.mount.notifier.attributes(self)
        return await self.lookup(name)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        if isinstance(node, Directory):
            raise refuse(errno.EISDIR)
        if isinstance(node, ScratchFile):
            node.loses_name()
            self.area.unlink(name)
        else:
            await self.hide(name)
        self.mount.notifier.attributes(self)


class ChatDirectory(ScratchDirectory):
    """One chat. A listing makes thousands of these: what only the chat's files need is made when they are looked at."""

    __slots__ = ("_announced", "_area", "_generation", "_of", "_told", "_view", "chat")

    fixed = PROJECTED

    def __init__(self, mount: Mount, of: WorkspaceView, chat: ChatId, parent: Directory | None, name: bytes) -> None:
        super().__init__(mount, chat_identity(of.workspace.id, chat), parent, name)
        self.chat = chat
        self._of = of
        self._view: ChatView | None = None
        self._area: ScratchArea | None = None
        self._told = False
        self._announced: Mapping[bytes, Node] = _NONE
        """The nodes of what was announced lately and that the kernel doesn't hold: a log may move often."""
        self._generation = 0

    def died(self) -> None:
        """It was removed: to the kernel this inode is dead while anybody is in it. The chat lives on in trash/."""
        self._generation += 1

    def look(self) -> None:
        """Somebody looks at this chat, not only at a listing with it: it may be watched, and hears of its log."""
        if not self._told and self.mount.announcer.enabled:
            self._told = True
            if self.lookups:
                self.view.held(self)

    def appeared(self) -> None:
        super().appeared()
        if self._told:
            self.view.held(self)

    def vanished(self) -> None:
        super().vanished()
        self._announced = _NONE
        if self._told:
            self._told = False
            self.view.dropped(self)

    def announce(self, names: Iterable[bytes]) -> None:
        """The log moved, and with it what these files show: who watches the directory hears of all of them."""
        for name in names:
            if name not in self.children:
                node = self._announced.get(name)
                if node is None:
                    node = self.projected(name)
                    self._announced = {**self._announced, name: node}
                self.mount.announcer.modified(node)

    @property
    def view(self) -> ChatView:
        """The chat, as this mount shows it."""
        if self._view is None:
            self._view = self.mount.chat_view(self._of.workspace, self.chat)
        return self._view

    @property
    def area(self) -> ScratchArea:
        if self._area is None:
            space = chat_space(self._of.workspace.id, self.chat)
            self._area = ScratchArea(lambda: self.mount.driver.local_dir(space))
        return self._area

    @property
    def quota(self) -> Quota:
        return self._of.workspace.quota

    async def attributes(self) -> EntryAttributes:
        record = (await self._of.workspace.load()).chats.get(self.chat)
        if record is None:
            record = self.mount.projections.record(self._of.workspace.id, self.chat)
        if record is None:
            raise refuse(errno.ESTALE)  # chatfs gc has deleted it
        return self.attributes_of(record)

    def attributes_of(self, record: ChatRecord) -> EntryAttributes:
        """Those of the chat with that record: what its workspace knows is enough, the chat isn't opened."""
        when = max(record.changed * 1_000_000, changed_ns(f"{self._of.chats_directory}/{self.chat}/{SCRATCH}"))
        found = attributes(self.mount.options, self.ino, self.mount.options.directory_mode, mtime_ns=when, nlink=3)
        found.generation = self._generation
        return found

    async def shows(self, name: bytes) -> bool:
        return name not in self.view.hidden or not self.view.is_hidden(name, (await self.view.chat.head()).seq)

    async def hide(self, name: bytes) -> None:
        self.view.hidden[name] = (await self.view.chat.head()).seq

    def show(self, name: bytes) -> None:
        self.view.hidden.pop(name, None)
        self.view.unmade.discard(name)

    def seems_missing(self, name: bytes, thread: int) -> bool:
        return self.view.is_unmade(name, thread)

    def projected(self, name: bytes) -> Node:
        self.look()
        known = self.children.get(name)
        if known is not None and known.became is None and not isinstance(known, ScratchFile):
            return known
        node: Node
        if name == b"history.jsonl":
            node = LogFile(self.mount, self.view, self)
        elif name == b"history.md":
            node = HistoryText(self.mount, self.view, self)
        elif name == b"chat.json":
            node = ChatJson(self.mount, self.view, self)
        else:
            node = AttachmentsDirectory(self.mount, self.view, self)
        return self.child(name, node)

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        if name != b"attachments":
            raise refuse(errno.EPERM)
        if not self.seems_missing(name, caller.process) and await self.shows(name):
            raise refuse(errno.EEXIST)
        self.show(name)
        return self.projected(name)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        if not isinstance(node, AttachmentsDirectory):
            raise refuse(errno.ENOTDIR)
        if await node.names():
            raise refuse(errno.ENOTEMPTY)
        await self.hide(name)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        await self.mount.moves.from_chat(self, name, target, new, caller)

    async def sync(self) -> None:
        await self.view.sync()
