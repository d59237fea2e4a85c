"""What is measured in a process of its own: opening a store, and committing as another process. Prints JSON.

::

    python -m tests.bench.probes open URL                      one document: see `open_cold`
    python -m tests.bench.probes commit URL WORKSPACE CHAT N   "ready", and once a line has come on stdin, N commits
    python -m tests.bench.probes write FILE N                  the same lines, appended to a plain file
"""

from __future__ import annotations

import os
import random
import sys
import time

import orjson
import trio

from store.library import open_store

ACTOR = "bench"


async def open_cold(url: str) -> None:
    """Open the store and list its workspaces: {"seconds", "opened": files of the store, "descriptors": left open}."""
    root = url.removeprefix("file://")
    opened: list[str] = []

    def heard(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and (path := str(args[0])).startswith(root):
            opened.append(path)

    sys.addaudithook(heard)
    start = time.perf_counter()
    async with open_store(url) as store:
        workspaces = await store.workspaces()
        taken = time.perf_counter() - start
        descriptors = len(os.listdir("/proc/self/fd"))
        assert workspaces, "the store is empty"
    answer = {"seconds": taken, "opened": len(opened), "descriptors": descriptors}
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")


async def commit(url: str, workspace: str, chat: str, count: int) -> None:
    """Append events {"type": "bench.tick", "n", "ns"}, some 20 ms apart; `ns` is the monotonic clock just before."""
    pause = random.Random(1)
    async with open_store(url) as store:
        target = await (await store.workspace(workspace)).chat(chat)
        await target.load()
        _say("ready")
        await trio.to_thread.run_sync(sys.stdin.readline)
        for number in range(count):
            await trio.sleep(pause.uniform(0.01, 0.03))
            await target.append_events([{"type": "bench.tick", "n": number, "ns": time.monotonic_ns()}], ACTOR)


def write(path: str, count: int) -> None:
    """As `commit`, to a plain file."""
    pause = random.Random(1)
    with open(path, "ab", buffering=0) as file:
        _say("ready")
        sys.stdin.readline()
        for number in range(count):
            time.sleep(pause.uniform(0.01, 0.03))
            file.write(orjson.dumps({"type": "bench.tick", "n": number, "ns": time.monotonic_ns()}) + b"\n")


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    match sys.argv[1:]:
        case ["open", url]:
            trio.run(open_cold, url)
        case ["commit", url, workspace, chat, count]:
            trio.run(commit, url, workspace, chat, int(count))
        case ["write", path, count]:
            write(path, int(count))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
