"""A store's directories of the older layout: `workspace/<name>-<id>`, and `chats/<name>-<id>` in them.

Today each has its id alone for a name. On the first start with one, it gets that name. Where several have one id, the
newest (by its log's mtime) or the one that has today's name is the workspace or the chat; what the others have more is
taken in, and then they are in the store's `quarantine/`, as they were. Where two logs of one chat went two ways, the
newer is the chat. Nothing is deleted. One directory after the other, each step repeatable: the next start goes on where
a crash came in between. Renaming is the commit point of one, moving it to quarantine of another.

Concurrency: trio; files in threads. One process at a time, by flock on the store's `workspace/`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from store import codec, durability, locks
from store import events as ev
from store.errors import StoreError
from store.model import ChatId, Seq, WorkspaceId, is_uuid
from store.projection import compare, durable, older, take_in
from store.projection.older import Older
from store.projection.tree import Directory
from store.workspace_state import Place, WorkspaceState

if TYPE_CHECKING:
    from store.chat import Chat
    from store.library import Store
    from store.workspace import Workspace

log = logging.getLogger("chatfs")

_LOG: Final = "history.jsonl"
_CHATS: Final = "chats"
_QUARANTINE: Final = "quarantine"
_LABEL: Final = "older"
_ACTOR: Final = ev.PROJECTOR
_POLL: Final = 0.05


def find(directory: Path, least: int = 1) -> dict[str, list[str]]:
    """The names of the older layout in a directory of workspaces or chats, by id; the newest first.

    One whose log is shorter than `least` isn't one.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            identity = None if is_uuid(entry.name) else older.chat_of(entry.name)
            if identity is None or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                status = os.stat(f"{entry.path}/{_LOG}")
                if status.st_size >= least:
                    found.setdefault(identity, []).append((status.st_mtime_ns, entry.name))
    return {identity: [name for _, name in sorted(names, reverse=True)] for identity, names in found.items()}


async def move(store: Store, workspaces: Path) -> list[str]:
    """Bring the directories of the older layout below `workspaces` into today's; what was done, in words.

    What can't be brought is logged, and stays as it is.
    """
    done: list[str] = []
    async with _alone(workspaces):
        for identity, names in sorted(find(workspaces).items()):
            try:
                done += await _workspace(store, workspaces, WorkspaceId(identity), names)
            except (StoreError, OSError) as error:
                log.error("%s/%s is of an older layout, and stays so: %s", workspaces, names[0], error)  # noqa: TRY400
    return done


@asynccontextmanager
async def _alone(workspaces: Path) -> AsyncIterator[None]:
    fd = os.open(workspaces, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not locks.try_lock(fd):  # noqa: ASYNC110 - another process has it
            await trio.sleep(_POLL)
        yield
    finally:
        os.close(fd)


async def _workspace(store: Store, workspaces: Path, identity: WorkspaceId, names: list[str]) -> list[str]:
    done: list[str] = []
    if not await trio.to_thread.run_sync(_has_log, workspaces / identity):
        name, *names = names
        await trio.to_thread.run_sync(_rename, workspaces, name, identity)
        done.append(f"{workspaces}/{name} was of an older layout: it is {identity} now")
    workspace = await store.workspace(identity)
    done += await move_chats(workspace, workspaces / identity)
    for name in reversed(names):  # the newest last: what it says counts
        await _take_in_all(workspace, workspaces / name)
        where = await trio.to_thread.run_sync(_set_aside, workspaces, name)
        done.append(f"{workspaces}/{name} was of an older layout: its chats are in {identity}, and it is {where} now")
    return done


def _has_log(directory: Path) -> bool:
    try:
        return os.stat(directory / _LOG).st_size > 0
    except OSError:
        return False


def _rename(directory: Path, name: str, identity: str) -> None:
    if os.path.lexists(directory / identity):  # without a log: somebody was about to make it
        _set_aside(directory, identity)
    durability.system.rename(_LABEL, directory / name, directory / identity)
    durability.fsync_dir(_LABEL, directory)


def _set_aside(directory: Path, name: str) -> Path:
    """Move a directory to the store's quarantine; where it is then."""
    root = directory
    while root.name != "workspace":
        root = root.parent
    quarantine = root.parent / _QUARANTINE
    for changed in durability.make_dirs(_LABEL, quarantine, root.parent):
        durability.fsync_dir(_LABEL, changed)
    number, place = 1, quarantine / name
    while os.path.lexists(place):
        number += 1
        place = quarantine / f"{name[:200]}.{number}"
    durability.system.rename(_LABEL, directory / name, place)
    durability.fsync_dir(_LABEL, quarantine)
    durability.fsync_dir(_LABEL, directory)
    return place


@dataclass(frozen=True, slots=True)
class _Record:
    """What a workspace's log says of a chat."""

    name: str
    place: Place


def _records(path: Path) -> dict[ChatId, _Record]:
    state = WorkspaceState()
    with open(path, "rb") as lines:
        for line in lines:
            entry = codec.parse(line.rstrip(b"\n"))
            if entry is not None:
                state.apply(entry)
    return {chat: _Record(record.name, record.place) for chat, record in state.chats.items()}


# ---- chats


async def move_chats(workspace: Workspace, directory: Path) -> list[str]:
    """Bring the chats of the older layout in a workspace's directory into today's; what was done, in words."""
    chats = directory / _CHATS
    done: list[str] = []
    for chat, names in sorted((await trio.to_thread.run_sync(find, chats, 0)).items()):
        others = names
        if not await trio.to_thread.run_sync(_has_log, chats / chat):
            name, *others = names
            await trio.to_thread.run_sync(_rename, chats, name, chat)
            done.append(f"{chats}/{name} was of an older layout: it is {chat} now")
        for name in reversed(others):
            await _take_in(workspace, chats, ChatId(chat), name, None)
            where = await trio.to_thread.run_sync(_set_aside, chats, name)
            done.append(f"{chats}/{name} was of an older layout: {chat} has its lines, and it is {where} now")
    return done


async def _take_in_all(workspace: Workspace, directory: Path) -> None:
    """Take in the chats of another directory of the same workspace."""
    records = await trio.to_thread.run_sync(_records, directory / _LOG)
    groups = await trio.to_thread.run_sync(find, directory / _CHATS, 0)
    for name in await trio.to_thread.run_sync(_plain, directory / _CHATS):
        groups.setdefault(name, []).append(name)
    for chat, names in sorted(groups.items()):
        for name in reversed(names):
            await _take_in(workspace, directory / _CHATS, ChatId(chat), name, records.get(ChatId(chat)))


def _plain(chats: Path) -> Iterable[str]:
    try:
        return [name for name in os.listdir(chats) if is_uuid(name) and os.path.isfile(chats / name / _LOG)]
    except OSError:
        return []


async def _take_in(workspace: Workspace, chats: Path, chat: ChatId, name: str, record: _Record | None) -> None:
    with Directory.at(str(chats)) as directory:
        found = await trio.to_thread.run_sync(older.read, directory, chat, name)
    state = await workspace.load()
    if chat in state.chats:
        await _merge(workspace.chat_by_id(chat), found)
        return
    called = record.name if record is not None else str(found.fields.get("name") or f"chat-{chat[-6:]}")
    place = Place.CHATS if record is None else record.place
    shown = place if place is Place.ARCHIVE else Place.CHATS
    await take_in.new_chat(workspace, chat, called, found.lines, place=shown)
    if place is Place.TRASH:
        await workspace.trash_chat(chat, _ACTOR)


async def _merge(chat: Chat, found: Older) -> None:
    """What another log of the chat has more; where they went two ways, the newer is what the chat says."""
    mine = await durable.read(chat, chat.workspace.state.chats[chat.id])
    if mine.compacted:
        return  # its first lines are gone: nothing can be compared with them
    wanted = compare.combine(mine.lines, found.lines, None)
    if wanted is None:
        if not compare.project_wins(mine.changed, found.mtime_ns):
            return
        wanted = found.lines
    if wanted != mine.lines:
        await take_in.take_lines(chat, mine.lines, wanted, Seq(mine.seq))
