"""Which directory belongs to which workspace.

`DIR/.chatfs/id` is a comment line and the workspace's id: it is committed, so that a clone finds its workspace. The
store remembers the directory on this machine, in the document `projects/<workspace id>`: {"directory": path}, and
"begun": true from the first start on.

Concurrency: blocking where no `async` says otherwise; small files.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from store.errors import InvalidInput, InvalidName, NameTaken, StoreError, WorkspaceNotFound
from store.model import WorkspaceId, is_uuid, workspace_space
from store.projection import form
from store.projection.tree import Directory

if TYPE_CHECKING:
    from store.driver import Driver
    from store.library import Store
    from store.workspace import Workspace

ROOT: Final = ".chatfs"
CHATS: Final = "chats"
_ID: Final = "id"
_ID_MAX: Final = 4096
PREFIX: Final = "projects/"
"""Of the documents' keys."""
_COMMENT: Final = "# The chatfs workspace whose chats are in this directory: see chatfs project. Commit this file."


@dataclass(frozen=True, slots=True)
class Binding:
    """A project's directory (absolute, the one that has `.chatfs`) and its workspace."""

    directory: str
    workspace: WorkspaceId


def read_id(directory: str | Path) -> WorkspaceId | None:
    """The workspace that a directory is bound to; None where it isn't. Raises InvalidInput where that can't be read."""
    try:
        with Directory.at(os.path.join(directory, ROOT)) as root:
            found = root.read(_ID, _ID_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{directory}/{ROOT}/{_ID} can't be read: {why}") from error
    if found is None:
        return None
    lines = [line.strip() for line in found[0].decode(errors="replace").splitlines()]
    ids = [line for line in lines if line and not line.startswith("#")]
    if len(ids) != 1 or not is_uuid(ids[0]):
        raise InvalidInput(
            f"{directory}/{ROOT}/{_ID} doesn't say one workspace id: restore it from version control, or remove it"
        )
    return WorkspaceId(ids[0])


def find(start: str | Path) -> Binding | None:
    """The bound directory that `start` is in, upwards. Raises InvalidInput."""
    directory = os.path.realpath(start)
    while True:
        workspace = read_id(directory)
        if workspace is not None:
            return Binding(directory, workspace)
        above = os.path.dirname(directory)
        if above == directory:
            return None
        directory = above


def write(directory: str | Path, workspace: WorkspaceId) -> Binding:
    """Bind a directory: `.chatfs/` with what git is told. Idempotent. Raises InvalidInput (another has it), OSError."""
    place = os.path.realpath(directory)
    try:
        place.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{place} has a name that isn't UTF-8: choose a directory whose name is") from None
    there = read_id(place)
    if there is not None and there != workspace:
        raise InvalidInput(f"{place} belongs to the workspace {there} already: remove {ROOT}/{_ID} there first")
    with Directory.at(place) as top, top.make(ROOT) as root:
        prepare(root)
        if there is None:
            root.put(_ID, f"{_COMMENT}\n{workspace}\n".encode())
    return Binding(place, workspace)


def prepare(root: Directory) -> None:
    """What git is told, and the directory of the chats, where somebody hasn't written them otherwise."""
    for name, text in ((".gitattributes", form.GIT_ATTRIBUTES), (".gitignore", form.GIT_IGNORE)):
        if not root.exists(name):
            root.put(name, text)
    root.make(CHATS).close()


def _key(workspace: WorkspaceId) -> str:
    return f"{PREFIX}{workspace}"


def read(workspace: WorkspaceId, value: Any) -> Binding | None:
    """What a document says; None where it isn't one."""
    directory = value.get("directory") if isinstance(value, dict) else None
    return Binding(directory, workspace) if isinstance(directory, str) else None


async def remember(store: Store, binding: Binding, *, begun: bool = False) -> None:
    """Let the store know where the project is on this machine. `begun`: nothing in it is to be imported by itself."""
    kv = store.driver.kv
    there = await kv.get(_key(binding.workspace))
    if there is None or read(binding.workspace, there.value) != binding:
        await kv.put(_key(binding.workspace), {"directory": binding.directory} | ({"begun": True} if begun else {}))


async def has_begun(driver: Driver, binding: Binding) -> bool:
    """Whether a first start has taken in what was in the project then."""
    there = await driver.kv.get(_key(binding.workspace))
    return there is not None and read(binding.workspace, there.value) == binding and bool(there.value.get("begun"))


async def begun(driver: Driver, binding: Binding) -> None:
    """From now on what is only in the project is somebody else's."""
    key = _key(binding.workspace)
    there = await driver.kv.get(key)
    if there is not None and read(binding.workspace, there.value) == binding:
        await driver.kv.put(key, there.value | {"begun": True}, if_match=there.etag)


async def remembered(store: Store, workspace: WorkspaceId) -> Binding | None:
    """Where the workspace's project is on this machine, as the store knows it: it may be gone."""
    there = await store.driver.kv.get(_key(workspace))
    return None if there is None else read(workspace, there.value)


async def all_remembered(store: Store) -> list[Binding]:
    """All projects that the store knows of."""
    found = []
    for key in await store.driver.kv.list(PREFIX):
        binding = await remembered(store, WorkspaceId(key.removeprefix(PREFIX)))
        if binding is not None:
            found.append(binding)
    return found


async def forget(store: Store, workspace: WorkspaceId) -> None:
    """The workspace has no project on this machine any more; nothing in the project changes."""
    await store.driver.kv.delete(_key(workspace))


async def workspace_of(store: Store, binding: Binding, actor: str, name: str = "") -> Workspace:
    """The binding's workspace; one of that id is made where the store hasn't got it (the project is a clone).

    It is called `name`, or else as the directory is. Raises InvalidInput, NameTaken, InvalidName.
    """
    with contextlib.suppress(WorkspaceNotFound):
        return await store.workspace(binding.workspace)
    if workspace_space(binding.workspace) in await store.driver.spaces():
        raise InvalidInput(f"the workspace of {binding.directory} was removed here: bind the directory to another one")
    if name:
        made = await store.create_workspace(name, actor, workspace=binding.workspace)
        await remember(store, binding, begun=True)  # chats that are there are somebody else's
        return made
    wanted = os.path.basename(binding.directory) or "project"
    for free in (wanted, f"{wanted}-{binding.workspace[-6:]}", binding.workspace):
        with contextlib.suppress(NameTaken, InvalidName):
            return await workspace_of(store, binding, actor, free)
    raise InvalidInput(f"no workspace can be made for {binding.directory}: remove the one called {wanted!r}")
