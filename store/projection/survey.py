"""How a workspace and its project stand to each other, without changing either.

Concurrency: trio; files are read in a thread.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from store.errors import StoreError
from store.model import workspace_space
from store.projection import conflicts, copies
from store.projection.manifest import owner
from store.projection.older import chat_of
from store.projection.tree import Directory
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.projection.project import Project


@dataclass
class Survey:
    """What is there. Names are as the workspace shows them.

    `kept_up_by`: the process that projects, None where none does. `behind`: chats whose copies aren't known to be the
    same. `conflicts`: what became of chats that went two ways. `busy`: what git is in the middle of.
    """

    projected: int = 0
    local: int = 0
    external: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    kept_up_by: int | None = None
    busy: str = ""


async def survey(project: Project) -> Survey:
    """Look at both. What can't be looked at is among the problems."""
    found = Survey()
    workspace = project.workspace
    state = await workspace.load()
    local_dir = workspace.driver.local_dir(workspace_space(workspace.id))
    found.kept_up_by = await trio.to_thread.run_sync(owner, local_dir)
    found.busy = project.git.under_way()
    living = [record for record in state.chats.values() if record.place is not Place.TRASH]
    found.conflicts = sorted(record.name for record in living if conflicts.is_conflict(record.name))
    try:
        seen = await project.compare()
    except (StoreError, OSError) as error:
        found.problems.append(str(error))
        found.local = len(living)
        return found
    found.projected = sum(project.presence(record.id) == "projected" for record in living)
    found.local = len(living) - found.projected
    found.external = sorted(each.name for each in project.externals.values())
    found.behind = sorted(record.name for record in living if record.id not in seen.same)
    found.problems += seen.problems
    directories = [name for chat, names in seen.names.items() if chat not in seen.same for name in names]
    found.problems += await trio.to_thread.run_sync(_problems, project.root, directories)
    found.problems += [
        f"{project.root}/{name} is of an older layout: chatfs project sync moves it"
        for name in seen.older
        if chat_of(name) is not None
    ]
    found.problems += [f"{project.root}/{name} has no chat.json" for name in seen.orphans]
    return found


def _problems(root: str, directories: list[str]) -> list[str]:
    """What is wrong with the copies in these directories."""
    found = []
    with contextlib.suppress(FileNotFoundError), Directory.at(root) as chats:
        for name in sorted(directories):
            try:
                problem = copies.read(chats, name).problem
            except FileNotFoundError:
                continue
            except (StoreError, OSError) as error:
                problem = str(error)
            if problem:
                found.append(problem)
    return found
