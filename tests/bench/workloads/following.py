"""From a commit by one process to a reader of the mounted history.jsonl in another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final

import orjson

from tests.bench.bench import Bench
from tests.bench.corpus import EMPTY, WORKSPACE
from tests.bench.measure import BenchError, Goal, Measure, Series, Unit, percentile
from tests.bench.target import ROOT

INTERVAL: Final = 0.01
"""Seconds between the follower's looks, as of `tail -f -s 0.01`."""
_PATIENCE: Final = 30.0


def follow(bench: Bench) -> list[Measure]:
    """Follow the log as tail -f does while another process appends with the library."""
    count = bench.scaled(300)
    with bench.mounted(bench.chats_store) as chatfs:
        fd = os.open(chatfs.chats / EMPTY / "history.jsonl", os.O_RDONLY)
        try:
            os.lseek(fd, 0, os.SEEK_END)
            latencies = _follow(fd, bench.chats_store.as_uri(), count)
        finally:
            os.close(fd)
    name = f"commit to visible, looking every {INTERVAL * 1000:g} ms"
    worst = Series("chatfs", (percentile(latencies, 99),))
    return [
        Measure(f"{name}: median", Unit.SECONDS, Series("chatfs", tuple(latencies)), goal=Goal(0.1)),
        Measure(f"{name}: 99th percentile", Unit.SECONDS, worst),
    ]


def _follow(fd: int, url: str, count: int) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.probes", "commit", url, WORKSPACE, EMPTY, str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
            return _latencies(fd, count)
        finally:
            writer.kill()


def _latencies(fd: int, count: int) -> list[float]:
    """Seconds from just before each commit until its line was read; every one, in order."""
    found: list[float] = []
    rest = b""
    at = os.lseek(fd, 0, os.SEEK_CUR)
    heard = time.monotonic()
    while len(found) < count:
        if os.fstat(fd).st_size > at:
            while piece := os.read(fd, 1 << 16):
                at += len(piece)
                rest += piece
            heard = time.monotonic()
            now = time.monotonic_ns()
            *lines, rest = rest.split(b"\n")
            for line in lines:
                tick = orjson.loads(line)["data"]
                if tick["n"] != len(found):
                    raise BenchError(f"the follower saw commit {tick['n']} after {len(found) - 1}")
                found.append((now - tick["ns"]) / 1e9)
        elif time.monotonic() > heard + _PATIENCE:
            raise BenchError(f"the follower saw {len(found)} of {count} commits, then nothing for {_PATIENCE:g} s")
        time.sleep(INTERVAL)
    return found
