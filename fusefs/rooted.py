"""What a mount shows: the whole store, or one workspace, or one chat, of which the rest has no name then.

Concurrency: `find` asks the store, and the project; the rest doesn't wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyfuse3 import ROOT_INODE

from fusefs.nodes.chat_dir import ChatDirectory
from fusefs.nodes.root_dir import RootDirectory
from fusefs.nodes.workspace_dir import WorkspaceDirectory
from store.errors import ChatNotFound, InvalidInput, ReadOnly, StoreError
from store.model import ChatId, is_uuid
from store.projection import binding as bindings
from store.projection.project import open_project

if TYPE_CHECKING:
    from fusefs.mount import Mount
    from fusefs.nodes.base import Directory
    from store.library import Store
    from store.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Part:
    """A workspace, or one of its chats."""

    workspace: Workspace
    chat: ChatId | None = None


async def find(store: Store, path: str) -> Part | None:
    """What WORKSPACE or WORKSPACE/CHAT means now; None for "". It stays that, whatever it is called later.

    A chat that is only in the workspace's project is taken into the store. Raises WorkspaceNotFound, ChatNotFound,
    InvalidInput, BackendError.
    """
    if not path:
        return None
    name, slash, chat = path.rstrip("/").partition("/")
    if not name or "/" in chat:
        raise InvalidInput(f"{path!r} names nothing that can be mounted: write WORKSPACE or WORKSPACE/CHAT")
    workspace = await store.workspace(name)
    if not slash or not chat:
        return Part(workspace)
    state = await workspace.load()
    if is_uuid(chat) and ChatId(chat) in state.chats:
        return Part(workspace, ChatId(chat))
    try:
        return Part(workspace, (await workspace.record(chat)).id)
    except ChatNotFound:
        external = await _taken_in(store, workspace, chat)
        if external is None:
            raise ChatNotFound(f"there is no chat {name}/{chat}: see chatfs chat ls {name}") from None
        return Part(workspace, external)


async def _taken_in(store: Store, workspace: Workspace, name: str) -> ChatId | None:
    """The chat of that name, or id, that was only in the project until now; None where there is none."""
    binding = await bindings.remembered(store, workspace.id)
    if binding is None:
        return None
    async with open_project(workspace, binding) as project:
        try:
            await project.look()
        except (StoreError, OSError):  # `chatfs project status` says what it is
            return None
        for chat, there in list(project.externals.items()):
            if name in {there.name, chat}:
                if store.driver.read_only:
                    raise ReadOnly(
                        f"{workspace.called}/{name} is only in the project, and a mount of it alone shows what is in "
                        "the store: take it in first (chatfs project sync --import), or mount the whole workspace"
                    )
                return (await project.import_external(chat)).id
    return None


def directory_of(mount: Mount, part: Part | None) -> Directory:
    """The directory at the top of the mount."""
    if part is None:
        return RootDirectory(mount)
    view = mount.workspace_view(part.workspace)
    directory: WorkspaceDirectory | ChatDirectory
    if part.chat is None:
        directory = WorkspaceDirectory(mount, view, None, b"")
    else:
        directory = ChatDirectory(mount, view, part.chat, None, b"")
    directory.ino = int(ROOT_INODE)
    directory.lookups = 1
    return directory
