"""For orientation: how many appends and attachments a second. Nothing here has a goal.

A target whose close(2) syncs is compared with plain files that are synced before they are closed.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Final

from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Measure, Unit, seconds, seconds_each
from tests.bench.target import Target
from tests.bench.workloads.appending import DURABILITIES, LINES, append_line
from tests.bench.workloads.reading import CHUNK, read_file

_LOG: Final = "history.jsonl"
_numbers = itertools.count(1)


def _fresh_chat(target: Target) -> Path:
    return target.new_chat(f"fresh-{next(_numbers)}")


def appends(bench: Bench) -> list[Measure]:
    """Lines to history.jsonl: through one descriptor, and opening and closing it for each."""
    found = []
    line = LINES[_LOG]
    for durability in DURABILITIES:
        strict = durability == "strict"

        def written(target: Target) -> float:
            count = bench.scaled(5_000)
            fd = os.open(_fresh_chat(target) / _LOG, os.O_WRONLY | os.O_APPEND)
            try:
                return 1 / seconds_each(count, lambda: os.write(fd, line))
            finally:
                os.close(fd)

        def opened(target: Target, *, strict: bool = strict) -> float:
            count = max(20, bench.scaled(200))
            log = _fresh_chat(target) / _LOG
            sync = strict and not target.syncs_at_close
            return 1 / seconds_each(count, lambda: append_line(log, line, sync=sync))

        with bench.targets(durability) as targets:
            if not strict:
                found += bench.compare(targets, "write a line, open log", Unit.RATE, written)
            found += bench.compare(targets, f"open + write a line + close, {durability}", Unit.RATE, opened)
    return found


def _write_file(path: Path, content: bytes, *, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view[:CHUNK]) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def attachments(bench: Bench) -> list[Measure]:
    """Many small attachments."""
    count, found = bench.scaled(500), []
    for durability in DURABILITIES:
        strict = durability == "strict"

        def sample(target: Target, *, strict: bool = strict) -> float:
            directory = _fresh_chat(target) / "attachments"
            contents = [os.urandom(4096) for _ in range(count)]
            sync = strict and not target.syncs_at_close

            def write_all() -> None:
                for number, content in enumerate(contents):
                    _write_file(directory / f"{number}.bin", content, sync=sync)

            return count / seconds(write_all)

        with bench.targets(durability) as targets:
            found += bench.compare(targets, f"{count} attachments of 4 kB, {durability}", Unit.RATE, sample)
    return found


def large_attachment(bench: Bench) -> list[Measure]:
    """Write one large attachment durably, and read it when it is in no cache."""
    size = bench.scaled(64 << 20)

    def write(target: Target) -> float:
        path = _fresh_chat(target) / "attachments" / "large.bin"
        content = os.urandom(size)
        return size / seconds(lambda: _write_file(path, content, sync=not target.syncs_at_close))

    with bench.targets() as targets:
        paths = {}
        for target in targets:
            paths[target.name] = _fresh_chat(target) / "attachments" / "large.bin"
            _write_file(paths[target.name], os.urandom(size), sync=True)

        def read(target: Target) -> float:
            path = paths[target.name]
            target.chill(path)
            sizes: list[int] = []
            taken = seconds(lambda: sizes.append(read_file(path)))
            if sizes != [size]:
                raise BenchError(f"{path} has {sizes[0]} bytes of {size}")
            return size / taken

        name = f"attachment of {size >> 20} MB"
        return [
            *bench.compare(targets, f"write an {name}, strict", Unit.THROUGHPUT, write),
            *bench.compare(targets, f"read an {name}, cold", Unit.THROUGHPUT, read),
        ]
