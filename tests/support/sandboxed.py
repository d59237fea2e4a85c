"""The document of a sandbox session, as another program writes it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from store.model import ChatId, Millis, WorkspaceId, clock_ms, uuid7
from store.sandboxes import SandboxSession


def session_of(workspace: str, chat: str, *, lapses_in: int = 60_000) -> Any:
    """A session of another machine's process, which lapses in so many milliseconds."""
    now = clock_ms()
    times = now, now, Millis(now + lapses_in)
    return asdict(
        SandboxSession(uuid7(), WorkspaceId(workspace), ChatId(chat), "none", 1, 1, "another machine", *times)
    )
