"""Many processes, one log: what the lease costs who holds it, appends that are forwarded, and hand-over."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from store.library import Store, open_store
from store.model import NewEntry, Seq
from store.space import Space
from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, take_turns
from tests.bench.target import ROOT

_ME: Final = "uid:1000/bench"
_BATCH: Final = [NewEntry(b'{"role":"user","content":"%s"}' % (b"x" * 200), _ME)]
_TURNS: Final = 6
"""Turns for each of a run's: a disk that others use changes its pace from one moment to the next."""
_KILLED_MS: Final = 6000
"""How long hand-over may take after a kill: the time of a lease, and a second."""
_LONG: Final = 600_000

_HOLDER: Final = textwrap.dedent("""
    import sys, trio
    from store.library import open_store

    async def main():
        async with open_store(sys.argv[1], lease_ms=int(sys.argv[2])) as store:
            chat = await (await store.workspace("bench")).chat("held")
            await chat.append_lines([b'{"role":"user","content":"mine"}'], "bench")
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)

    trio.run(main)
""")


@contextmanager
def _holding(url: str, lease_ms: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lease of bench/held; ended at the latest with the block."""
    command = [sys.executable, "-c", _HOLDER, url, str(lease_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise BenchError("the process that holds the lease has ended")
            yield process
        finally:
            process.kill()


def _made(directory: Path) -> str:
    """A store with the chats held and mine."""

    async def make() -> None:
        async with open_store(directory.as_uri()) as store:
            workspace = await store.create_workspace("bench", _ME)
            for name in ("held", "mine"):
                await workspace.create_chat(name, _ME)

    trio.run(make)
    return directory.as_uri()


async def _space(store: Store, name: str) -> Space[object]:
    chat = await (await store.workspace("bench")).chat(name)
    await chat.load()
    return chat.space  # type: ignore[return-value]


def held(bench: Bench) -> list[Measure]:
    """Appends of who holds the lease, beside appends without one: processor time."""
    url = _made(bench.directory / "authority-held")
    count = max(10, bench.scaled(5000))

    async def sample(*, leased: bool) -> float:
        async with open_store(url) as store:
            space = await _space(store, "mine")
            if not leased:
                space._authority = None
            await space.append(_BATCH)
            start = time.process_time()
            for _ in range(count):
                await space.append(_BATCH)
            return (time.process_time() - start) / count

    turns = take_turns(
        bench.runs * _TURNS,
        {"held": lambda: trio.run(lambda: sample(leased=True)), "bare": lambda: trio.run(lambda: sample(leased=False))},
    )
    return [Measure("append under a lease: processor time", Unit.SECONDS, *turns.values(), Goal(1.1, of_ratio=True))]


def forwarded(bench: Bench) -> list[Measure]:
    """Appends that another process makes durable for this one, beside append + sync in this one."""
    url = _made(bench.directory / "authority-forwarded")
    count = max(5, bench.scaled(400))

    async def local() -> float:
        async with open_store(url) as store:
            space = await _space(store, "mine")

            async def one() -> None:
                await space.append(_BATCH)
                await space.sync()

            return await _each(count, one)

    async def sent() -> float:
        async with open_store(url) as store:
            space = await _space(store, "held")

            async def one() -> None:
                await space.append(_BATCH)

            return await _each(count, one)

    with _holding(url, _LONG):
        turns = take_turns(
            bench.runs * _TURNS, {"forwarded": lambda: trio.run(sent), "local, durable": lambda: trio.run(local)}
        )
    return [Measure("forwarded append", Unit.SECONDS, *turns.values(), Goal(3, of_ratio=True))]


async def _each(count: int, action: Callable[[], object]) -> float:
    for _ in range(3):
        await action()  # type: ignore[misc]
    start = time.perf_counter()
    for _ in range(count):
        await action()  # type: ignore[misc]
    return (time.perf_counter() - start) / count


def handover(bench: Bench) -> list[Measure]:
    """The longest append of a process while the holder ends: killed, and as it should."""
    found = []
    for name, end, limit in (
        ("after a kill", _kill, _KILLED_MS / 1000),
        ("after a clean release", _close, 0.1),
    ):
        samples = []
        for run in range(bench.runs):
            url = _made(bench.directory / f"authority-{end.__name__}-{run}")
            with _holding(url, 5000) as process:
                samples.append(trio.run(_longest, url, process, end))
        found.append(Measure(f"hand-over {name}", Unit.SECONDS, Series(name, tuple(samples)), None, Goal(limit)))
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


async def _longest(url: str, process: subprocess.Popen[bytes], end: Callable[[subprocess.Popen[bytes]], None]) -> float:
    async with open_store(url) as store:
        space = await _space(store, "held")
        before = (await store.driver.leases.current(space.id)).holder  # type: ignore[union-attr]
        await space.append(_BATCH)
        end(process)
        longest, last = 0.0, Seq(0)
        while (await store.driver.leases.current(space.id)).holder == before:  # type: ignore[union-attr]
            start = time.perf_counter()
            last = await space.append(_BATCH)
            longest = max(longest, time.perf_counter() - start)
        if (await space.refresh()).seq != last:
            raise BenchError("appends were lost in a hand-over")
        return longest
