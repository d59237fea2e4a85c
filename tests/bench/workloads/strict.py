"""For orientation: how many durable appends and attachments a second. Nothing here has a goal.

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
from tests.bench.workloads.appending import LINES, append_line

CHUNK: Final = 1 << 20
_LOG: Final = "history.jsonl"
_numbers = itertools.count(1)


def _fresh_chat(target: Target) -> Path:
    return target.new_chat(f"fresh-{next(_numbers)}")


def strict(bench: Bench) -> list[Measure]:
    """Lines and attachments that are durable once they are closed."""
    return [*_lines(bench), *_small(bench), *_large(bench)]


def _lines(bench: Bench) -> list[Measure]:
    count = max(20, bench.scaled(200))

    def opened(target: Target) -> float:
        log = _fresh_chat(target) / _LOG
        sync = not target.syncs_at_close
        return 1 / seconds_each(count, lambda: append_line(log, LINES[_LOG], sync=sync))

    with bench.targets() as targets:
        return bench.compare(targets, "open + write a line + close, strict", Unit.RATE, opened)


def read_file(path: Path) -> int:
    """Read the file in pieces; its size."""
    total = 0
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return total


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


def _small(bench: Bench) -> list[Measure]:
    count = bench.scaled(500)

    def sample(target: Target) -> float:
        directory = _fresh_chat(target) / "attachments"
        contents = [os.urandom(4096) for _ in range(count)]
        sync = not target.syncs_at_close

        def write_all() -> None:
            for number, content in enumerate(contents):
                _write_file(directory / f"{number}.bin", content, sync=sync)

        return count / seconds(write_all)

    with bench.targets() as targets:
        return bench.compare(targets, f"{count} attachments of 4 kB, strict", Unit.RATE, sample)


def _large(bench: Bench) -> list[Measure]:
    """Written durably, and read when it is in no cache, not even below."""
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
            *bench.compare(targets, f"read an {name} from disk", Unit.THROUGHPUT, read),
        ]
