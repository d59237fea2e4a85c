"""A store of very many chats: opening it, and its index: building, keeping up, asking. In processes of their own.

::

    python -m tests.bench.workloads.indexing URL      prints what it measured, as JSON
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

import orjson
import trio

from store.index import Search
from store.library import Store, open_store
from tests.bench.bench import Bench
from tests.bench.corpus import ACTOR, MESSAGES, WORDS, WORKSPACE, chat_name
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit
from tests.bench.target import ROOT

ASKED: Final = 20
"""How often each search is made."""
MB: Final = 1_000_000


def opening(bench: Bench) -> list[Measure]:
    """Open the store and list its workspaces, in a fresh process; the files that this opens are counted."""
    trio.run(_catch_up, bench.huge_store.as_uri())
    command = [sys.executable, "-m", "tests.bench.probes", "open", bench.huge_store.as_uri()]
    answers = [
        orjson.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        for _ in range(bench.runs + 1)
    ][1:]

    def series(key: str) -> Series:
        return Series("chatfs", tuple(float(answer[key]) for answer in answers))

    name = f"opening a store of {bench.huge:,} chats"
    return [
        Measure(name, Unit.SECONDS, series("seconds"), goal=Goal(1.0)),
        Measure(f"files opened by {name}", Unit.COUNT, series("opened"), goal=Goal(50)),
        Measure(f"descriptors open after {name}", Unit.COUNT, series("descriptors")),
    ]


def indexing(bench: Bench) -> list[Measure]:
    """Rebuild, catch up, search; a fresh process each time."""
    count, store = bench.huge, bench.huge_store
    answers = []
    for _ in range(min(2, bench.runs)):
        command = [sys.executable, "-m", "tests.bench.workloads.indexing", store.as_uri()]
        done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        answers.append(orjson.loads(done.stdout))
    if {answer["messages"] for answer in answers} != {count * MESSAGES}:
        raise BenchError("the index hasn't all messages")

    def series(key: str) -> Series:
        return Series("chatfs", tuple(float(answer[key]) for answer in answers))

    rates = Series("chatfs", tuple(count / answer["rebuild"] for answer in answers))
    logs = sum(path.stat().st_size for path in store.rglob("history.jsonl"))
    share = Series("chatfs", tuple(answer["bytes"] / logs for answer in answers))
    return [
        Measure(
            f"chats indexed anew, {MESSAGES} messages each", Unit.RATE, rates, goal=Goal(20_000 / 60, at_least=True)
        ),
        Measure(f"memory of a rebuild, {count:,} chats", Unit.BYTES, series("memory"), goal=Goal(300 * MB)),
        Measure("size of the index, of that of the logs", Unit.COUNT, share),
        Measure(f"catching up, nothing moved in {count:,} chats", Unit.SECONDS, series("nothing")),
        Measure(f"catching up, one of {count:,} chats moved", Unit.SECONDS, series("one")),
        Measure("search for a rare word, the store being open", Unit.SECONDS, series("rare"), goal=Goal(1.0)),
        Measure("search for a word of every other message", Unit.SECONDS, series("common"), goal=Goal(2.0)),
    ]


async def _catch_up(url: str) -> None:
    async with open_store(url) as store:
        await store.index.catch_up()


async def _timed(work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def _median(store: Store, words: str) -> float:
    taken = [await _timed(store.search(Search(words))) for _ in range(ASKED)]
    return sorted(taken)[ASKED // 2]


async def _measure(url: str) -> None:
    async with open_store(url) as store:
        await store.workspaces()
        await store.index.rebuild()
        found = {"rebuild": await _timed(store.index.catch_up())}
        found["memory"] = _peak()
        found["nothing"] = await _timed(store.index.catch_up())
        workspace = await store.workspace(WORKSPACE)
        chat = await workspace.chat(chat_name(0))
        await chat.append_events([{"type": "bench.tick"}], ACTOR)
        found["one"] = await _timed(store.index.catch_up())
        found["rare"] = await _median(store, f"word{WORDS // 2}")
        found["common"] = await _median(store, "word1")
    path = Path(url.removeprefix("file://")) / "index.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found["messages"] = connection.execute("SELECT sum(messages) FROM chats").fetchone()[0]
    found["bytes"] = path.stat().st_size
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")


def _peak() -> int:
    """VmHWM, in bytes (proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError("there is no VmHWM")


if __name__ == "__main__":
    trio.run(_measure, sys.argv[1])
