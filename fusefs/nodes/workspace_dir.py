"""A workspace's directory, and chats/, archive/, trash/ and by-id/ in it.

trash/ and by-id/ can be entered by name and aren't listed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pyfuse3 import EntryAttributes

from fusefs.attributes import SYMLINK_MODE, attributes
from fusefs.inodes import chat_identity, inode_number
from fusefs.nodes.base import AtHand, Directory, InView, Node, refuse, text_name
from fusefs.nodes.chat_dir import PROJECTED, ChatDirectory, ScratchDirectory
from fusefs.nodes.log_file import LogFile, head_mtime_ns
from fusefs.nodes.logged_names import LoggedNames
from fusefs.nodes.metadata_files import WorkspaceJson
from fusefs.nodes.scratch import ScratchFile
from store.errors import ChatNotFound
from store.model import ChatId, is_uuid
from store.workspace_state import ChatRecord, Names, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.scratch import ScratchArea
    from fusefs.views import WorkspaceView
    from store.quota import Quota

UNLISTED: Final = (b"trash", b"by-id")
COPIERS: Final = frozenset({"cp", "mv"})
"""Programs that open every file of a directory that they made with O_EXCL, and give up on a name that is there."""


class WorkspaceDirectory(InView, ScratchDirectory):
    """One workspace."""

    __slots__ = ("view",)

    view: WorkspaceView

    fixed = (b"workspace.json", b"history.jsonl", b"chats", b"archive", *UNLISTED)

    def __init__(self, mount: Mount, view: WorkspaceView, parent: Directory | None, name: bytes) -> None:
        super().__init__(mount, view.identity, parent, name)
        self.view = view

    @property
    def area(self) -> ScratchArea:
        return self.view.scratch

    @property
    def quota(self) -> Quota:
        return self.view.quota

    def announce(self) -> None:
        """The log moved: who watches the directory hears of what shows it."""
        for name in (b"history.jsonl", b"workspace.json"):
            if name not in self.children:
                self.mount.announcer.modified(self.projected(name))

    async def attributes(self) -> EntryAttributes:
        state = await self.view.workspace.load()
        when = max(state.created * 1_000_000, self.area.changed_ns())
        return attributes(self.mount.options, self.ino, self.mount.options.directory_mode, mtime_ns=when, nlink=6)

    async def shows(self, name: bytes) -> bool:
        return name not in self.view.hidden or not self.view.is_hidden(name, (await self.view.head()).seq)

    async def hide(self, name: bytes) -> None:
        self.view.hidden[name] = (await self.view.head()).seq

    def show(self, name: bytes) -> None:
        self.view.hidden.pop(name, None)

    async def names(self) -> list[bytes]:
        return [name for name in await super().names() if name not in UNLISTED]

    def projected(self, name: bytes) -> Node:
        known = self.children.get(name)
        if known is not None and known.became is None and not isinstance(known, ScratchFile):
            return known
        node: Node
        if name == b"workspace.json":
            node = WorkspaceJson(self.mount, self.view, self)
        elif name == b"history.jsonl":
            node = LogFile(self.mount, self.view, self)
        elif name == b"by-id":
            node = ByIdDirectory(self.mount, self.view, self)
        else:
            node = PlaceDirectory(self.mount, self.view, Place(name.decode()), self)
        return self.child(name, node)

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        if name not in {b"chats", b"archive"}:
            raise refuse(errno.EPERM)
        if await self.shows(name):
            raise refuse(errno.EEXIST)
        self.show(name)
        return self.projected(name)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        if not isinstance(node, Directory):
            raise refuse(errno.ENOTDIR)
        if not isinstance(node, PlaceDirectory) or node.place is Place.TRASH:
            raise refuse(errno.EPERM)
        if await node.names():
            raise refuse(errno.ENOTEMPTY)
        await self.hide(name)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        await self.mount.moves.from_workspace(self, name, target, new, caller)

    async def sync(self) -> None:
        await self.view.sync()


class PlaceDirectory(InView, LoggedNames):
    """chats/, archive/ or trash/: the chats that are there."""

    __slots__ = ("place", "view")

    view: WorkspaceView

    def __init__(self, mount: Mount, view: WorkspaceView, place: Place, parent: Directory) -> None:
        super().__init__(mount, f"{view.identity}/{place}", parent, place.encode())
        self.view = view
        self.place = place

    async def attributes(self) -> EntryAttributes:
        state = await self.view.workspace.load()
        when = state.places_changed[self.place] or state.created * 1_000_000
        options = self.mount.options
        links = 2 + state.count(self.place)
        externals = self.externals
        if externals:
            links += len(externals)
            when = max(when, self.mount.projections.changed_ns(self.view.workspace.id))
        return attributes(options, self.ino, options.directory_mode, mtime_ns=when, nlink=links)

    @property
    def externals(self) -> Mapping[str, ChatRecord]:
        """The chats that are only in the workspace's project, by their names here."""
        return self.mount.projections.in_place(self.view.workspace.id, self.place)

    def find(self, name: bytes) -> ChatRecord | None:
        """The chat of that name, as far as the mount has heard."""
        text = name.decode(errors="surrogateescape")
        return self.view.workspace.state.find_in(self.place, text) or self.externals.get(text)

    async def names(self) -> list[bytes]:
        state = await self.view.workspace.load()
        found = [name.encode() for name, _ in state.in_place(self.place)]
        return found + [name.encode() for name in self.externals if state.find(name) is None]

    async def lookup(self, name: bytes) -> Node:
        await self.view.workspace.load()
        record = self.find(name)
        if record is None:
            raise refuse(errno.ENOENT)
        node = self.node_of(record.id, name)
        node.look()
        return node

    async def at_hand(self) -> AtHand:
        state = await self.view.workspace.load()
        place, externals = self.place, self.externals

        def answer(name: bytes) -> tuple[Node, EntryAttributes] | None:
            text = name.decode(errors="surrogateescape")
            record = state.find_in(place, text) or externals.get(text)
            if record is None:
                return None
            node = self.node_of(record.id, name)
            return node, node.attributes_of(record)

        return answer

    def node_of(self, chat: ChatId, name: bytes) -> ChatDirectory:
        """The directory of a chat that is here under `name`."""
        known = self.children.get(name)
        if isinstance(known, ChatDirectory) and known.chat == chat:
            return known
        node = self.child(name, ChatDirectory(self.mount, self.view, chat, self, name))
        assert isinstance(node, ChatDirectory)
        return node

    def log_moved(self, names: Iterable[str] | None) -> None:
        """`names` (None: any) mean another chat now, or none."""
        state = self.view.workspace.state
        moved = [*self.children, *self.absent] if names is None else [name.encode() for name in names]
        for name in moved:
            child = self.children.get(name)
            record = self.find(name)
            if child is None:
                if record is not None:
                    self.came(name)
            elif record is None or inode_number(chat_identity(state.id, record.id)) != child.ino:
                self.mount.notifier.entry(self, name)
        if moved or names is None:
            self.mount.notifier.attributes(self)

    def announce(self, names: Names | None) -> None:
        """Tell watchers: `names` (None: any) mean another chat now, or none."""
        announcer = self.mount.announcer
        if names is None:
            for name, child in self.children.items():
                announcer.renamed(self, name, self.meaning_of(child))
        else:
            for (place, text), before in zip(names.moved, names.before, strict=True):
                if place is self.place:
                    announcer.renamed(self, text.encode(), before)

    @property
    def separate(self) -> bool:
        return self.place is Place.TRASH

    def meaning(self, name: bytes) -> ChatId | None:
        record = self.find(name)
        return None if record is None else record.id

    def meaning_of(self, child: Node) -> ChatId | None:
        return child.chat if isinstance(child, ChatDirectory) else None

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        if self.place is not Place.CHATS:
            raise refuse(errno.EPERM)
        chat = await self.view.workspace.create_chat(text_name(name), caller.actor)
        node = self.node_of(chat.id, name)
        node.look()
        if caller.program in COPIERS:
            node.view.copied_by(caller.process, PROJECTED)
        return node

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        if self.place is Place.TRASH:
            # What is in the trash goes with `chatfs gc`, after its time.
            raise refuse(errno.EPERM)
        assert isinstance(node, ChatDirectory)
        if node.view.external:
            await self._remove_external(node, name)
            return
        run = node.view.removals
        head = await node.view.chat.head()
        since = run[1] if run is not None and run[0] == caller.process and run[2] == head.seq else None
        await node.view.settle_all()
        # The kernel drops the name itself: it isn't told.
        held = self.children.pop(name, None)
        try:
            await self.view.workspace.trash_chat(node.chat, caller.actor, since=since)
        except BaseException:
            if held is not None:
                self.hold(name, held)
            raise
        node.died()
        node.view.hidden.clear()
        node.view.removals = None

    async def _remove_external(self, node: ChatDirectory, name: bytes) -> None:
        """Remove a chat that is only in the project: from there, without a trace in the store."""
        held = self.children.pop(name, None)
        try:
            await self.mount.projections.remove(self.view.workspace.id, node.chat)
        except BaseException:
            if held is not None:
                self.hold(name, held)
            raise
        node.died()

    async def unlink(self, name: bytes, caller: Caller) -> None:
        await self.lookup(name)
        raise refuse(errno.EISDIR)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        await self.mount.moves.from_place(self, name, target, new, caller)

    async def sync(self) -> None:
        await self.view.sync()


class ByIdDirectory(InView, Directory):
    """by-id/: each chat's id as a symbolic link to where it is."""

    __slots__ = ("view",)

    view: WorkspaceView

    def __init__(self, mount: Mount, view: WorkspaceView, parent: Directory) -> None:
        super().__init__(mount, f"{view.identity}/by-id", parent, b"by-id")
        self.view = view

    async def attributes(self) -> EntryAttributes:
        head, options = await self.view.head(), self.mount.options
        return attributes(options, self.ino, options.directory_mode, mtime_ns=head_mtime_ns(head), nlink=2)

    async def names(self) -> list[bytes]:
        known = (await self.view.workspace.load()).chats
        externals = self.mount.projections.all_of(self.view.workspace.id)
        return [chat.encode() for chat in [*known, *(chat for chat in externals if chat not in known)]]

    async def lookup(self, name: bytes) -> Node:
        text = name.decode(errors="replace")
        chat = ChatId(text)
        if not is_uuid(text) or not (
            chat in (await self.view.workspace.load()).chats
            or chat in self.mount.projections.all_of(self.view.workspace.id)
        ):
            raise refuse(errno.ENOENT)
        return self.child(name, ChatLink(self.mount, self.view, chat, self))


class ChatLink(Node):
    """A symbolic link from a chat's id to its directory."""

    __slots__ = ("chat", "view")

    def __init__(self, mount: Mount, view: WorkspaceView, chat: ChatId, parent: Directory) -> None:
        super().__init__(mount, f"link:{view.workspace.id}:{chat}", parent, chat.encode())
        self.view = view
        self.chat = chat

    async def _target(self) -> tuple[bytes, ChatRecord]:
        state = await self.view.workspace.load()
        record = state.chats.get(self.chat)
        if record is not None:
            return f"../{record.place}/{state.shown_name(record)}".encode(), record
        record = self.mount.projections.all_of(self.view.workspace.id).get(self.chat)
        if record is None:
            raise ChatNotFound(f"no chat {self.chat}")
        return f"../{record.place}/{record.name}".encode(), record

    async def attributes(self) -> EntryAttributes:
        target, record = await self._target()
        # The target moves with the chat: asked for anew each time.
        return attributes(
            self.mount.options,
            self.ino,
            SYMLINK_MODE,
            size=len(target),
            mtime_ns=record.changed * 1_000_000,
            timeout=0,
        )

    async def readlink(self) -> bytes:
        return (await self._target())[0]
