"""Directories that a merge has left without a chat.json: where one renamed a chat, and another added a file to it.

Their attachments' bytes go into the store first, where whoever needs them finds them by digest. When all chats have
been brought together, such a directory goes if everything in it is somewhere else by then; else it stays, and is
reported.

Concurrency: trio; one task per project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from store.errors import StoreError
from store.model import ChatId, Digest
from store.projection import copies, durable, form, leaving, take_in
from store.projection.copies import Copy
from store.projection.tree import Directory
from store.workspace import Workspace

_CREATED: Final = len("20260101T000000Z")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A directory of nobody: what it has, and the digests of its attachments."""

    name: str
    copy: Copy
    digests: dict[str, Digest]


def candidates(name: str, chats: Iterable[ChatId]) -> list[ChatId]:
    """The chats that may have had a directory of that name: they were made in the second that it says."""
    return [chat for chat in chats if form.directory(chat, "")[:_CREATED] == name[:_CREATED]]


async def keep_bytes(
    workspace: Workspace, chats: Directory, names: Iterable[str], tell: Callable[[str], None]
) -> list[Orphan]:
    """Read them, and put their attachments' bytes into the store. `tell` hears of those where that can't be."""
    found: list[Orphan] = []
    for name in names:
        try:
            copy = await trio.to_thread.run_sync(copies.read, chats, name)
            with chats.sub(name) as directory:
                digests = {
                    file: (await take_in.put_file(workspace, directory, file)).digest for file in copy.attachments
                }
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except (StoreError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            tell(f"{chats.shown}/{name} isn't taken in: {why}")
            continue
        found.append(Orphan(name, copy, digests))
    return found


async def owner(workspace: Workspace, orphan: Orphan) -> ChatId | None:
    """The chat whose lines a directory has, some of them: no other chat has just those."""
    for chat in candidates(orphan.name, workspace.state.chats):
        lines = set((await durable.read(workspace.chat_by_id(chat), workspace.state.chats[chat])).lines)
        if not lines.isdisjoint(orphan.copy.lines):
            return chat
    return None


async def settle(workspace: Workspace, chats: Directory, orphans: Iterable[Orphan]) -> list[str]:
    """Remove those of which everything is in a chat; what is left, in words."""
    left: list[str] = []
    for orphan in orphans:
        if chats.stamp_in(orphan.name, form.METADATA) is not None:
            continue  # it was merged, and a chat has got its name since
        try:
            there = not chats.is_directory(orphan.name) or await _is_elsewhere(workspace, chats, orphan)
        except (StoreError, OSError):
            there = False
        if not there:
            left.append(
                f"{chats.shown}/{orphan.name} has no {form.METADATA}: restore that from version control, or remove the "
                "directory"
            )
        elif chats.is_directory(orphan.name):
            await trio.to_thread.run_sync(chats.remove_tree, orphan.name)
    return left


async def _is_elsewhere(workspace: Workspace, chats: Directory, orphan: Orphan) -> bool:
    if orphan.copy.lines or orphan.copy.problem or orphan.copy.others:
        return False
    with chats.sub(orphan.name) as directory:
        if leaving.strays(directory):
            return False
    named: set[Digest] = set()
    for chat in candidates(orphan.name, workspace.state.chats):
        state = await workspace.chat_by_id(chat).load()
        named |= {found.digest for found in state.attachments.values()}
        named |= {found.digest for _, found in state.attachment_state.removed.values()}
    return named.issuperset(orphan.digests.values())
