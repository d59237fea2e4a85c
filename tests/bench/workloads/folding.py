"""Opening one long chat: from its log alone, and with a snapshot; and what a snapshot costs.

No mount: what is measured is the store, in this process.
"""

from __future__ import annotations

import os
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
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds, take_turns

_CHAT: Final = "long"
_EVENTS: Final = 1_000_000
_BATCH: Final = 1000
_SAID: Final = "The quick brown fox says something about the lazy dog, and then it says some more."
_COMMAND: Final = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls -l"}}
_RESULT: Final = {"type": "tool_result", "tool_use_id": "t", "content": _SAID}
_TAILS: Final = (1_000, 10_000)
"""Events behind a snapshot."""
_SHORTER: Final = 10
"""How many times shorter the chat is that a long one is compared with."""
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


class _Tailed:
    """A chat with a snapshot at its `count`th event, and a tail that grows."""

    def __init__(self, store: Path, count: int) -> None:
        self._store = store
        self._length = count
        self._snapshots = trio.run(self._find)
        self._kept = store.with_name(f"{store.name}-snapshots")
        self._link(self._snapshots, self._kept)

    async def _find(self) -> Path:
        async with open_store(self._store.as_uri()) as opened:
            chat = await (await opened.workspace(WORKSPACE)).chat(_CHAT)
            return chat.directory / "snapshots"

    @staticmethod
    def _link(source: Path, target: Path) -> None:
        # A snapshot is replaced, never changed: a second name keeps it.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=os.link)

    def grow(self, count: int) -> None:
        """Append so many events."""

        async def append() -> None:
            async with open_store(self._store.as_uri()) as opened:
                chat = await (await opened.workspace(WORKSPACE)).chat(_CHAT)
                await chat.append([NewEntry(orjson.dumps(event), ACTOR) for event in _events(count)])

        trio.run(append)
        self._length += count

    def open(self) -> float:
        """How long opening it takes, with that snapshot."""
        self._link(self._kept, self._snapshots)

        def check(state: ChatState) -> None:
            if state.seq != self._length or state.whole:
                raise BenchError(f"the chat wasn't opened from a snapshot, up to event {self._length}")

        return trio.run(partial(_opening, self._store, check, bare=False))

    def remove(self) -> None:
        """Forget the snapshot that is kept."""
        shutil.rmtree(self._kept)


def _tails(bench: Bench, store: Path, count: int) -> list[Measure]:
    """Opening it with a tail behind its snapshot, beside a chat that is shorter, but has the same tail."""
    short = store.with_name("folding-short")
    trio.run(_build, short, count // _SHORTER)
    trio.run(partial(_opening, short, lambda _: None, bare=True))
    chats = {f"{n:,} events": _Tailed(path, n) for path, n in ((short, count // _SHORTER), (store, count))}
    found = []
    grown = 0
    for size in _TAILS:
        tail = max(1, bench.scaled(size))
        for chat in chats.values():
            chat.grow(tail - grown)
        grown = tail
        shorter, long = take_turns(bench.runs, {name: chat.open for name, chat in chats.items()}).values()
        value = Series("chatfs", long.samples)
        name = f"open it with a snapshot and {tail:,} events behind"
        found.append(Measure(name, Unit.SECONDS, value, shorter, Goal(2.0, of_ratio=True)))
    for chat in chats.values():
        chat.remove()
    shutil.rmtree(short)
    return found


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
    behind = _tails(bench, store, count)
    shutil.rmtree(store)
    return [
        Measure(f"open a chat of {count:,} events, without snapshot", Unit.RATE, chatfs["replay"], goal=_REPLAYED),
        Measure("open it with a snapshot", Unit.SECONDS, chatfs["open"], goal=_OPENED),
        *behind,
        Measure("dump its state", Unit.SECONDS, chatfs["dump"]),
        Measure("load all its older messages", Unit.SECONDS, chatfs["complete"]),
    ]
