"""Two opened stores, on memory and on files: two instances."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.chat import Chat
from store.library import Store, open_store
from tests.contract.backends import FakeClock
from tests.support.instances import ME, say

_names = itertools.count()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory:forwarding-{next(_names)}" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def first(url: str, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(url, clock=clock) as store:
        yield store


@pytest.fixture
async def second(url: str, first: Store, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(url, clock=clock) as store:
        yield store


@pytest.fixture
async def chat(first: Store) -> Chat:
    """In the hands of the first."""
    chat = await (await first.create_workspace("demo", ME)).create_chat("trip", ME)
    await say(chat, "one")
    return chat


@pytest.fixture
async def twin(second: Store, chat: Chat) -> Chat:
    """The same one, in the hands of the second."""
    twin = await (await second.workspace("demo")).chat("trip")
    await twin.load()
    return twin
