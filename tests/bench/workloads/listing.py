"""A workspace of many chats: listing them, and what the daemon keeps in memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.bench import TOLD, Bench
from tests.bench.corpus import chat_name
from tests.bench.daemons import resident
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds, take_turns
from tests.bench.target import Target

MB = 1_000_000


def _listdir(directory: Path) -> int:
    return len(os.listdir(directory))


def _ls(directory: Path) -> int:
    done = subprocess.run(["ls", "-l", str(directory)], check=True, capture_output=True)
    return done.stdout.count(b"\n") - 1  # "total 0"


def listing(bench: Bench) -> list[Measure]:
    """List a workspace's chats right after mounting, when the kernel knows none of them."""
    store = bench.many_store
    bench.tell(f"making {bench.many} native directories")
    native = type(bench.native)(bench.native.chats.parent.parent / "native-many")
    for number in range(bench.many):
        native.new_chat(chat_name(number))

    def timed(target: Target, ls: Callable[[Path], int]) -> float:
        counts: list[int] = []
        taken = seconds(lambda: counts.append(ls(target.chats)))
        if counts != [bench.many]:
            raise BenchError(f"{target.name} lists {counts[0]} chats of {bench.many}")
        return taken

    def mounted(ls: Callable[[Path], int]) -> float:
        with bench.mounted(store) as fresh:
            return timed(fresh, ls)

    def measure(name: str, ls: Callable[[Path], int]) -> Measure:
        series = take_turns(bench.runs, {"native": lambda: timed(native, ls), "chatfs": lambda: mounted(ls)})
        return Measure(f"{name} of {bench.many} chats", Unit.SECONDS, series["chatfs"], series["native"], Goal(1.0))

    return [measure("cold listdir", _listdir), measure("cold ls -l", _ls)]


def memory(bench: Bench) -> list[Measure]:
    """The daemon's resident memory when some of the many chats have been read, and then all of them listed."""
    touched = min(TOLD, bench.many)
    fresh, used, listed = [], [], []
    for _ in range(min(3, bench.runs)):  # it hardly varies
        with bench.mounted(bench.many_store) as chatfs:
            fresh.append(resident(chatfs.daemon))
            for number in range(touched):
                if not (chatfs.chats / chat_name(number) / "history.md").read_bytes():
                    raise BenchError("history.md is empty")
            used.append(resident(chatfs.daemon))
            _ls(chatfs.chats)
            listed.append(resident(chatfs.daemon))

    def measure(name: str, samples: list[float], goal: Goal | None = None) -> Measure:
        name = f"memory of the daemon, {bench.many} chats, {name}"
        return Measure(name, Unit.BYTES, Series("chatfs", tuple(samples)), goal=goal)

    return [
        measure("none touched", fresh),
        measure(f"{touched} read", used, Goal(150 * MB)),
        measure(f"{touched} read, all listed", listed),
    ]
