"""Which imported records a chat has: their keys stand in its log, those of compacted entries beside the state."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import orjson

from store.beginning import find_base, read_base
from store.kinds import CHAT

if TYPE_CHECKING:
    from store.chat import Chat

_KEY: Final = re.compile(rb'\{"import_key":("(?:[^"\\]|\\.)*")')


def key_of(data: bytes) -> str | None:
    """The key of an imported record; None for any other event."""
    found = _KEY.match(data)
    return None if found is None else str(orjson.loads(found[1]))


async def base_keys(chat: Chat) -> set[str]:
    """The keys of the records that were compacted away. Raises CorruptBlob, CorruptSnapshot."""
    log = await chat.space.log()
    base = await find_base(log)
    if base is None:
        return set()
    _, head = await read_base(chat.workspace.driver, CHAT, base)
    return set(head.get("import_keys", ()))
