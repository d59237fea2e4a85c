"""What other processes do in the tests: `python -m tests.contract.child append|stage|cas STORE …`."""

from __future__ import annotations

import sys

import trio

from store.driver import ABSENT, EtagConflict
from store.errors import SeqConflict
from store.model import NewEntry, SpaceId
from store.registry import open_driver


async def append(store: str, space: str, name: str, count: str) -> None:
    """Batches of one to three entries, each saying who wrote it and the how-manieth it is."""
    driver = await open_driver(store)
    log = await driver.open_log(SpaceId(space), create=True)
    for number in range(int(count)):
        batch = [NewEntry(f'"{name}.{number}"'.encode(), name)] * (number % 3 + 1)
        if number % 5:
            await log.append(batch)
            continue
        while True:
            head = await log.refresh()
            try:
                await log.append(batch, expected_seq=head.seq)
                break
            except SeqConflict:
                continue
    await log.aclose()
    await driver.aclose()


async def stage(store: str, text: str) -> None:
    """Begin a blob, say so, and wait to be killed."""
    driver = await open_driver(store)
    staging = driver.blobs.stage(label={"name": "report.txt"})
    staging.write(0, text.encode())
    staging.write(3 * 1024 * 1024, b"far")
    staging.truncate(3 * 1024 * 1024 + 2)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await trio.sleep_forever()


async def cas(store: str, key: str, name: str, count: str) -> None:
    """Add one to a counter, `count` times."""
    driver = await open_driver(store)
    for _ in range(int(count)):
        while True:
            found = await driver.kv.get(key)
            value = found.value if found else 0
            answer = await driver.kv.put(key, value + 1, if_match=found.etag if found else ABSENT)
            if not isinstance(answer, EtagConflict):
                break
    sys.stdout.write(name)
    await driver.aclose()


if __name__ == "__main__":
    trio.run({"append": append, "stage": stage, "cas": cas}[sys.argv[1]], *sys.argv[2:])
