"""The mount's top: one directory per workspace."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyfuse3 import ROOT_INODE, EntryAttributes

from fusefs.attributes import attributes
from fusefs.nodes.announced import AnnouncedNames
from fusefs.nodes.base import Directory, Node, refuse, text_name
from fusefs.nodes.workspace_dir import WorkspaceDirectory
from store.errors import WorkspaceNotFound

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from store.model import WorkspaceId
    from store.workspace import Workspace


class RootDirectory(AnnouncedNames):
    """All workspaces."""

    __slots__ = ("_known", "_settled")

    def __init__(self, mount: Mount) -> None:
        super().__init__(mount, "root")
        self.ino = int(ROOT_INODE)
        self.lookups = 1
        self._known: dict[bytes, WorkspaceId] = {}
        """The workspaces as watchers know them, or are about to."""
        self._settled: set[bytes] = set()
        """Names that requests here have changed: the kernel has reported that."""

    async def attributes(self) -> EntryAttributes:
        workspaces = await self.mount.store.workspaces()
        when = max((workspace.state.created for workspace in workspaces), default=0)
        options = self.mount.options
        return attributes(
            options, self.ino, options.directory_mode, mtime_ns=when * 1_000_000, nlink=2 + len(workspaces)
        )

    async def names(self) -> list[bytes]:
        return [workspace.state.name.encode() for workspace in await self.mount.store.workspaces()]

    async def lookup(self, name: bytes) -> Node:
        try:
            text = name.decode()
            workspace = await self.mount.store.workspace(text)
        except (UnicodeDecodeError, WorkspaceNotFound):
            raise refuse(errno.ENOENT) from None
        if workspace.state.name != text:
            raise refuse(errno.ENOENT)
        return self.node_of(workspace, name)

    def node_of(self, workspace: Workspace, name: bytes) -> WorkspaceDirectory:
        """The directory of a workspace."""
        known = self.children.get(name)
        if isinstance(known, WorkspaceDirectory) and known.view.workspace is workspace:
            return known
        node = self.child(name, WorkspaceDirectory(self.mount, self.mount.workspace_view(workspace), self, name))
        assert isinstance(node, WorkspaceDirectory)
        return node

    def keeps_absent(self, name: bytes) -> bool:
        # A workspace of another process may be named before its log says so; no workspace's name begins with a dot.
        return name.startswith(b".")

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        workspace = await self.mount.store.create_workspace(text_name(name), caller.actor)
        self.mount.notifier.attributes(self)
        return self.node_of(workspace, name)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        node = await self.lookup(name)
        assert isinstance(node, WorkspaceDirectory)
        await node.view.workspace.trash(caller.actor)
        node.view.hidden.clear()
        self.mount.notifier.attributes(self)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        if target is not self:
            raise refuse(errno.EXDEV)
        node = await self.lookup(name)
        assert isinstance(node, WorkspaceDirectory)
        await self.mount.store.rename_workspace(node.view.workspace, text_name(new), caller.actor)
        node.placed(self, new)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        await self.lookup(name)
        raise refuse(errno.EISDIR)

    def log_moved(self) -> None:
        """Workspaces came, went or were renamed elsewhere: ask for the names anew."""
        for name in list(self.children):
            self.mount.notifier.entry(self, name)
        self.mount.notifier.attributes(self)
        self.mount.announcer.look(self)

    async def compare_names(self) -> None:
        """Look which workspaces there are."""
        found = await self.mount.store.workspaces()
        known, self._known = self._known, {}
        for workspace in found:
            self._known[workspace.state.name.encode()] = workspace.id
            self.mount.announcer.watch(workspace.space.id)
        settled, self._settled = self._settled, set()
        for name in known.keys() | self._known.keys():
            if known.get(name) != self._known.get(name) and name not in settled:
                self.mount.announcer.renamed(self, name, known.get(name))

    async def begin_announcing(self) -> None:
        """What is there is known to watchers."""
        for workspace in await self.mount.store.workspaces():
            self._known[workspace.state.name.encode()] = workspace.id
            self.mount.announcer.watch(workspace.space.id)

    def changed_here(self, directory: Directory, name: bytes) -> None:
        """A request here has changed what `name` means."""
        if directory is self:
            self._settled.add(name)
            self.mount.announcer.look(self)

    def meaning(self, name: bytes) -> WorkspaceId | None:
        return self._known.get(name)

    def meaning_of(self, child: Node) -> WorkspaceId | None:
        return child.view.workspace.id if isinstance(child, WorkspaceDirectory) else None
