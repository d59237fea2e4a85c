"""What a workspace uses as the disk says it, and writers that go on until nothing fits: as `python -m` a process.

    python -m tests.support.quotas STORE-URL NAME KIND LOUDNESS

KIND `fill` appends and attaches as NAME until it was refused LOUDNESS times. `hold` charges LOUDNESS bytes, says so,
and stays in flight until it is killed.
"""

from __future__ import annotations

import contextlib
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from store.errors import QuotaExceeded
from store.library import open_store
from store.workspace import Workspace

ME = "tests"
REPOSITORY = Path(__file__).parents[2]


def regular(directory: Path) -> list[int]:
    """The sizes of the files and symbolic links in a directory."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            found.append(path.lstat())
    return [status.st_size for status in found if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)]


def on_disk(store: Path, drafts_too: bool = True) -> int:  # noqa: FBT001, FBT002
    """Bytes of logs, objects, scratch files and drafts of a store with one workspace, whose blobs are all short."""
    total = 0
    for log in store.glob("workspace/**/history.jsonl"):
        total += log.stat().st_size
        for area in ("scratch", "scratch-attachments", "scratch-unlinked"):
            total += sum(regular(log.parent / area))
    for directory in (store / "objects").glob("??"):
        total += sum(regular(directory))
    drafts = store / "drafts"
    if not drafts_too:
        return total
    chunks = [path.stat().st_size for path in drafts.iterdir() if path.suffix != ".json"] if drafts.is_dir() else []
    return total + sum(chunks)


async def fill(workspace: Workspace, name: str, refusals: int) -> None:
    """Append and attach, of any size, until it was refused so many times."""
    random_ = random.Random(name)
    chat = await workspace.chat("trip")
    number = 0
    while refusals:
        number += 1
        size = random_.choice([1, 50, 700, 5000])
        try:
            if random_.random() < 0.5:
                await chat.append_events([{"role": "user", "content": "x" * size}], name)
            else:
                # Some have the same bytes as others.
                content = random_.choice([name.encode(), b"same"]) * (size // 4)
                await chat.attach(f"{name}-{number}", content, name)
        except QuotaExceeded:
            refusals -= 1


async def last_byte(workspace: Workspace) -> None:
    """Append an entry that takes exactly what is left, if an entry fits at all."""
    chat = await workspace.chat("trip")
    quota = (await workspace.load()).quota_bytes
    left = quota - await workspace.usage()
    seq = (await chat.head()).seq + 1
    # {"seq":…,"ts":1795241582000,"actor":"tests","data":"…","crc":"1f2e3d4c"} and a newline
    around = len(f'{{"seq":{seq},"ts":1795241582000,"actor":"tests","data":"","crc":"1f2e3d4c"}}\n')
    if left >= around:
        await chat.append_lines([b'"' + b"x" * (left - around) + b'"'], ME)
        assert await workspace.usage() == quota


@contextmanager
def holding(store: Path, size: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has charged so much, and is in flight."""
    words = [sys.executable, "-m", "tests.support.quotas", f"file://{store}", "holder", "hold", str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"in flight\n"
            yield process
        finally:
            process.kill()


async def main(url: str, name: str, kind: str, loudness: int) -> None:
    """See above."""
    async with open_store(url) as store:
        workspace = await store.workspace("demo")
        if kind == "fill":
            await fill(workspace, name, loudness)
        else:
            async with workspace.quota.taking(lambda: loudness):
                print("in flight", flush=True)  # noqa: T201 - who started this waits for it
                await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
