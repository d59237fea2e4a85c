"""Durable appends: each synced before the next, by one writer and by many at once, beside the bare system calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from store.driver import AppendLog
from store.model import NewEntry, SpaceId
from store.registry import open_driver
from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Goal, Measure, Unit, take_turns

WRITERS: Final = 16
_SPACE: Final = SpaceId("workspace/bench")
_NEW: Final = NewEntry(b'{"role":"user","content":"%s"}' % (b"x" * 200), "uid:1000/bench")
_TURNS: Final = 6
"""Turns for each of a run's: a disk that others use changes its pace from one moment to the next."""


def durable_appends(bench: Bench) -> list[Measure]:
    """append + sync of the log, against write + fdatasync of a file beside it."""
    directory = bench.directory / "durable"
    directory.mkdir()
    count = max(WRITERS, bench.scaled(400))
    turns = take_turns(
        bench.runs * _TURNS,
        {
            "write + fdatasync": lambda: _bare(directory / "bare", count),
            "one writer": lambda: _appending(directory / "store", 1, count),
            f"{WRITERS} writers": lambda: _appending(directory / "store", WRITERS, count),
        },
    )
    bare, one, many = turns.values()
    return [
        Measure("durable appends, one writer", Unit.RATE, one, bare, Goal(0.7, at_least=True, of_ratio=True)),
        Measure(f"durable appends, {WRITERS} writers", Unit.RATE, many, one, Goal(4, at_least=True, of_ratio=True)),
    ]


def _bare(path: Path, count: int) -> float:
    line = b"x" * 330
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return _rate(count, lambda: (os.write(fd, line), os.fdatasync(fd)))
    finally:
        os.close(fd)


def _rate(count: int, action: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(count):
        action()
    return count / (time.perf_counter() - start)


def _appending(store: Path, writers: int, count: int) -> float:
    return trio.run(_append, store, writers, count)


async def _append(store: Path, writers: int, count: int) -> float:
    """Appends a second, of `count` by all writers together."""
    driver = await open_driver(store.as_uri())
    log = await driver.open_log(_SPACE, create=True)
    try:
        # The first sync makes names durable, too; then the pace of the disk is learnt.
        await _write(log, 10)
        before = log.head.seq
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(writers):
                nursery.start_soon(_write, log, count // writers)
        taken = time.perf_counter() - start
        if log.head.seq - before != count // writers * writers:
            raise BenchError(f"{log.head.seq - before} entries came of {count} appends")
        return (log.head.seq - before) / taken
    finally:
        await log.aclose()
        await driver.aclose()


async def _write(log: AppendLog, count: int) -> None:
    for _ in range(count):
        await log.append([_NEW])
        await log.sync()
