"""Writing, beside plain files: chatfs parses, validates, numbers and checksums lines, and hashes attachments.

Durability is relaxed: the others' close(2) syncs nothing, chatfs's syncs within a second. Between two samples, what the
first has left to do is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.client import run
from tests.bench.comparison import Comparison
from tests.bench.measure import Unit
from tests.bench.stage import LARGE_NAME, SMALL
from tests.bench.target import Target

_LOG = "history.jsonl"


def _writing(
    bench: Bench, key: str, detail: str, unit: Unit, amount: int, loop: Callable[[Target, Path], float]
) -> Comparison:
    stage = bench.stage

    def sample(target: Target) -> float:
        chat = next(chats[target.name])
        stage.sync()
        taken = loop(target, chat)
        (chat / "attachments" / LARGE_NAME).unlink(missing_ok=True)
        target.settle()
        return amount / taken

    with stage.mounted() as targets:
        chats = stage.fresh_chats(targets)
        return stage.compare(key, detail, unit, targets, sample)


def appends(bench: Bench) -> list[Comparison]:
    """Lines of 200 bytes to a log: through one descriptor, and opening and closing it for each."""
    many, some = bench.scaled(10_000), bench.scaled(2_000)

    def through_one(target: Target, chat: Path) -> float:
        return run(target, "append", chat / _LOG, many)

    def each(target: Target, chat: Path) -> float:
        return run(target, "append-each", chat / _LOG, some)

    return [
        _writing(bench, "append to an open log", f"{many:,} lines of 200 B", Unit.RATE, many, through_one),
        _writing(bench, "open + append + close", f"{some:,} lines of 200 B", Unit.RATE, some, each),
    ]


def attachments(bench: Bench) -> list[Comparison]:
    """Many small ones, and a large one."""
    count, size = bench.scaled(2_000), bench.stage.sizes.large

    def small(target: Target, chat: Path) -> float:
        return run(target, "create", chat / "attachments", count, SMALL)

    def large(target: Target, chat: Path) -> float:
        return run(target, "write", chat / "attachments" / LARGE_NAME, size)

    detail = f"{size / 1e6:.0f} MB"
    return [
        _writing(bench, "small attachments", f"{count:,} of {SMALL} B", Unit.RATE, count, small),
        _writing(bench, "write, 256 MB attachment", detail, Unit.THROUGHPUT, size, large),
    ]
