"""What a command's words name, looked up: a chat, a file; and the store, opened.

Concurrency: `in_store` is where a command's event loop begins and ends.
"""

from __future__ import annotations

import errno
import os
import stat
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

import trio

from fusefs.cli.arguments import ChatPath
from fusefs.cli.output import Progress
from fusefs.cli.projecting import following, imported, opened_external, project_of
from fusefs.cli.stores import making, migration_bar, say_made, store_url
from store.chat import Chat
from store.driver import Access
from store.errors import ChatNotFound, InvalidInput
from store.library import Store, open_store
from store.model import ChatId, is_uuid
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

LIVING: Final = (Place.CHATS, Place.ARCHIVE)
ANYWHERE: Final = (*LIVING, Place.TRASH)


def actor() -> str:
    """Whom the log names for a change that a command makes."""
    return f"uid:{os.getuid()}/chatfs"


def in_store(
    command: Callable[[Store, Namespace], Awaitable[None]], *, makes: bool = False, looks: bool = False
) -> Callable[[Namespace], None]:
    """`command` as a function of its arguments alone, which opens the store for it.

    Where there is no store, only a command that `makes` things makes one: a mistyped URL must not. One that only
    `looks` needs no store that can be written, and migrates none.
    """

    async def opened(args: Namespace) -> None:
        url = store_url(args)
        access = making(url) if makes else Access.LOOK if looks else Access.WRITE
        with Progress() as progress:
            async with open_store(url, access=access, progress=migration_bar(progress)) as store:
                progress.clear()
                say_made(store.driver)
                if store.driver.read_only:
                    await command(store, args)
                    return
                async with following(store):
                    await command(store, args)

    def run(args: Namespace) -> None:
        trio.run(opened, args)

    return run


async def find_chat(store: Store, path: ChatPath, places: tuple[Place, ...] = LIVING) -> tuple[Workspace, ChatRecord]:
    """The chat's record, by name or else by id. Raises WorkspaceNotFound, ChatNotFound.

    A command that may write imports one that is only in the project.
    """
    workspace = await store.workspace(path.workspace)
    state = await workspace.load()
    for place in places:
        found = state.find_in(place, path.chat)
        if found is not None:
            return workspace, found
    record = state.chats.get(ChatId(path.chat)) if is_uuid(path.chat) else None
    if record is not None and record.place in places:
        return workspace, record
    trashed = state.find_in(Place.TRASH, path.chat) if record is None else record
    if trashed is not None and Place.TRASH not in places:
        raise ChatNotFound(f"{path} is in the trash: bring it back with chatfs chat restore {path}")
    if trashed is None and not store.driver.read_only:
        imports = await imported(store, workspace, path.chat, places)
        if imports is not None:
            return workspace, imports
    if places == (Place.TRASH,):
        raise ChatNotFound(f"the trash has no {path}: see chatfs chat ls --trash {path.workspace}")
    raise ChatNotFound(f"there is no chat {path}: see chatfs chat ls {path.workspace}")


@asynccontextmanager
async def readable_chat(
    store: Store, path: ChatPath, places: tuple[Place, ...] = ANYWHERE
) -> AsyncIterator[tuple[Workspace, ChatRecord, Chat]]:
    """The same, to be read from: also one that is only in the project, which isn't imported. Raises likewise."""
    workspace = await store.workspace(path.workspace)
    async with (
        project_of(store, workspace) as project,
        opened_external(project, path.chat, places) as external,
    ):
        if external is not None:
            yield workspace, *external
            return
    workspace, record = await find_chat(store, path, places)
    yield workspace, record, workspace.chat_by_id(record.id)


def standard_input() -> IO[bytes]:
    """What `-` names. Don't close it; and don't use sys.stdin, which the interpreter closes at its end.

    Either would wait for a thread that an interrupt left reading.
    """
    return open(0, "rb", closefd=False)


def readable(path: Path) -> Path:
    """`path`, if it isn't a directory and may be read. Raises OSError, InvalidInput."""
    if stat.S_ISDIR(path.stat().st_mode):
        raise InvalidInput(f"{path} is a directory: name files")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return path
