"""Chats that went two ways: the losing stream becomes a chat of its own, whose id is made from its lines.

So people who decide alike make one such chat, and so does who goes back and forth between two branches. A loser that
only goes on from one that was kept before is added to that one.

Concurrency: trio; one task per project.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from store.errors import SeqConflict
from store.metadata import timestamp
from store.model import ChatId, clock_ms, numbered
from store.projection import durable, portable, take_in
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.chat import Chat
    from store.workspace import Workspace

_NAME: Final = re.compile(r" \(conflict [0-9]{4}-[0-9]{2}-[0-9]{2}\)( \([0-9]+\))?\Z")
_STEM: Final = 14
"""How much of its id such a chat shares with the one that it is of: all that says when that was made."""


def is_conflict(name: str) -> bool:
    """Whether a chat is called as those are."""
    return _NAME.search(name) is not None


def conflict_id(chat: ChatId, lines: Sequence[bytes]) -> ChatId:
    """The id of the chat that a losing stream becomes: the same for everybody who decides the same."""
    digest = hashlib.sha256(chat.encode() + b"\n" + portable.join(lines)).hexdigest()
    return ChatId(f"{chat[:_STEM]}8{digest[:3]}-8{digest[3:6]}-{digest[6:18]}")


async def keep(workspace: Workspace, chat: Chat, lines: Sequence[bytes], intent: str) -> Chat | None:
    """Keep a losing stream of the chat, whose intent it inherits; the chat that was made, None where none was needed.

    The bytes of its attachments are in the store by now. A crash in between leaves a chat that has fewer lines, which
    the next start goes on with.
    """
    new = conflict_id(chat.id, lines)
    if await _goes_on(workspace, chat.id, new, lines):
        return None
    name = _NAME.sub("", (await workspace.load()).chats[chat.id].name)
    name = numbered(name, f" (conflict {timestamp(clock_ms())[:10]})")
    return await take_in.new_chat(workspace, new, name, lines, intent=intent)


async def _goes_on(workspace: Workspace, chat: ChatId, new: ChatId, lines: Sequence[bytes]) -> bool:
    """Whether a chat that was kept before has all of the lines, or has now, since they began with all that it has."""
    for other, record in sorted((await workspace.load()).chats.items()):
        if other == chat or other[: _STEM + 1] != f"{chat[:_STEM]}8":
            continue
        if other != new and (record.place is Place.TRASH or not is_conflict(record.name)):
            continue
        kept = workspace.chat_by_id(other)
        found = await durable.read(kept, record)
        if found.compacted:
            continue
        if found.lines and set(found.lines).issuperset(lines):
            return True
        if (found.lines or other == new) and list(lines[: len(found.lines)]) == found.lines:
            try:
                await take_in.take_lines(kept, found.lines, lines, found.seq)
            except SeqConflict:
                continue
            return True
    return False
