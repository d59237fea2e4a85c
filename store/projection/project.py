"""A workspace's project: the door to its copies.

::

    async with open_project(workspace, binding) as project:
        report = await project.reconcile()      # at the start, and when git has moved the files
        await project.write_out([chat.id])      # what moved in the store (`store.projection.projector` does this)
        project.externals                       # what is only in the project
        chat = await project.import_external(id)

One process at a time projects a workspace (`active`); others may read, and import external chats. Concurrency: trio;
one task at a time works on the project's files (`_lock`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from store import events as ev
from store.chat import Chat
from store.errors import ChatNotFound, QuotaExceeded, ReadOnly, StoreError
from store.model import ChatId, WorkspaceId, numbered, workspace_space
from store.projection import binding as bindings
from store.projection import external, form, leaving, older, older_store, orphans, resting, tail, take_in
from store.projection.binding import CHATS, ROOT, Binding
from store.projection.chat_sync import ChatSync, Report, free_name
from store.projection.external import External
from store.projection.manifest import NAME, Lock, Manifest, is_locked
from store.projection.repository import Busy, Repository
from store.projection.tree import Directory
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

__all__ = ["Busy", "External", "Presence", "Project", "Report", "open_project"]

log = logging.getLogger("chatfs")

_SLICE: Final = 200
_TURN: Final = 5.0
"""Seconds that a command's turn is waited for."""
_POLL: Final = 0.02
PROJECTED: Final = "projected"
LOCAL: Final = "local"
EXTERNAL: Final = "external"
Presence = str
"""Where a chat's copies are: `PROJECTED` (both), `LOCAL` (the store alone) or `EXTERNAL` (the project alone)."""


class Unbound(StoreError):
    """The project's directory isn't there, or isn't the workspace's any more: nothing is concluded from that."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at `.chatfs/chats` found: the directories by chat, and what is wrong with others."""

    names: dict[ChatId, list[str]]
    metadata: dict[ChatId, form.Metadata]
    problems: list[str]
    orphans: list[str]
    older: list[str]
    same: set[ChatId] = field(default_factory=set)
    """Chats of which neither copy changed since they were the same."""


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class Project:
    """Make it with `open_project`."""

    def __init__(self, workspace: Workspace, binding: Binding, manifest: Manifest, *, active: bool) -> None:
        self.workspace = workspace
        self.binding = binding
        self.active = active
        """Whether this process writes to the project."""
        self.externals: dict[ChatId, External] = {}
        """As of the last look."""
        self.on_settled: Callable[[], None] | None = None
        """Called when the project was looked at or written to, whatever that found or did."""
        self.git = Repository(binding.directory)
        self._manifest = manifest
        self._lock = trio.Lock()
        self._seen: dict[ChatId, list[str]] = {}
        self._begun = False

    @property
    def root(self) -> str:
        """`.chatfs/chats`."""
        return f"{self.binding.directory}/{ROOT}/{CHATS}"

    @contextmanager
    def _chats(self) -> Iterator[Directory]:
        """`.chatfs/chats`, made where it isn't there. Raises Unbound."""
        try:
            there = bindings.read_id(self.binding.directory)
            if there != self.workspace.id:
                raise self._unbound(there)
            with Directory.at(self.binding.directory) as top, top.sub(ROOT) as root:
                if self.active and not root.is_directory(CHATS):
                    root.make(CHATS).close()
                with root.sub(CHATS) as chats:
                    yield chats
        except FileNotFoundError as error:
            raise self._unbound(None) from error

    def _unbound(self, there: WorkspaceId | None) -> Unbound:
        place = self.binding.directory
        if not os.path.isdir(place):
            return Unbound(f"{place} isn't there: if it was moved, run chatfs project init where it is now")
        if there is None:
            return Unbound(f"{place}/{ROOT}/id is missing: restore it, or run chatfs project init {place}")
        return Unbound(f"{place} belongs to another workspace now ({ROOT}/id): nothing is projected there")

    @contextmanager
    def _root(self) -> Iterator[Directory]:
        with Directory.at(self.binding.directory) as top, top.sub(ROOT) as root:
            yield root

    # ---- looking

    def _look(self, chats: Directory) -> Seen:
        """Which directory is which chat's: by chat.json, and by the manifest where that can't be read."""
        known = {row.directory: (chat, row) for chat, row in self._manifest.rows.items() if row.directory}
        found = Seen({}, {}, [], [], [])
        for name in sorted(chats.directories()):
            chat, row = known.get(name, (None, None))
            if chat is None and older.chat_of(name) is not None:
                found.older.append(name)
                continue
            if chat is None or row is None or chats.stamp_in(name, form.METADATA) != row.files[form.METADATA]:
                try:
                    chat = self._look_into(chats, name, chat, found)
                except FileNotFoundError:
                    continue
                except (StoreError, OSError) as error:
                    # Of one that is known it is told by whoever looks closer: it isn't gone.
                    if chat is None:
                        found.problems.append(f"{chats.shown}/{name} can't be read: {_why(error)}")
            if chat is not None:
                found.names.setdefault(chat, []).append(name)
        return found

    def _look_into(self, chats: Directory, name: str, chat: ChatId | None, found: Seen) -> ChatId | None:
        """Whose a directory is; `chat` is what the manifest says. Raises FileNotFoundError, Strange, OSError."""
        with chats.sub(name) as directory:
            stamp = directory.stamp(form.METADATA)
            text = directory.read(form.METADATA, form.METADATA_MAX) if stamp is not None else None
            metadata = None if text is None else form.parse_chat_json(text[0])
            if metadata is not None:
                found.metadata[metadata.id] = metadata
                return metadata.id
            if chat is None and text is None:
                found.orphans.append(name)
            elif chat is None:
                assert text is not None, "else it is an orphan"
                found.problems.append(f"{directory.shown}/{form.METADATA} {form.why_unreadable(text[0])}")
            return chat

    async def look(self) -> None:
        """See which chats are there: brings `externals` up to date. Writes nothing. Raises Unbound."""
        await self.workspace.load()
        self._settle(await trio.to_thread.run_sync(self._look_from_outside))

    def _look_from_outside(self) -> Seen:
        if not self.active and os.path.isdir(os.path.dirname(self.root)) and not os.path.isdir(self.root):
            return Seen({}, {}, [], [], [])  # git keeps no empty directories
        with self._chats() as chats:
            return self._look(chats)

    def _settle(self, seen: Seen) -> None:
        state = self.workspace.state
        self._seen = seen.names
        taken: set[str] = set()
        externals: dict[ChatId, External] = {}
        for chat in sorted(seen.names):
            if chat in state.chats or chat not in seen.metadata:
                continue
            fields = dict(seen.metadata[chat].fields)
            plain = name = str(fields.get("name", chat))
            number = 1
            while name in taken or state.find(name) is not None:
                number += 1
                name = numbered(plain, f" ({number})")
            taken.add(name)
            externals[chat] = External(chat, seen.names[chat][0], name, fields)
        self.externals = externals
        if self.on_settled is not None:
            self.on_settled()

    def can_be_active(self) -> bool:
        """Whether no process keeps the project up to date at the moment: it can be opened anew, then."""
        return not is_locked(self.workspace.driver.local_dir(workspace_space(self.workspace.id)))

    async def compare(self) -> Seen:
        """`look`, and what it saw; `same` is filled. Reads no copy. Raises Unbound."""
        await self.workspace.load()
        seen = await trio.to_thread.run_sync(self._look_from_outside)
        self._settle(seen)
        with self._chats() as chats:
            seen.same.update(await resting.find(self.workspace, chats, self._manifest.rows, seen.names))
        return seen

    def presence(self, chat: ChatId) -> Presence:
        """Where its copies are, as of the last look."""
        if chat not in self.workspace.state.chats:
            return EXTERNAL
        row = self._manifest.rows.get(chat)
        return PROJECTED if chat in self._seen or (row is not None and row.directory) else LOCAL

    # ---- reconciling

    async def reconcile(
        self, *, only: Iterable[ChatId] | None = None, grown: tail.Grown = lambda _chat: None
    ) -> Report:
        """Bring all chats (or those) and their copies together. Raises Unbound, Busy, ReadOnly, BackendError.

        What is wrong with one chat is in the report, and doesn't keep the others.
        """
        report = Report()
        self._require_active()
        async with self._lock:
            mark = await self.git.rest()
            await self.workspace.load()
            with self._chats() as chats:
                seen = await self._start(chats, report)
                wanted = None if only is None else set(only)
                sync = ChatSync(self.workspace, chats, self.git, mark, report)
                nobodys = await orphans.keep_bytes(self.workspace, chats, seen.orphans, report.problems.append)
                for orphan in nobodys:
                    chat = await orphans.owner(self.workspace, orphan) if orphan.copy.lines else None
                    if chat is not None:
                        seen.names.setdefault(chat, []).append(orphan.name)
                same = await resting.find(self.workspace, chats, self._manifest.rows, seen.names)
                met: set[ChatId] = set()
                while new := [record for record in self.workspace.state.chats.values() if record.id not in met]:
                    met.update(record.id for record in new)  # a chat that went two ways makes another
                    for number, record in enumerate(new):
                        if record.id in same:
                            report.unchanged += 1
                        elif wanted is None or record.id in wanted:
                            names = seen.names.get(record.id, [])
                            if not await self._follow(chats, record, names, grown, report):
                                await self._one(sync, record, names, report)
                        if number % _SLICE == _SLICE - 1:
                            await trio.lowlevel.checkpoint()
                report.problems += await orphans.settle(self.workspace, chats, nobodys)
                for chat in set(self._manifest.rows) - set(self.workspace.state.chats):
                    self._manifest.set(chat, None)
                self._settle(await trio.to_thread.run_sync(self._look, chats) if report.taken else seen)
            await trio.to_thread.run_sync(self._manifest.save)
        return report

    async def _start(self, chats: Directory, report: Report) -> Seen:
        """What is there, in today's layout."""
        await trio.to_thread.run_sync(chats.sweep)
        seen = await trio.to_thread.run_sync(self._look, chats)
        if seen.older:
            with self._root() as root:
                await older.move(self.workspace, root, chats, seen.older, report)
            seen = await trio.to_thread.run_sync(self._look, chats)
        report.problems += seen.problems
        self._settle(seen)
        if not self._begun:
            await self._begin(chats, report)
        return seen

    async def _begin(self, chats: Directory, report: Report) -> None:
        """The first start for this project: what is only there is imported, once."""
        driver = self.workspace.driver
        if not await bindings.has_begun(driver, self.binding):
            directory = driver.local_dir(workspace_space(self.workspace.id))
            report.done += await older_store.move_chats(self.workspace, directory)
            for there in list(self.externals.values()):
                try:
                    made = await self._import(chats, there, report.problems.append)
                except (StoreError, OSError) as error:
                    report.problems.append(f"{chats.shown}/{there.directory} isn't imported: {_why(error)}")
                else:
                    report.done.append(f"{made.called} was only in the project: it is in the store now, too")
            await bindings.begun(driver, self.binding)
        self._begun = True

    def _require_active(self) -> None:
        if not self.active:
            raise ReadOnly("another process projects this workspace: it does it by itself")

    async def _one(self, sync: ChatSync, record: ChatRecord, names: list[str], report: Report) -> None:
        try:
            row = await sync.run(record, list(names), self._manifest.rows.get(record.id))
        except Busy:
            raise
        except (StoreError, OSError) as error:
            report.problems.append(f"{self.workspace.called}/{record.name} isn't projected: {_why(error)}")
            return
        self._manifest.set(record.id, row)
        if row is not None and row.directory:
            self._seen[record.id] = [row.directory]

    # ---- writing out

    async def write_out(self, moved: Iterable[ChatId], grown: tail.Grown = lambda _chat: None) -> Report:
        """Let the copies of chats follow that moved in the store: what was added is added. As `reconcile` otherwise."""
        report = Report()
        self._require_active()
        async with self._lock:
            mark = await self.git.rest()
            await self.workspace.load()
            with self._chats() as chats:
                sync = ChatSync(self.workspace, chats, self.git, mark, report)
                for chat in moved:
                    record = self.workspace.state.chats.get(chat)
                    if record is None:
                        continue
                    row = self._manifest.rows.get(chat)
                    if row is not None and await self._follow(chats, record, [row.directory], grown, report):
                        continue
                    names = self._seen.get(chat, []) if row is None else [row.directory] if row.directory else []
                    there = [name for name in names if chats.is_directory(name)]
                    if row is not None and row.directory and not there:
                        # It may have been renamed there.
                        there = (await trio.to_thread.run_sync(self._look, chats)).names.get(chat, [])
                    await self._one(sync, record, there, report)
            await trio.to_thread.run_sync(self._manifest.save)
        if self.on_settled is not None:
            self.on_settled()
        return report

    async def _follow(
        self, chats: Directory, record: ChatRecord, names: list[str], grown: tail.Grown, report: Report
    ) -> bool:
        """The short way: the log has more lines, and nothing else happened; False where it isn't so."""
        row = self._manifest.rows.get(record.id)
        if row is None or not row.directory or names != [row.directory] or record.place is Place.TRASH:
            return False
        chat = self.workspace.chat_by_id(record.id)
        try:
            with chat.hold():
                after = await tail.follow(chat, chats, record, row, grown, self.git)
        except (OSError, StoreError):
            return False  # the long way says what it is
        if after is None:
            return False
        report.written += after.files != row.files
        self._manifest.set(record.id, after)
        return True

    # ---- external chats

    async def import_external(self, chat: ChatId) -> Chat:
        """Take a chat into the store, with its attachments and other files: from now on it is as any other.

        Raises ChatNotFound, Damage, QuotaExceeded.
        """
        state = await self.workspace.load()
        if chat not in state.chats:
            there = self.externals.get(chat)
            if there is None:
                raise ChatNotFound(f"the project has no chat {chat}")
            with Directory.at(self.root) as chats:
                await self._import(chats, there, log.warning)
        await self._follow_soon(chat)
        return self.workspace.chat_by_id(chat)

    async def _import(self, chats: Directory, there: External, tell: Callable[[str], None]) -> Chat:
        read = await external.read(self.root, there)
        with chats.sub(there.directory) as directory:
            room = sum(map(len, read.lines))  # at least: an entry has more than its line
            await take_in.bring_bytes(self.workspace, read.lines, directory, tell, room=room)
            name = await free_name(self.workspace, str(there.fields.get("name", there.name)), there.id)
            made = await take_in.new_chat(self.workspace, there.id, name, read.lines, place=there.place)
            await take_in.say(made, there.fields)
            try:
                await leaving.keep_unknown(made, directory, read.copy.others)
            except QuotaExceeded as error:
                tell(f"other files than the chat's stay in {directory.shown} alone: {error}")
        self.externals.pop(there.id, None)
        return made

    async def _follow_soon(self, chat: ChatId) -> None:
        """What was just done in the store, in the project; if that can't be now, a later start or move does it."""
        if self.active:
            with contextlib.suppress(StoreError, OSError):
                await self.reconcile(only=[chat])

    async def remove_external(self, chat: ChatId) -> None:
        """Remove its directory from the project; nothing of it is kept. Raises ChatNotFound, Busy, Unbound."""
        there = self.externals.get(chat)
        if there is None or chat in (await self.workspace.load()).chats:
            raise ChatNotFound(f"the project has no chat {chat} that isn't imported")
        async with self._lock:
            await self.git.rest()
            with self._chats() as chats:
                for name in self._seen.get(chat, [there.directory]):
                    await trio.to_thread.run_sync(chats.remove_tree, name)
        self.externals.pop(chat, None)

    async def set_local(self, chat: Chat, actor: str, *, local: bool) -> None:
        """Whether the chat stays out of the project. The event first; the copy follows."""
        await chat.change(actor, projection=ev.LOCAL if local else ev.PROJECTED)
        await self._follow_soon(chat.id)


@asynccontextmanager
async def open_project(
    workspace: Workspace, binding: Binding, *, looks: bool = False, follows: bool = False
) -> AsyncIterator[Project]:
    """The project at `binding`, which is the workspace's. Writes nothing yet. Raises BackendError.

    `looks`: nothing is to be projected. `follows`: this process hears of every change, and projects it. Another that
    doesn't is waited for: it is soon done.
    """
    directory = workspace.driver.local_dir(workspace_space(workspace.id))
    if looks or workspace.driver.read_only:
        manifest = await trio.to_thread.run_sync(Manifest, directory / NAME, binding.directory)
        yield Project(workspace, binding, manifest, active=False)
        return
    lock = Lock(directory, follows=follows)
    try:
        active = lock.take()
        with trio.move_on_after(_TURN):
            while not active and not lock.is_followed():
                await trio.sleep(_POLL)
                active = lock.take()
        manifest = await trio.to_thread.run_sync(Manifest, directory / NAME, binding.directory)
        yield Project(workspace, binding, manifest, active=active)
    finally:
        lock.release()
