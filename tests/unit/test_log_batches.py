"""A log on disk, read in lists of entries: the same ones as one by one, and the same end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.driver import AppendLog
from store.drivers.file.readers import Forward
from store.errors import CorruptLog
from store.model import Entry, NewEntry, Seq, SpaceId
from store.registry import open_driver

SPACE = SpaceId("workspace/w1")


def entries(first: int, count: int) -> list[NewEntry]:
    return [NewEntry(b'{"n":%d,"x":"%s"}' % (number, b"x" * 200), "test") for number in range(first, first + count)]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AppendLog]:
    driver = await open_driver(tmp_path.as_uri())
    opened = await driver.open_log(SPACE, create=True)
    for first in range(0, 3000, 500):
        await opened.append(entries(first, 500))
    yield opened
    await opened.aclose()
    await driver.aclose()


def forward(log: AppendLog, since: int = 0, limit: int | None = None) -> Forward:
    found = log.read(Seq(since), limit)
    assert isinstance(found, Forward)
    return found


async def batches(reader: Forward) -> list[Entry]:
    found = []
    async for batch in reader.batches():
        assert batch
        found += batch
    return found


@pytest.mark.parametrize("since", [0, 1, 1499, 2999, 3000])
@pytest.mark.parametrize("limit", [None, 0, 1, 57, 1000, 5000])
async def test_batches_are_what_reading_gives(log: AppendLog, since: int, limit: int | None):
    one_by_one = [entry async for entry in log.read(Seq(since), limit)]
    assert await batches(forward(log, since, limit)) == one_by_one
    assert len(one_by_one) == min(3000 - since, 5000 if limit is None else limit)


async def test_batches_are_few(log: AppendLog):
    assert len([batch async for batch in forward(log).batches()]) < 10


async def test_they_end_where_the_log_ended(log: AppendLog):
    reader = forward(log)
    await log.append(entries(3000, 5))
    assert [entry.seq for entry in await batches(reader)] == [*range(1, 3001)]


async def test_single_entries_may_come_before(log: AppendLog):
    reader = forward(log, 10)
    first = await anext(reader)
    assert [first.seq, *(entry.seq for entry in await batches(reader))] == [*range(11, 3001)]


def damaged(directory: Path, marker: bytes) -> int:
    """Spoil the line with `marker` in the only log there; where that line begins."""
    (path,) = directory.rglob("history.jsonl")
    text = path.read_bytes()
    at = text.find(marker)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"#", at + 5)
    os.close(fd)
    return text.rfind(b"\n", 0, at) + 1


@pytest.mark.parametrize("single", [True, False])
async def test_what_comes_before_damage_is_given(log: AppendLog, tmp_path: Path, single: bool):  # noqa: FBT001
    offset = damaged(tmp_path, b'"n":1234,')
    reader = forward(log)
    found: list[Entry] = []
    with pytest.raises(CorruptLog) as caught:
        if single:
            async for entry in reader:
                found.append(entry)  # noqa: PERF401 - those before the damage count
        else:
            async for batch in reader.batches():
                found += batch
    assert [entry.seq for entry in found] == [*range(1, 1235)]
    assert (caught.value.seq, caught.value.offset) == (1234, offset)
    with pytest.raises(CorruptLog):
        await anext(reader)
