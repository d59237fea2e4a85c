"""The index of an opened store: kept up with the logs, and asked.

What is behind is found by the logs' files (a stat each), and by seq and crc where these changed: see `schema`. A search
brings everything up to date first; in a mount, `follow` does so by and by. Whatever is wrong with index.db costs time,
and never fails a command: see `database`.

Concurrency: one trio event loop; one operation at a time (`_lock`), its SQL in a thread. Logs are read on the loop, and
never while the index is locked for writing.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import trio

from store.beginning import find_base, read_base
from store.driver import AppendLog, Driver, Progress
from store.errors import CorruptLog, SpaceNotFound, StoreError, StoreFailed, Truncated
from store.index import database, externals, query, update, workspaces
from store.index.externals import Listed
from store.index.query import Hit, Search
from store.index.update import HURRIED, UNSTAMPED, Known, Pace, Stamp, Update
from store.kinds import CHAT
from store.model import Entry, Seq, SpaceId
from store.projection import external, portable
from store.workspace import Workspace

log = logging.getLogger("chatfs")

P = ParamSpec("P")
T = TypeVar("T")

_LOG_NAME: Final = "history.jsonl"
_BATCH: Final = 64
"""How many chats are looked at together."""
_ENTRY: Final = 200
"""What an entry counts for beside its bytes."""
_CHUNK: Final = 2 * 1024 * 1024
"""Bytes of a log, or of several, that are taken in together."""
_GENTLE_CHUNK: Final = 64 * 1024
_TURN: Final = 64
"""How many entries are read before others have their turn."""
_COALESCED_SECONDS: Final = 1.0
_TRIES: Final = 100
"""How often a chat is looked at again, since another process was at it."""
_OF_WORKSPACE: Final = "id IN (SELECT id FROM chats WHERE workspace = ?)"


def _root(driver: Driver) -> Path:
    """The directory below which the driver keeps every space's local directory, under the space's name."""
    return driver.local_dir(SpaceId("workspace/none")).parent.parent


def index_path(driver: Driver) -> Path:
    """Where the index of a store is."""
    return _root(driver) / database.NAME


class Index:
    """The index. `workspaces` tells those that the store shows, `listed` the chats that only their projects have."""

    def __init__(
        self,
        driver: Driver,
        workspaces: Callable[[], Awaitable[Sequence[Workspace]]],
        listed: Callable[[Workspace], Awaitable[Listed]] | None = None,
    ) -> None:
        self._driver = driver
        self._workspaces = workspaces
        self._listed = listed
        self._path = index_path(driver)
        self._root = str(_root(driver))
        self._connection: sqlite3.Connection | None = None
        self._borrows = driver.read_only
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._pace = HURRIED
        self._waiting = 0
        """How many tasks wait for the index, or have it, and are in a hurry."""
        self._moved: set[SpaceId] = set()
        self._wakes = trio.Event()
        self._follows = False
        self._skipped: set[str] = set()

    # ---- what it is for

    async def search(self, search: Search, progress: Progress | None = None) -> list[Hit]:
        """Bring everything up to date and ask. Raises InvalidInput, StoreFailed."""
        async with self._urgently():
            return await self._usable(functools.partial(self._search, search, progress))

    async def _search(self, search: Search, progress: Progress | None) -> list[Hit]:
        await self._catch_up(progress)
        return await self._thread(query.hits, search)

    async def catch_up(self, progress: Progress | None = None) -> None:
        """Bring everything up to date. Raises StoreFailed."""
        async with self._urgently():
            await self._usable(functools.partial(self._catch_up, progress))

    @asynccontextmanager
    async def _urgently(self) -> AsyncGenerator[None, None]:
        """Have the index; who has it before is to hurry, too."""
        self._waiting += 1
        self.hurry()
        try:
            async with self._lock:
                self._pace = HURRIED
                yield
        finally:
            self._waiting -= 1

    async def rebuild(self) -> None:
        """Forget everything: the next catch-up begins anew."""
        async with self._lock:
            await self._close()
            try:
                await trio.to_thread.run_sync(functools.partial(database.put_aside, self._path, keep=False))
            except OSError as error:
                self._borrow(error)

    async def check(self, space: SpaceId) -> bool:
        """Whether the index has all of a space; it is brought up to date where it hasn't. Raises StoreFailed."""
        async with self._lock:
            return await self._usable(functools.partial(self._check, space))

    async def _check(self, space: SpaceId) -> bool:
        before = await self._thread(update.spaces_where, "space = ?", space)
        if "/chats/" in space and before and not await self._thread(_behind, self._root, "space = ?", space):
            return True
        await self._bring({space})
        return await self._thread(update.spaces_where, "space = ?", space) == before

    def hurry(self) -> None:
        """Let what is going on end soon: somebody waits for it, or wants to close the index."""
        self._pace.hurry()

    async def aclose(self) -> None:
        """Close the file."""
        await self._close()

    # ---- following

    def moved(self, space: SpaceId) -> None:
        """A log has moved: for `follow`."""
        if self._follows:
            self._moved.add(space)
            self._wakes.set()

    async def follow(self) -> None:
        """Bring everything up to date, then what moves, about a second after it did; for ever, and without hurry.

        Where the index can't be written, that is said once; with the temporary one that a search then makes, this ends.
        """
        self._follows = True
        spaces: set[SpaceId] | None = None
        said = ""
        try:
            await trio.sleep(_COALESCED_SECONDS)
            while not self._borrows:
                try:
                    async with self._lock:
                        self._pace = Pace(gentle=self._waiting == 0)
                        await self._usable(functools.partial(self._bring, spaces), borrows=False)
                except StoreError as error:
                    # What was missed then, the next search finds.
                    if str(error) != said:
                        said = str(error)
                        log.warning("the index isn't kept up: %s", error)
                except Exception:
                    log.exception("keeping up the index failed")
                await self._wakes.wait()
                await trio.sleep(_COALESCED_SECONDS)
                spaces, self._moved = self._moved, set()
                self._wakes = trio.Event()
        finally:
            self._follows = False
            self._moved.clear()

    async def _bring(self, spaces: set[SpaceId] | None) -> None:
        """Bring these up to date; None: all."""
        if spaces is None or SpaceId("workspace") in spaces:
            await self._catch_up(None)
            return
        own = {space.split("/")[1] for space in spaces}
        for workspace in await self._workspaces():
            if workspace.id not in own:
                continue
            await self._names(workspace)
            chats = [space for space in spaces if space.startswith(f"{workspace.space.id}/")]
            for start in range(0, len(chats), _BATCH):
                rows = [
                    row
                    for space in chats[start : start + _BATCH]
                    for row in await self._thread(update.spaces_where, "space = ?", space)
                ]
                await self._chats([row.key for row in rows])

    # ---- catching up

    async def _catch_up(self, progress: Progress | None) -> None:
        present = await self._workspaces()
        await self._forget_others(present)
        behind: list[int] = []
        for workspace in present:
            row = await self._names(workspace)
            if self._listed is not None:
                await self._externals(workspace, row, await self._listed(workspace))
            behind += await self._thread(_behind, self._root, f"{_OF_WORKSPACE} AND kind = 'chat'", row.key)
        for start in range(0, len(behind), _BATCH):
            if progress is not None:
                progress(start, len(behind))
            await self._chats(behind[start : start + _BATCH])
        if progress is not None and behind:
            progress(len(behind), len(behind))

    async def _externals(self, workspace: Workspace, own: Known, listed: Listed) -> None:
        """Bring up to date what is known of the chats that are only in the workspace's project."""
        for each, found, stamp in await self._thread(externals.place, workspace.id, own, listed):
            known = found
            try:
                read = await external.read(listed.root, each)
            except (StoreError, OSError) as error:
                self._skip(known.space, error)
                continue
            if known.seq:
                await self._thread(update.clear, known, forget=False, pace=self._pace)
                known = externals.emptied(known)
            entries = list(portable.entries_of(read.lines))
            await self._thread(update.apply, [Update(known, entries, stamp)], self._pace)

    async def _forget_others(self, present: Sequence[Workspace]) -> None:
        """Remove workspaces that the store doesn't show."""
        shown = {workspace.space.id for workspace in present}
        for row in await self._thread(update.spaces_where, "kind = 'workspace'"):
            if row.space not in shown:
                await self._thread(workspaces.forget_workspace, row)

    async def _names(self, workspace: Workspace) -> Known:
        """Bring up to date what the workspace's own log says."""
        while True:
            row = await self._thread(workspaces.workspace_row, workspace.id)
            names = await workspaces.found(workspace, row)
            if names is None or await self._thread(workspaces.write, names):
                return row

    async def _chats(self, keys: Sequence[int]) -> None:
        """Bring the chats with these rows up to date."""
        for _ in range(_TRIES):
            keys = sorted(await self._chats_once(keys))
            if not keys:
                return

    async def _chats_once(self, keys: Sequence[int]) -> set[int]:
        """The same, several in one transaction; the rows of those that another process has moved meanwhile."""
        missed: set[int] = set()
        chunk = _GENTLE_CHUNK if self._pace.gentle else _CHUNK
        updates: list[Update] = []
        size = 0
        for row, stamp in await self._thread(_stamped, self._root, keys):
            if row.stamp == stamp:
                continue  # another process has done it
            try:
                async with aclosing(self._updates(row, stamp)) as more:
                    async for each in more:
                        updates.append(each)
                        size += sum(len(entry.data) + _ENTRY for entry in each.entries)
                        if size >= chunk:
                            missed |= await self._thread(update.apply, updates, self._pace)
                            updates, size = [], 0
            except (StoreError, OSError) as error:
                self._skip(row.space, error)
        if updates:
            missed |= await self._thread(update.apply, updates, self._pace)
        return missed

    def _skip(self, space: str, error: Exception) -> None:
        """One chat that can't be read doesn't keep the others from being found."""
        if space not in self._skipped:
            self._skipped.add(space)
            log.warning("%s isn't searched as it is now: %s", space, error)

    async def _updates(self, row: Known, stamp: Stamp | None) -> AsyncGenerator[Update, None]:
        """What has to be taken in of a chat, in pieces."""
        try:
            opened = await self._driver.open_log(SpaceId(row.space))
        except SpaceNotFound:
            if row.seq:
                await self._thread(update.clear, row, forget=False, pace=self._pace)
            return
        try:
            head = opened.head
            if (row.first, row.seq, row.crc) == (head.first_seq, head.seq, head.crc):
                yield Update(row, [], stamp or UNSTAMPED)
                return
            same = row.first == head.first_seq and row.first <= row.seq < head.seq and await _continues(opened, row)
            if not same and row.seq:
                await self._thread(update.clear, row, forget=False, pace=self._pace)
            first = Update(row if same else replace(row, first=head.first_seq, seq=Seq(0), crc=0), [])
            if head.first_seq > 1 and not same:
                first = await self._base(opened, first)
            async with aclosing(_pieces(opened, first.known.seq, self._pace)) as pieces:
                async for entries, is_last in pieces:
                    yield replace(first, entries=entries, stamp=(stamp or UNSTAMPED) if is_last else UNSTAMPED)
                    if entries:
                        row = replace(first.known, seq=entries[-1].seq, crc=entries[-1].crc)
                        first = Update(row, [])
        finally:
            await opened.aclose()

    async def _base(self, opened: AppendLog, first: Update) -> Update:
        """The same with the state that a compacted log begins at."""
        base = await find_base(opened)
        if base is None:
            return first
        state, _ = await read_base(self._driver, CHAT, base)
        await trio.to_thread.run_sync(CHAT.complete, state)
        return replace(first, base=state, blob=await self._driver.blobs.stat(base.digest))

    # ---- the file

    async def _thread(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run SQL beside the loop."""
        if self._connection is None:
            self._connection = await trio.to_thread.run_sync(self._open, limiter=self._limiter)
        call = functools.partial(function, self._connection, *args, **kwargs)
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    def _open(self) -> sqlite3.Connection:
        return database.borrowed(self._path) if self._borrows else database.connect(self._path)

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await trio.to_thread.run_sync(connection.close, limiter=self._limiter)

    async def _usable(self, operation: Callable[[], Awaitable[T]], *, borrows: bool = True) -> T:
        """Do it with an index that can be used: the file, a new one, or (if `borrows`) a temporary one."""
        replaced = False
        while True:
            try:
                return await operation()
            except (*database.Unusable, OSError) as caught:
                error: Exception = caught
            await self._close()
            if not self._borrows and not replaced and database.is_damage(error):
                replaced = True
                try:
                    await self._replace(error)
                    continue
                except OSError as other:
                    error = other
            if self._borrows or not borrows:
                raise StoreFailed(f"there is no place for the index: {database.reason(error)}") from error
            self._borrow(error)

    async def _replace(self, error: Exception) -> None:
        keep = not isinstance(error, database.Outdated)
        await trio.to_thread.run_sync(functools.partial(database.put_aside, self._path, keep=keep))
        what = "kept as index.db.bad and built anew" if keep else "built anew"
        log.warning("%s is %s: %s", self._path, what, database.reason(error))

    def _borrow(self, error: Exception) -> None:
        self._borrows = True
        log.warning("%s can't be used, a temporary index takes its place: %s", self._path, database.reason(error))


# ---- what is behind


def _stamp(root: str, space: str) -> Stamp | None:
    """How the log's file looks; None where there is none, or where the driver keeps logs otherwise."""
    try:
        found = os.stat(f"{root}/{space}/{_LOG_NAME}")  # noqa: PTH116 - of every chat at every search: a Path costs more
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def _behind(connection: sqlite3.Connection, root: str, where: str, value: object) -> list[int]:
    """The rows of those spaces whose log isn't as it was."""
    return [
        key
        for key, space, *known in connection.execute(
            f"SELECT id, space, size, mtime_ns, inode FROM spaces WHERE {where}",  # noqa: S608 - own words
            (value,),
        )
        if (stamp := _stamp(root, space)) is None or [stamp.size, stamp.mtime_ns, stamp.inode] != known
    ]


def _stamped(connection: sqlite3.Connection, root: str, keys: Iterable[int]) -> list[tuple[Known, Stamp | None]]:
    return [(row, _stamp(root, row.space)) for key in keys for row in update.spaces_where(connection, "id = ?", key)]


async def _continues(opened: AppendLog, row: Known) -> bool:
    """Whether the log goes on behind the entry that the row names."""
    try:
        async for entry in opened.read(row.seq, 1):
            return workspaces.continues(row.crc, entry)
    except Truncated:
        return False
    except CorruptLog:
        pass
    return True


async def _pieces(opened: AppendLog, since: Seq, pace: Pace) -> AsyncGenerator[tuple[list[Entry], bool], None]:
    """The entries after `since`, some at a time; the last ones come with True. They end before a damaged one."""
    chunk = _GENTLE_CHUNK if pace.gentle else _CHUNK
    entries: list[Entry] = []
    size = 0
    try:
        async for entry in opened.read(since):
            entries.append(entry)
            size += len(entry.data) + _ENTRY
            if size >= chunk:
                yield entries, False
                entries, size = [], 0
            elif pace.gentle and len(entries) % _TURN == 0:
                await trio.lowlevel.checkpoint()
    except CorruptLog:
        pass  # whoever opens the chat hears of it
    yield entries, True
