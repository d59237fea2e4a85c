"""Copy workspaces from one store to another, whatever drivers they have, with their logs as they are.

For each workspace: its name is claimed, then come the chats, each with its blobs before the entries that name them, and
last the workspace's own log, up to where it was before its chats were looked at. So what is shown is whole, whenever
this is interrupted, and the next run goes on where it was: what the target has is compared with the source, by seq and
crc, and only the rest is brought. A chat that is damaged in the source doesn't come over; whoever opens it in the
target is told so (`store.moving.names`).

Every log is read through in the source before any of it is brought, and its fold is compared with that of the copy.

Concurrency: trio, one log at a time, in the memory that one batch of entries takes, and a fold of FOLD_MAX. Others may
use both stores meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from store.absent import say_absent, say_present
from store.driver import AppendLog, Driver
from store.errors import Damage, Diverged, InvalidInput, ReadOnly, SpaceNotFound, StoreError, WorkspaceNotFound
from store.kinds import WORKSPACE
from store.model import SpaceId, WorkspaceId, chat_space, workspace_space
from store.moving.bringing import Bringing
from store.moving.charged import forget_charged
from store.moving.local import copy_local
from store.moving.names import chat_of, check_free, claim, unclaim
from store.moving.report import Moved, Told, silent
from store.moving.spaces import fold, shared, workspace_state
from store.projection import binding as bindings
from store.registry import directory_of, scheme_of
from store.workspace_state import WorkspaceState

_ROUNDS: Final = 3
"""How often a workspace is gone through, if it grows meanwhile."""


async def migrate(
    source: Driver, target: Driver, *, workspace: str = "", verify: bool = False, told: Told = silent
) -> Moved:
    """Copy what `target` doesn't have of `source`, or of one workspace (by name or id).

    `verify`: also compare the folds of what was there already, and read every blob back. Raises Diverged, NameTaken
    before anything is written; BackendError of the target. What can't be read is in the result's `failures`.
    """
    if target.read_only:
        raise ReadOnly("the store to move to can't be written")
    if _same(source, target):
        raise InvalidInput(f"{source.url} and {target.url} are the same store: name another to move to")
    move = _Move(source, target, verify=verify, told=told)
    chosen = await move.choose(workspace)
    for each in chosen:
        await move.survey(each)
    for each in chosen:
        await move.bring(each)
    return move.moved


def _same(source: Driver, target: Driver) -> bool:
    if source.url == target.url:
        return True
    if scheme_of(source.url) != scheme_of(target.url) or directory_of(source.url) is None:
        return False
    # A repository has many names: that of each of its work trees, too. What a store has there has only one.
    any_ = SpaceId("workspace/any")
    one, other = source.local_dir(any_).parents[1], target.local_dir(any_).parents[1]
    return one.is_dir() and other.is_dir() and one.samefile(other)


@asynccontextmanager
async def _opened(driver: Driver, space: SpaceId) -> AsyncIterator[AppendLog]:
    """The log that is there. Raises SpaceNotFound."""
    log = await driver.open_log(space)
    try:
        yield log
    finally:
        await log.aclose()


@dataclass(slots=True)
class _Workspace:
    """A workspace to be moved. `claimed`: the name that it was noted under in the target."""

    id: WorkspaceId
    name: str
    trashed: bool
    known_as: str
    """What the target called it before."""
    claimed: str = ""

    @property
    def space(self) -> SpaceId:
        """Its own log's."""
        return workspace_space(self.id)


class _Move:
    def __init__(self, source: Driver, target: Driver, *, verify: bool, told: Told) -> None:
        self.moved = Moved()
        self._source = source
        self._target = target
        self._told = told
        self._verify = verify
        self._bringing = Bringing(source, target, self.moved, told, verify=verify)
        self._failed: set[SpaceId] = set()

    def _fail(self, space: SpaceId, name: str, error: object) -> None:
        self._failed.add(space)
        self.moved.failures.append(f"{name}: {error}")

    # ---- before anything is written

    async def choose(self, wanted: str) -> list[_Workspace]:
        """The workspaces to be moved. Raises WorkspaceNotFound."""
        found = []
        for space in await self._source.spaces():
            self._told(f"looking at {space}")
            id_ = WorkspaceId(space.rpartition("/")[2])
            try:
                state = await workspace_state(self._source, space)
            except StoreError as error:
                if wanted in {"", id_}:
                    self._fail(space, f"workspace {id_}", error)
                continue
            if state is None:
                if wanted in {"", id_} and await self._source.spaces(space):
                    self._fail(
                        space, f"workspace {id_}", "its log is missing or empty: nobody knows what its chats are"
                    )
            elif wanted in {"", id_} or (wanted == state.name and not state.trashed):
                before = await workspace_state(self._target, space)
                found.append(_Workspace(id_, state.name, state.trashed, before.name if before is not None else ""))
        if wanted and not found and not self.moved.failures:
            raise WorkspaceNotFound(f"the store to move from has no workspace {wanted!r}: see chatfs workspace ls")
        return found

    async def survey(self, workspace: _Workspace) -> None:
        """Raises Diverged, NameTaken where the target has something that this can't go on from."""
        if not workspace.trashed:
            await check_free(self._target, workspace.id, workspace.name)
        there = {*await self._target.spaces(), *await self._target.spaces(workspace.space)}
        for space in [workspace.space, *await self._source.spaces(workspace.space)]:
            if space in there:
                self._told(f"comparing {workspace.name}: {space}")
                await self._compare(space, f"{workspace.name} ({space})")

    async def _compare(self, space: SpaceId, name: str) -> None:
        try:
            async with _opened(self._source, space) as source, _opened(self._target, space) as target:
                await shared(source, target, name)
        except (Damage, SpaceNotFound):
            pass  # that space's own trouble, when its turn comes

    # ---- one workspace

    async def bring(self, workspace: _Workspace) -> None:
        """All of it, and what it grew by meanwhile."""
        self.moved.workspaces += 1
        for number in range(_ROUNDS):
            try:
                grew = await self._round(workspace, first=number == 0)
            except (Damage, Diverged, SpaceNotFound) as error:
                self._fail(workspace.space, workspace.name, error)
                break
            if not grew:
                break
        else:
            self.moved.notes.append(f"{workspace.name} is being written to: run this again for what has come meanwhile")
        await self._note_project(workspace)
        if workspace.known_as:
            await forget_charged(self._target, workspace.id)
        if workspace.known_as and (workspace.known_as != workspace.name or workspace.trashed):
            await unclaim(self._target, workspace.id, workspace.known_as)

    async def _note_project(self, workspace: _Workspace) -> None:
        """Say that the copy isn't projected: two stores shouldn't write to one directory before somebody wants that."""
        key = f"{bindings.PREFIX}{workspace.id}"
        note = await self._source.kv.get(key)
        found = bindings.read(workspace.id, note.value) if note is not None else None
        if found is not None and not workspace.trashed and await self._target.kv.get(key) is None:
            self.moved.notes.append(
                f"{workspace.name} is projected to {found.directory}, its copy is not: "
                f"chatfs --store {self._target.url} project init {found.directory} does that"
            )

    async def _round(self, workspace: _Workspace, *, first: bool) -> bool:
        """Bring what isn't there; whether that was anything."""
        own = workspace.space
        async with _opened(self._source, own) as log:
            state: WorkspaceState = await fold(self._source, log, WORKSPACE)
            # Listed after the log was opened: a chat that it names has its own log by then.
            chats = dict.fromkeys(
                [*await self._source.spaces(own), *(chat_space(workspace.id, id_) for id_ in state.chats)]
            )
            await self._claim(workspace, state)
            before = await workspace_state(self._target, own)
            grew = False
            for space in chats:
                grew |= await self._chat(workspace, space, state, before, first=first)
            grew |= await self._bringing.log(log, workspace.name, whole=before is None)
        await self._files(own, workspace.name, first=first)
        return grew

    async def _claim(self, workspace: _Workspace, state: WorkspaceState) -> None:
        workspace.name, workspace.trashed = state.name, state.trashed
        if not state.trashed and workspace.claimed != state.name:
            await check_free(self._target, workspace.id, state.name)
            await claim(self._target, workspace.id, state.name)
            workspace.claimed = state.name

    async def _chat(
        self,
        workspace: _Workspace,
        space: SpaceId,
        state: WorkspaceState,
        before: WorkspaceState | None,
        *,
        first: bool,
    ) -> bool:
        if space in self._failed:
            return False
        chat = chat_of(space)
        record = state.chats.get(chat)
        name = f"{workspace.name}/{record.name if record is not None else chat}"
        listed = before is not None and chat in before.chats
        try:
            async with _opened(self._source, space) as log:
                grew = await self._bringing.log(log, name, whole=not listed)
        except SpaceNotFound:
            if record is None:
                return False  # chatfs gc has deleted it
            error: object = f"the log of {name} is missing: restore it from a backup"
        except Diverged as found:
            if not listed:
                raise  # somebody else is bringing it: the workspace isn't shown before that is done
            error = found
        except Damage as damage:
            error = damage
        else:
            if grew or not listed:
                await say_present(self._target.kv, chat)
            await self._files(space, name, first=first)
            return grew
        self._fail(space, name, error)
        if not listed:
            await self._leave_out(space, error)
        return False

    async def _leave_out(self, space: SpaceId, error: object) -> None:
        """A chat that the target doesn't list yet: what an earlier run brought of it would look whole."""
        if space in await self._target.spaces(space.rpartition("/chats/")[0]):
            await self._target.delete_space(space)
        await say_absent(self._target.kv, chat_of(space), f"{error} (in {self._source.url}; then move it again)")

    async def _files(self, space: SpaceId, name: str, *, first: bool) -> None:
        if not first:
            return
        self.moved.logs += 1
        source, target = self._source.local_dir(space), self._target.local_dir(space)
        try:
            self.moved.files += await trio.to_thread.run_sync(copy_local, source, target)
        except OSError as error:
            self.moved.failures.append(f"{name}: {error.filename}: {error.strerror}")
