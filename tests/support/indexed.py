"""A store whose index is asked, and looked at."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from store import durability
from store.drivers.file.driver import FileDriver
from store.index import Hit, Search
from store.library import Store, open_store

ACTOR = "test"


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, **settings: Any) -> AsyncIterator[Store]:
    async with open_store(f"file://{tmp_path}/store", **settings) as store:
        yield store


async def say(chat: Any, *texts: str) -> None:
    roles = ("user", "assistant")
    await chat.append_events([{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)], ACTOR)


async def find(store: Store, words: str, **settings: Any) -> list[Hit]:
    return await store.search(Search(words, **settings))


async def unscored(store: Store, words: str) -> list[Hit]:
    """The hits of each word, which are the same however much else there is."""
    return [replace(hit, score=0.0) for word in words.split() for hit in await find(store, word)]


async def paths(store: Store, words: str, **settings: Any) -> list[str]:
    return sorted(hit.path for hit in await find(store, words, **settings))


def index_db(tmp_path: Path) -> Path:
    return tmp_path / "store" / "index.db"


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The spaces whose logs are opened meanwhile."""
    spaces: list[str] = []
    usual = FileDriver.open_log

    async def open_log(self: FileDriver, space: Any, *, create: bool = False) -> Any:
        spaces.append(space)
        return await usual(self, space, create=create)

    with monkeypatch.context() as patch:
        patch.setattr(FileDriver, "open_log", open_log)
        yield spaces


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another connection sees it
            await trio.sleep(0.01)


@contextlib.contextmanager
def unwritable() -> Iterator[list[str]]:
    """No file can be made for an index; how often that was tried."""
    tries: list[str] = []

    class Failing(durability.System):
        def open(self, label: str, path: str | Path, flags: int) -> int:
            if label.startswith("index."):
                tries.append(label)
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return super().open(label, path, flags)

    usual = durability.system
    durability.system = Failing()
    try:
        yield tries
    finally:
        durability.system = usual
