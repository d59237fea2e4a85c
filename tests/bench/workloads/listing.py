"""A store of many chats: listing them, opening it, and what the daemon keeps in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson

from tests.bench.bench import TOLD, Bench
from tests.bench.corpus import chat_name
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds, take_turns
from tests.bench.target import ROOT, Chatfs, Target

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


def opening(bench: Bench) -> list[Measure]:
    """Open the store and list its workspaces, in a fresh process; the files that this opens are counted."""
    command = [sys.executable, "-m", "tests.bench.probes", "open", bench.many_store.as_uri()]
    answers = [
        orjson.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        for _ in range(bench.runs + 1)
    ][1:]

    def series(key: str) -> Series:
        return Series("chatfs", tuple(float(answer[key]) for answer in answers))

    name = f"opening a store of {bench.many} chats"
    return [
        Measure(name, Unit.SECONDS, series("seconds"), goal=Goal(1.0)),
        Measure(f"files opened by {name}", Unit.COUNT, series("opened"), goal=Goal(50)),
        Measure(f"descriptors open after {name}", Unit.COUNT, series("descriptors")),
    ]


def _resident(chatfs: Chatfs) -> float:
    """VmRSS of the daemon, in bytes (proc_pid_status(5))."""
    for line in Path(f"/proc/{chatfs.daemon}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError("the daemon has no VmRSS")


def memory(bench: Bench) -> list[Measure]:
    """The daemon's resident memory when some of the many chats have been read, and then all of them listed."""
    touched = min(TOLD, bench.many)
    fresh, used, listed = [], [], []
    for _ in range(min(3, bench.runs)):  # it hardly varies
        with bench.mounted(bench.many_store) as chatfs:
            fresh.append(_resident(chatfs))
            for number in range(touched):
                if not (chatfs.chats / chat_name(number) / "history.md").read_bytes():
                    raise BenchError("history.md is empty")
            used.append(_resident(chatfs))
            _ls(chatfs.chats)
            listed.append(_resident(chatfs))

    def measure(name: str, samples: list[float], goal: Goal | None = None) -> Measure:
        name = f"memory of the daemon, {bench.many} chats, {name}"
        return Measure(name, Unit.BYTES, Series("chatfs", tuple(samples)), goal=goal)

    return [
        measure("none touched", fresh),
        measure(f"{touched} read", used, Goal(150 * MB)),
        measure(f"{touched} read, all listed", listed),
    ]
