"""A store with something to find."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.library import Store
from tests.support.indexed import ACTOR, opened, say


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A workspace `demo` with two chats."""
    async with opened(tmp_path) as store:
        workspace = await store.create_workspace("demo", ACTOR)
        trip = await workspace.create_chat("trip", ACTOR)
        await say(trip, "Where to in May?", "Lisbon. Or Porto.")
        work = await workspace.create_chat("work", ACTOR)
        await say(work, "Porto is a wine, too")
        yield store
