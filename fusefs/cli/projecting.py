"""What the commands have to do with projects: chats that are only there, and letting the copies follow.

Concurrency: trio; within one command's `open_store`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusefs.cli.output import complain
from store.errors import StoreError
from store.folded import Change
from store.library import Store
from store.model import ChatId, SpaceId, WorkspaceId
from store.projection import binding as bindings
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Names, Place

if TYPE_CHECKING:
    from store.projection.external_chats import ExternalChat
    from store.projection.project import External, Project

# What projects need is imported where there is one: most commands have nothing to do with it.


@asynccontextmanager
async def project_of(store: Store, workspace: Workspace, *, imports: bool = False) -> AsyncIterator[Project | None]:
    """The workspace's project, looked at; None where it has none, or it can't be looked at now.

    `imports`: more than looking is to be done.
    """
    binding = await bindings.remembered(store, workspace.id)
    if binding is None:
        yield None
        return
    from store.projection.project import open_project  # noqa: PLC0415

    async with open_project(workspace, binding, looks=not imports) as project:
        yield project if await _looked(project) else None


async def _looked(project: Project) -> bool:
    try:
        await project.look()
    except (StoreError, OSError):  # `chatfs project status` says what it is
        return False
    return True


def named(project: Project | None, name: str, places: tuple[Place, ...]) -> External | None:
    """The external chat of that name, or id."""
    if project is None:
        return None
    shown = [each for each in project.externals.values() if each.place in places]
    return next((each for each in shown if name in {each.name, each.id}), None)


async def imported(store: Store, workspace: Workspace, name: str, places: tuple[Place, ...]) -> ChatRecord | None:
    """The record of the external chat of that name, which is in the store from now on; None where there is none."""
    async with project_of(store, workspace, imports=True) as project:
        there = named(project, name, places)
        if project is None:
            return None
        if there is None:
            # Another process, which was waited for, may have imported it.
            state = await workspace.load()
            record = state.chats.get(ChatId(name))
            found = [state.find_in(place, name) for place in places]
            return next((each for each in [*found, record] if each is not None and each.place in places), None)
        await project.import_external(there.id)
        return workspace.state.chats[there.id]


@asynccontextmanager
async def opened_external(
    project: Project | None, name: str, places: tuple[Place, ...]
) -> AsyncIterator[tuple[ChatRecord, ExternalChat] | None]:
    """The external chat of that name, to be read from; None where there is none."""
    there = named(project, name, places)
    if project is None or there is None:
        yield None
        return
    from store.projection.external_chats import ExternalChats  # noqa: PLC0415

    chats = ExternalChats(project, lambda _space, _change: None)
    try:
        await chats.settle()
        yield chats.records[there.id], chats.chat(there.id)
    finally:
        await chats.aclose()


async def say_left_out(store: Store, workspace: Workspace) -> None:
    """Before all of a workspace is exported: chats that are only in its project aren't."""
    async with project_of(store, workspace) as project:
        count = 0 if project is None else len(project.externals)
    if count:
        complain(
            f"{count} chat{'s are' if count > 1 else ' is'} only in {workspace.called}'s project, and left out: "
            "chatfs project sync --import brings them into the store"
        )


# ---- what a command changed


@dataclass
class _Heard:
    """Which chats moved; `whole` are workspaces of which that isn't known."""

    store: Store
    chats: dict[WorkspaceId, set[ChatId]] = field(default_factory=dict)
    whole: set[WorkspaceId] = field(default_factory=set)

    def moved(self, space: SpaceId, change: Change | None) -> None:
        _, workspace, *chat = space.split("/")
        found = self.chats.setdefault(WorkspaceId(workspace), set())
        if chat:
            found.add(ChatId(chat[-1]))
        elif not isinstance(change, Names):
            self.whole.add(WorkspaceId(workspace))
        else:
            known = self.store.known_workspace(WorkspaceId(workspace))
            found.update(each for each in change.before if each is not None)
            for place, name in change.moved:
                record = None if known is None else known.state.find_in(place, name)
                if record is not None:
                    found.add(record.id)


@asynccontextmanager
async def following(store: Store) -> AsyncIterator[None]:
    """What is changed meanwhile is in the projects at the end, unless another process, such as a mount, does that.

    Nothing of the project's makes the command fail: the change is in the store by then.
    """
    heard = _Heard(store)
    store.also_moved.append(heard.moved)
    try:
        yield
    except Exception:
        await _follow(store, heard)
        raise
    else:
        await _follow(store, heard)
    finally:
        store.also_moved.remove(heard.moved)


async def _follow(store: Store, heard: _Heard) -> None:
    for workspace, chats in list(heard.chats.items()):
        binding = await bindings.remembered(store, workspace)
        known = store.known_workspace(workspace)
        if binding is None or known is None:
            continue
        from store.projection.project import Busy, Unbound, open_project  # noqa: PLC0415

        try:
            async with open_project(known, binding) as project:
                if project.active:
                    await _write_out(project, None if workspace in heard.whole else chats)
        except Busy as error:
            complain(f"{error}; a mount then does it by itself, or chatfs project sync")
        except Unbound as error:
            complain(f"the change is in the store alone: {error}")
        except (StoreError, OSError) as error:
            complain(f"the project can't follow: {say(error)}; a mount does it later, or chatfs project sync")


async def _write_out(project: Project, chats: set[ChatId] | None) -> None:
    begun = await bindings.has_begun(project.workspace.driver, project.binding)
    if chats is None or not begun:
        report = await project.reconcile()
    else:
        await project.look()
        report = await project.write_out(chats)
    for line in (*report.done, *report.problems):
        complain(line)


def say(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)
