"""chat.json and workspace.json: metadata, of which title, labels, projection and quota can be edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusefs.nodes.base import Directory, Handle
from fusefs.nodes.log_file import head_mtime_ns
from fusefs.nodes.projected import Base, ProjectedFile
from store import metadata
from store.events import PROJECTED
from store.model import workspace_space
from store.usage import UNCOUNTED

if TYPE_CHECKING:
    from fusefs.callers import Caller
    from fusefs.drafts import Draft
    from fusefs.mount import Mount
    from fusefs.views import ChatView, WorkspaceView
    from store.driver import Staging


class MetadataFile(ProjectedFile):
    """A JSON object, some fields of which can be edited: a save changes those that differ from what its writer read."""

    __slots__ = ("_reads",)

    size_max = 1 << 20

    def __init__(self, mount: Mount, view: ChatView | WorkspaceView, parent: Directory, name: bytes) -> None:
        super().__init__(mount, view, parent, name)
        self._reads = view.metadata_reads
        """The view's: the kernel may let this node go between a read and the save."""

    async def last_read(self, process: int) -> Base:
        read = self._reads.get(process)
        return await self.present() if read is None else read

    def was_read(self, process: int, base: Base) -> None:
        self._reads.note(process, base)

    def asked_for(self, saved: bytes, draft: Draft, editable: tuple[str, ...]) -> metadata.Wanted:
        """What the draft's writer changed, which is then what it has before it. Raises InvalidInput."""
        wanted = metadata.parse_saved(saved, editable)
        read = draft.base
        if not isinstance(read, metadata.Wanted):
            return wanted
        draft.base = metadata.Wanted(
            read.title if wanted.title is None else wanted.title,
            read.labels if wanted.labels is None else wanted.labels,
            read.quota_bytes if wanted.quota_bytes is None else wanted.quota_bytes,
            read.projection if wanted.projection is None else wanted.projection,
        )
        self.was_read(draft.process, draft.base)
        return metadata.Wanted(
            None if wanted.title == read.title else wanted.title,
            None if wanted.labels == read.labels else wanted.labels,
            None if wanted.quota_bytes == read.quota_bytes else wanted.quota_bytes,
            None if wanted.projection == read.projection else wanted.projection,
        )


class ChatJson(MetadataFile):
    """A chat's metadata."""

    __slots__ = ("chat_view",)

    def __init__(self, mount: Mount, view: ChatView, parent: Directory) -> None:
        super().__init__(mount, view, parent, b"chat.json")
        self.chat_view = view

    async def _text(self) -> bytes:
        chat = self.chat_view.chat
        state = await chat.load()
        workspace = await chat.workspace.load()
        presence = self.chat_view.presence = self.mount.projections.presence(workspace.id, chat.id)
        return metadata.chat_json(workspace, workspace.chats[chat.id], state, presence=presence)

    async def present(self) -> Base:
        state = await self.chat_view.chat.load()
        return metadata.Wanted(state.title, state.labels, projection=state.projection or PROJECTED)

    async def shown_size(self) -> tuple[int, int]:
        text = await self._text()
        chat = self.chat_view.chat
        changed = chat.workspace.state.chats[chat.id].changed * 1_000_000
        return len(text), max(head_mtime_ns(chat.space.head), changed)

    async def shown(self, offset: int, size: int) -> bytes:
        return (await self._text())[offset : offset + size]

    def stage(self, *, counted: bool = True) -> Staging:
        return self.chat_view.chat.stage("chat.json", counted=counted)

    async def save(self, saved: bytes, draft: Draft) -> None:
        wanted = self.asked_for(saved, draft, metadata.EDITABLE_CHAT)
        await self.chat_view.chat.change(
            draft.actor, title=wanted.title, labels=wanted.labels, projection=wanted.projection
        )


class WorkspaceJson(MetadataFile):
    """A workspace's metadata. The usage is measured when the file is read; its width is fixed, so the size is known."""

    __slots__ = ("workspace_view",)

    counted = False
    """It is short, and the quota itself must be editable at the quota."""

    def __init__(self, mount: Mount, view: WorkspaceView, parent: Directory) -> None:
        super().__init__(mount, view, parent, b"workspace.json")
        self.workspace_view = view

    async def present(self) -> Base:
        state = await self.workspace_view.workspace.load()
        return metadata.Wanted(state.title, state.labels, state.quota_bytes)

    async def shown_size(self) -> tuple[int, int]:
        workspace = self.workspace_view.workspace
        state = await workspace.load()
        head = workspace.space.head
        return len(metadata.workspace_json(state, head)), head_mtime_ns(head)

    async def shown(self, offset: int, size: int) -> bytes:
        workspace = self.workspace_view.workspace
        usage = await workspace.usage()
        text = metadata.workspace_json(await workspace.load(), workspace.space.head, usage)
        return text[offset : offset + size]

    async def open(self, flags: int, caller: Caller) -> Handle:
        handle = await super().open(flags, caller)
        handle.keep_cache = False
        return handle

    def stage(self, *, counted: bool = False) -> Staging:
        workspace = self.workspace_view.workspace
        space = workspace_space(workspace.id)
        label = {"workspace": workspace.id, "space": space, "name": "workspace.json", UNCOUNTED: True}
        return workspace.driver.blobs.stage(label=label)

    async def save(self, saved: bytes, draft: Draft) -> None:
        wanted = self.asked_for(saved, draft, metadata.EDITABLE_WORKSPACE)
        await self.workspace_view.workspace.change(
            draft.actor, title=wanted.title, labels=wanted.labels, quota_bytes=wanted.quota_bytes
        )
