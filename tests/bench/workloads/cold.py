"""What a daemon must answer: names, attributes and bytes that the kernel hasn't got.

Cold is the same for all: a new mount, and what lies below it in the page cache.
"""

from __future__ import annotations

import random

from tests.bench.bench import Bench
from tests.bench.client import run
from tests.bench.comparison import Comparison
from tests.bench.measure import Unit
from tests.bench.stage import FILES, LARGE, LARGE_NAME
from tests.bench.target import Target


def round_trips(bench: Bench) -> list[Comparison]:
    """One LOOKUP each, of names that were never asked for; one GETATTR each, whatever the timeouts are."""
    stage = bench.stage
    count = stage.sizes.files // 2

    def lookup(target: Target) -> float:
        return run(target, "lookup", target.chats / FILES / "attachments", count) / count

    def getattr_(target: Target) -> float:
        files = target.chats / FILES / "attachments"
        return run(target, "getattr", files / f"{random.randrange(count):06d}.bin", count) / count

    cold = stage.compare_cold("cold lookup", f"stat of {count:,} new names", Unit.SECONDS, lookup)
    with stage.mounted() as targets:
        detail = f"statx(FORCE_SYNC), {count:,} calls"
        return [cold, stage.compare("getattr", detail, Unit.SECONDS, targets, getattr_)]


def cold_listing(bench: Bench) -> list[Comparison]:
    """ls -l."""
    count = bench.stage.sizes.files

    def sample(target: Target) -> float:
        return run(target, "ls", target.chats / FILES / "attachments", count)

    return [bench.stage.compare_cold("cold ls -l", f"{count:,} files", Unit.SECONDS, sample)]


def cold_reads(bench: Bench) -> list[Comparison]:
    """The large attachment: as a whole, and single pages of it."""
    stage = bench.stage
    size = stage.sizes.large
    count = min(bench.scaled(10_000), size // 4096)

    def whole(target: Target) -> float:
        return size / run(target, "read", target.chats / LARGE / "attachments" / LARGE_NAME, size)

    def pages(target: Target) -> float:
        return count / run(target, "pread", target.chats / LARGE / "attachments" / LARGE_NAME, count, "cold")

    detail = f"{size / 1e6:.0f} MB"
    return [
        stage.compare_cold("cold read, 256 MB attachment", detail, Unit.THROUGHPUT, whole),
        stage.compare_cold("cold random reads of 4 KiB", f"{count:,} of {detail}", Unit.RATE, pages),
    ]
