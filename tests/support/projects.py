"""People who share a project through git, one of whom has it mounted.

`Person` in tests/projection works on a store in this process; here the store is the mount's, and the other's is a
store of their own that is opened for each thing they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson
import trio

from store.library import open_store
from store.projection import binding as bindings
from tests.projection.project import ME, Person, git, person

T = TypeVar("T")

WORKSPACE = "demo"


def make_repository(root: Path) -> tuple[Path, Path]:
    """A bare repository, and a clone of it that has a commit."""
    bare, clone = root / "bare", root / "project"
    bare.mkdir()
    clone.mkdir()
    git(bare, "init", "-q", "--bare", "-b", "main")
    git(clone, "init", "-q", "-b", "main")
    git(clone, "remote", "add", "origin", str(bare))
    return bare, clone


def bind(store: Path, directory: Path, *, begun: bool = True) -> str:
    """Bind a directory to a workspace of the store, which is made if need be; the workspace's id."""

    async def do() -> str:
        async with open_store(f"file://{store}") as opened:
            found = bindings.find(directory)
            if found is None:
                found = bindings.write(directory, (await opened.create_workspace(WORKSPACE, ME)).id)
            workspace = await bindings.workspace_of(opened, found, ME)
            await bindings.remember(opened, found, begun=begun)
            return workspace.id

    return trio.run(do)


def publish(directory: Path) -> None:
    """Commit all of it, merge what others have, and push."""
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "--allow-empty", "-m", "chats")
    if git(directory, "ls-remote", "--heads", "origin"):
        git(directory, "pull", "-q", "--no-rebase", "origin", "main")
    git(directory, "push", "-q", "-u", "origin", "HEAD:main")


def copies(project: Path, chat: str) -> list[Path]:
    """The directories of the chats with that name in a project, as far as they can be read just now."""
    found = []
    for path in (project / ".chatfs" / "chats").glob("[!.]*/chat.json"):
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            if orjson.loads(path.read_bytes())["name"] == chat:
                found.append(path.parent)
    return found


@dataclass
class Colleague:
    """Somebody with a clone, and a store of their own at `store`."""

    store: Path
    directory: Path

    @classmethod
    def clone(cls, bare: Path, root: Path) -> Colleague:
        """Clone the repository to `root`."""
        root.mkdir()
        git(root, "clone", "-q", str(bare), "project")
        return cls(root / "store", root / "project")

    def does(self, what: Callable[[Person], Awaitable[T]], *, share: bool = True) -> T:
        """Pull, let them do it, project it, and push."""

        async def do() -> T:
            async with person(f"file://{self.store}", self.directory) as found:
                await found.project.reconcile()
                done = await what(found)
                await found.project.reconcile()
                return done

        if share:
            git(self.directory, "pull", "-q", "--no-rebase", "origin", "main")
        done = trio.run(do)
        if share:
            publish(self.directory)
        return done


def pulled(root: Path) -> Path:
    """A project, bound to the workspace of the store in `root`; `trip` is a chat that a colleague has put there."""
    bare, project = make_repository(root)
    bind(root / "store", project)
    publish(project)

    async def make(person: Person) -> None:
        await person.new("trip", "hello")

    Colleague.clone(bare, root / "ben").does(make)
    git(project, "pull", "-q", "origin", "main")
    return project
