"""External chats as chats: each is a log in memory, filled from the project when it is first opened.

Such a log has the lines of the project's file in their order, as taking the chat in writes them. So the durable chat
has the same entries under the same seqs, and who has read the one may go on with the other. Attachments' bytes are read
from the project. Where the project's lines come in another order later, the log begins anew (`log.reset`), and what was
read before is told by the state that it was.

Only removals of attachments can be written to such a log: they are made again in the durable chat, if there ever is
one. Concurrency: trio; one task at a time fills or forgets logs (`_lock`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, cast
from weakref import WeakValueDictionary

import trio

from store import events as ev
from store import registry
from store.chat import Chat
from store.driver import BlobStore, Driver, Staging
from store.errors import BlobNotFound, ChatNotFound, CorruptBlob, ReadOnly, StoreError, StoreFailed
from store.folded import Moved
from store.model import BlobRef, ChatId, Digest, Millis, NewEntry, Seq, chat_space, clock_ms
from store.projection import external, form, portable, take_in
from store.projection.external import External
from store.projection.project import Project
from store.projection.tree import Stamp, stamp_of
from store.workspace import Hooks, Workspace
from store.workspace_state import ChatRecord, Place, WorkspaceState

_PIECE: Final = 1 << 20


class _Workspace(Workspace):
    """What the chats take for their workspace: it has no log, and is what was found last."""

    __slots__ = ("_found", "_real")

    def __init__(self, real: Workspace, driver: Driver, hooks: Hooks) -> None:
        super().__init__(driver, real.id, hooks)
        self._real = real
        self._found = WorkspaceState()

    def fill(self, records: Iterable[ChatRecord]) -> None:
        found = WorkspaceState()
        kept = list(records)
        found.fill(kept, kept, {})
        found.id = self._real.id
        self._found = found

    @property
    def called(self) -> str:
        return self._real.called

    @property
    def state(self) -> WorkspaceState:
        self._found.name = self._real.state.name
        return self._found

    async def load(self) -> WorkspaceState:
        return self.state


class ExternalChat(Chat):
    """One of them. `lines` are those that its log says."""

    __slots__ = ("external", "is_reset", "lines", "places", "stamp")

    def __init__(self, workspace: Workspace, found: External, hooks: Hooks) -> None:
        super().__init__(workspace, found.id, hooks)
        self.external = found
        self.lines: list[bytes] = []
        self.stamp: Stamp | None = None
        """How the project's file looked; None: nothing was read yet."""
        self.is_reset = False
        """Whether its seqs aren't those that a durable chat would have."""
        self.places: dict[Digest, str] = {}
        """The attachments' names, by their bytes."""

    async def append(
        self, values: Sequence[NewEntry], *, expected_seq: Seq | None = None, tidying: bool = False
    ) -> Seq:
        """Only removals of attachments. Raises ReadOnly."""
        if not all(isinstance(ev.parse(new.data), ev.AttachmentRemoved) for new in values):
            raise ReadOnly(f"{self.called} is only in the project: it is taken into the store before it is changed")
        return await super().append(values, expected_seq=expected_seq, tidying=tidying)

    def append_now(self, values: Sequence[NewEntry]) -> bool:
        """Never: see `append`."""
        return False


class ExternalChats:
    """Those of one project. `moved` is told when a log that is open has moved."""

    def __init__(self, project: Project, moved: Moved) -> None:
        self.project = project
        self.records: dict[ChatId, ChatRecord] = {}
        """As of the last `settle`."""
        self._moved = moved
        self._now = Millis(0)
        self._settled: tuple[int, int, int] = (0, 0, -1)
        self._driver: Driver | None = None
        self._workspace: _Workspace | None = None
        self._names: dict[Place, dict[str, ChatRecord]] = {}
        self._chats: WeakValueDictionary[ChatId, ExternalChat] = WeakValueDictionary()
        self._filled: set[ChatId] = set()
        self._lock = trio.Lock()

    # ---- which there are

    async def settle(self) -> list[ChatRecord]:
        """Take over what the project's last look found; the records that are new, gone, or were others before."""
        found = self.project.externals
        state = self.project.workspace.state
        if (mark := (id(found), len(found), state.seq)) == self._settled:
            return []
        self._settled = mark
        if found and self._workspace is None:
            await self._open()
        records = {
            chat: ChatRecord(chat, each.name, each.place, each.created, each.created)
            for chat, each in self.project.externals.items()
            if chat not in state.chats and state.find(each.name) is None
        }
        before, self.records = self.records, records
        self._names = {place: {} for place in Place}
        for record in records.values():
            self._names[record.place][record.name] = record
        if self._workspace is not None:
            # Who still has one open that is gone sees it as it was.
            kept = [before[chat] for chat in self._chats if chat in before and chat not in records]
            self._workspace.fill([*records.values(), *kept])
        for chat, each in list(self._chats.items()):
            each.external = found.get(chat, each.external)
        return [
            record
            for mine, others in ((before, records), (records, before))
            for chat, record in mine.items()
            if others.get(chat) != record
        ]

    async def _open(self) -> None:
        driver = await registry.open_driver("memory:", clock=lambda: self._now)
        driver.blobs = cast("BlobStore", _Bytes(self, self.project.workspace.driver.blobs))
        self._driver = driver
        self._workspace = _Workspace(self.project.workspace, driver, self._hooks(_nothing))

    def _hooks(self, opening: Callable[[], Any]) -> Hooks:
        return Hooks(self._moved, lambda _chat: None, opening)

    def open_chats(self) -> list[ChatId]:
        """Those that somebody has in hand."""
        return list(self._chats)

    def record(self, chat: ChatId) -> ChatRecord | None:
        """One that is shown, or that was and is still open."""
        found = self.records.get(chat)
        if found is None and self._workspace is not None:
            found = self._workspace.state.chats.get(chat)
        return found

    def in_place(self, place: Place) -> dict[str, ChatRecord]:
        """By the names under which they are shown."""
        return self._names.get(place, {})

    def chat(self, chat: ChatId) -> ExternalChat:
        """One to read from. Raises ChatNotFound."""
        known = self._chats.get(chat)
        if known is None:
            found = self.project.externals.get(chat)
            if found is None or self._workspace is None:
                raise ChatNotFound(f"the project has no chat {chat}")

            async def opening() -> None:
                filled = self._chats.get(chat)
                if filled is not None:
                    await self._fill(filled)

            known = self._chats[chat] = ExternalChat(self._workspace, found, self._hooks(opening))
        return known

    # ---- their logs

    async def _fill(self, chat: ExternalChat) -> None:
        async with self._lock:
            if chat.stamp is None:
                stamp = await self._stamp(chat)
                await self._write(chat, stamp, await external.read(self.project.root, chat.external))

    async def _stamp(self, chat: ExternalChat) -> Stamp | None:
        path = f"{self.project.root}/{chat.external.directory}/{form.HISTORY}"
        try:
            return stamp_of(await trio.to_thread.run_sync(os.lstat, path))
        except OSError:
            return None

    async def _write(self, chat: ExternalChat, stamp: Stamp | None, read: external.ExternalState) -> None:
        """Make its log say the lines that were read."""
        assert self._driver is not None
        log = await self._driver.open_log(chat.space.id, create=True)
        self._filled.add(chat.id)
        entries = [decoded.new_entry() for line in read.lines if (decoded := portable.decode(line)) is not None]
        if read.lines[: len(chat.lines)] == chat.lines:
            entries = entries[len(chat.lines) :]
        else:
            entries.insert(0, NewEntry(ev.LogReset().encode(), ev.PROJECTOR))
            chat.is_reset = True
        self._now = Millis(max([log.head.ts, *(entry.origin.ts for entry in entries if entry.origin)]))
        if entries:
            await log.append(entries)
        self._now = clock_ms()
        await log.aclose()
        chat.lines = read.lines
        chat.stamp = stamp or Stamp(0, 0, 0)
        chat.places |= {found.digest: name for name, found in read.state.attachments.items()}

    async def refresh(self) -> None:
        """Look whether the project says anything else of those that were read; forget logs that nobody needs."""
        for chat in list(self._chats.values()):
            if chat.stamp is None or chat.id not in self.project.externals:
                continue
            stamp = await self._stamp(chat)
            if stamp is None or stamp == chat.stamp or await self.removals(chat):
                continue
            with contextlib.suppress(StoreError):  # who reads it next hears what is wrong
                async with self._lock:
                    await self._write(chat, stamp, await external.read(self.project.root, chat.external))
                await chat.space.refresh()
        async with self._lock:
            for gone in self._filled - set(self._chats):
                assert self._driver is not None
                await self._driver.delete_space(chat_space(self.project.workspace.id, gone))
                self._filled.discard(gone)

    async def removals(self, chat: ExternalChat) -> list[NewEntry]:
        """What was written to its log here."""
        if not chat.space.loaded or (await chat.head()).seq <= len(chat.lines):
            return []
        return [
            NewEntry(entry.data, entry.actor)
            async for entry in chat.log()
            if entry.origin is None and entry.actor != ev.PROJECTOR
        ]

    async def aclose(self) -> None:
        """Forget all of it."""
        if self._driver is not None:
            await self._driver.aclose()

    # ---- into the store

    async def take_in(self, chat: ExternalChat) -> Chat:
        """The durable chat, made if there is none yet. Raises BackendError, QuotaExceeded."""
        workspace = self.project.workspace
        await chat.head()  # filled, so that it can be made of what was read where the project hasn't got it any more
        await self.refresh()
        removals = await self.removals(chat)
        try:
            await self.project.import_external(chat.id)
        except ChatNotFound:
            name, place = chat.external.name, chat.external.place
            made = await take_in.new_chat(workspace, chat.id, name, chat.lines, place=place)
            # Behind the lines, whose seqs are known. The directory may come back.
            await made.append_events([ev.ChatChanged(projection=ev.GONE)], ev.PROJECTOR, tidying=True)
        except (StoreError, OSError) as error:
            # What is in the store is compared with the project later.
            if chat.id not in (await workspace.load()).chats or isinstance(error, OSError):
                raise
        made = workspace.chat_by_id(chat.id)
        if not await self.is_taken_in(chat, made):
            raise StoreFailed(f"{made.called} hasn't come into the store wholly yet: try again")
        if removals:
            await made.append(removals, tidying=True)
        return made

    async def is_taken_in(self, chat: ExternalChat, made: Chat) -> bool:
        """Whether the durable log has all that was read of it. If under other seqs, `is_reset` says so from then on."""
        last = portable.decode(chat.lines[-1]) if chat.lines else None
        if last is None:
            return True
        head, new = await made.head(), last.new_entry()
        if head.seq < len(chat.lines):
            return False
        if head.first_seq == 1:
            async for entry in made.log(Seq(len(chat.lines) - 1), 1):
                if (entry.data, entry.origin) == (new.data, new.origin):
                    return True
            if not set(portable.stream([entry async for entry in made.log()])).issuperset(chat.lines):
                return False
        chat.is_reset = True
        return True


async def _nothing() -> None:
    pass


class _Bytes:
    """The bytes of the attachments: from the store where it has them, else from the project."""

    def __init__(self, chats: ExternalChats, store: BlobStore) -> None:
        self._chats = chats
        self._store = store
        self._files = external.Attachments(chats.project.root)

    async def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """See BlobStore."""
        with contextlib.suppress(BlobNotFound):
            return await self._store.read(digest, offset, size)
        why: StoreError = BlobNotFound(f"no blob {digest}")
        for chat in list(self._chats._chats.values()):  # noqa: SLF001 - a part of it
            if digest in chat.places:
                try:
                    return await self._files.read(chat.external, chat.places[digest], digest, offset, size)
                except ChatNotFound:
                    continue
                except CorruptBlob as error:
                    why = error  # another chat may have the bytes as they were
        raise why

    async def get(self, digest: Digest, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """See BlobStore."""
        while (left := _PIECE if size is None else min(size, _PIECE)) and (
            piece := await self.read(digest, offset, left)
        ):
            yield piece
            offset += len(piece)
            size = None if size is None else size - len(piece)

    async def stat(self, digest: Digest) -> BlobRef:
        """See BlobStore."""
        return await self._store.stat(digest)

    def stage(self, base: Digest | None = None, *, label: dict[str, Any]) -> Staging:
        """See BlobStore."""
        return self._store.stage(base, label=label)
