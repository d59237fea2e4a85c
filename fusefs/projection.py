"""What a mount does for the projects of its workspaces: it projects them, and shows the chats that are only there.

A chat that is only in a project is shown by the same views and nodes as any other, on a log in memory
(`store.projection.external_chats`). What would change it takes it into the store first (`make_own`); then its view goes
over to the durable chat, under the same identity.

Concurrency: one task per bound workspace, within `running`. A mount that has no such workspace has one task that waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from fusefs.nodes.base import refuse
from store.errors import StoreError, WorkspaceNotFound
from store.model import ChatId, WorkspaceId, chat_space
from store.projection import binding as bindings
from store.projection.external_chats import ExternalChat, ExternalChats
from store.projection.projector import Projector, projecting
from store.workspace_state import ChatRecord, Names, Place

if TYPE_CHECKING:
    from fusefs.mount import Mount
    from fusefs.nodes.base import Node
    from fusefs.views import ChatView
    from store.chat import Chat
    from store.driver import Document
    from store.projection.binding import Binding
    from store.workspace import Workspace

log = logging.getLogger("chatfs")

START_SECONDS: Final = 1.0
"""How long a mount waits at its start until the projects' chats are known."""
LOOK_SECONDS: Final = 2.0
"""Between looks at a project that another process keeps up to date."""
RETRY_SECONDS: Final = 30.0
REMOVAL_SECONDS: Final = 1.0
"""How long after removals in an external chat it may be removed whole, as `rm -r` does, without being taken in."""
FOLLOW_EVERY: Final = 0.05
FOLLOW_SECONDS: Final = 10.0
"""How long another process may take to bring a chat into the store."""
_NONE: Final[Mapping[str, ChatRecord]] = MappingProxyType({})
_NOBODY: Final[Mapping[ChatId, ChatRecord]] = MappingProxyType({})


class Projections:
    """All of a mount's. `externals` is 0 where no chat is shown, or open, that is only in a project."""

    def __init__(self, mount: Mount) -> None:
        self.externals = 0
        self._mount = mount
        self._shown: dict[WorkspaceId, ShownProject] = {}
        self._scopes: dict[WorkspaceId, trio.CancelScope] = {}
        self._again: set[WorkspaceId] = set()
        self._looked: dict[WorkspaceId, trio.Event] = {}

    # ---- what is shown

    def in_place(self, workspace: WorkspaceId, place: Place) -> Mapping[str, ChatRecord]:
        """The external chats that are shown there, by their names."""
        shown = self._shown.get(workspace)
        return _NONE if shown is None else shown.chats.in_place(place)

    def record(self, workspace: WorkspaceId, chat: ChatId) -> ChatRecord | None:
        """What is known of an external chat."""
        shown = self._shown.get(workspace)
        return None if shown is None else shown.chats.record(chat)

    def all_of(self, workspace: WorkspaceId) -> Mapping[ChatId, ChatRecord]:
        """The workspace's external chats."""
        shown = self._shown.get(workspace)
        return _NOBODY if shown is None else shown.chats.records

    def changed_ns(self, workspace: WorkspaceId) -> int:
        """When external chats last came or went."""
        shown = self._shown.get(workspace)
        return 0 if shown is None else shown.changed_ns

    def chat_of(self, workspace: Workspace, chat: ChatId) -> Chat | None:
        """An external chat, to be read."""
        shown = self._shown.get(workspace.id)
        return None if shown is None or chat not in shown.chats.records else shown.chats.chat(chat)

    def presence(self, workspace: WorkspaceId, chat: ChatId) -> str | None:
        """Where the chat's copies are; None in a workspace that has no project."""
        shown = self._shown.get(workspace)
        return None if shown is None else shown.projector.project.presence(chat)

    def meant(self, workspace: WorkspaceId, names: Names) -> Names:
        """The same, knowing what names meant that external chats have, and now those have that were made of them."""
        shown = self._shown.get(workspace)
        if shown is None or not shown.chats.records:
            return names
        before = [
            known.id if was is None and (known := shown.find(place, name)) is not None else was
            for (place, name), was in zip(names.moved, names.before, strict=True)
        ]
        return Names(names.moved, tuple(before))

    # ---- what happens

    def moved(self, workspace: WorkspaceId) -> None:
        """The workspace's log has moved: another process may have taken a chat into the store."""
        shown = self._shown.get(workspace)
        if shown is not None:
            shown.wake()

    def removed_in(self, view: ChatView) -> None:
        """An attachment of an external chat was removed."""
        shown = self._shown.get(view.chat.workspace.id)
        if shown is not None:
            shown.removed_in(view)

    async def remove(self, workspace: WorkspaceId, chat: ChatId) -> None:
        """Remove an external chat from the project."""
        shown = self._shown.get(workspace)
        if shown is None:
            raise refuse(errno.ESTALE)
        await shown.remove(chat)

    # ---- the projects

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look after the projects meanwhile. At the end all that isn't in them yet is written out."""
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._follow, nursery)
            except (StoreError, OSError) as error:
                log.error("projects aren't looked after: %s", error)  # noqa: TRY400 - one line
            with trio.move_on_after(START_SECONDS):
                for looked in list(self._looked.values()):
                    await looked.wait()
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _follow(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Begin with what is bound, then hear of what is bound, moved or unbound."""
        kv = self._mount.driver.kv
        async with contextlib.AsyncExitStack() as stack:
            changes = None
            if not self._mount.driver.read_only:
                changes = await stack.enter_async_context(kv.watch(bindings.PREFIX))
            for key in await kv.list(bindings.PREFIX):
                self._bind(key, None, nursery)
            task_status.started()
            if changes is not None:
                try:
                    async for change in changes:
                        self._bind(change.key, change.document, nursery)
                except Exception:
                    log.exception("what is bound from now on isn't projected")

    def _bind(self, key: str, document: Document | None, nursery: trio.Nursery) -> None:
        workspace = WorkspaceId(key.removeprefix(bindings.PREFIX))
        part = self._mount.part
        if part is not None and part.workspace.id != workspace:
            return
        scope = self._scopes.get(workspace)
        if scope is not None:
            shown = self._shown.get(workspace)
            binding = None if document is None else bindings.read(workspace, document.value)
            if shown is None or shown.projector.project.binding != binding:
                self._again.add(workspace)
                scope.cancel()
            return
        self._scopes[workspace] = trio.CancelScope()
        self._looked[workspace] = trio.Event()
        nursery.start_soon(self._look_after, workspace)

    async def _look_after(self, workspace: WorkspaceId) -> None:
        said = ""
        while True:
            self._again.discard(workspace)
            binding: Binding | None = None
            try:
                with self._scopes[workspace]:
                    binding = await bindings.remembered(self._mount.store, workspace)
                    if binding is not None:
                        await self._show(await self._mount.store.workspace(workspace), binding)
            except WorkspaceNotFound:
                binding = None  # it was removed, or isn't this store's any more
            except (StoreError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    log.error("the project of workspace %s isn't projected: %s", workspace, error)  # noqa: TRY400
                self._looked[workspace].set()
                with self._scopes[workspace]:
                    await trio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("projecting the workspace %s failed", workspace)
                self._looked[workspace].set()
                with self._scopes[workspace]:
                    await trio.sleep(RETRY_SECONDS)
            if binding is None and workspace not in self._again:
                del self._scopes[workspace]
                self._looked.pop(workspace).set()
                return
            self._scopes[workspace] = trio.CancelScope()

    async def _show(self, workspace: Workspace, binding: Binding) -> None:
        """Look after one project, until it should be opened anew."""
        async with projecting(self._mount.store, workspace, binding) as projector:
            chats = ExternalChats(projector.project, self._mount.moved)
            shown = ShownProject(self._mount, projector, chats)
            self._shown[workspace.id] = shown
            try:
                await shown.run(self._looked[workspace.id])
            finally:
                with trio.CancelScope(shield=True):
                    await shown.settle_removals(at_once=True)
                del self._shown[workspace.id]
                self.count()
                with trio.CancelScope(shield=True):
                    await shown.chats.aclose()

    def count(self) -> None:
        """The number of external chats changed."""
        self.externals = sum(len(shown.chats.records) + len(shown.chats.open_chats()) for shown in self._shown.values())

    async def flush(self, node: Node) -> None:
        """fsync(2) of a chat's file: its copy follows at once."""
        chat = getattr(_view_of(node), "chat", None) if self._shown else None
        shown = None if chat is None else self._shown.get(chat.workspace.id)
        if shown is not None:
            await shown.projector.flush()

    async def settle_removals(self, node: Node) -> None:
        """fsync(2) of a directory: attachments that were removed from an external chat are so for good now."""
        view = _view_of(node) if self._shown else None
        shown = None if view is None else self._shown.get(view.workspace.id)
        if view is not None and shown is not None:
            await shown.settle_removals_in(view)

    async def make_own(self, node: Node) -> None:
        """The node is about to be changed: a chat that is only in a project is taken into the store first."""
        view = _view_of(node)
        chat = getattr(view, "chat", None)
        if view is None or not isinstance(chat, ExternalChat):
            return
        if self._mount.options.append_only:
            raise refuse(errno.EPERM)
        shown = self._shown.get(chat.workspace.id)
        if shown is None:
            raise refuse(errno.ESTALE)
        await shown.take_in(view)


def _view_of(node: Node) -> ChatView | None:
    """What a chat's nodes have in common; a workspace's have a view without a chat."""
    return getattr(node, "view", None) or getattr(node, "owner", None)


class ShownProject:
    """One project in a mount."""

    def __init__(self, mount: Mount, projector: Projector, chats: ExternalChats) -> None:
        self.projector = projector
        self.chats = chats
        self._mount = mount
        self._project = projector.project
        self._woken = trio.Event()
        self._lock = trio.Lock()
        self._removals: dict[ChatId, tuple[ChatView, float]] = {}
        self._taken: set[ChatId] = set()
        """Chats that other processes have taken into the store, and whose views are to follow."""
        self.changed_ns = 0
        """When chats last came or went."""
        self._project.on_settled = self.wake

    def wake(self) -> None:
        """There is something to do for `run`."""
        self._woken.set()

    async def run(self, looked: trio.Event) -> None:
        """Show what the project has. Returns when it should be opened anew, since nobody else projects it any more."""
        if not self._project.active:
            await self._look()
        async with trio.open_nursery() as nursery:
            await self._run(looked, nursery)
            nursery.cancel_scope.cancel()

    async def _run(self, looked: trio.Event, nursery: trio.Nursery) -> None:
        while True:
            self._woken = trio.Event()
            await self.settle()
            looked.set()
            for view in self._to_follow():
                nursery.start_soon(self._follow_taken_in, view)
            with trio.move_on_after(self._pause()):
                await self._woken.wait()
            await self.settle_removals()
            if not self._project.active and not self._woken.is_set():
                if not self._mount.driver.read_only and self._project.can_be_active():
                    return
                await self._look()

    def _pause(self) -> float:
        if self._removals:
            return REMOVAL_SECONDS / 2
        return float("inf") if self._project.active else LOOK_SECONDS

    async def _look(self) -> None:
        with contextlib.suppress(StoreError, OSError):  # a project that is gone has no chats to show
            await self._project.look()

    async def settle(self) -> None:
        """Show what the last look found."""
        async with self._lock:
            self.tell(await self.chats.settle())
            await self.chats.refresh()
        workspace = self._project.workspace.id
        for view in list(self._mount.held_chats.values()):
            if view.chat.workspace.id == workspace:
                view.stands(self._project.presence(view.chat.id))

    def tell(self, changed: list[ChatRecord]) -> None:
        """The kernel, and who watches, hear that these chats came or went, or are called otherwise."""
        self._mount.projections.count()
        if not changed:
            return
        self.changed_ns = max(self.changed_ns + 1, time.time_ns())
        workspace = self._project.workspace
        view = self._mount.workspace_view(workspace)
        names = [(each.place, each.name) for each in changed]
        before = [None if self._is_shown(each) else each.id for each in changed]
        view.externals_moved(Names(tuple(names), tuple(before)))
        for each in changed:
            found = self._mount.known_view(chat_space(workspace.id, each.id))
            if found is not None and found.external:
                found.renamed()

    def _is_shown(self, record: ChatRecord) -> bool:
        return self.chats.records.get(record.id) == record

    # ---- what becomes of them

    async def take_in(self, view: ChatView) -> None:
        """Take the view's chat into the store; the view is the durable one's from then on."""
        async with self._lock:
            chat = view.chat
            if not isinstance(chat, ExternalChat):
                return
            await view.become(await self.chats.take_in(chat))
            self._removals.pop(chat.id, None)
            self.tell(await self.chats.settle())

    async def remove(self, chat: ChatId) -> None:
        """Remove a chat's directory from the project."""
        self._removals.pop(chat, None)
        await self._project.remove_external(chat)
        # The kernel drops the name itself: it isn't told.
        await self.chats.settle()
        self._mount.projections.count()

    def removed_in(self, view: ChatView) -> None:
        """An attachment was removed there: perhaps the whole chat will be."""
        self._removals[view.chat.id] = view, trio.current_time() + REMOVAL_SECONDS
        self.wake()

    async def settle_removals(self, *, at_once: bool = False) -> None:
        """Removals that weren't the beginning of an `rm -r` are for the store."""
        for chat, (view, when) in list(self._removals.items()):
            if at_once or trio.current_time() >= when:
                self._removals.pop(chat, None)
                try:
                    await self.take_in(view)
                except (StoreError, OSError) as error:
                    log.error("attachments of %s weren't removed: %s", view.chat.called, error)  # noqa: TRY400

    async def settle_removals_in(self, view: ChatView) -> None:
        """Those of one chat, at once. Raises what taking it in does."""
        chat = getattr(view, "chat", None)
        if chat is not None and self._removals.pop(chat.id, None) is not None:
            await self.take_in(view)

    def _to_follow(self) -> list[ChatView]:
        """Views of external chats that the store has by now."""
        workspace = self._project.workspace
        found = []
        for chat in self.chats.open_chats():
            view = self._mount.known_view(chat_space(workspace.id, chat)) if chat in workspace.state.chats else None
            if view is not None and view.external and chat not in self._taken:
                self._taken.add(chat)
                found.append(view)
        return found

    async def _follow_taken_in(self, view: ChatView) -> None:
        """The store has the chat by now: another process has taken it in, and may be about it still."""
        chat = view.chat.id
        try:
            with trio.move_on_after(FOLLOW_SECONDS), contextlib.suppress(StoreError):
                while isinstance(view.chat, ExternalChat):
                    durable = self._project.workspace.chat_by_id(chat)
                    if await self.chats.is_taken_in(view.chat, durable):
                        async with self._lock:
                            if isinstance(view.chat, ExternalChat):
                                await view.become(durable)
                        return
                    await trio.sleep(FOLLOW_EVERY)
        finally:
            self._taken.discard(chat)

    def find(self, place: Place, name: str) -> ChatRecord | None:
        """The chat that `place` shows under the name."""
        return self.chats.in_place(place).get(name)
