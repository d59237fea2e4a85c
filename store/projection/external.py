"""Chats that are only in the project's directory: committed by somebody else, and not imported yet. They can be read.

Concurrency: trio; files are read in threads, each time anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import trio

from store import history
from store.errors import ChatNotFound, Damage
from store.fold import ChatState, fold
from store.model import ChatId, Millis
from store.projection import copies, form, portable
from store.projection.copies import Copy
from store.projection.tree import Directory
from store.workspace_state import Place


@dataclass(frozen=True, slots=True)
class External:
    """What chat.json of such a chat says. `name` is how it is shown: no other chat of the workspace has it."""

    id: ChatId
    directory: str
    name: str
    fields: dict[str, Any]

    @property
    def place(self) -> Place:
        """Where it is shown."""
        return Place(self.fields.get("place", Place.CHATS))

    @property
    def created(self) -> Millis:
        """When it was made."""
        return Millis(form.created_ms(self.id))


@dataclass(frozen=True, slots=True)
class ExternalState:
    """Such a chat, read: `lines` is its portable log, `state` what that folds into, `copy` its files."""

    lines: list[bytes]
    state: ChatState
    copy: Copy

    def log(self) -> bytes:
        """history.jsonl."""
        return portable.join(self.lines)

    def text(self) -> bytes:
        """history.md."""
        return history.render(self.state)


async def read(root: str, external: External) -> ExternalState:
    """The chat as it is there now. Raises ChatNotFound where it is gone, Damage where it can't be read."""

    def look() -> ExternalState:
        with Directory.at(root) as chats:
            copy = copies.read(chats, external.directory)
        if copy.problem:
            raise Damage(copy.problem)
        return ExternalState(copy.lines, fold(portable.entries_of(copy.lines)), copy)

    try:
        return await trio.to_thread.run_sync(look)
    except FileNotFoundError as error:
        raise ChatNotFound(f"{external.name!r} isn't in the project any more") from error


async def read_attachment(root: str, external: External, name: str, offset: int, size: int) -> bytes:
    """A range of an attachment's file. Raises ChatNotFound."""

    def look() -> bytes:
        with (
            Directory.at(root) as chats,
            chats.sub(external.directory) as directory,
            directory.sub(form.ATTACHMENTS) as attachments,
        ):
            fd = attachments.open(name)
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)

    try:
        return await trio.to_thread.run_sync(look)
    except FileNotFoundError as error:
        raise ChatNotFound(f"{external.name!r} has no attachment {name!r} in the project any more") from error
