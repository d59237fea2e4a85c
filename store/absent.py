"""Chats that a workspace lists, and whose logs didn't come over when it was moved here.

Such a chat must not look like an empty one: the document `absent/<chat-id>` says why it isn't there, until it comes. It
is asked for only where a log is missing.

Concurrency: trio.
"""

from __future__ import annotations

from store.driver import JsonKv
from store.errors import StoreFailed
from store.model import ChatId


async def say_absent(kv: JsonKv, chat: ChatId, why: str) -> None:
    """Note that a chat didn't come over, and why."""
    await kv.put(f"absent/{chat}", {"why": why})


async def say_present(kv: JsonKv, chat: ChatId) -> None:
    """It has come."""
    if await kv.get(f"absent/{chat}") is not None:
        await kv.delete(f"absent/{chat}")


async def check_present(kv: JsonKv, chat: ChatId, name: str) -> None:
    """Raises StoreFailed where that is so."""
    note = await kv.get(f"absent/{chat}")
    if note is not None:
        why = note.value.get("why") if isinstance(note.value, dict) else None
        raise StoreFailed(f"{name} wasn't moved here: {why}")
