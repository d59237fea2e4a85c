"""What the kernel's caches answer: reading and asking again. No request should reach a daemon.

A request wakes the daemon: so they are counted, as switches to it while a loop runs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.bench.bench import Bench
from tests.bench.client import client, run
from tests.bench.comparison import Comparison
from tests.bench.corpus import BIG
from tests.bench.daemons import asleep
from tests.bench.measure import BenchError, Unit
from tests.bench.stage import FILES, LARGE, LARGE_NAME, Stage
from tests.bench.target import Kind, Native, Target

_TIMES: Final = 3
_COUNTED: Final = 1_000
"""Calls during which requests are counted."""
_PATIENT: Final = 20
"""How many times fewer calls the slowest target makes."""
_SWITCHES: Final = "switches to the daemon"


def _large(target: Target) -> Path:
    return target.chats / LARGE / "attachments" / LARGE_NAME


def _files(target: Target) -> Path:
    return target.chats / FILES / "attachments"


def _text(target: Target) -> Path:
    return target.chats / BIG / "history.md"


class _Tmpfs(Native):
    """Copies in /dev/shm.

    FUSE and tmpfs keep a file's bytes in single pages, ext4 and XFS in large folios, which reach the reader about twice
    as fast (Linux 6.18). So this tells what the kernel costs, whatever a daemon does.
    """

    name = "tmpfs"
    options = "copies in /dev/shm: pages as FUSE keeps them"
    kind = Target.kind


@contextlib.contextmanager
def _with_tmpfs(targets: list[Target]) -> Iterator[list[Target]]:
    """The targets and copies of what is read on tmpfs, where that can be had."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="chatfs-bench-", dir="/dev/shm")
    except OSError:
        yield targets
        return
    with directory as path:
        copy = _Tmpfs(Path(path))
        for name in (LARGE, BIG):
            copy.new_chat(name)
        try:
            for file in (_large, _text):
                file(copy).write_bytes(file(targets[0]).read_bytes())
        except OSError:
            yield targets
        else:
            yield [*targets, copy]


def warm_read(bench: Bench) -> list[Comparison]:
    """dd(1) of files that were read before."""
    stage = bench.stage
    files = {"256 MB attachment": _large, "50 MB history.md": _text}
    found = []
    with stage.mounted() as mounted, _with_tmpfs(mounted) as targets:
        for name, file in files.items():
            size = file(targets[0]).stat().st_size

            def sample(target: Target, file: Callable[[Target], Path] = file, size: int = size) -> float:
                return size * _TIMES / run(target, "dd", file(target), _TIMES)

            detail = f"dd bs=1M, {size / 1e6:.0f} MB"
            found.append(stage.compare(f"warm read, {name}", detail, Unit.THROUGHPUT, targets, sample))
    return found


def warm_stat(bench: Bench) -> list[Comparison]:
    """stat(2) of 100 files, again and again."""
    return _warm(bench.stage, "warm stat", max(_PATIENT * 100, bench.scaled(20_000)), "stat", _files)


def warm_pread(bench: Bench) -> list[Comparison]:
    """4 KiB at random of a file that is in the page cache."""
    count = min(bench.scaled(20_000), bench.stage.sizes.large // 4096)
    return _warm(bench.stage, "warm pread of 4 KiB", count, "pread", _large, "warm")


def _warm(
    stage: Stage, key: str, count: int, loop: str, where: Callable[[Target], Path], *more: str
) -> list[Comparison]:
    counted = min(_COUNTED, count)

    def sample(target: Target) -> float:
        # The example keeps no attributes: each call is several requests.
        calls = count // _PATIENT if target.kind is Kind.EXAMPLE else count
        return calls / run(target, loop, where(target), calls, *more)

    def woken(target: Target) -> float:
        daemon = target.daemon
        assert daemon is not None
        before = asleep(daemon)
        os.statvfs(target.chats)
        if asleep(daemon) == before:
            raise BenchError("a request to the daemon wasn't counted")
        with client(target, loop, where(target), counted, *more) as ready:
            before = asleep(daemon)
            ready.go()
            return asleep(daemon) - before

    with stage.mounted() as targets:
        speed = stage.compare(key, f"{count:,} calls", Unit.RATE, targets, sample)
        served = [target for target in targets if target.daemon is not None]
        requests = stage.compare(
            f"{key}: requests", f"{_SWITCHES}, {counted:,} calls", Unit.COUNT, served, woken, warm_up=False
        )
    return [speed, requests]
