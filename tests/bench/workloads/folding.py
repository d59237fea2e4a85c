"""Opening one long chat: from its log alone, and with a snapshot; and what a snapshot costs.

No mount: what is measured is the store, in this process.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from store import history, snapshot
from store.fold import ChatState
from store.library import open_store
from store.model import NewEntry, uuid7
from tests.bench.bench import Bench
from tests.bench.corpus import ACTOR, WORKSPACE
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds

_CHAT: Final = "long"
_EVENTS: Final = 1_000_000
_BATCH: Final = 1000
_SAID: Final = "The quick brown fox says something about the lazy dog, and then it says some more."
_COMMAND: Final = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls -l"}}
_RESULT: Final = {"type": "tool_result", "tool_use_id": "t", "content": _SAID}
_REPLAYED: Final = Goal(150_000, at_least=True)
_OPENED: Final = Goal(0.1)


def _events(count: int) -> Iterator[dict[str, Any]]:
    """What agents write: in 25 events 20 messages, 2 pieces of streamed text, a tool's call and result, one unknown."""
    id_ = ""
    for number in range(count):
        kind = number % 25
        if kind in {5, 15}:
            yield {"type": "message.edited", "id": id_, "append": " And on."}
        elif kind == 24:
            yield {"type": "agent.usage", "input_tokens": number, "output_tokens": kind}
        else:
            id_ = uuid7()
            content: Any = {20: [{"type": "text", "text": _SAID}, _COMMAND], 21: [_RESULT]}.get(kind, _SAID)
            yield {"type": "message.appended", "id": id_, "role": ("user", "assistant")[kind % 2], "content": content}


async def _build(store: Path, count: int) -> None:
    async with open_store(store.as_uri()) as opened:
        chat = await (await opened.create_workspace(WORKSPACE, ACTOR)).create_chat(_CHAT, ACTOR)
        batch: list[NewEntry] = []
        for event in _events(count):
            batch.append(NewEntry(orjson.dumps(event), ACTOR))
            if len(batch) == _BATCH:
                await chat.append(batch)
                batch = []
        if batch:
            await chat.append(batch)


async def _opening(store: Path, look: Callable[[ChatState], None], *, bare: bool) -> float:
    """How long the first use of the chat takes; without its snapshots, if it is `bare`. Then `look` has its state."""
    async with open_store(store.as_uri()) as opened:
        chat = await (await opened.workspace(WORKSPACE)).chat(_CHAT)
        if bare:
            shutil.rmtree(chat.directory / "snapshots", ignore_errors=True)
        start = time.perf_counter()
        state = await chat.load()
        taken = time.perf_counter() - start
        look(state)
        return taken


class _Source:
    """A dump in memory."""

    def __init__(self, dump: snapshot.Dump, text: bytes) -> None:
        self._dump = dump
        self._text = text

    def items(self) -> bytes:
        return self._dump.items

    def text(self, offset: int, size: int) -> bytes:
        return self._text[offset : offset + size]


def folding(bench: Bench) -> list[Measure]:
    """A chat of a million events."""
    count = bench.scaled(_EVENTS)
    bench.tell(f"building a chat of {count} events")
    taken: dict[str, list[float]] = {"replay": [], "open": [], "dump": [], "complete": []}
    store = bench.native.chats.parent / "folding"
    trio.run(_build, store, count)

    def check(state: ChatState) -> None:
        if state.seq != count:
            raise BenchError(f"the chat has {state.seq} events of {count}")

    def spread(state: ChatState) -> None:
        if state.whole:
            raise BenchError("the chat wasn't opened from a snapshot")
        text = history.render(state)
        state.complete()
        start = time.perf_counter()
        dump = snapshot.dump(state)
        taken["dump"].append(time.perf_counter() - start)
        taken["complete"].append(seconds(snapshot.load(dump.state, _Source(dump, text)).complete))

    for _ in range(bench.runs):
        taken["replay"].append(count / trio.run(partial(_opening, store, check, bare=True)))
        # Leaving the store wrote a snapshot.
        taken["open"].append(trio.run(partial(_opening, store, spread, bare=False)))
    chatfs = {name: Series("chatfs", tuple(samples)) for name, samples in taken.items()}
    shutil.rmtree(store)
    return [
        Measure(f"open a chat of {count:,} events, without snapshot", Unit.RATE, chatfs["replay"], goal=_REPLAYED),
        Measure("open it with a snapshot", Unit.SECONDS, chatfs["open"], goal=_OPENED),
        Measure("dump its state", Unit.SECONDS, chatfs["dump"]),
        Measure("load all its older messages", Unit.SECONDS, chatfs["complete"]),
    ]
