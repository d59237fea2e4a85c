"""A store, opened: the door for programs, the commands and the mount.

::

    async with open_store("file:///home/me/chats") as store:
        workspace = await store.create_workspace("demo", "my-program")
        chat = await workspace.create_chat("trip", "my-program")
        await chat.append_events([{"role": "user", "content": "hi"}], "my-program")

Concurrency: one trio event loop. A background task hears of changes that other processes make, and drops chats that
nobody has used lately from memory.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from store import events as ev
from store import registry
from store.authority import LEASE_MS, Authorities, Authority
from store.chat import Chat
from store.driver import ABSENT, Access, Clock, Document, Driver, EtagConflict, Progress
from store.errors import NameTaken, StoreError, WorkspaceNotFound
from store.folded import Change, Moved
from store.model import (
    ChatId,
    NewEntry,
    SpaceId,
    WorkspaceId,
    clock_ms,
    directory_name,
    is_uuid,
    uuid7,
    workspace_space,
)
from store.registry import default_url
from store.workspace import Hooks, Workspace
from store.workspace_state import WorkspaceState

if TYPE_CHECKING:
    from store.index import Hit, Index, Search
    from store.index.externals import Listed

log = logging.getLogger("chatfs")

CHATS_IN_MEMORY: Final = 64
"""How many chats may stay open without being in use."""
CHATS_AT_MOST: Final = 2 * CHATS_IN_MEMORY
"""How many before the next one waits until some have been dropped. Each has a handful of files open."""
TEXT_IN_MEMORY: Final = 96 * 1024 * 1024
"""How many bytes of rendered text the folds of unused chats may stand for."""
MOVES_BETWEEN_LOOKS: Final = 64
"""After how many moves of logs it is looked whether a snapshot is due."""


def whoami() -> str:
    """The user's name, or their number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class Store:
    """An opened store. Make it with `open_store`."""

    def __init__(self, driver: Driver, authorities: Authorities | None = None) -> None:
        self.driver = driver
        self.authorities = authorities
        """Who appends to which space; None where nothing is appended."""
        self.on_moved: Moved | None = None
        """Called when a log has moved, by this process or another; the effect on the fold where it is known."""
        self.also_moved: list[Moved] = []
        """Called likewise."""
        self._workspaces: dict[WorkspaceId, Workspace] = {}
        self._recent: OrderedDict[Chat, None] = OrderedDict()
        self._unreadable: set[SpaceId] = set()
        self._uses = 0
        self._moves = 0
        self._crowded = trio.Event()
        self._grown = trio.Event()
        self._index: Index | None = None
        self._hooks = Hooks(self._moved, self._touched, self._opening, self.authority)

    def authority(self, space: SpaceId) -> Authority | None:
        """Under what the space is appended to."""
        return None if self.authorities is None else self.authorities.of(space)

    # ---- workspaces

    async def workspaces(self) -> list[Workspace]:
        """All that aren't trashed, by name."""
        found = []
        for space in await self.driver.spaces():
            try:
                workspace = await self._load(WorkspaceId(space.rpartition("/")[2]))
            except StoreError as error:
                # One that can't be read doesn't take the others with it.
                if space not in self._unreadable:
                    self._unreadable.add(space)
                    log.error("workspace %s is left out: %s", space, error)  # noqa: TRY400 - one line
                continue
            if workspace is not None and not workspace.state.trashed:
                found.append(workspace)
        return sorted(found, key=lambda workspace: workspace.state.name)

    async def workspace(self, name: str) -> Workspace:
        """By name or id. Raises WorkspaceNotFound."""
        if is_uuid(name) and (known := await self._load(WorkspaceId(name))) and not known.state.trashed:
            return known
        note = await self.driver.kv.get(_key(name))
        if note is not None:
            found = await self._load(WorkspaceId(note.value["id"]))
            if found is not None and found.state.name == name and not found.state.trashed:
                return found
        for workspace in await self.workspaces():
            if workspace.state.name == name:
                return workspace
        raise WorkspaceNotFound(f"no workspace {name!r}: see chatfs workspace ls, or create it")

    async def create_workspace(
        self, name: str, actor: str, *, quota_bytes: int = 0, workspace: WorkspaceId | None = None
    ) -> Workspace:
        """A new one; `workspace` is its id, where that is given. Raises InvalidName, NameTaken."""
        new = workspace or WorkspaceId(uuid7())
        made = Workspace(self.driver, new, self._hooks)
        await self._claim(name, new)
        events: list[ev.Event] = [ev.WorkspaceCreated(new, name, whoami())]
        if quota_bytes:
            events.append(ev.WorkspaceChanged(quota_bytes=quota_bytes))
        await made.load()
        await made.space.append([NewEntry(event.encode(), actor) for event in events])
        await made.space.sync()
        self._workspaces[new] = made
        return made

    def known_workspace(self, workspace: WorkspaceId) -> Workspace | None:
        """The workspace, if it was looked at here."""
        return self._workspaces.get(workspace)

    async def rename_workspace(self, workspace: Workspace, name: str, actor: str) -> None:
        """Another name. Raises InvalidName, NameTaken."""
        await workspace.load()
        old = workspace.state.name
        if name == old:
            return
        await self._claim(name, workspace.id)
        renamed = [NewEntry(ev.WorkspaceChanged(name=name).encode(), actor)]
        await workspace.quota.append(workspace.space, renamed, tidying=True)
        await self.driver.kv.delete(_key(old))

    async def _claim(self, name: str, workspace: WorkspaceId) -> None:
        """Reserve a name: the note in the KV decides between two that want it at once; the log says who has it."""
        directory_name(name)
        key = _key(name)
        expected = ABSENT
        while True:
            if any(other.state.name == name for other in await self.workspaces()):
                raise NameTaken(f"workspace {name!r} exists already: choose another name")
            result = await self.driver.kv.put(key, {"id": workspace}, if_match=expected)
            if isinstance(result, Document):
                return
            assert isinstance(result, EtagConflict)
            if result.current is None:
                expected = ABSENT
                continue
            holder = await self._load(WorkspaceId(result.current.value["id"]))
            if holder is not None and holder.state.name == name and not holder.state.trashed:
                raise NameTaken(f"workspace {name!r} exists already: choose another name")
            expected = result.current.etag

    async def _load(self, workspace: WorkspaceId) -> Workspace | None:
        """Its present state; None where it has no (readable) log yet, as while it is being made."""
        found = self._workspaces.get(workspace)
        if found is None:
            spaces = await self.driver.spaces()
            if f"workspace/{workspace}" not in spaces:
                return None
            # Another task may have come first meanwhile.
            found = self._workspaces.setdefault(workspace, Workspace(self.driver, workspace, self._hooks))
        state: WorkspaceState = await found.load()
        return found if state.id else None

    # ---- searching

    @property
    def index(self) -> Index:
        """The index; opened when it is first used."""
        if self._index is None:
            from store.index import Index  # noqa: PLC0415 - SQLite, which few commands need

            self._index = Index(self.driver, self.workspaces, self._listed)
        return self._index

    async def _listed(self, workspace: Workspace) -> Listed:
        """The chats that only the workspace's project has; none where it can't be looked at."""
        from store.index.externals import NOTHING, Listed  # noqa: PLC0415 - as above
        from store.projection import binding, project  # noqa: PLC0415 - what few workspaces have

        bound = await binding.remembered(self, workspace.id)
        if bound is None:
            return NOTHING
        try:
            async with project.open_project(workspace, bound, looks=True) as found:
                await found.look()
                return Listed(found.root, list(found.externals.values()))
        except (StoreError, OSError):
            return NOTHING

    async def search(self, search: Search, progress: Progress | None = None) -> list[Hit]:
        """The best hits first. What the index has missed is taken in before, which can take long the first time.

        Raises InvalidInput.
        """
        return await self.index.search(search, progress)

    # ---- what happens by itself

    def _moved(self, space: SpaceId, effect: Change | None) -> None:
        self._moves += 1
        if self._moves % MOVES_BETWEEN_LOOKS == 0:
            self._grown.set()
        if space.count("/") == 1 and any(chat.deleted for chat in self._recent):
            self._crowded.set()
        if self._index is not None:
            self._index.moved(space)
        if self.on_moved is not None:
            self.on_moved(space, effect)
        for told in self.also_moved:
            told(space, effect)

    def _touched(self, chat: Chat) -> None:
        self._recent[chat] = None
        self._recent.move_to_end(chat)
        self._uses += 1
        if len(self._recent) > CHATS_IN_MEMORY or self._uses % CHATS_IN_MEMORY == 0:
            self._crowded.set()

    async def hear(self) -> None:
        """Take in what other processes append, for ever."""
        async for spaces in self.driver.changes():
            for space in spaces:
                await self._heard(space)

    async def _heard(self, space: SpaceId) -> None:
        parts = space.split("/")
        workspace = self._workspaces.get(WorkspaceId(parts[1])) if len(parts) > 1 else None
        try:
            if len(parts) == 2 and workspace is not None:
                await workspace.space.refresh()
            elif len(parts) == 4 and workspace is not None:
                chat = workspace.known_chat(ChatId(parts[3]))
                if chat is not None and chat.space.loaded:
                    await chat.space.refresh()
                else:
                    self._moved(space, None)
            else:
                self._moved(space, None)
        except Exception as error:
            # Whoever reads the space next gets the error; telling that something moved makes them look.
            if not isinstance(error, StoreError):
                log.exception("looking at %s failed", space)
            self._moved(space, None)

    async def _opening(self) -> None:
        """A chat is opened: who opens them faster than others can be dropped waits here."""
        if len(self._recent) > CHATS_AT_MOST:
            await self.trim()

    async def trim(self, *, keep: int = CHATS_IN_MEMORY, text: int = TEXT_IN_MEMORY) -> None:
        """Drop the least recently used chats that nobody holds; the last one used stays, however long it is.

        And all that were deleted.
        """
        for chat in [known for known in self._recent if known.deleted]:
            await self._drop(chat)
        size = sum(chat.space.state.size for chat in self._recent if chat.space.state is not None)
        for chat in list(self._recent)[:-1]:
            if len(self._recent) <= keep and size <= text:
                return
            dropped = chat.space.state.size if chat.space.state is not None else 0
            if await self._drop(chat):
                size -= dropped

    async def _drop(self, chat: Chat) -> bool:
        """Drop a chat from memory, unless somebody holds it; whether it was."""
        if not chat.space.idle:
            return False
        try:
            await chat.release()
        except StoreError as error:
            # It stays, and with it what isn't durable yet; a sync says so to whom it concerns.
            log.error("%s stays in memory: %s", chat.called, error)  # noqa: TRY400 - one line
            return False
        if chat.space.loaded:
            return False
        self._recent.pop(chat, None)  # another task may drop it, too
        return True

    async def keep_small(self) -> None:
        """Trim whenever there are too many, for ever."""
        while True:
            await self._crowded.wait()
            self._crowded = trio.Event()
            try:
                await self.trim()
            except Exception:
                log.exception("dropping chats from memory failed")

    async def keep_snapshots(self) -> None:
        """Write the snapshots that are due while their spaces are in use, for ever."""
        while True:
            await self._grown.wait()
            self._grown = trio.Event()
            spaces = [chat.space for chat in self._recent] + [known.space for known in self._workspaces.values()]
            for space in spaces:
                if space.is_due():
                    try:
                        await space.keep_snapshot()
                    except Exception:
                        log.exception("no snapshot of %s was written", space.id)

    async def aclose(self) -> None:
        """Release everything and close the driver. Raises the first error of what couldn't be made durable."""
        failed: StoreError | None = None
        chats, workspaces = list(self._recent), list(self._workspaces.values())
        for last in (
            # Who is held (by a reader that was never finished, say) isn't released, but durable.
            *(chat.sync_own for chat in chats if chat.space.unsynced),
            *(chat.release for chat in chats),
            *(workspace.space.sync for workspace in workspaces if workspace.space.unsynced),
            *(workspace.space.release for workspace in workspaces),
        ):
            try:
                await last()
            except StoreError as error:
                failed = failed or error
        for workspace in workspaces:
            workspace.quota.close()
        if self._index is not None:
            await self._index.aclose()
        if self.authorities is not None:
            await self.authorities.aclose()
        await self.driver.aclose()
        if failed is not None:
            raise failed


def _key(name: str) -> str:
    return f"names/{name}"


async def _move_older(store: Store) -> None:
    """Bring what is of an older layout into today's (`store.projection.older_store`); it is told once."""
    workspaces = store.driver.local_dir(workspace_space(WorkspaceId("any"))).parent
    try:
        strange = [path for path in workspaces.iterdir() if not is_uuid(path.name)]
    except OSError:
        return
    if strange:
        from store.projection import older_store  # noqa: PLC0415 - hardly any store has one

        for line in await older_store.move(store, workspaces):
            log.warning("%s", line)


@asynccontextmanager
async def open_store(
    url: str | None = None,
    *,
    clock: Clock = clock_ms,
    access: Access = Access.MAKE,
    progress: Progress | None = None,
    lease_ms: int = LEASE_MS,
) -> AsyncIterator[Store]:
    """Open the store at `url` (default: `default_url()`); `access` and `progress` as `registry.open_driver` has them.

    `lease_ms` is how long others wait for this process, when it has stopped, before they append themselves.
    Raises StoreNotFound, FormatError, ReadOnly, BackendError.
    """
    driver = await registry.open_driver(url or default_url(), clock=clock, access=access, progress=progress)
    authorities = None if driver.read_only else Authorities(driver, clock, lease_ms=lease_ms)
    store = Store(driver, authorities)
    try:
        async with trio.open_nursery() as nursery:
            if authorities is not None:
                nursery.start_soon(authorities.run)
            nursery.start_soon(store.hear)
            nursery.start_soon(store.keep_small)
            nursery.start_soon(store.keep_snapshots)
            try:
                if not driver.read_only:
                    await _move_older(store)
                yield store
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The caller's exception comes out of the nursery in a group of one: callers expect it as they raised it.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()
