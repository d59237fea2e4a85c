"""AppendLog.truncate_before."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from store.driver import Access, AppendLog, Driver
from store.drivers.file.text import BASE_NAME, LOG_NAME
from store.errors import ReadOnly, StoreFailed, Truncated
from store.model import Seq
from store.registry import open_driver
from tests.contract.backends import SPACE, Backend, FaultySystem, FileBackend, entries, faulty, take


async def open_log(backend: Backend, count: int = 0) -> AppendLog:
    log = await (await backend.open()).open_log(SPACE, create=True)
    for number in range(count):
        await log.append(entries(f"{number + 1}"))
    return log


async def seqs(log: AppendLog, since: int = 0, *, reverse: bool = False) -> list[int]:
    return [entry.seq async for entry in log.read(Seq(since), reverse=reverse)]


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("keep", range(7))
async def test_what_is_before_is_dropped(backend: Backend, count: int, keep: int):
    keep = min(keep, count)
    log, other = await open_log(backend, count), await open_log(backend)
    before = log.head
    tail = [entry async for entry in log.read(Seq(count - keep))]
    first = count - keep + 1
    text = log.read_text(0, 10**6)
    await log.truncate_before(Seq(first))
    # Who hasn't looked yet still has what its head says.
    assert other.head == before
    assert other.read_text(0, 10**6) == text
    assert (log.head.seq, log.head.ts, log.head.crc, log.head.first_seq) == (count, before.ts, before.crc, first)
    assert [entry async for entry in log.read()] == tail
    assert [entry async for entry in log.read(reverse=True)] == tail[::-1]
    assert log.head.size == len(log.read_text(0, 10**6)) <= before.size
    assert await other.refresh() == log.head
    reopened = await open_log(backend)
    assert reopened.head == log.head
    for number, each in enumerate((other, log, reopened)):
        assert await each.append(entries("new")) == count + number + 1
    await log.refresh()
    assert await seqs(log, reverse=True) == sorted(await seqs(reopened), reverse=True)
    assert await seqs(reopened) == list(range(first, count + 4))


async def test_entries_that_are_gone_are_said_to_be(backend: Backend):
    log = await open_log(backend, 5)
    await log.truncate_before(Seq(4))
    for since in (1, 2):
        for reverse in (False, True):
            with pytest.raises(Truncated) as caught:
                await seqs(log, since, reverse=reverse)
            assert caught.value.first_seq == 4
        with pytest.raises(Truncated):
            async with log.subscribe(Seq(since)) as following:
                await take(following, 1)
    assert await seqs(log, 3) == await seqs(log, 0) == [4, 5]
    async with log.subscribe(Seq(0)) as following:
        assert [entry.seq for entry in await take(following, 2)] == [4, 5]


async def test_beyond_the_end_is_refused(backend: Backend):
    log = await open_log(backend, 2)
    with pytest.raises(ValueError, match="nothing to truncate"):
        await log.truncate_before(Seq(4))
    await log.truncate_before(Seq(0))
    await log.truncate_before(Seq(1))
    assert await seqs(log) == [1, 2]


async def test_truncating_again_and_again(backend: Backend):
    log = await open_log(backend)
    for turn in range(1, 6):
        assert await log.append(entries("a", "b")) == turn * 2
        await log.truncate_before(Seq(turn * 2 + turn % 2))
        assert await seqs(log) == ([turn * 2] if turn % 2 == 0 else [])
        assert (await open_log(backend)).head == log.head


async def test_the_middle_of_a_batch(backend: Backend):
    log = await open_log(backend)
    await log.append(entries("a", "b", "c"))
    await log.truncate_before(Seq(2))
    assert [entry.data async for entry in (await open_log(backend)).read()] == [b'"b"', b'"c"']


async def test_a_reader_under_way(backend: Backend):
    log = await open_log(backend)
    for _ in range(400):
        await log.append(entries("x" * 2000))
    forward, backward = log.read(), log.read(reverse=True)
    await take(forward, 1)
    await take(backward, 1)
    await log.truncate_before(Seq(390))
    with pytest.raises(Truncated):
        await take(forward, 400)
    found = [399]
    async for entry in backward:
        assert entry.seq == found[-1]
        found.append(entry.seq - 1)
    assert found[-1] <= 389


async def test_a_subscriber_who_had_it_all_goes_on(backend: Backend):
    log, other = await open_log(backend, 3), await open_log(backend)
    async with log.subscribe(Seq(0)) as following:
        await take(following, 3)
        await other.truncate_before(Seq(4))
        await other.append(entries("4"))
        assert [entry.seq for entry in await take(following, 1)] == [4]


async def test_a_subscriber_who_missed_some_is_told(backend: Backend):
    log = await open_log(backend)
    async with log.subscribe() as following:
        await log.append(entries("1"))
        await log.append(entries("2"))
        await log.truncate_before(Seq(2))
        with pytest.raises(Truncated):
            await take(following, 1)


async def test_appenders_go_on_meanwhile(backend: Backend):
    logs = [await open_log(backend) for _ in range(3)]

    async def append(log: AppendLog) -> None:
        for _ in range(40):
            await log.append(entries("a", "b"))
            await trio.lowlevel.checkpoint()

    async def truncate(log: AppendLog) -> None:
        while (head := await log.refresh()).seq < 160:
            await log.truncate_before(Seq(max(1, head.seq - 10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, logs[0])
        nursery.start_soon(append, logs[1])
        nursery.start_soon(truncate, logs[2])
    reopened = await open_log(backend)
    assert reopened.head.seq == 160
    assert await seqs(reopened) == list(range(reopened.head.first_seq, 161))


@pytest.mark.parametrize("label", ["log.truncate", "log.base"])
async def test_a_failed_truncation_can_be_tried_again(file_backend: FileBackend, label: str):
    for times in range(1, 5):
        log = await open_log(file_backend, 4)
        first = log.head.first_seq
        system = FaultySystem("nothing", OSError(errno.EIO, "injected"))
        # The n-th call of that label fails.
        left = times

        def meet(found: str, system: FaultySystem = system) -> None:
            nonlocal left
            system.seen.append(found)
            if found == label:
                left -= 1
                if left == 0:
                    raise OSError(errno.EIO, "injected")

        system._meet = meet  # type: ignore[method-assign]
        raised = False
        with faulty(system):
            try:
                await log.truncate_before(Seq(first + 2))
            except StoreFailed:
                raised = True
        assert raised == (left <= 0)
        reopened = await open_log(file_backend)
        found = await seqs(reopened)
        # All or none.
        assert found in (list(range(first, log.head.seq + 1)), list(range(first + 2, log.head.seq + 1)))
        await reopened.recover()  # where an fsync failed
        assert await reopened.append(entries("x")) == found[-1] + 1
        await log.recover()
        assert await log.append(entries("y")) == found[-1] + 2
        await log.truncate_before(Seq(first + 3))
        assert (await seqs(log))[0] == first + 3
        leftover = {path.name for path in log._text.directory.iterdir()} if hasattr(log, "_text") else set()
        assert leftover <= {LOG_NAME, BASE_NAME}


@pytest.mark.parametrize("keep", [0, 1, 3])
async def test_a_crash_between_base_and_rename_is_finished(file_backend: FileBackend, keep: int):
    log = await open_log(file_backend, 5)
    path = file_backend.path / SPACE / LOG_NAME
    old = path.read_bytes()
    await log.truncate_before(Seq(6 - keep))
    await log.aclose()
    head = log.head
    # As if the rename hadn't happened.
    path.write_bytes(old)
    again = await open_log(file_backend)
    assert again.head == head
    assert await again.append(entries("x")) == 6
    assert await seqs(again) == list(range(6 - keep, 7))


async def read_only(backend: FileBackend, how: str, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A driver that may not change anything, or can't."""
    if how == "opened so":
        return await open_driver(backend.path.as_uri(), access=Access.READ)
    driver = await backend.open()
    opened = os.open

    def refusing(path: str, flags: int, *args: object, **keywords: object) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY and str(path).endswith(LOG_NAME):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    return driver


@pytest.mark.parametrize("how", ["opened so", "a read-only disk"])
@pytest.mark.parametrize("tail", [b"", b'{"seq":61,"ts"'])
@pytest.mark.parametrize(("count", "size", "keep"), [(6, 1, 0), (6, 1, 3), (60, 1, 58), (60, 4000, 2), (60, 4000, 40)])
@pytest.mark.parametrize("batch", [1, 6])
async def test_a_crash_between_base_and_rename_hides_nothing_from_who_only_reads(
    file_backend: FileBackend,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    tail: bytes,
    count: int,
    size: int,
    keep: int,
    batch: int,
):
    writer = await open_log(file_backend)
    for _ in range(count // batch):
        await writer.append(entries(*("x" * size for _ in range(batch))))
    path = file_backend.path / SPACE / LOG_NAME
    old = path.read_bytes()
    first = count - keep + 1
    await writer.truncate_before(Seq(first))
    head, text = writer.head, writer.read_text(0, 10**6)
    expected = [entry async for entry in writer.read()]
    await writer.aclose()
    path.write_bytes(old + tail)  # as if the rename hadn't happened
    with monkeypatch.context() as patched:
        driver = await read_only(file_backend, how, patched)
        try:
            log = await driver.open_log(SPACE)
            assert log.head == await log.refresh() == head
            assert [entry async for entry in log.read()] == expected
            assert [entry async for entry in log.read(reverse=True)] == expected[::-1]
            assert await seqs(log, count - 1 if keep else count) == [count][: keep and 1]
            assert log.read_text(0, 10**6) == text
            assert log.read_text(7, 20) == text[7:27]
            with pytest.raises(Truncated):
                await seqs(log, first - 2)
            with pytest.raises(ReadOnly):
                await log.append(entries("new"))
            async with log.subscribe(Seq(0)) as following:
                assert await take(following, keep) == expected
            assert path.read_bytes() == old + tail
            patched.undo()
            # Who can write finishes it; readers go on.
            again = await open_log(file_backend)
            assert await again.append(entries("new")) == count + 1
            assert await log.refresh() == again.head
            assert await seqs(log) == list(range(first, count + 2))
            assert log.read_text(0, 10**6) == again.read_text(0, 10**6)
        finally:
            await driver.aclose()
