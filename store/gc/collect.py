"""One collection: what is deleted, in which order, so that a crash at any point leaves nothing half done for good.

1. Chats in the trash beyond the retention: the workspace's log says `chat.deleted` first, durable; then the chat's
   space goes. Where a crash comes between, the next collection finds the space that the log says is deleted.
2. Trashed workspaces beyond it: the name's note first, then the space, in one rename.
3. Files that crashes left, and editors' files that nobody has touched for as long.
4. Blobs that no log names then.

A chat that its workspace doesn't list, without the log saying that it was deleted, is damage and not garbage: it stays.

Concurrency: on the trio loop; what reads or deletes much runs in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from store import events as ev
from store.driver import Document
from store.drivers.file.objects import Objects
from store.drivers.file.text import LOG_NAME
from store.errors import ChatBusy, InvalidInput, ReadOnly, SeqConflict, SpaceNotFound, StoreError
from store.fsck.context import CRASH_SECONDS
from store.gc import RETENTION_DAYS
from store.gc.marks import Marks
from store.gc.sweep import BlobSweep, FileSweep, Swept
from store.library import Store
from store.model import ChatId, Millis, NewEntry, SpaceId, WorkspaceId, chat_space, clock_ms, workspace_space
from store.registry import directory_of, scheme_of
from store.workspace import Hooks, Workspace
from store.workspace_state import ChatRecord, Place

_DAY_MS: Final = 86_400_000

Say = Callable[[str], None]


@dataclass(slots=True)
class Collected:
    """What was freed, or would be; `notes` say in a line each what was left, and why."""

    chats: Swept = field(default_factory=Swept)
    workspaces: Swept = field(default_factory=Swept)
    blobs: Swept = field(default_factory=Swept)
    scratch: Swept = field(default_factory=Swept)
    leftovers: Swept = field(default_factory=Swept)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """All together."""
        parts = (self.chats, self.workspaces, self.blobs, self.scratch, self.leftovers)
        return sum(part.bytes for part in parts)


async def collect(
    store: Store,
    actor: str,
    *,
    retention_days: int = RETENTION_DAYS,
    dry_run: bool = False,
    say: Say = lambda _text: None,
) -> Collected:
    """Collect the garbage of a `file:` store. `say` is told what is being done."""
    root = directory_of(store.driver.url)
    if root is None or scheme_of(store.driver.url) != "file":
        raise InvalidInput(f"a {scheme_of(store.driver.url)}: store keeps what it has: name a file: store")
    if store.driver.read_only and not dry_run:
        raise ReadOnly("the store can't be written: chatfs gc --dry-run says what could be freed")
    collection = _Collection(store, root, actor, retention_days * _DAY_MS, dry_run=dry_run)
    say("looking at the trash")
    await collection.spaces()
    say("looking for files that were left")
    await trio.to_thread.run_sync(collection.files)
    say("looking for attachments that nothing names")
    await trio.to_thread.run_sync(collection.blobs)
    return collection.done


class _Collection:
    def __init__(self, store: Store, root: Path, actor: str, retention: int, *, dry_run: bool) -> None:
        self._driver = store.driver
        self._silent = Hooks(
            lambda _space, _change: None, lambda _chat: None, trio.lowlevel.checkpoint, store.authority
        )
        self._root = root
        self._actor = actor
        self._retention = retention
        self._dry_run = dry_run
        self._before = Millis(clock_ms() - retention)
        self._doomed: set[SpaceId] = set()
        self.done = Collected()

    # ---- chats and workspaces

    async def spaces(self) -> None:
        """Delete what has been in the trash for long enough."""
        for space in await self._driver.spaces():
            if not (self._root / space / LOG_NAME).exists():
                continue
            workspace = Workspace(self._driver, WorkspaceId(space.rpartition("/")[2]), self._silent)
            try:
                await self._workspace(workspace, space)
            except StoreError as error:
                self.done.notes.append(f"{space} is left alone: {error}")
            finally:
                await workspace.space.release()
                workspace.quota.close()

    async def _workspace(self, workspace: Workspace, space: SpaceId) -> None:
        state = await workspace.load()
        if workspace.space.damage is not None:
            raise workspace.space.damage
        if state.trashed and state.ts < self._before and not state.count(Place.CHATS) + state.count(Place.ARCHIVE):
            await self._delete_workspace(state.name, workspace.id, space)
            return
        for record in [each for _, each in state.in_place(Place.TRASH) if each.changed < self._before]:
            await self._delete_chat(workspace, record)
        await self._finish(workspace)

    async def _delete_chat(self, workspace: Workspace, record: ChatRecord) -> None:
        try:
            await workspace.require_free_of_sandboxes(record.id)
        except ChatBusy as error:
            self.done.notes.append(f"{record.name} in the trash of {workspace.state.name} is left alone: {error}")
            return
        space = chat_space(workspace.id, record.id)
        if not self._dry_run:
            event = NewEntry(ev.ChatDeleted(record.id).encode(), self._actor)
            while True:
                state = await workspace.load()
                present = state.chats.get(record.id)
                if present is None or present.place is not Place.TRASH or present.changed >= self._before:
                    return  # somebody was faster, or brought it back
                try:
                    await workspace.quota.append(workspace.space, [event], expected_seq=state.seq, tidying=True)
                    break
                except SeqConflict:
                    continue
            await workspace.space.sync()
        await self._delete_space(space, self.done.chats)

    async def _finish(self, workspace: Workspace) -> None:
        """Delete spaces that the log says are deleted, and chats that a crash kept from being listed."""
        there = await self._driver.spaces(workspace_space(workspace.id))
        state = await workspace.load()
        unlisted = [space for space in there if ChatId(space.rpartition("/")[2]) not in state.chats]
        unlisted = [space for space in unlisted if space not in self._doomed]
        if not unlisted:
            return
        deleted = await _deleted(workspace)
        for space in unlisted:
            if space.rpartition("/")[2] in deleted:
                await self._delete_space(space, self.done.chats)
            elif _is_unused(self._root / space):
                await self._delete_space(space, self.done.leftovers)

    async def _delete_workspace(self, name: str, workspace: WorkspaceId, space: SpaceId) -> None:
        if not self._dry_run:
            note = await self._driver.kv.get(f"names/{name}")
            if isinstance(note, Document) and note.value.get("id") == workspace:
                await self._driver.kv.delete(f"names/{name}", if_match=note.etag)
        await self._delete_space(space, self.done.workspaces)

    async def _delete_space(self, space: SpaceId, swept: Swept) -> None:
        size = await trio.to_thread.run_sync(_tree_size, self._root / space)
        if not self._dry_run:
            with contextlib.suppress(SpaceNotFound):
                await self._driver.delete_space(space)
        self._doomed.add(space)
        swept.add(size)

    # ---- files and blobs

    def files(self) -> None:
        """Delete what crashes and editors left."""
        sweep = FileSweep(self._root, self._retention / 1000, dry_run=self._dry_run)
        sweep.run()
        self.done.scratch = sweep.scratch
        self.done.leftovers.count += sweep.leftovers.count
        self.done.leftovers.bytes += sweep.leftovers.bytes

    def blobs(self) -> None:
        """Delete the blobs that nothing names."""
        objects = Objects(self._root)
        try:
            marks = Marks(self._root, objects, frozenset(self._doomed))
            try:
                marks.look()
                if not marks.unsound:
                    sweep = BlobSweep(objects, marks, dry_run=self._dry_run)
                    self.done.blobs = sweep.run()
                    self.done.notes.extend(sweep.notes)
            except OSError as error:
                self.done.notes.append(f"attachments are left alone: {error.filename}: {error.strerror}")
            for path in marks.unsound:
                where = path.parent.relative_to(self._root)
                self.done.notes.append(
                    f"attachments are left alone: what {where} uses can't be read: run chatfs fsck --repair"
                )
        finally:
            objects.close()


async def _deleted(workspace: Workspace) -> set[Any]:
    """The chats that the workspace's log says are deleted."""
    found = set()
    async for entry in workspace.space.read():
        if b"chat.deleted" in entry.data:
            value = orjson.loads(entry.data)
            if isinstance(value, dict) and value.get("type") == ev.ChatDeleted.TYPE:
                found.add(value.get("chat"))
    return found


def _is_unused(directory: Path) -> bool:
    """Whether a chat's directory holds nothing but an empty log, and is old."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are all that is needed
        status = (directory / LOG_NAME).lstat()
        return (
            names == [LOG_NAME] and status.st_size == 0 and status.st_mtime * 1000 < clock_ms() - CRASH_SECONDS * 1000
        )
    except OSError:
        return False


def _tree_size(directory: Path) -> int:
    seen: dict[int, int] = {}
    for found, _names, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                status = (Path(found) / name).lstat()
                seen[status.st_ino] = status.st_size
    return sum(seen.values())
