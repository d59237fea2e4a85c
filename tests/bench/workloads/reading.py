"""Reading and stat(2) where the kernel has it all: none of it should reach the daemon."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.bench.bench import Bench
from tests.bench.corpus import BIG
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, seconds, seconds_each, take_turns
from tests.bench.target import Target

CHUNK: Final = 1 << 20
READS: Final = 5
STATS: Final = 10_000


def read_file(path: Path) -> int:
    """Read the file in pieces; its size."""
    total = 0
    buffer = bytearray(CHUNK)
    fd = os.open(path, os.O_RDONLY)
    try:
        while got := os.readv(fd, [buffer]):
            total += got
    finally:
        os.close(fd)
    return total


def _throughput(path: Path, size: int) -> float:
    """Bytes a second, opening and closing included."""
    sizes: list[int] = []
    taken = seconds(lambda: sizes.extend(read_file(path) for _ in range(READS)))
    if set(sizes) != {size}:
        raise BenchError(f"{path} has {min(sizes)} bytes instead of {size}")
    return sum(sizes) / taken


def warm_read(bench: Bench) -> list[Measure]:
    """Read a large history.md that was read before."""
    what = f"of a {bench.text_size // 1_000_000} MB history.md"
    found = []
    with bench.mounted(bench.chats_store) as chatfs:
        path = chatfs.chats / BIG / "history.md"
        first = Series("chatfs", (seconds(lambda: read_file(path)),))
        found.append(Measure(f"first read after a mount {what}", Unit.SECONDS, first))
    with bench.targets() as targets:
        size = (targets[0].chats / BIG / "history.md").stat().st_size

        def sample(target: Target) -> float:
            return _throughput(target.chats / BIG / "history.md", size)

        goal = Goal(0.8, at_least=True, of_ratio=True)
        found += bench.compare(targets, f"warm read {what}", Unit.THROUGHPUT, sample, goal)
        with small_pages(targets[0].chats / BIG / "history.md") as copy:
            if copy is not None:
                subjects = {"tmpfs": lambda: _throughput(copy, size), "chatfs": lambda: sample(targets[1])}
                series = take_turns(bench.runs, subjects)
                found.append(Measure(f"warm read {what}", Unit.THROUGHPUT, series["chatfs"], series["tmpfs"]))
    return found


@contextlib.contextmanager
def small_pages(path: Path) -> Iterator[Path | None]:
    """A copy on tmpfs, None where that can't be had.

    FUSE and tmpfs keep a file's bytes in single pages, ext4 and XFS in large folios, which reach the reader about twice
    as fast (Linux 6.18). So this tells what the kernel costs, whatever a daemon does.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="chatfs-bench-", dir="/dev/shm"))
            copy.write(path.read_bytes())
            copy.flush()
        except OSError:
            yield None
        else:
            yield Path(copy.name)


PAUSE: Final = 0.02


def switches(pid: int) -> int:
    """How often a thread of the process has been put on a processor or taken off it, until now."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def asleep(pid: int) -> int:
    """The same, once the process has gone back to sleep: a switch is counted when it is over."""
    until = time.monotonic() + 2
    count = switches(pid)
    while time.monotonic() < until:
        time.sleep(PAUSE)
        last, count = count, switches(pid)
        if last == count:
            break
    return count


def warm_stat(bench: Bench) -> list[Measure]:
    """stat(2), again and again. A request that reaches the daemon wakes it: that is how they are counted."""

    def sample(target: Target) -> float:
        paths = [target.chats / BIG / name for name in ("history.md", "history.jsonl")]

        def stat_all() -> None:
            for path in paths:
                path.stat()

        return seconds_each(STATS // len(paths), stat_all) / len(paths)

    def wakes(target: Target, daemon: int) -> Series:
        def during(action: Callable[[], object]) -> int:
            before = asleep(daemon)
            action()
            return asleep(daemon) - before

        def count() -> float:
            if not during(lambda: os.statvfs(target.chats)):
                raise BenchError("a request to the daemon wasn't counted")
            return during(lambda: sample(target))

        return take_turns(bench.runs, {target.name: count})[target.name]

    with bench.targets() as targets:
        times = bench.compare(targets, "warm stat", Unit.SECONDS, sample)
        name = f"switches to the daemon in {STATS:,} warm stats"
        woken = [
            Measure(name, Unit.COUNT, wakes(target, target.daemon), goal=Goal(0))
            for target in targets
            if target.daemon is not None
        ]
    return [*times, *woken]
