"""What a mount shows: the whole store, or one workspace, or one chat, of which the rest has no name then.

Concurrency: `find` asks the store; the rest doesn't wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyfuse3 import ROOT_INODE

from fusefs.nodes.chat_dir import ChatDirectory
from fusefs.nodes.root_dir import RootDirectory
from fusefs.nodes.workspace_dir import WorkspaceDirectory
from store.errors import ChatNotFound, InvalidInput
from store.model import ChatId, is_uuid

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

    Raises WorkspaceNotFound, ChatNotFound, InvalidInput.
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
        raise ChatNotFound(f"there is no chat {name}/{chat}: see chatfs chat ls {name}") from None


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
