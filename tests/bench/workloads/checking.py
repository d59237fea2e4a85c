"""`chatfs fsck`: how fast a store in the page cache is read and checked; beside cksum(1) and sha256sum(1)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from store.fsck import check_store
from store.library import open_store
from store.model import NewEntry
from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Goal, Measure, Unit, seconds, take_turns
from tests.bench.target import ROOT

_GOAL: Final = Goal(200e6, at_least=True)
_CHATS: Final = 8
_BATCH: Final = 100
_ENTRY: Final = (
    b'{"type":"message.appended","id":"01a1fe0b-8677-74da-8806-%012d","role":"assistant","content":"'
    + b"x" * 110
    + b'"}'
)
"""Its line has about 300 bytes."""


def _build(root: Path, entries: int, blobs: int) -> None:
    """Chats whose logs have `entries` lines together, one batch in ten of several, and `blobs` bytes of attachments."""

    async def build() -> None:
        async with open_store(root.as_uri()) as store:
            workspace = await store.create_workspace("bench", "bench")
            for number in range(_CHATS):
                chat = await workspace.create_chat(f"chat-{number}", "bench")
                log = await chat.space.log()
                for at in range(0, entries // _CHATS, _BATCH):
                    batch = [NewEntry(_ENTRY % (at + n), "uid:1000/agent") for n in range(_BATCH)]
                    await log.append(batch[:10])
                    for new in batch[10:]:
                        await log.append([new])
                if blobs:
                    await chat.attach("small.bin", os.urandom(100_000), "bench")
                    await chat.attach("large.bin", os.urandom(max(1, blobs // _CHATS - 100_000)), "bench")

    trio.run(build)


def _check(root: Path) -> float:
    """Bytes a second."""
    sizes: list[int] = []

    def check() -> None:
        report = check_store(root)
        if report.exit_code or not report.counts.entries:
            raise BenchError(f"fsck finds {report.findings[:3]}")
        sizes.append(report.counts.bytes)

    taken = seconds(check)
    return sizes[0] / taken


def _sums(root: Path) -> float:
    """The same files through cksum(1) and sha256sum(1), one after the other: bytes a second."""
    files = [str(path) for path in root.rglob("*") if path.is_file()]
    logs = [path for path in files if path.endswith(".jsonl")]
    objects = [path for path in files if "/objects/" in path]
    size = sum(Path(path).stat().st_size for path in logs + objects)

    def run() -> None:
        for command, paths in ((["cksum"], logs), (["sha256sum"], objects)):
            if paths:
                subprocess.run([*command, *paths], check=True, stdout=subprocess.DEVNULL)

    return size / seconds(run)


def _command(root: Path) -> float:
    """The command, with all that starting it costs: bytes a second."""
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    command = [sys.executable, "-m", "fusefs", "--store", root.as_uri(), "fsck"]
    return size / seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT))


def checking(bench: Bench) -> list[Measure]:
    """Logs alone, and logs with as many bytes of attachments."""
    found = []
    entries = bench.scaled(400_000)
    for name, blobs in (("logs of 300-byte lines", 0), ("logs and attachments", entries * 300)):
        root = bench.directory / f"fsck-{blobs}"
        bench.tell(f"building {name}")
        _build(root, entries, blobs)
        series = take_turns(
            bench.runs,
            {"sums": lambda root=root: _sums(root), "chatfs": lambda root=root: _check(root)},  # type: ignore[misc]
        )
        found.append(Measure(f"fsck, {name}", Unit.THROUGHPUT, series["chatfs"], series["sums"], _GOAL))
        command = take_turns(bench.runs, {"chatfs": lambda root=root: _command(root)})["chatfs"]  # type: ignore[misc]
        found.append(Measure(f"chatfs fsck, {name}", Unit.THROUGHPUT, command, goal=_GOAL))
    return found
