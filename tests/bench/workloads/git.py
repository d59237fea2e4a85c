"""A log in git: commits of one entry and of many, reading it all, opening it after ever so many commits."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Final

import trio

from store.driver import AppendLog
from store.model import NewEntry, SpaceId
from store.registry import open_driver
from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Goal, Measure, Unit, take_turns

_SPACE: Final = SpaceId("workspace/bench")
_NEW: Final = NewEntry(b'{"role":"user","content":"%s"}' % (b"x" * 100), "uid:1000/bench")
_BATCH: Final = 500


def in_git(bench: Bench) -> list[Measure]:
    """Appends and reads of a `git:` store; opening beside opening a log of few commits."""
    directory = bench.directory / "git"
    directory.mkdir()
    singles, batches, entries = bench.scaled(3_000), max(2, bench.scaled(200)), max(_BATCH, bench.scaled(100_000))
    numbers = count()
    bench.tell(f"making a git log of {bench.huge} commits")
    trio.run(_append, directory / "short", 10, 1)
    trio.run(_append, directory / "long", bench.huge, 1)
    trio.run(_append, directory / "text", -(-entries // _BATCH), _BATCH)
    turns = take_turns(
        bench.runs,
        {
            "single": lambda: trio.run(_append, directory / f"store-{next(numbers)}", singles, 1),
            "batches": lambda: trio.run(_append, directory / f"store-{next(numbers)}", batches, _BATCH),
            "reading": lambda: trio.run(_read, directory / "text"),
            "opening": lambda: trio.run(_open, directory / "long"),
            "opening a short one": lambda: trio.run(_open, directory / "short"),
        },
    )
    single, batch, reading, opening, short = turns.values()
    return [
        Measure("git: single appends", Unit.RATE, single, goal=Goal(300, at_least=True)),
        Measure(f"git: entries in batches of {_BATCH}", Unit.RATE, batch, goal=Goal(20_000, at_least=True)),
        Measure("git: entries read", Unit.RATE, reading, goal=Goal(100_000, at_least=True)),
        Measure(f"git: opening a log of {bench.huge} commits", Unit.SECONDS, opening, short, Goal(3, of_ratio=True)),
    ]


async def _append(path: Path, times: int, size: int) -> float:
    """Entries a second."""
    driver = await open_driver(path.as_uri().replace("file:", "git:", 1))
    log = await driver.open_log(_SPACE, create=True)
    batch = [_NEW] * size
    try:
        start = time.perf_counter()
        for _ in range(times):
            await log.append(batch)
        taken = time.perf_counter() - start
        if log.head.seq != times * size:
            raise BenchError(f"{log.head.seq} entries came of {times * size}")
        return times * size / taken
    finally:
        await log.aclose()
        await driver.aclose()


async def _read(path: Path) -> float:
    driver = await open_driver(path.as_uri().replace("file:", "git:", 1))
    log = await driver.open_log(_SPACE)
    try:
        start = time.perf_counter()
        found = await _count(log)
        return found / (time.perf_counter() - start)
    finally:
        await log.aclose()
        await driver.aclose()


async def _count(log: AppendLog) -> int:
    found = 0
    async for entries in log.read_batches():
        found += len(entries)
    if found != log.head.seq:
        raise BenchError(f"{found} entries were read of {log.head.seq}")
    return found


async def _open(path: Path) -> float:
    """Seconds, the repository's opening among them."""
    start = time.perf_counter()
    driver = await open_driver(path.as_uri().replace("file:", "git:", 1))
    log = await driver.open_log(_SPACE)
    taken = time.perf_counter() - start
    await log.aclose()
    await driver.aclose()
    return taken
