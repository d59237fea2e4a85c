"""Chats that are only in the project's directory: committed by somebody else, and not imported yet. They can be read.

Concurrency: trio; files are read in threads, each time anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import trio

from store import history
from store.errors import ChatNotFound, CorruptBlob, Damage
from store.fold import ChatState, fold
from store.model import ChatId, Digest, Millis, created_ms
from store.projection import copies, form, portable
from store.projection.copies import Copy
from store.projection.tree import Directory, Stamp, stamp_of
from store.workspace_state import Place

_SOUND_MAX: Final = 10_000


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
        return created_ms(self.id)


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


class Attachments:
    """The attachments' files of external chats, read as what the logs say that they are: anybody may change a file."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._sound: dict[tuple[str, str, Digest], Stamp] = {}
        """Files that have the bytes of a digest, as they looked then."""

    async def read(self, external: External, name: str, digest: Digest, offset: int, size: int) -> bytes:
        """A range. Raises ChatNotFound, CorruptBlob."""

        def look() -> bytes:
            with (
                Directory.at(self._root) as chats,
                chats.sub(external.directory) as directory,
                directory.sub(form.ATTACHMENTS) as attachments,
            ):
                fd = attachments.open(name)
                try:
                    stamp = stamp_of(os.fstat(fd))
                    key = external.directory, name, digest
                    if self._sound.get(key) != stamp:
                        if copies.blob_of_open(fd).digest != digest:
                            raise CorruptBlob(f"{attachments.shown}/{name} isn't what the chat's log says that it is")
                        if len(self._sound) >= _SOUND_MAX:
                            self._sound.clear()
                        self._sound[key] = stamp
                    return os.pread(fd, size, offset)
                finally:
                    os.close(fd)

        try:
            return await trio.to_thread.run_sync(look)
        except FileNotFoundError as error:
            raise ChatNotFound(f"{external.name!r} has no attachment {name!r} in the project any more") from error
