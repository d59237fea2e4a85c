"""A `file:` store that several real processes use at once."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import trio

from store.model import Seq
from tests.contract.backends import SPACE, FileBackend, drafts_in, entries, take

APPENDERS = 4
TURNS = 150
TOTAL = APPENDERS * sum(number % 3 + 1 for number in range(TURNS))


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "tests.contract.child", *args]


async def run(*args: str) -> None:
    with trio.fail_after(60):
        await trio.run_process(command(*args), capture_stdout=True)


async def test_four_processes_append_and_one_follows(file_backend: FileBackend):
    driver = await file_backend.open()
    log = await driver.open_log(SPACE, create=True)
    found = []
    async with log.subscribe(Seq(0)) as following, trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(run, "append", str(file_backend.path), SPACE, name, str(TURNS))
        found = await take(following, TOTAL, within=60)
    assert [entry.seq for entry in found] == list(range(1, TOTAL + 1))
    assert (await log.refresh()).seq == TOTAL
    assert [entry async for entry in (await driver.open_log(SPACE)).read()] == found
    for name in "abcd":
        turns = [int(entry.data[3:-1]) for entry in found if entry.actor == name]
        assert turns == sorted(turns)
        assert [turns.count(number) for number in range(TURNS)] == [number % 3 + 1 for number in range(TURNS)]
    for before, entry in pairwise(found):
        if before.more:
            assert (entry.data, entry.more) == (before.data, before.more - 1)
        assert entry.ts >= before.ts
    assert not (file_backend.path / "quarantine").exists()


async def test_changes_tells_of_another_process(file_backend: FileBackend):
    driver = await file_backend.open()
    log = await driver.open_log(SPACE, create=True)
    driver.watch(SPACE)
    changes = driver.changes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "append", str(file_backend.path), SPACE, "a", "3")
        with trio.fail_after(30):
            while (await log.refresh()).seq < 6:
                assert await anext(changes) == {SPACE}
    assert await log.append(entries("mine")) == 7


async def test_compare_and_set_holds_across_processes(file_backend: FileBackend):
    driver = await file_backend.open()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(run, "cas", str(file_backend.path), "counter", name, "20")
    found = await driver.kv.get("counter")
    assert found is not None
    assert found.value == 60


async def test_a_killed_process_leaves_its_draft(file_backend: FileBackend):
    driver = await file_backend.open()
    process = subprocess.Popen(  # noqa: ASYNC220 (starting blocks only shortly)
        command("stage", str(file_backend.path), "unsaved"), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"ready\n"
        assert await driver.blobs.abandoned() == []
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    (staging,) = await driver.blobs.abandoned()
    assert await (await file_backend.open()).blobs.abandoned() == []
    size = 3 * 1024 * 1024 + 2
    expected = b"unsaved".ljust(size - 2, b"\0") + b"fa"
    assert (staging.label, staging.size) == ({"name": "report.txt"}, size)
    assert staging.read(0, 10**8) == expected
    ref = await staging.commit()
    assert await driver.blobs.read(ref.digest, 0, size) == expected
    await staging.discard()
    assert drafts_in(file_backend) == []


@pytest.mark.parametrize("signal", ["kill"])
async def test_a_killed_appender_poisons_nothing(file_backend: FileBackend, signal: str):
    driver = await file_backend.open()
    log = await driver.open_log(SPACE, create=True)
    for _ in range(3):
        process = subprocess.Popen(  # noqa: ASYNC220 (starting blocks only shortly)
            command("append", str(file_backend.path), SPACE, "a", "1000000")
        )
        try:
            async with log.subscribe() as following:
                await take(following, 200, within=30)
        finally:
            getattr(process, signal)()
            process.wait()
        with trio.fail_after(5):
            last = await log.append(entries("mine"))
        assert [entry.data async for entry in log.read(reverse=True, limit=1)] == [b'"mine"']
    assert [entry.seq async for entry in log.read()] == list(range(1, last + 1))
