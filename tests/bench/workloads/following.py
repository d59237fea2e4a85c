"""From a commit by one process to `tail -f -s 0.01` in another: on the mount, and on a plain file.

tail(1) looks at a file on FUSE every 10 ms, and waits for inotify on a native one.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from typing import Final

import orjson

from tests.bench.bench import Bench
from tests.bench.comparison import Comparison
from tests.bench.corpus import EMPTY, WORKSPACE
from tests.bench.measure import BenchError, Series, Unit, percentile
from tests.bench.stage import Stage
from tests.bench.target import NATIVE, ROOT, Chatfs, Target

INTERVAL: Final = "0.01"
_PATIENCE: Final = 30.0
_KEY: Final = "commit to visible"


def follow(bench: Bench) -> list[Comparison]:
    """Batches of commits, some 20 ms apart; those of all batches are counted together for the 99th percentile."""
    stage, count = bench.stage, max(10, bench.scaled(100))
    latencies: dict[str, list[float]] = {}

    def sample(target: Target) -> float:
        found = _follow(stage, target, count)
        latencies.setdefault(target.name, []).extend(found)
        return percentile(found, 50)

    with stage.mounted([stage.native, stage.chatfs]) as targets:
        for target in targets:
            with (target.chats / _chat(target) / "history.jsonl").open("ab") as log:
                log.write(b'{"type":"bench.begins"}\n')
        detail = f"tail -f -s {INTERVAL}, {count * bench.runs:,} lines"
        middle = stage.compare(f"{_KEY}: median", detail, Unit.SECONDS, targets, sample, warm_up=False)
    worst = {name: Series(name, (percentile(found, 99),)) for name, found in latencies.items()}
    return [middle, Comparison(f"{_KEY}: 99th percentile", detail, Unit.SECONDS, worst, middle.kinds, middle.failures)]


def _chat(target: Target) -> str:
    if target.name == NATIVE and not (target.chats / EMPTY).exists():
        target.new_chat(EMPTY)
    return EMPTY


def _follow(stage: Stage, target: Target, count: int) -> list[float]:
    """Seconds from just before each commit until tail has printed its line; every one, in order."""
    log = target.chats / EMPTY / "history.jsonl"
    what = ["commit", stage.chatfs.store.as_uri(), WORKSPACE, EMPTY] if isinstance(target, Chatfs) else ["write", log]
    command = [sys.executable, "-m", "tests.bench.probes", *map(str, what), str(count)]
    tail = ["tail", "-n", "1", "-f", "-s", INTERVAL, str(log)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer,
        subprocess.Popen(tail, stdout=subprocess.PIPE, bufsize=0) as follower,
    ):
        try:
            assert writer.stdin is not None
            assert writer.stdout is not None
            _expect(writer.stdout.readline() == b"ready\n", "the writer is ready")
            lines = _Lines(follower)
            lines.next()  # what was there before
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
            return [_latency(*lines.next(), number) for number in range(count)]
        finally:
            writer.kill()
            follower.kill()


def _expect(holds: bool, what: str) -> None:  # noqa: FBT001
    if not holds:
        raise BenchError(f"it doesn't hold that {what}")


def _latency(line: bytes, seen: int, number: int) -> float:
    tick: dict[str, int] = orjson.loads(line)
    tick = tick.get("data", tick)  # type: ignore[assignment]  # a log's line wraps what was committed
    _expect(tick.get("n") == number, f"tail shows commit {number} now, and not {line!r}")
    return (seen - tick["ns"]) / 1e9


class _Lines:
    """The lines that a process prints, each with the time when it came."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._rest = b""
        self._came = 0

    def next(self) -> tuple[bytes, int]:
        while b"\n" not in self._rest:
            ready = select.select([self._stream], [], [], _PATIENCE)[0]
            self._came = time.monotonic_ns()
            piece = self._stream.read(1 << 16) if ready else b""
            _expect(bool(piece), f"tail shows something within {_PATIENCE:g} s")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line, self._came
