"""The stores that are measured, built with the library. Nothing is kept beyond the run."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from store import durability
from store.events import MessageAppended
from store.library import open_store
from store.model import uuid7

ACTOR: Final = "bench"
WORKSPACE: Final = "bench"
BIG: Final = "big"
EMPTY: Final = "empty"
_LINE: Final = "The quick brown fox writes sixty-four bytes of text on each line\n"
_LINES: Final = 60
_BATCH: Final = 256
MESSAGES: Final = 10
"""In each chat that is to be searched."""
WORDS: Final = 20_000
"""Different ones in their text."""
_RARITY: Final = 0.6
"""The exponent of a Pareto distribution: how much rarer each word is than the one before."""


def _messages(size: int) -> Iterator[MessageAppended]:
    """Messages of some 4 kB each, `size` bytes of text together."""
    roles = ("user", "assistant")
    for number in range(max(1, size // (len(_LINE) * _LINES))):
        yield MessageAppended(uuid7(), roles[number % 2], _LINE * _LINES)


def build_chats(store: Path, size: int) -> None:
    """A workspace with an empty chat and one of `size` bytes of text."""

    async def build() -> None:
        async with open_store(store.as_uri()) as opened:
            workspace = await opened.create_workspace(WORKSPACE, ACTOR)
            await workspace.create_chat(EMPTY, ACTOR)
            big = await workspace.create_chat(BIG, ACTOR)
            batch: list[MessageAppended] = []
            for message in _messages(size):
                batch.append(message)
                if len(batch) == _BATCH:
                    await big.append_events(batch, ACTOR)
                    batch = []
            await big.append_events(batch, ACTOR)

    trio.run(build)


def chat_name(number: int) -> str:
    """The `number`th of many chats."""
    return f"chat-{number:05d}"


def build_many(store: Path, count: int, told: int) -> None:
    """A workspace with `count` chats; the first `told` have a few messages."""

    async def build() -> None:
        async with open_store(store.as_uri()) as opened:
            workspace = await opened.create_workspace(WORKSPACE, ACTOR)
            for number in range(count):
                chat = await workspace.create_chat(chat_name(number), ACTOR)
                if number < told:
                    await chat.append_events(list(_messages(20_000)), ACTOR)

    trio.run(build)


class _Unsynced(durability.System):
    """No sync: a store that is being built for one run needn't survive a power cut."""

    def fsync(self, label: str, fd: int) -> None:
        """Leave it to the kernel."""

    fdatasync = syncfs = fsync


@contextlib.contextmanager
def _unsynced() -> Iterator[None]:
    before, durability.system = durability.system, _Unsynced()
    try:
        yield
    finally:
        durability.system = before
        os.sync()


def build_searched(store: Path, count: int) -> None:
    """A workspace with `count` chats of MESSAGES messages, whose words are as rare and as common as in a language."""
    dice = random.Random(1)
    words = [f"word{rank}" for rank in range(1, WORDS + 1)]
    weights = list(itertools.accumulate(rank**-_RARITY - (rank + 1) ** -_RARITY for rank in range(1, WORDS + 1)))

    def text() -> str:
        return " ".join(dice.choices(words, cum_weights=weights, k=dice.randrange(10, 150)))

    async def build() -> None:
        async with open_store(store.as_uri()) as opened:
            workspace = await opened.create_workspace(WORKSPACE, ACTOR)
            for number in range(count):
                chat = await workspace.create_chat(chat_name(number), ACTOR)
                messages = [MessageAppended(uuid7(), ("user", "assistant")[n % 2], text()) for n in range(MESSAGES)]
                await chat.append_events(messages, ACTOR)
                await chat.release()

    with _unsynced():
        trio.run(build)
