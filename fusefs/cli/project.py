"""`chatfs project …`: a directory of a project beside a workspace.

Concurrency: trio; one command, one project after the other.
"""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import complain, write_fields, write_json, write_line
from fusefs.cli.parser import Run
from fusefs.cli.projecting import say
from fusefs.cli.targets import actor, in_store
from store.errors import InvalidInput, NameTaken, StoreError, WorkspaceNotFound
from store.library import Store
from store.model import WorkspaceId, is_uuid
from store.projection import binding as bindings
from store.projection.binding import CHATS, ROOT, Binding
from store.workspace import Workspace

if TYPE_CHECKING:
    from store.projection.project import Project
    from store.projection.survey import Survey


# ---- init


async def _init(store: Store, args: Namespace) -> None:
    directory = _directory(args.directory or ".")
    there = bindings.find(directory) if args.directory is None else None
    if there is not None:
        directory = there.directory
    identity = bindings.read_id(directory)
    if identity is None:
        known = [binding for binding in await bindings.all_remembered(store) if binding.directory == directory]
        workspace = await _unbound(store, directory, args.workspace, known)
    else:
        workspace = await _bound(store, Binding(directory, identity), args.workspace)
    await bind(store, workspace, directory)
    write_line(f"the chats of workspace {workspace.called} are in {directory}/{ROOT}/{CHATS}, too: commit them")


async def _unbound(store: Store, directory: str, name: str | None, known: list[Binding]) -> Workspace:
    """The workspace for a directory that says none; `known` is what the store remembers of it."""
    wanted = name or os.path.basename(directory)
    if name is None and len(known) == 1:
        with contextlib.suppress(WorkspaceNotFound):
            return await store.workspace(known[0].workspace)
    if name is not None:
        try:
            return await store.workspace(name)
        except WorkspaceNotFound:
            if is_uuid(name):
                raise
    try:
        return await store.create_workspace(wanted, actor())
    except NameTaken:
        raise InvalidInput(
            f"there is a workspace {wanted!r} already: if it is meant, add --workspace {wanted}, else name another"
        ) from None


async def _bound(store: Store, binding: Binding, name: str | None) -> Workspace:
    """The workspace that the directory says."""
    workspace = await bindings.workspace_of(store, binding, actor(), name or "")
    if name not in {None, workspace.called, workspace.id}:
        raise InvalidInput(
            f"{binding.directory} belongs to the workspace {workspace.called}: leave --workspace away, or remove "
            f"{ROOT}/id there first"
        )
    return workspace


def _directory(path: str) -> str:
    if not os.path.isdir(path):
        raise InvalidInput(f"{path} is no directory: make it first")
    return os.path.realpath(path)


def free_directory(path: str) -> str:
    """A directory that may become a project. Raises InvalidInput."""
    directory = _directory(path)
    if bindings.read_id(directory) is not None:
        raise InvalidInput(f"{path} belongs to a workspace already: chatfs project init {path} finds it")
    return directory


async def bind(store: Store, workspace: Workspace, directory: str) -> None:
    """Make it the workspace's project, and bring both together for the first time. Raises InvalidInput, OSError."""
    before = await bindings.remembered(store, workspace.id)
    binding = bindings.write(directory, workspace.id)
    await bindings.remember(store, binding)
    if before is not None and before.directory != binding.directory:
        complain(f"the project of workspace {workspace.called} was {before.directory}: that is left as it is")
    await _bring_together(workspace, binding)


async def _bring_together(workspace: Workspace, binding: Binding) -> None:
    from store.projection.project import Busy, open_project  # noqa: PLC0415 - most commands need none of it

    async with open_project(workspace, binding) as project:
        if not project.active:
            return  # a mount does it
        try:
            report = await project.reconcile()
        except Busy as error:
            complain(str(error))
            return
    for line in (*report.done, *report.problems):
        complain(line)


# ---- sync, status


async def _projects(store: Store, args: Namespace) -> list[tuple[Workspace, Binding]]:
    """Those that are meant. Raises InvalidInput."""
    known = {binding.workspace: binding for binding in await bindings.all_remembered(store)}
    there = bindings.find(args.directory or ".")
    if there is not None and (args.directory is not None or there.workspace in known):
        if known.get(there.workspace) != there:
            raise InvalidInput(f"{there.directory} isn't the project of a workspace here: see chatfs project init")
        return [(await store.workspace(there.workspace), there)]
    if args.directory is not None:
        found = [binding for binding in known.values() if _is_at(binding, args.directory)]
        if not found:
            raise InvalidInput(f"{args.directory} isn't the project of a workspace: see chatfs project init")
        known = {binding.workspace: binding for binding in found}
    if not known:
        raise InvalidInput("no workspace has a project: see chatfs project init")
    everything = {workspace.id: workspace for workspace in await store.workspaces()}
    return [(everything[each], binding) for each, binding in known.items() if each in everything]


def _is_at(binding: Binding, path: str) -> bool:
    return binding.directory == os.path.realpath(path)


async def _sync(store: Store, args: Namespace) -> None:
    found: list[dict[str, Any]] = []
    for workspace, binding in await _projects(store, args):
        try:
            found.append(await _synced(workspace, binding, args))
        except (StoreError, OSError) as error:
            found.append({"workspace": workspace.called, "directory": binding.directory, "problems": [say(error)]})
    if args.json:
        write_json(found)
    problems = [line for each in found for line in each["problems"]]
    for line in problems[:-1] if not args.json else ():
        complain(line)
    if problems:
        raise CommandFailed(problems[-1])


async def _synced(workspace: Workspace, binding: Binding, args: Namespace) -> dict[str, Any]:
    from store.projection.project import open_project  # noqa: PLC0415 - most commands need none of it

    done: list[str] = []
    problems: list[str] = []
    async with open_project(workspace, binding) as project:
        written = taken = 0
        if project.active:
            report = await project.reconcile()
            done, problems = report.done, report.problems
            written, taken = report.written, report.taken
        else:
            await project.look()
        if args.imports:
            done += await _import_all(project, problems)
        external = len(project.externals)
        active = project.active
    if not args.json:
        for line in done:
            write_line(line)
        if not active:
            write_line(f"{binding.directory}: another process, such as a mount, keeps it up to date")
        elif not problems:
            only = f", {external} are in the project alone" if external else ""
            write_line(f"{binding.directory}: {written} written, {taken} taken in{only}")
    return {
        "workspace": workspace.called,
        "directory": binding.directory,
        "active": active,
        "written": written,
        "taken": taken,
        "external": external,
        "done": done,
        "problems": problems,
    }


async def _import_all(project: Project, problems: list[str]) -> list[str]:
    done = []
    for there in list(project.externals.values()):
        try:
            made = await project.import_external(there.id)
        except (StoreError, OSError) as error:
            problems.append(f"{project.workspace.called}/{there.name} isn't imported: {say(error)}")
        else:
            done.append(f"{made.called} was imported")
    return done


async def _status(store: Store, args: Namespace) -> None:
    from store.projection.project import open_project  # noqa: PLC0415 - most commands need none of it
    from store.projection.survey import survey  # noqa: PLC0415

    found: list[dict[str, Any]] = []
    for workspace, binding in await _projects(store, args):
        async with open_project(workspace, binding, looks=True) as project:
            found.append(_fields(workspace, binding, await survey(project)))
    if args.json:
        write_json(found)
        return
    for number, each in enumerate(found):
        if number:
            write_line("")
        write_fields(_lines(each))


def _fields(workspace: Workspace, binding: Binding, survey: Survey) -> dict[str, Any]:
    return {
        "workspace": workspace.called,
        "id": WorkspaceId(workspace.id),
        "directory": binding.directory,
        "kept_up_by": survey.kept_up_by,
        "projected": survey.projected,
        "local": survey.local,
        "external": survey.external,
        "behind": survey.behind,
        "conflicts": survey.conflicts,
        "git": survey.busy or None,
        "problems": survey.problems,
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("workspace", found["workspace"]),
        ("project", found["directory"]),
        ("kept up by", "nobody: chatfs mount does, or chatfs project sync" if found["kept_up_by"] is None else ""),
        ("chats", f"{found['projected']} projected, {found['local']} local, {len(found['external'])} external"),
    ]
    if found["kept_up_by"] is not None:
        lines[2] = ("kept up by", f"process {found['kept_up_by']}")
    lines += [("external", name) for name in found["external"]]
    lines += [("not the same yet", name) for name in found["behind"]]
    lines += [("went two ways", name) for name in found["conflicts"]]
    if found["git"]:
        lines.append(("git", f"{found['git']}: nothing is projected until then"))
    return lines + [("problem", line) for line in found["problems"]]


COMMANDS: Final[Mapping[str, Run]] = {
    "init": in_store(_init, makes=True),
    "sync": in_store(_sync),
    "status": in_store(_status, looks=True),
}
