"""What a command prints is all in the log, and in its order, however slowly the log takes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
import trio

from fusefs.sandbox.record import Recorder
from store.chat import Chat
from store.library import open_store


class Slow(Chat):
    """A chat whose log takes a second."""

    __slots__ = ()

    async def append_events(self, *args: Any, **options: Any) -> Any:
        await trio.sleep(1)
        return await super().append_events(*args, **options)


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    async with open_store("memory:") as store:
        chat = await (await store.create_workspace("w", "test")).create_chat("c", "test")
        chat.__class__ = Slow
        yield chat


async def recorded(chat: Chat) -> dict[str, str]:
    """All text by its stream."""
    found: dict[str, str] = {}
    async for entry in chat.space.read():
        event = orjson.loads(entry.data)
        found[event["stream"]] = found.get(event["stream"], "") + event["text"]
    return found


async def write(recorder: Recorder, stream: str, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        await recorder.output(stream, piece)
        await trio.sleep(0.3)


async def test_two_streams_at_once(chat: Chat, autojump_clock: trio.abc.Clock) -> None:
    """Characters are torn, and pieces of one stream come while those of the other are recorded."""
    text = "".join(f"{number} ä€😀\n" for number in range(300))
    pieces = [text.encode()[start : start + 7] for start in range(0, len(text.encode()), 7)]
    recorder = Recorder(chat, "session", "test")
    async with trio.open_nursery() as gathering:
        gathering.start_soon(recorder.gather)
        async with trio.open_nursery() as writers:
            for stream in ("stdout", "stderr"):
                writers.start_soon(write, recorder, stream, pieces)
        gathering.cancel_scope.cancel()
    await recorder.flush()
    assert await recorded(chat) == {"stdout": text, "stderr": text}


async def test_nothing_is_lost_when_the_command_ends_meanwhile(chat: Chat, autojump_clock: trio.abc.Clock) -> None:
    recorder = Recorder(chat, "session", "test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.gather)
        await recorder.output("stdout", b"the last words")
        while recorder.pending:  # noqa: ASYNC110 - until they are being recorded
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await recorder.flush()
    assert await recorded(chat) == {"stdout": "the last words"}
