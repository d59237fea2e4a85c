"""What a command's words name: a store, a workspace, a chat, a size, and who asks.

Concurrency: `in_store` is where a command's event loop begins and ends.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from argparse import ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from fusefs.cli.output import Progress, complain
from fusefs.cli.projecting import following, imported, opened_external, project_of
from store import driver, registry
from store.chat import Chat
from store.driver import Access
from store.errors import ChatNotFound, InvalidInput
from store.library import Store, default_url, open_store, user_url
from store.model import ChatId, is_uuid
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

LIVING: Final = (Place.CHATS, Place.ARCHIVE)
ANYWHERE: Final = (*LIVING, Place.TRASH)

_SIZE: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,3}))?\s*([KMGTPE]?)(?:i?B)?", re.IGNORECASE)
_BAR: Final = 30


@dataclass(frozen=True, slots=True)
class ChatPath:
    """WORKSPACE/CHAT; each a name or an id."""

    workspace: str
    chat: str

    def __str__(self) -> str:
        return f"{self.workspace}/{self.chat}"


def chat_path(text: str) -> ChatPath:
    """An argument that names a chat."""
    workspace, slash, chat = text.rstrip("/").partition("/")
    if not slash or not workspace or not chat:
        raise ArgumentTypeError(f"{text!r} names no chat: write WORKSPACE/CHAT")
    if "/" in chat:
        raise ArgumentTypeError(f"{text!r} has too many parts: write WORKSPACE/CHAT")
    return ChatPath(workspace, chat)


def space_path(text: str) -> ChatPath:
    """An argument that names a chat, or a workspace (then `chat` is empty)."""
    return chat_path(text) if "/" in text.rstrip("/") else ChatPath(workspace_name(text), "")


def workspace_name(text: str) -> str:
    """An argument that names a workspace."""
    name = text.rstrip("/")
    if not name or "/" in name:
        raise ArgumentTypeError(f"{text!r} names no workspace: write WORKSPACE alone")
    return name


def size(text: str) -> int:
    """An argument such as 10G, 1.5M, 1024: bytes, in powers of 1024; `none` is 0."""
    if text.lower() == "none":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no size: write 10G, 500M, a number of bytes, or none")
    unit = 1 << 10 * " KMGTPE".index(match[3].upper() or " ")
    found = int(match[1]) * unit + (int(match[2]) * unit // 10 ** len(match[2]) if match[2] else 0)
    if found >= 1 << 62:
        raise ArgumentTypeError(f"{text!r} is too large")
    return found


def number(text: str) -> int:
    """An argument that counts: 0 or more."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def actor() -> str:
    """Whom the log names for a change that a command makes."""
    return f"uid:{os.getuid()}/chatfs"


def store_url(args: Namespace) -> str:
    """The store that was named: a directory by its absolute URL, so that it is the same from every directory."""
    return absolute_url(args.store or default_url())


def absolute_url(url: str) -> str:
    """The same store's URL, whatever the directory. Raises InvalidInput."""
    return registry.absolute(url)


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


def making(url: str) -> Access:
    """How that store is opened by what may make it: of one that somebody named, the directory above must be there."""
    return Access.MAKE if url == absolute_url(user_url()) else Access.MAKE_INSIDE


def say_made(opened: driver.Driver) -> None:
    """One line where there was no store: it may have been another that was meant."""
    if opened.made:
        complain(f"made a new store at {registry.directory_of(opened.url)}")


def migration_bar(progress: Progress) -> driver.Progress:
    """What shows on a terminal that a store of an older format is being migrated."""

    def show(done: int, total: int) -> None:
        if total == 0:
            progress.say("waiting for another chatfs, which migrates the store")
        else:
            bar = "#" * (_BAR * done // total)
            progress.say(f"migrating the store [{bar:-<{_BAR}}] {done} of {total}")

    return show


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
