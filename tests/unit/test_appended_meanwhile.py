"""What is appended to a log while its state takes in what came before: it is told, and the text has it once."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import trio

from store.chat import Chat
from store.driver import AppendLog
from store.fold import Effect
from store.library import Store, open_store
from store.model import NewEntry

ME = "test"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"file://{tmp_path}/store") as opened:
        yield opened


@pytest.fixture
async def chat(store: Store) -> AsyncIterator[Chat]:
    chat = await (await store.create_workspace("demo", ME)).create_chat("trip", ME)
    with chat.hold():
        await chat.append_lines([b'{"role":"user","content":"number 100"}'], ME)
        assert await numbers(chat) == [100]
        yield chat


@pytest.fixture
async def elsewhere(chat: Chat, tmp_path: Path) -> AsyncIterator[AppendLog]:
    """The same log in another process's hands."""
    async with open_store(f"file://{tmp_path}/store") as opened:
        twin = await (await opened.workspace("demo")).chat("trip")
        with twin.hold():
            yield await twin.space.log()


async def numbers(chat: Chat) -> list[int]:
    return [int(number) for number in re.findall(rb"number (\d+)\n", await chat.read_text(0, 1 << 20))]


def message(number: int) -> dict[str, str]:
    return {"type": "message.appended", "id": f"m{number}", "role": "user", "content": f"number {number}"}


async def append(log: AppendLog, value: object) -> None:
    """Without giving others a turn, where it can."""
    await log.refresh()
    batch = [NewEntry(orjson.dumps(value), ME)]
    if log.append_now(batch) is None:
        await log.append(batch)


async def load_while(chat: Chat, log: AppendLog, value: object, *, read: bool = False) -> None:
    """Load the chat. Before what its state takes in is told, one more entry comes, and the text is read before that."""
    own = await chat.space.log()
    before = chat.space.state.seq
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat.load)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            if chat.space.state.seq != before:
                break
        if read:
            found = await numbers(chat)
            assert found == list(range(100, 100 + len(found)))
        await append(log, value)
        await own.refresh()


async def test_its_effect_is_told(store: Store, chat: Chat, elsewhere: AppendLog) -> None:
    told: list[str] = []

    def moved(_: object, change: object) -> None:
        if isinstance(change, Effect):
            told.extend(change.attachments)

    store.on_moved = moved
    put = await chat.attach("first", b"content", ME)
    event = {"type": "attachment.put", "digest": put.digest, "size": put.size, "content_type": "text/plain"}
    for number in range(5):
        told.clear()
        await append(elsewhere, message(101 + number))
        await load_while(chat, elsewhere, event | {"id": f"id-{number}", "name": f"a{number}"})
        await chat.load()
        assert told == [f"a{number}"]


async def test_the_text_has_every_message_once(chat: Chat, elsewhere: AppendLog) -> None:
    await append(elsewhere, message(101))
    for number in range(102, 140):
        await load_while(chat, elsewhere, message(number), read=number > 102)
    assert await numbers(chat) == list(range(100, 140))


async def test_what_a_cancelled_look_took_in_is_told_by_the_next(
    store: Store, chat: Chat, elsewhere: AppendLog
) -> None:
    told: list[object] = []
    store.on_moved = lambda _, change: told.append(change)
    before = chat.space.state.seq
    await elsewhere.refresh()
    await elsewhere.append(
        [NewEntry(orjson.dumps(message(number) | {"x": "y" * 1000}), ME) for number in range(101, 2101)]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat.load)
        while chat.space.state.seq == before:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    part = chat.space.state.seq
    assert before < part < elsewhere.head.seq
    told.clear()
    await chat.load()
    assert told == [None], "what the first part did isn't known any more: all may have changed"
    assert await numbers(chat) == list(range(100, 2101))
