"""What one mount knows of a chat or a workspace beyond the store: which of its nodes the kernel holds, what is hidden,
what is only in a draft, and what each process has read.

A view lives while the kernel holds a node of it, a handle is open, or something is hidden. While it does, the store
reports what other processes append to the log.

Concurrency: no awaits, except in what is passed through to the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fusefs.callers import process_of
from fusefs.inodes import chat_identity
from fusefs.nodes.attachment_file import AttachmentFile
from fusefs.nodes.attachments import AttachmentsDirectory
from fusefs.nodes.base import Node
from fusefs.nodes.chat_dir import ChatDirectory
from fusefs.nodes.log_file import LogFile
from fusefs.nodes.projected import Base, ProjectedFile
from fusefs.nodes.text_file import HistoryText
from fusefs.nodes.workspace_dir import WorkspaceDirectory
from fusefs.reads import LastReads
from fusefs.scratch import ScratchArea
from store import events as ev
from store.fold import Effect
from store.model import chat_space, workspace_space
from store.projection.external_chats import ExternalChat
from store.workspace_state import Names, Place

if TYPE_CHECKING:
    from fusefs.mount import Mount
    from fusefs.nodes.workspace_dir import PlaceDirectory
    from store.chat import Chat
    from store.fold import ChatState
    from store.model import Head, NewEntry, Seq
    from store.quota import Quota
    from store.workspace import Workspace


class View:
    """What a chat's and a workspace's view have in common."""

    workspace: Workspace

    __slots__ = ("__weakref__", "hidden", "identity", "metadata_reads", "mount", "nodes", "scratch")

    def __init__(self, mount: Mount, identity: str, scratch: ScratchArea) -> None:
        self.mount = mount
        self.identity = identity
        self.scratch = scratch
        self.nodes: set[Node] = set()
        """Nodes that the kernel holds and that show what the log says."""
        self.metadata_reads: LastReads[Base] = LastReads()
        """Of chat.json or workspace.json."""
        self.hidden: dict[bytes, Seq] = {}
        """Projected names that were removed here, with the log's seq at that time."""

    @property
    def quota(self) -> Quota:
        """What all of it counts for."""
        return self.workspace.quota

    def is_hidden(self, name: bytes, seq: Seq) -> bool:
        """Whether `name` was removed here, and the log hasn't moved since."""
        since = self.hidden.get(name)
        if since is not None and since != seq:
            del self.hidden[name]
            return False
        return since is not None

    def held(self, node: Node) -> None:
        """The kernel holds `node`."""
        if not self.alive:
            self.begin()
        self.nodes.add(node)

    def dropped(self, node: Node) -> None:
        """The kernel holds `node` no longer."""
        self.nodes.discard(node)
        if not self.alive:
            self.end()

    @property
    def alive(self) -> bool:
        """Whether the kernel holds anything of it."""
        return bool(self.nodes)

    def append_now(self, batch: Sequence[NewEntry]) -> bool:
        """`append`, where nothing has to be waited for; False: nothing was done."""
        return False

    def copied_by(self, process: int, names: Iterable[bytes]) -> None:
        """Only chats can be copied."""

    async def replaceable(self) -> bool:
        """Whether the log can still be replaced by a copy."""
        return False

    def check_sound(self) -> None:
        """Raises CorruptLog where the log is damaged: who opens a file to write hears of it before they write."""

    def begin(self) -> None:
        """The kernel has begun to hold something of it."""

    def end(self) -> None:
        """The kernel holds nothing of it any more."""


class ChatView(View):
    """A chat, as this mount shows it."""

    __slots__ = (
        "_watches",
        "attachments_mode",
        "attachments_mtime",
        "chat",
        "copier",
        "files",
        "pending",
        "presence",
        "reads",
        "record",
        "removals",
        "scratch_attachments",
        "unmade",
        "workspace",
    )

    def __init__(self, mount: Mount, chat: Chat) -> None:
        space = chat_space(chat.workspace.id, chat.id)
        area = ScratchArea(lambda: mount.driver.local_dir(space))
        super().__init__(mount, chat_identity(chat.workspace.id, chat.id), area)
        self.workspace = chat.workspace
        self.chat = chat
        self._watches = False
        self.presence: str | None = None
        """Where the chat's copies are, as chat.json was last shown."""
        self.record = chat.workspace.state.chats.get(chat.id)
        self.scratch_attachments = ScratchArea(lambda: mount.driver.local_dir(space), "scratch-attachments")
        self.files: set[AttachmentFile] = set()
        """The attachments that the kernel holds."""
        self.pending: dict[bytes, AttachmentFile] = {}
        """Attachments that were created here and aren't committed yet."""
        self.reads: LastReads[Seq | ChatState] = LastReads()
        """Of history.md."""
        self.attachments_mode: int | None = None
        self.attachments_mtime: tuple[int, int] | None = None
        """What chmod and utimensat (set, and when the directory had changed then) said of attachments/: not logged."""
        self.copier = 0
        """The process that is copying a chat to here, if one is."""
        self.unmade: set[bytes] = set()
        """Names that are there already, and that the copier hasn't made yet: it takes a new directory to be empty."""
        self.removals: tuple[int, Seq, Seq] | None = None
        """(process, first, last seq) of an unbroken run of attachment removals by one process: an `rm -r`, perhaps."""

    @property
    def created_ns(self) -> int:
        record = self.chat.workspace.state.chats.get(self.chat.id)
        return 0 if record is None else record.created * 1_000_000

    @property
    def text_id(self) -> int | None:
        return self.chat.space.text_id

    @property
    def seq(self) -> Seq:
        return self.chat.space.head.seq

    async def head(self) -> Head:
        return await self.chat.head()

    async def read_text(self, offset: int, size: int) -> bytes:
        head = await self.chat.head()
        log = await self.chat.space.log()
        return log.read_text(offset, max(0, min(size, head.size - offset)))

    async def append(self, batch: Sequence[NewEntry]) -> Seq:
        return await self.chat.append(batch)

    def append_now(self, batch: Sequence[NewEntry]) -> bool:
        return self.chat.append_now(batch)

    async def replaceable(self) -> bool:
        head = await self.chat.head()
        if head.seq == 0:
            return True
        if head.seq > 2:
            return False
        # rsync brings chat.json first, by the alphabet: a title or labels don't make a log of their own.
        entries = [entry async for entry in self.chat.log()]
        return all(isinstance(ev.parse(entry.data), ev.ChatChanged) for entry in entries)

    async def sync(self) -> None:
        await self.chat.sync()

    def held(self, node: Node) -> None:
        if isinstance(node, AttachmentFile):
            if not self.alive:
                self.begin()
            self.files.add(node)
        else:
            super().held(node)

    def dropped(self, node: Node) -> None:
        if isinstance(node, AttachmentFile):
            self.files.discard(node)
            if not self.alive:
                self.end()
        else:
            super().dropped(node)

    @property
    def alive(self) -> bool:
        return bool(self.nodes or self.files)

    def check_sound(self) -> None:
        self.chat.space.check_sound()

    @property
    def external(self) -> bool:
        """Whether the chat is only in a project."""
        return isinstance(self.chat, ExternalChat)

    def begin(self) -> None:
        if not self.external:
            self._watches = True
            self.mount.driver.watch(self.chat.space.id)
        self.mount.held_chats[self.chat.space.id] = self

    def end(self) -> None:
        if self._watches:
            self._watches = False
            self.mount.driver.unwatch(self.chat.space.id)
        del self.mount.held_chats[self.chat.space.id]

    async def become(self, chat: Chat) -> None:
        """The chat was only in a project, and is in the store now: what anybody has of it stays what it was."""
        before = self.chat
        if isinstance(before, ExternalChat) and before.is_reset:
            await self._keep_bases(before)
        self.chat = chat
        if self.alive and not self._watches:
            self._watches = True
            self.mount.driver.watch(chat.space.id)
        for node in self.nodes:
            if isinstance(node, LogFile):
                self.mount.notifier.contents(node)
        self.moved(None)
        self.renamed()

    async def _keep_bases(self, before: Chat) -> None:
        """What was read of a log that has other seqs: the states themselves are remembered."""
        states: dict[Seq, ChatState] = {}

        async def state_of(base: Base) -> Base:
            if not isinstance(base, int):
                return base
            if base not in states:
                states[base] = await before.state_at(base)
            return states[base]

        for process, base in list(self.reads.items()):
            self.reads[process] = await state_of(base)  # type: ignore[assignment]
        for node in self.nodes:
            if isinstance(node, HistoryText):
                for handle in node.handles:
                    handle.base = await state_of(handle.base)
                for draft in node.drafts.values():
                    draft.base = await state_of(draft.base)

    def read_by(self, process: int, what: Seq | ChatState) -> None:
        """`process` has read history.md as of `what`."""
        self.reads.note(process, what)
        if process and not isinstance(what, int):
            self.mount.saw(self, process)

    def copied_by(self, process: int, names: Iterable[bytes]) -> None:
        """`process` begins to copy a chat to here; it doesn't see `names` until it has made them."""
        if process:
            if process != self.copier:
                self.unmade.clear()
            self.copier = process
            self.unmade.update(names)

    def is_unmade(self, name: bytes, thread: int) -> bool:
        """Whether that thread is the copier's, and `name` hasn't been made yet."""
        return name in self.unmade and self.copier != 0 and process_of(thread) == self.copier

    def removed_attachment(self, process: int, before: Seq, after: Seq) -> None:
        """`process` removed an attachment: the log went from `before` to `after`. What is hidden stays hidden."""
        run = self.removals
        first = run[1] if run is not None and run[0] == process and run[2] == before else after
        self.removals = (process, first, after)
        for name, seq in self.hidden.items():
            if seq == before:
                self.hidden[name] = after

    def renamed(self) -> None:
        """The chat may have another name or place: chat.json shows it."""
        record = self.chat.workspace.state.chats.get(self.chat.id)
        if record is not self.record:
            self.record = record
            self._metadata_moved()

    def stands(self, presence: str) -> None:
        """Its copies are there now: chat.json shows it."""
        if self.presence not in {None, presence}:
            self.presence = presence
            self._metadata_moved()

    def _metadata_moved(self) -> None:
        for node in self.nodes:
            if isinstance(node, ProjectedFile) and not isinstance(node, HistoryText):
                self.mount.notifier.contents(node)
                node.announce()
            elif isinstance(node, ChatDirectory):
                node.announce([b"chat.json"])

    async def settle_all(self) -> None:
        """Commit every draft."""
        for node in [*self.nodes, *self.files, *self.pending.values()]:
            await node.settle()

    def moved(self, effect: Effect | None) -> None:
        """The chat's log moved: drop what the kernel has that is no longer so."""
        notifier = self.mount.notifier
        for node in self.nodes:
            if isinstance(node, LogFile):
                node.log_moved()
            elif isinstance(node, HistoryText):
                node.log_moved(effect)
            elif isinstance(node, AttachmentsDirectory):
                if effect is None or effect.attachments:
                    node.log_moved(None if effect is None else [name.encode() for name in effect.attachments])
            elif isinstance(node, ChatDirectory):
                text = effect is None or effect.rewritten or effect.appended
                node.announce([b"history.jsonl", *[b"history.md"] * bool(text), b"chat.json"])
            else:
                notifier.attributes(node)
                if isinstance(node, ProjectedFile):
                    node.announce()


class WorkspaceView(View):
    """A workspace, as this mount shows it."""

    __slots__ = ("chats_directory", "workspace")

    def __init__(self, mount: Mount, workspace: Workspace) -> None:
        self.chats_directory = os.fspath(mount.driver.local_dir(workspace_space(workspace.id)) / "chats")
        """Where the chats' local directories are, by their ids: a listing asks for thousands."""
        area = ScratchArea(lambda: mount.driver.local_dir(workspace_space(workspace.id)))
        super().__init__(mount, f"workspace:{workspace.id}", area)
        self.workspace = workspace

    @property
    def created_ns(self) -> int:
        return self.workspace.state.created * 1_000_000

    @property
    def text_id(self) -> int | None:
        return self.workspace.space.text_id

    @property
    def seq(self) -> Seq:
        return self.workspace.space.head.seq

    async def head(self) -> Head:
        await self.workspace.load()
        return self.workspace.space.head

    async def read_text(self, offset: int, size: int) -> bytes:
        head = await self.workspace.space.refresh()
        log = await self.workspace.space.log()
        return log.read_text(offset, max(0, min(size, head.size - offset)))

    async def append(self, batch: Sequence[NewEntry]) -> Seq:
        return await self.workspace.append_lines(batch)

    async def sync(self) -> None:
        await self.workspace.space.sync()

    def check_sound(self) -> None:
        self.workspace.space.check_sound()

    def begin(self) -> None:
        self.mount.driver.watch(self.workspace.space.id)

    def end(self) -> None:
        self.mount.driver.unwatch(self.workspace.space.id)

    def externals_moved(self, names: Names) -> None:
        """Names mean other chats now of those that are only in the workspace's project."""
        for node in self.nodes:
            place = getattr(node, "place", None)
            if isinstance(place, Place):
                directory: PlaceDirectory = node  # type: ignore[assignment]
                directory.log_moved([name for where, name in names.moved if where is place])
                directory.announce(names)

    def moved(self, names: Names | None) -> None:
        """The workspace's log moved; `names` mean another chat now (None: it isn't known which)."""
        if names is not None:
            names = self.mount.projections.meant(self.workspace.id, names)
        state = self.workspace.state
        notifier = self.mount.notifier
        for node in self.nodes:
            place = getattr(node, "place", None)
            if isinstance(place, Place):
                directory: PlaceDirectory = node  # type: ignore[assignment]
                directory.log_moved(None if names is None else [name for where, name in names.moved if where is place])
                directory.announce(names)
            elif isinstance(node, LogFile):
                node.log_moved()
            else:
                notifier.attributes(node)
                if isinstance(node, ProjectedFile | WorkspaceDirectory):
                    node.announce()
        if names is None:
            self.mount.chats_renamed(self.workspace)
        else:
            for where, name in names.moved:
                record = state.find_in(where, name)
                view = None if record is None else self.mount.held_chats.get(chat_space(state.id, record.id))
                if view is not None:
                    view.renamed()
