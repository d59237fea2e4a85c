"""What can be done to one chat: the use cases that the mount, the commands and programs share.

A Chat is cheap; its log and fold are opened by the first use and dropped when nobody has used them for a while
(`store.library`). Every change is one atomic batch of events in the chat's log; what it says is durable after `sync`.

Concurrency: state may move on at every `await`; what was decided on a state is appended with `expected_seq`, and
decided anew where the log was faster.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from store import attaching, history, intake, saving
from store import events as ev
from store.absent import check_present
from store.driver import Staging
from store.errors import (
    AttachmentNotFound,
    BlobNotFound,
    CorruptBlob,
    CorruptSnapshot,
    InvalidEvent,
    InvalidInput,
    MessageNotFound,
    SeqConflict,
    StoreError,
)
from store.fold import ChatState, Effect, Message
from store.folded import Change, Moved
from store.kinds import CHAT
from store.model import (
    Attachment,
    AttachmentId,
    BlobRef,
    ChatId,
    Digest,
    Entry,
    Head,
    NewEntry,
    Seq,
    SpaceId,
    attachment_name,
    chat_space,
    uuid7,
)
from store.rendered import RenderedText
from store.saving import Saved
from store.space import Space
from store.usage import UNCOUNTED

if TYPE_CHECKING:
    from store.workspace import Hooks, Workspace

_SECOND: Final = 1_000_000_000
_DEFAULT_MODE: Final = 0o600


class Chat:
    """One chat of a workspace."""

    __slots__ = ("__weakref__", "_touched", "id", "rendered", "space", "workspace")

    def __init__(self, workspace: Workspace, chat: ChatId, hooks: Hooks) -> None:
        self.id = chat
        self.workspace = workspace
        self.space: Space[ChatState] = Space(
            workspace.driver,
            chat_space(workspace.id, chat),
            CHAT,
            self._follow(hooks.moved),
            self._is_known,
            hooks.opening,
            name=lambda: self.called,
            authority=hooks.authority(chat_space(workspace.id, chat)),
        )
        self.rendered = RenderedText(lambda: self.directory)
        self._touched = hooks.touched

    @property
    def called(self) -> str:
        """WORKSPACE/CHAT, in messages; ids where the names aren't known."""
        state = self.workspace.space.state
        record = state.chats.get(self.id) if state is not None else None
        return f"{self.workspace.called}/{record.name if record is not None else self.id}"

    async def _is_known(self) -> bool:
        """Whether the workspace has the chat (still): chatfs gc may have deleted it. Asked where its log is missing."""
        if self.id not in (await self.workspace.load()).chats:
            return False
        await check_present(self.workspace.driver.kv, self.id, self.called)
        return True

    @property
    def deleted(self) -> bool:
        """Whether the workspace hasn't it any more (or not yet), as it was last looked at."""
        state = self.workspace.space.state
        return state is not None and self.id not in state.chats

    def _follow(self, moved: Moved) -> Moved:
        def follow(space: SpaceId, effect: Change | None) -> None:
            self.rendered.follow(effect if isinstance(effect, Effect) else None)
            moved(space, effect)

        return follow

    def _close_unused_text(self) -> None:
        if not self.space.loaded:  # else somebody came meanwhile
            self.rendered.close()

    @property
    def directory(self) -> Path:
        """Where this machine keeps what belongs to the chat beside its log."""
        return self.workspace.driver.local_dir(chat_space(self.workspace.id, self.id))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep it in memory meanwhile."""
        with self.space.hold():
            yield

    async def load(self) -> ChatState:
        """The state as of now."""
        self._touched(self)
        return await self.space.load()

    async def whole(self) -> ChatState:
        """The same with every message in memory."""
        while True:
            state = await self.load()
            if state.whole:
                return state
            try:
                async with self.space.frozen() as state:
                    await trio.to_thread.run_sync(state.complete)
            except CorruptSnapshot as damage:
                self.rendered.close()
                await self.space.rebuild(damage)

    async def head(self) -> Head:
        """Where the log ends now."""
        self._touched(self)
        return await self.space.refresh()

    async def release(self) -> None:
        """Drop it from memory, unless it is held; leaves history.md beside the log."""
        if self.space.idle and self.space.loaded:
            if self.space.unsynced:
                await self.sync_own()
            if self.space.state is not None and not self.workspace.driver.read_only:
                # The copy is only for people who look into the store: a full disk does without.
                with suppress(StoreError, OSError, ValueError):
                    if not self.space.is_due(closing=True):
                        self.rendered.publish(self.space.state, self.space.source, self.space.head)
            await self.space.release()
            self._close_unused_text()

    # ---- the log

    async def append(
        self, values: Sequence[NewEntry], *, expected_seq: Seq | None = None, tidying: bool = False
    ) -> Seq:
        """Append one atomic batch; the last seq. Raises QuotaExceeded, SeqConflict, CorruptLog, BackendError.

        What is only `tidying` (a removal, a rename) may be done over the quota, too.
        """
        self._touched(self)
        quota = self.workspace.quota
        if quota.limited:
            return await quota.append(self.space, values, expected_seq=expected_seq, tidying=tidying)
        return await self.space.append(values, expected_seq=expected_seq)

    def append_now(self, values: Sequence[NewEntry]) -> bool:
        """`append` of what isn't empty, where nothing has to be waited for; False: nothing was done."""
        if self.workspace.quota.limited:
            return False
        self._touched(self)
        return self.space.append_now(values)

    async def append_lines(self, lines: Sequence[bytes], actor: str) -> Seq:
        """Append JSON lines as one atomic batch; empty ones are skipped.

        Raises InvalidEvent or LineTooLong, naming the line, and appends nothing then.
        """
        batch = [
            intake.accept(line, actor, uuid7, number=number) for number, line in enumerate(lines, 1) if line.strip()
        ]
        return await self.append(batch)

    async def append_events(
        self,
        events: Sequence[ev.Event | dict[str, Any]],
        actor: str,
        *,
        expected_seq: Seq | None = None,
        tidying: bool = False,
    ) -> Seq:
        """Append events (or any JSON objects) as one atomic batch."""
        batch = [
            NewEntry(event.encode(), actor) if isinstance(event, ev.Event) else _entry(event, actor) for event in events
        ]
        return await self.append(batch, expected_seq=expected_seq, tidying=tidying)

    def log(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """Entries after `since`, streamed."""
        self._touched(self)
        return self.space.read(since, limit, reverse=reverse)

    def follow(self, since: Seq | None = None) -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """Entries after `since` (None: only new ones), for ever."""
        self._touched(self)
        return self.space.subscribe(since)

    async def sync(self) -> None:
        """Return when all that was appended survives a power cut, and the workspace's log that names the chat, too."""
        # Another process may have made the chat, and not synced it yet.
        await self.workspace.space.sync()
        await self.sync_own()

    async def sync_own(self) -> None:
        """The same without the workspace's log. Of a chat that was deleted there is nothing left to be kept."""
        try:
            await self.space.sync()
        except StoreError:
            if await self._is_known():
                raise
            self.space.unsynced = False

    # ---- the text

    async def text(self) -> bytes:
        """history.md."""
        return history.render(await self.whole())

    async def read_text(self, offset: int, size: int) -> bytes:
        """A range of history.md."""
        while True:
            state = await self.load()
            try:
                return self.rendered.read(state, self.space.source, offset, size)
            except CorruptSnapshot as damage:
                self.rendered.close()
                await self.space.rebuild(damage)

    async def save_text(self, saved: bytes, actor: str, *, base: Seq | ChatState | None = None) -> Saved:
        """Make history.md say `saved`; `base` is what the writer had read (None: what is there now).

        Where the log has moved on since, both sides are merged. Raises InvalidText.
        """
        return await saving.save(self, saved, actor, base)

    async def append_text(self, data: bytes, actor: str) -> Seq:
        """Add bytes at the end of history.md. Raises InvalidText."""
        with self.hold():
            while True:
                state = await self.load()
                events = history.diff_append(state, data, uuid7)
                if not events:
                    return state.seq
                try:
                    return await self.append_events(events, actor, expected_seq=state.seq)
                except SeqConflict:
                    await trio.lowlevel.checkpoint()

    async def messages(self) -> list[Message]:
        """All messages in order, hidden ones too."""
        return list((await self.whole()).messages())

    async def edit_message(self, message: str, content: ev.Content, actor: str) -> Seq:
        """Give a message another content. Raises MessageNotFound."""
        await self._require_message(message)
        return await self.append_events([ev.MessageEdited(message, content=content)], actor)

    async def remove_message(self, message: str, actor: str) -> Seq:
        """Take a message out of the text; the log keeps it. Raises MessageNotFound."""
        await self._require_message(message)
        return await self.append_events([ev.MessageRemoved(message)], actor, tidying=True)

    async def _require_message(self, message: str) -> None:
        if (await self.whole()).message(message) is None:
            raise MessageNotFound(f"the chat has no message {message!r}")

    async def state_at(self, seq: Seq) -> ChatState:
        """The state as it was at `seq`: costs the history up to there, from the last snapshot before it on.

        Raises Truncated where it was compacted away.
        """
        self._touched(self)
        return await self.space.state_at(seq)

    async def text_at(self, base: Seq | ChatState | None) -> bytes | None:
        """The text as it was at `base`; None where it is the present one (or nobody can tell any more)."""
        with self.hold():
            present = (await self.load()).seq
            if base is None or await saving.is_present(self, base, present) or await saving.is_dropped(self, base):
                return None
            return history.render(base if isinstance(base, ChatState) else await self.state_at(base))

    async def change(
        self,
        actor: str,
        *,
        title: str | None = None,
        labels: Sequence[str] | None = None,
        projection: str | None = None,
    ) -> Seq:
        """Set title, labels or `projection` (of `events.INTENTS`), where they differ. Raises InvalidInput."""
        state = await self.load()
        ev.check_metadata(title, None if labels is None else list(labels))
        new_title = title if title is not None and title != state.title else None
        new_labels = list(labels) if labels is not None and tuple(labels) != state.labels else None
        events = [] if new_title is None and new_labels is None else [ev.ChatChanged(new_title, new_labels)]
        if projection is not None and projection != (state.projection or ev.PROJECTED):
            if projection not in ev.INTENTS:
                raise InvalidInput(f"projection must be one of {', '.join(ev.INTENTS)}")
            # An event of its own: what a copy is to be isn't part of what is copied.
            events.append(ev.ChatChanged(projection=projection))
        return await self.append_events(events, actor) if events else state.seq

    # ---- attachments

    async def attachment(self, name: str) -> Attachment:
        """Raises AttachmentNotFound."""
        found = (await self.load()).attachments.get(name)
        if found is None:
            raise AttachmentNotFound(f"the chat has no attachment {name!r}")
        return found

    def stage(self, name: str, base: Digest | None = None, *, counted: bool = True) -> Staging:
        """Begin the bytes of an attachment (or of a save that isn't committed yet): see `recover_drafts`.

        What is `counted` takes room of the quota as soon as it is written: whoever writes charges it.
        """
        label: dict[str, Any] = {"workspace": self.workspace.id, "chat": self.id, "name": name}
        if not counted:
            label[UNCOUNTED] = True
        return self.workspace.driver.blobs.stage(base, label=label)

    async def put_attachment(
        self,
        name: str,
        ref: BlobRef,
        actor: str,
        *,
        mode: int | None = None,
        mtime_ns: int | None = None,
        identity: AttachmentId | None = None,
        room: int | None = None,
    ) -> Attachment:
        """Name a blob. `room`: the bytes that are charged for it already (`store.attaching`).

        Raises InvalidName, QuotaExceeded.

        No event where the name has it already, with the same mode, and the same mtime to the second: archives often
        keep no more of it.
        """
        attachment_name(name)
        mtime_ns = attaching.int64(mtime_ns)
        with self.space.hold():
            present = (await self.load()).attachments.get(name)
            if (
                present is not None
                and present.ref == ref
                and mode in {None, present.mode or _DEFAULT_MODE}
                and (mtime_ns is None or mtime_ns // _SECOND == present.mtime_ns // _SECOND)
            ):
                return present
            event = attaching.put_event(name, ref, present, mode=mode, mtime_ns=mtime_ns, identity=identity)
            if room is None:
                await self.append_events([event], actor)
            else:
                self._touched(self)
                await self.workspace.quota.append_charged(self.space, NewEntry(event.encode(), actor), room)
            state = self.space.state
            put = None if state is None else state.attachments.get(name)
            return put if put is not None else await self.attachment(name)

    async def attach(self, name: str, source: AsyncIterator[bytes] | bytes, actor: str) -> Attachment:
        """Store bytes and name them."""
        attachment_name(name)
        if not self.workspace.quota.limited:
            return await self.put_attachment(name, await self.workspace.driver.blobs.put(source), actor)
        return await attaching.attach(self, name, source, actor)

    async def read_attachment(self, name: str, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """Stream a range of an attachment. Raises AttachmentNotFound, CorruptBlob."""
        found = await self.attachment(name)
        try:
            async for piece in self.workspace.driver.blobs.get(found.digest, offset, size):
                yield piece
        except (BlobNotFound, CorruptBlob) as error:
            raise self.unreadable(name, error) from error

    def unreadable(self, name: str, error: BlobNotFound | CorruptBlob) -> CorruptBlob:
        """What is raised where an attachment's bytes aren't there any more, or aren't what they were."""
        how = "missing" if isinstance(error, BlobNotFound) else "damaged"
        return CorruptBlob(
            f"the bytes of {self.called}/attachments/{name} are {how}: attach the same file again, or restore objects/ "
            "from a backup"
        )

    async def remove_attachment(self, name: str, actor: str) -> Seq:
        """Take it out of the chat; its bytes stay until `chatfs gc`."""
        await self.attachment(name)
        return await self.append_events([ev.AttachmentRemoved(name)], actor, tidying=True)

    async def rename_attachment(self, name: str, to: str, actor: str) -> Seq:
        """Another name; replaces an attachment that has it."""
        attachment_name(to)
        await self.attachment(name)
        return await self.append_events([ev.AttachmentRenamed(name, to)], actor, tidying=True)

    async def change_attachment(
        self, name: str, actor: str, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> Seq:
        """Mode bits or mtime, where they differ."""
        found = await self.attachment(name)
        mtime_ns = attaching.int64(mtime_ns)
        mode = None if mode == found.mode else mode
        mtime_ns = None if mtime_ns == found.mtime_ns else mtime_ns
        if mode is None and mtime_ns is None:
            return self.space.head.seq
        return await self.append_events([ev.AttachmentChanged(name, mode, mtime_ns)], actor)


def _entry(value: dict[str, Any], actor: str) -> NewEntry:
    import orjson  # noqa: PLC0415 - only programs that hand in dicts need it

    try:
        return intake.accept(orjson.dumps(value), actor, uuid7)
    except orjson.JSONEncodeError as error:
        raise InvalidEvent(f"the event can't be written as JSON: {error}") from None
