"""What other processes do in `test_stopped_holders`: `python -m tests.crash.stopped_child append STORE SPACE NAME`.

Gets the lease and appends under it, one entry after the other, and writes what became of each to standard output.
`stuck` takes the log's lock, says so, and never gives it back.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from store.drivers.file import takeover
from store.drivers.file.text import LOG_NAME
from store.errors import LeaseHeld, StaleEpoch
from store.model import NewEntry, SpaceId
from store.registry import open_driver

TTL_MS = 50
STUCK_SECONDS = 0.1


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def append(store: str, space: str, name: str) -> None:
    """Until the standard input is closed."""
    takeover.STUCK_SECONDS = STUCK_SECONDS
    driver = await open_driver(store)
    log = await driver.open_log(SpaceId(space))
    number = 0
    while not select.select([0], [], [], 0)[0]:
        try:
            grant = await driver.leases.acquire(SpaceId(space), name, TTL_MS)
        except LeaseHeld:
            await trio.sleep(TTL_MS / 1000 / 4)
            continue
        try:
            for _ in range(50):
                number += 1
                batch = [NewEntry(f'"{name}.{number}.{grant.epoch}"'.encode(), name)]
                say("try", number)
                if log.append_now(batch, epoch=grant.epoch) is None:
                    await log.append(batch, epoch=grant.epoch)
                say("done", number)
        except StaleEpoch:
            say("refused", number)
        else:
            await trio.sleep(TTL_MS / 1000)
    await log.aclose()
    await driver.aclose()
    say("end")


async def stuck(store: str, space: str, _name: str) -> None:
    """Stop while holding the log's flock, in the middle of an append: behind the look at the lease."""
    driver = await open_driver(store)
    log = await driver.open_log(SpaceId(space))
    grant = await driver.leases.acquire(SpaceId(space), "stuck", TTL_MS)

    stops = 0

    def stop(_head: object) -> None:
        nonlocal stops
        stops += 1
        if stops == 1:
            say("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)

    try:
        seq = await log.append([NewEntry(b'"stuck"', "stuck")], epoch=grant.epoch, intent=stop)
    except StaleEpoch:
        say("refused")
    else:
        say("done", seq)
    await log.aclose()
    await driver.aclose()


async def maintaining(store: str, space: str, _name: str) -> None:
    """Hold both locks, as a truncation does, and stop."""
    held = []
    for path in (Path(store.removeprefix("file://")) / space, Path(store.removeprefix("file://")) / space / LOG_NAME):
        held.append(os.open(path, os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    say("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)
    await trio.lowlevel.checkpoint()
    say("going on")


if __name__ == "__main__":
    works: dict[str, Callable[..., Awaitable[None]]] = {"append": append, "stuck": stuck, "maintaining": maintaining}
    trio.run(works[sys.argv[1]], *sys.argv[2:])
