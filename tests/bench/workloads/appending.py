"""Appending one line: what it costs mustn't depend on how much is there already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.bench.bench import Bench
from tests.bench.corpus import BIG, EMPTY
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds_each, take_turns
from tests.bench.target import Chatfs

LINES: Final = {
    "history.md": b"one more line of text\n",
    "history.jsonl": b'{"role":"user","content":"one more line of text"}\n',
}
DURABILITIES: Final = ("relaxed", "strict")


def append_line(path: Path, line: bytes, *, sync: bool = False) -> None:
    """open(2), write(2), close(2)."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(fd, line) != len(line):
            raise BenchError(f"{path} took only a part of a line")
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def append(bench: Bench) -> list[Measure]:
    """open + append + close, to a large chat and to an empty one."""
    found = []
    for durability in DURABILITIES:
        with bench.mounted(bench.chats_store, durability) as chatfs:
            found += [_to_file(bench, chatfs, name, durability) for name in LINES]
    return found


def _to_file(bench: Bench, chatfs: Chatfs, name: str, durability: str) -> Measure:
    line, count = LINES[name], max(5, bench.scaled(50))

    def sample(chat: str) -> float:
        path = chatfs.chats / chat / name
        before = path.stat().st_size
        taken = seconds_each(count, lambda: append_line(path, line))
        if path.stat().st_size < before + count * len(line):
            raise BenchError(f"{path} didn't grow by what was appended")
        return taken

    large = f"{bench.text_size // 1_000_000} MB chat"
    series = take_turns(bench.runs, {"empty chat": lambda: sample(EMPTY), large: lambda: sample(BIG)})
    value = Series(f"chatfs, {large}", series[large].samples)
    name = f"append a line to {name}, {durability}"
    return Measure(name, Unit.SECONDS, value, series["empty chat"], Goal(1.5, of_ratio=True))
