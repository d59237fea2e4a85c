"""What can be done to a workspace: its chats' names and places, its metadata and its quota.

The workspace's log is the truth for all of it; a chat's own log says what is in the chat. Where both must move, the
order is written at the method, so that a crash in between leaves nothing half done that a user would see.

Concurrency: as in `store.chat`: decisions are appended with `expected_seq` and made anew on a conflict.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import orjson
import trio

from store import events as ev
from store import sandboxes
from store.authority import Authority
from store.chat import Chat
from store.driver import Driver
from store.errors import ChatNotFound, CorruptLog, NameTaken, NotEmpty, SeqConflict
from store.folded import Change, Moved
from store.kinds import WORKSPACE
from store.model import (
    ChatId,
    NewEntry,
    Origin,
    Seq,
    SpaceId,
    WorkspaceId,
    created_ms,
    directory_name,
    uuid7,
    workspace_space,
)
from store.quota import Quota
from store.space import Space
from store.workspace_state import ChatRecord, Place, WorkspaceState


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a workspace and its chats tell the store: that a log moved, that a chat was used, that one is opened.

    And what they get from it: the authority under which a space is appended to, None where nothing is appended.
    """

    moved: Moved
    touched: Callable[[Chat], None]
    opening: Callable[[], Awaitable[None]]
    authority: Callable[[SpaceId], Authority | None] = lambda _space: None


Decision = Callable[[WorkspaceState], Sequence[ev.Event]]
_TAKING_AWAY: Final = (ev.ChatTrashed, ev.ChatArchived, ev.ChatDeleted)
"""What isn't done to a chat that a sandbox has."""


class Workspace:
    """One workspace; its state is in memory from `open` on."""

    __slots__ = ("_chats", "_hooks", "driver", "id", "quota", "space")

    def __init__(self, driver: Driver, workspace: WorkspaceId, hooks: Hooks) -> None:
        self.driver = driver
        self.id = workspace
        self.space: Space[WorkspaceState] = Space(
            driver,
            workspace_space(workspace),
            WORKSPACE,
            self._moved,
            name=lambda: self.called,
            authority=hooks.authority(workspace_space(workspace)),
        )
        self._hooks = hooks
        self._chats: WeakValueDictionary[ChatId, Chat] = WeakValueDictionary()
        self.quota = Quota(self)

    def _moved(self, space: SpaceId, change: Change | None) -> None:
        self.quota.moved()
        self._hooks.moved(space, change)

    @property
    def called(self) -> str:
        """Its name, in messages; its id where that isn't known."""
        state = self.space.state
        return state.name if state is not None and state.name else self.id

    @property
    def state(self) -> WorkspaceState:
        """The state as of the last `load`."""
        assert self.space.state is not None, "load the workspace first"
        return self.space.state

    async def load(self) -> WorkspaceState:
        """The state as of now."""
        return await self.space.load()

    # ---- chats

    def chat_by_id(self, chat: ChatId) -> Chat:
        """The chat; raises ChatNotFound where the workspace never had it."""
        if chat not in self.state.chats:
            raise ChatNotFound(f"workspace {self.state.name!r} has no chat {chat}")
        found = self._chats.get(chat)
        if found is None:
            found = self._chats[chat] = Chat(self, chat, self._hooks)
        return found

    def known_chat(self, chat: ChatId) -> Chat | None:
        """The chat, if somebody in this process has it in hand."""
        return self._chats.get(chat)

    async def record(self, name: str, places: Sequence[Place] = (Place.CHATS, Place.ARCHIVE)) -> ChatRecord:
        """What the workspace knows of the chat that one of `places` shows under `name`. Raises ChatNotFound."""
        state = await self.load()
        for place in places:
            found = state.find_in(place, name)
            if found is not None:
                return found
        raise ChatNotFound(f"workspace {state.name!r} has no chat {name!r}: see chatfs chat ls {state.name}")

    async def chat(self, name: str, places: Sequence[Place] = (Place.CHATS, Place.ARCHIVE)) -> Chat:
        """The chat of that name. Raises ChatNotFound."""
        return self.chat_by_id((await self.record(name, places)).id)

    async def create_chat(
        self,
        name: str,
        actor: str,
        *,
        chat: ChatId | None = None,
        place: Place = Place.CHATS,
        projection: str | None = None,
        fill: Callable[[Chat], Awaitable[None]] | None = None,
    ) -> Chat:
        """A new chat, in chats/ or archive/; `projection` as in `Chat.change`; `fill` brings what it says.

        One that brings its id, `chat`, began elsewhere, and when that says. Its log is made first, so that a chat that
        is listed always has one, and none is projected that is local.

        Raises InvalidName, NameTaken, QuotaExceeded, and what `fill` raises.
        """
        directory_name(name)
        new = chat or ChatId(uuid7())
        began = created_ms(new) if chat is not None else None
        origin = Origin(actor, began) if began else None

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            self._require_free(state, name)
            return [ev.ChatCreated(new, name), *([ev.ChatArchived(new)] if place is Place.ARCHIVE else [])]

        self._require_free(await self.load(), name)
        await self.quota.require(1)
        made = Chat(self, new, self._hooks)
        await made.space.log(make=True)
        if projection is not None:
            await made.change(actor, projection=projection)
            await made.sync()
        if fill is not None:
            await fill(made)
        await self._decide(decide, actor, origin=origin, tidying=False)
        self._chats[new] = made
        self._hooks.touched(made)
        return made

    async def move_chat(self, chat: ChatId, place: Place, name: str, actor: str) -> None:
        """Rename, archive, unarchive, trash or restore: whatever brings the chat to `place` under `name`.

        Raises NameTaken, InvalidName, ChatNotFound, ChatBusy. A name given on the way into the trash is ignored.
        """
        directory_name(name)
        record = (await self.load()).chats.get(chat)
        if record is None:
            raise ChatNotFound(f"the workspace has no chat {chat}")
        if place is Place.TRASH:
            await self.trash_chat(chat, actor)
            return
        if record.place is Place.TRASH:
            await self._restore(record, name, actor)

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            record = self._require(state, chat)
            events: list[ev.Event] = []
            if name != record.name:
                self._require_free(state, name)
                events.append(ev.ChatRenamed(chat, name))
            if place is not record.place:
                events.append(ev.ChatArchived(chat) if place is Place.ARCHIVE else ev.ChatUnarchived(chat))
            return events

        await self._decide(decide, actor)

    async def trash_chat(self, chat: ChatId, actor: str, *, since: Seq | None = None) -> None:
        """To the trash. `since`: attachments removed from that seq on belong to the same removal. Raises ChatBusy."""

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            record = state.chats.get(chat)
            if record is None or record.place is Place.TRASH:
                raise ChatNotFound(f"the workspace has no chat {chat} outside the trash")
            return [ev.ChatTrashed(chat, since)]

        await self._decide(decide, actor)

    async def _restore(self, record: ChatRecord, name: str, actor: str) -> None:
        """The chat's own log first: until the workspace's says so, the chat stays in the trash."""
        self._require_free(await self.load(), name)
        if record.removed_since is not None:
            chat = self.chat_by_id(record.id)
            await chat.append_events(await _brought_back(chat, record.removed_since), actor, tidying=True)
            await chat.sync()

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            self._require(state, record.id)
            self._require_free(state, name)
            renamed = [ev.ChatRenamed(record.id, name)] if name != record.name else []
            return [*renamed, ev.ChatRestored(record.id, record.removed_since)]

        await self._decide(decide, actor)

    async def require_free_of_sandboxes(self, chat: ChatId) -> None:
        """Raises ChatBusy while a sandbox session is active on the chat."""
        session = await sandboxes.active_on(self.driver, chat)
        if session is not None:
            record = self.state.chats.get(chat)
            raise sandboxes.busy(f"{self.called}/{chat if record is None else record.name}", session)

    async def give_to_sandbox(self, chat: ChatId, session: str, actor: str) -> None:
        """After a session has begun: who looked for one just before it did can't take the chat away any more.

        The log moves on by an entry, so that theirs, which they append by the seq that they saw before they looked, is
        a conflict, and they look again. Raises ChatNotFound where one was faster.
        """
        event = {"type": "sandbox.started", "session": session, "chat": chat}
        with contextlib.suppress(CorruptLog):  # of a damaged log nobody takes anything away
            await self.quota.append(self.space, [NewEntry(orjson.dumps(event), actor)], tidying=True)
        found = (await self.load()).chats.get(chat)
        if found is None or found.place is Place.TRASH:
            raise ChatNotFound(f"{self.called}/{chat if found is None else found.name} was removed just now")

    @staticmethod
    def _require(state: WorkspaceState, chat: ChatId) -> ChatRecord:
        found = state.chats.get(chat)
        if found is None:
            raise ChatNotFound(f"workspace {state.name!r} has no chat {chat} any more")
        return found

    @staticmethod
    def _require_free(state: WorkspaceState, name: str) -> None:
        taken = state.find(name)
        if taken is not None:
            raise NameTaken(f"{name!r} is taken in workspace {state.name!r} (in {taken.place}/): choose another name")

    # ---- the workspace itself

    async def change(
        self,
        actor: str,
        *,
        title: str | None = None,
        labels: Sequence[str] | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        """Set what differs. `quota_bytes` 0: none. Raises InvalidInput."""
        ev.check_metadata(title, None if labels is None else list(labels), quota_bytes)

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            event = ev.WorkspaceChanged(
                title=title if title != state.title else None,
                labels=list(labels) if labels is not None and tuple(labels) != state.labels else None,
                quota_bytes=quota_bytes if quota_bytes != state.quota_bytes else None,
            )
            return [] if event == ev.WorkspaceChanged() else [event]

        if quota_bytes and not (await self.load()).quota_bytes:
            await self.quota.begin_anew()
        await self._decide(decide, actor)

    async def trash(self, actor: str) -> None:
        """Remove the workspace from sight. Raises NotEmpty while it has chats outside its trash."""

        def decide(state: WorkspaceState) -> Sequence[ev.Event]:
            if state.count(Place.CHATS) or state.count(Place.ARCHIVE):
                raise NotEmpty(f"workspace {state.name!r} still has chats: remove them first")
            return [ev.WorkspaceTrashed()]

        await self._decide(decide, actor)

    async def usage(self) -> int:
        """Bytes that count towards the quota: logs, attachments (each blob once), scratch files, drafts."""
        return await self.quota.usage()

    async def append_lines(self, batch: Sequence[NewEntry]) -> Seq:
        """Append to the workspace's own log as it is (history.jsonl at the workspace's top). Raises ChatBusy."""
        events = [ev.parse(new.data) for new in batch]
        limits = any(isinstance(event, ev.WorkspaceChanged) and event.quota_bytes for event in events)
        if limits and not (await self.load()).quota_bytes:
            await self.quota.begin_anew()
        while any(isinstance(event, _TAKING_AWAY) for event in events):
            seq = (await self.load()).seq
            await self._require_free_for(events)
            try:
                return await self.quota.append(self.space, batch, expected_seq=seq)
            except SeqConflict:
                await trio.lowlevel.checkpoint()
        return await self.quota.append(self.space, batch)

    async def _require_free_for(self, events: Sequence[ev.Event | ev.Unknown]) -> None:
        """Raises ChatBusy where one of them takes away a chat that a sandbox has."""
        for event in events:
            if isinstance(event, _TAKING_AWAY) and event.chat in self.state.chats:
                await self.require_free_of_sandboxes(ChatId(event.chat))

    async def _decide(
        self, decide: Decision, actor: str, *, origin: Origin | None = None, tidying: bool = True
    ) -> None:
        """Append what is decided on the state as it is then; `origin` is the first event's."""
        while True:
            state = await self.load()
            seq = state.seq
            events = decide(state)
            if not events:
                return
            await self._require_free_for(events)
            batch = [NewEntry(event.encode(), actor) for event in events]
            batch[0] = batch[0]._replace(origin=origin)
            try:
                await self.quota.append(self.space, batch, expected_seq=seq, tidying=tidying)
            except SeqConflict:
                await trio.lowlevel.checkpoint()
                continue
            return


async def _brought_back(chat: Chat, since: int) -> list[ev.Event]:
    """What restores the attachments that went from entry `since` on.

    Each is put again, too: `since` means nothing in another log that these events are copied to.
    """
    removed = (await chat.load()).attachment_state.removed
    puts = [
        ev.AttachmentPut(found.id, found.name, found.digest, found.size, found.content_type, found.mode, found.mtime_ns)
        for seq, found in removed.values()
        if seq >= since
    ]
    return [ev.ChatRestored(since=since), *puts]
