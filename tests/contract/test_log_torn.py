"""A `file:` log after interrupted writes, damage and failing disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
import trio

from store import codec
from store.driver import Access, AppendLog
from store.drivers.file.tail import UNSYNCED
from store.drivers.file.text import LOG_NAME
from store.errors import CorruptLog, ReadOnly, StoreFailed, StoreFull
from store.model import Seq
from store.registry import open_driver
from tests.contract.backends import SPACE, FaultySystem, FileBackend, entries, faulty, take
from tests.support.disks import unwritable


async def open_log(backend: FileBackend) -> AppendLog:
    return await (await backend.open()).open_log(SPACE, create=True)


def log_path(backend: FileBackend) -> Path:
    return backend.path / SPACE / LOG_NAME


def quarantined(backend: FileBackend) -> list[bytes]:
    return [path.read_bytes() for path in sorted((backend.path / "quarantine").glob("*.torn"))]


async def seqs(log: AppendLog) -> list[int]:
    return [entry.seq async for entry in log.read()]


async def written(backend: FileBackend) -> tuple[bytes, int]:
    """A log of two batches; its bytes, and where the second begins."""
    log = await open_log(backend)
    await log.append(entries("a", "b"))
    size = log.head.size
    await log.append(entries("c", "dd", "eee"))
    await log.aclose()
    return log_path(backend).read_bytes(), size


async def test_cut_at_every_byte_of_the_last_batch(file_backend: FileBackend):
    whole, begin = await written(file_backend)
    path = log_path(file_backend)
    driver = await file_backend.open()
    for cut in range(begin, len(whole)):
        path.write_bytes(whole[:cut])
        log = await driver.open_log(SPACE)
        assert (log.head.seq, log.head.size) == (2, begin)
        assert path.read_bytes() == whole[:begin]
        assert await seqs(log) == [1, 2]
        assert await log.append(entries("new")) == 3
        await log.aclose()
        again = await driver.open_log(SPACE)
        assert await seqs(again) == [1, 2, 3]
        await again.aclose()
    assert sorted(quarantined(file_backend)) == sorted(whole[begin:cut] for cut in range(begin + 1, len(whole)))
    note = json.loads(next(iter(sorted((file_backend.path / "quarantine").glob("*.json")))).read_text())
    assert (note["space"], note["after_seq"], note["offset"]) == (SPACE, 2, begin)
    assert {"when", "why", "size"} <= note.keys()


async def test_cut_under_an_instance_that_has_it_open(file_backend: FileBackend):
    whole, begin = await written(file_backend)
    path = log_path(file_backend)
    for cut in range(begin + 1, len(whole), 7):
        path.write_bytes(whole[:begin])
        log, other = await open_log(file_backend), await open_log(file_backend)
        with path.open("ab") as file:
            file.write(whole[begin:cut])
        assert (await log.refresh()).seq == 2
        assert await seqs(log) == [1, 2]
        assert await log.append(entries("new")) == 3
        assert (await other.refresh()) == log.head
        assert await seqs(other) == [1, 2, 3]
    assert len(quarantined(file_backend)) == len(range(begin + 1, len(whole), 7))


@pytest.mark.parametrize("tail", [b"\0" * 100, b'{"seq":3,"ts":1' + b"\0" * 4096, b"\0" * 4096])
async def test_nul_bytes_as_after_a_power_cut(file_backend: FileBackend, tail: bytes):
    _, begin = await written(file_backend)
    os.truncate(log_path(file_backend), begin)
    with log_path(file_backend).open("ab") as file:
        file.write(tail)
    log = await open_log(file_backend)
    assert await log.append(entries("new")) == 3
    assert await seqs(log) == [1, 2, 3]
    assert quarantined(file_backend) == [tail]


def with_hole(whole: bytes, begin: int, sector: int) -> bytes:
    """`whole` with a sector lost that wasn't synced: NUL bytes, but not before `begin`."""
    start, end = max(begin, sector * 512), min(len(whole), (sector + 1) * 512)
    return whole[:start] + b"\0" * (end - start) + whole[end:]


async def test_a_lost_block_inside_the_last_batch(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a", "b"))
    begin = log.head.size
    await log.append(entries(*(f"{number} " + "x" * 300 for number in range(8))))
    whole = log_path(file_backend).read_bytes()
    lost = range(begin // 512, len(whole) // 512)
    for sector in lost:
        log_path(file_backend).write_bytes(with_hole(whole, begin, sector))
        log = await open_log(file_backend)
        assert log.head.seq == 2
        assert await log.append(entries("new")) == 3
    assert len(quarantined(file_backend)) == len(lost)


async def test_a_torn_tail_that_cant_be_moved_is_looked_at_once(file_backend: FileBackend):
    """A store opened read-only went on judging a lost block under the lock, for ever."""
    log = await open_log(file_backend)
    await log.append(entries("a", "b"))
    begin = log.head.size
    await log.append(entries(*(f"{number} " + "x" * 300 for number in range(8))))
    await log.aclose()
    path = log_path(file_backend)
    whole = path.read_bytes()
    path.write_bytes(with_hole(whole, begin, 2))
    driver = await open_driver(str(file_backend.path), access=Access.READ)
    log = await driver.open_log(SPACE)
    with trio.fail_after(10):
        assert (await log.refresh()).seq == 2
    path.write_bytes(whole)
    with trio.fail_after(10):
        assert (await log.refresh()).seq == 10
    await log.aclose()
    await driver.aclose()


async def test_a_lost_block_with_later_batches_behind_it(file_backend: FileBackend):
    log = await open_log(file_backend)
    for number in range(40):
        await log.append(entries(f"{number} " + "x" * 200))
    whole = log_path(file_backend).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for sector in range(len(whole) // 512):
        log_path(file_backend).write_bytes(with_hole(whole, 0, sector))
        log = await open_log(file_backend)
        good = sum(end <= sector * 512 for end in ends)
        assert log.head.seq == good
        assert await seqs(log) == list(range(1, good + 1))
        assert await log.append(entries("new")) == good + 1
        assert await seqs(await open_log(file_backend)) == list(range(1, good + 2))


async def test_nul_bytes_that_are_no_lost_block_are_damage(file_backend: FileBackend):
    log = await open_log(file_backend)
    for number in range(40):
        await log.append(entries(f"{number} " + "x" * 200))
    whole = log_path(file_backend).read_bytes()
    for start, end in ((5000, 5001), (5000, 5120), (5120, 5200), (len(whole) - 50, len(whole) - 49)):
        damaged = whole[:start] + b"\0" * (end - start) + whole[end:]
        log_path(file_backend).write_bytes(damaged)
        log = await open_log(file_backend)
        with pytest.raises(CorruptLog):
            await log.append(entries("new"))
        assert log_path(file_backend).read_bytes() == damaged
    assert quarantined(file_backend) == []


async def test_a_changed_newline_at_the_end_is_damage(file_backend: FileBackend):
    whole, _ = await written(file_backend)
    for bit in range(8):
        damaged = whole[:-1] + bytes([whole[-1] ^ 1 << bit])
        log_path(file_backend).write_bytes(damaged)
        log = await open_log(file_backend)
        with pytest.raises(CorruptLog):
            await log.append(entries("new"))
        assert log_path(file_backend).read_bytes() == damaged


async def test_much_that_isnt_synced_is_synced_by_the_way(file_backend: FileBackend):
    log = await open_log(file_backend)
    system = FaultySystem("nothing", OSError())
    with faulty(system):
        for _ in range(100):
            await log.append(entries("x" * 30_000))
    synced = system.seen.count("log.sync") - len(Path(SPACE).parts) - 1  # the first time, directories too
    assert synced == log.head.size // (UNSYNCED + 30_000)
    with faulty(FaultySystem("log.sync", OSError(errno.EIO, "injected"))):
        for number in range(20):
            with contextlib.suppress(StoreFailed):
                assert await log.append(entries("x" * 30_000)) == 101 + number
    assert log.failure is not None
    found = await seqs(log)
    assert found == list(range(1, log.head.seq + 1))


async def test_a_long_batch_is_synced_at_once(file_backend: FileBackend):
    """Else the next one could reach the disk without it: a hole so far from the end is damage."""
    log = await open_log(file_backend)
    assert log.append_now(entries("x" * 1000)) is not None
    assert log.append_now(entries("x" * UNSYNCED)) is None
    system = FaultySystem("nothing", OSError())
    with faulty(system):
        await log.append(entries("x" * UNSYNCED))
    assert "log.sync" in system.seen
    assert log.append_now(entries("x" * 1000)) is not None


async def test_the_first_batch_of_all_can_be_torn(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a", "b"))
    await log.aclose()
    whole = log_path(file_backend).read_bytes()
    for cut in range(1, len(whole)):
        log_path(file_backend).write_bytes(whole[:cut])
        log = await open_log(file_backend)
        assert log.head.seq == 0
        assert await log.append(entries("new")) == 1
        await log.aclose()


@pytest.mark.parametrize(("which", "field"), [(-1, b'"data":"'), (-1, b'"crc":"'), (-2, b'"crc":"'), (-1, b'{"seq":')])
async def test_damaged_last_lines_are_no_torn_tail(file_backend: FileBackend, which: int, field: bytes):
    log = await open_log(file_backend)
    for text in "abcde":
        await log.append(entries(text))
    await log.aclose()
    path = log_path(file_backend)
    lines = path.read_bytes().splitlines(keepends=True)
    at = lines[which].index(field) + len(field)
    changed = bytes([lines[which][at] ^ 1])
    lines[which] = lines[which][:at] + changed + lines[which][at + 1 :]
    damaged = b"".join(lines)
    path.write_bytes(damaged)
    log = await open_log(file_backend)
    good = 5 + which
    assert log.head.seq == good
    for attempt in (log.append(entries("f")), log.truncate_before(Seq(2))):
        with pytest.raises(CorruptLog) as caught:
            await attempt
        assert (caught.value.seq, caught.value.offset) == (good, sum(map(len, lines[:good])))
    found = []
    with pytest.raises(CorruptLog):
        async for entry in log.read():
            found.append(entry.seq)  # noqa: PERF401
    assert found == list(range(1, good + 1))
    assert [entry.seq async for entry in log.read(limit=2)] == [1, 2]
    async with log.subscribe(Seq(good - 1)) as following:
        await take(following, 1)
        with pytest.raises(CorruptLog):
            await take(following, 1)
    assert path.read_bytes() == damaged
    assert quarantined(file_backend) == []


async def test_damage_in_the_middle_is_found_when_it_is_read(file_backend: FileBackend):
    log = await open_log(file_backend)
    for number in range(200):
        await log.append(entries(f"{number} " + "x" * 500))
    await log.aclose()
    path = log_path(file_backend)
    data = bytearray(path.read_bytes())
    lines = data.splitlines(keepends=True)
    data[sum(map(len, lines[:50])) + 200] ^= 1
    path.write_bytes(data)
    log = await open_log(file_backend)
    assert log.head.seq == 200
    assert [entry.seq async for entry in log.read(Seq(100))] == list(range(101, 201))
    assert [entry.seq async for entry in log.read(limit=149, reverse=True)] == list(range(200, 51, -1))
    forward: list[int] = []
    with pytest.raises(CorruptLog) as caught:
        async for entry in log.read():
            forward.append(entry.seq)  # noqa: PERF401
    assert forward == list(range(1, 51))
    assert caught.value.seq == 50
    backward: list[int] = []
    with pytest.raises(CorruptLog):
        async for entry in log.read(reverse=True):
            backward.append(entry.seq)  # noqa: PERF401
    assert backward == list(range(200, 51, -1))
    assert await log.append(entries("more")) == 201


async def test_a_batch_that_another_follows_too_early_is_damage(file_backend: FileBackend):
    await written(file_backend)
    log = await open_log(file_backend)
    previous = [entry async for entry in log.read()][-1]
    first, crc = codec.encode(*entries("f"), 6, previous.ts, previous.crc, 2)
    second, _ = codec.encode(*entries("g"), 7, previous.ts, crc, 0)
    with log_path(file_backend).open("ab") as file:
        file.write(first + second)
    for each in (log, await open_log(file_backend)):
        assert (await each.refresh()).seq == 5
        with pytest.raises(CorruptLog):
            await each.append(entries("h"))


async def test_damage_that_another_makes_behind_our_head(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a"))
    with log_path(file_backend).open("ab") as file:
        file.write(b'{"not":"an entry"}\n')
    assert (await log.refresh()).seq == 1
    with pytest.raises(CorruptLog):
        await log.append(entries("b"))


async def test_a_log_that_shrank_is_damaged(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a", "b"))
    os.truncate(log_path(file_backend), 20)
    with pytest.raises(CorruptLog):
        await log.append(entries("c"))


async def test_opening_reads_only_the_tail(file_backend: FileBackend):
    log = await open_log(file_backend)
    for _ in range(100):
        await log.append(entries(*["x" * 1000] * 100))
    await log.aclose()
    assert log_path(file_backend).stat().st_size > 10_000_000
    before = _bytes_read()
    driver = await file_backend.open()
    again = await driver.open_log(SPACE)
    assert again.head == log.head
    assert _bytes_read() - before < 1_000_000


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


# ---- failing disks


@pytest.mark.parametrize(
    ("error", "raised"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreFailed), (errno.EROFS, ReadOnly)],
)
@pytest.mark.parametrize("short", [None, 0, 1, 50, 150])
async def test_a_write_that_stops_is_undone(
    file_backend: FileBackend, error: int, raised: type[Exception], short: int | None
):
    log, other = await open_log(file_backend), await open_log(file_backend)
    await log.append(entries("a"))
    before = log_path(file_backend).read_bytes()
    with faulty(FaultySystem("log.append", OSError(error, "injected"), short=short)), pytest.raises(raised):
        await log.append(entries("b" * 100, "c"))
    assert log_path(file_backend).read_bytes() == before
    assert await other.append(entries("d")) == 2
    assert await log.append(entries("e")) == 3
    assert await seqs(log) == [1, 2, 3]
    assert quarantined(file_backend) == []


async def test_a_short_write_is_continued(file_backend: FileBackend):
    log = await open_log(file_backend)
    system = FaultySystem("log.append", OSError(errno.EIO, "never"), times=1, short=17)
    with faulty(system):
        system.times = 1
        original = system._meet
        system._meet = system.seen.append  # type: ignore[method-assign]
        assert await log.append(entries("a", "b")) == 2
        system._meet = original  # type: ignore[method-assign]
    assert await seqs(await open_log(file_backend)) == [1, 2]


async def test_one_fdatasync_serves_many(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a"))
    system = FaultySystem("nothing", OSError())
    with faulty(system):
        await log.sync()
        assert system.seen.count("log.sync") == 1 + len(Path(SPACE).parts) + 1  # the log, then each directory's names
        system.seen.clear()
        await log.append(entries("b"))
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(log.sync)
        assert system.seen.count("log.sync") <= 2
        system.seen.clear()
        await log.sync()
        assert system.seen == []


async def test_an_append_costs_four_system_calls_and_no_thread(file_backend: FileBackend):
    log = await open_log(file_backend)
    await log.append(entries("a"))
    system = FaultySystem("nothing", OSError())
    with faulty(system):
        coroutine = log.append(entries("b"))
        # It ends without ever giving the loop a turn.
        with pytest.raises(StopIteration) as ended:
            coroutine.send(None)
    assert ended.value.value == 2
    assert system.seen == ["log.append"]


async def test_a_waiter_that_is_cancelled_leaves_no_lock(file_backend: FileBackend):
    log, other = await open_log(file_backend), await open_log(file_backend)
    import fcntl  # noqa: PLC0415

    with log_path(file_backend).open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for _ in range(3):
            with trio.move_on_after(0.02) as scope:
                await log.append(entries("cancelled"))
            assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await other.append(entries("a")) == 1
        assert await log.append(entries("b")) == 2


async def test_a_log_that_cant_be_written_can_be_read(file_backend: FileBackend):
    await written(file_backend)
    with unwritable(log_path(file_backend)):
        log = await open_log(file_backend)
        assert await seqs(log) == [1, 2, 3, 4, 5]
        with pytest.raises(ReadOnly):
            await log.append(entries("a"))


async def test_modes_dont_depend_on_the_umask(file_backend: FileBackend):
    old = os.umask(0)
    try:
        await written(file_backend)
        driver = await file_backend.open()
        await driver.kv.put("a", 1)
        await driver.blobs.put(b"x")
        await driver.leases.acquire(SPACE, "me", 1000)
    finally:
        os.umask(old)
    for path in file_backend.path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
