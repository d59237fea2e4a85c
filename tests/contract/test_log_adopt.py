"""AppendLog.adopt and .base: entries of another log, exactly as they are."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.driver import Access, AppendLog
from store.drivers.file.text import LOG_NAME
from store.errors import InvalidInput, LineTooLong, ReadOnly, StoreError, StoreFull
from store.model import EMPTY_HEAD, LINE_MAX, Entry, Millis, NewEntry, Origin, Seq
from store.registry import open_driver
from tests.contract.backends import CHAT, SPACE, Backend, FakeClock, FileBackend, entries

BATCHES = [
    entries("a"),
    entries("b", "c", "d"),
    [NewEntry(b'{"x": [1, 2.50]}', 'uid:7/"ü"', Origin("them\n", Millis(5)))],
    entries("e", "f"),
]


async def source_log(backend: Backend, *, keep: int = 8) -> AppendLog:
    """Seven entries in four batches, of which the last `keep` are left."""
    clock = FakeClock()
    log = await (await backend.open(clock)).open_log(SPACE, create=True)
    for batch in BATCHES:
        clock.now += 3
        await log.append(batch)
    if keep < 7:
        await log.truncate_before(Seq(8 - keep))
    return log


async def target_log(backend: Backend) -> AppendLog:
    return await (await backend.open()).open_log(CHAT, create=True)


async def all_of(log: AppendLog, since: int = 0) -> list[Entry]:
    return [entry async for entry in log.read(Seq(since))]


def text(log: AppendLog) -> bytes:
    return log.read_text(0, log.head.size)


async def test_entries_stay_as_they_are(backend: Backend):
    source, target = await source_log(backend), await target_log(backend)
    found = await all_of(source)
    other = await target_log(backend)
    assert await target.adopt(found[:1]) == 1
    assert await target.adopt(found[1:]) == 7
    assert await target.adopt([]) == 7
    assert text(target) == text(source)
    assert target.head == source.head
    assert await other.refresh() == source.head
    assert await all_of(await target_log(backend)) == found
    assert await other.append(entries("more")) == 8
    await target.sync()


@pytest.mark.parametrize("keep", range(7))
async def test_a_log_whose_beginning_is_gone(backend: Backend, keep: int):
    source, target = await source_log(backend, keep=keep), await target_log(backend)
    other = await target_log(backend)
    base = source.base
    assert (base.seq, base.first_seq) == (7 - keep, source.head.first_seq)
    found = await all_of(source)
    assert await target.adopt(found, after=base) == 7
    assert text(target) == text(source)
    assert (target.head, target.base) == (source.head, source.base)
    assert await other.refresh() == source.head
    reopened = await target_log(backend)
    assert (reopened.head, reopened.base) == (source.head, source.base)
    assert await target.append(entries("more")) == 8


async def test_a_log_never_truncated_has_no_base(backend: Backend):
    log = await target_log(backend)
    assert log.base == EMPTY_HEAD
    await log.append(entries("a"))
    assert log.base == EMPTY_HEAD
    await log.truncate_before(Seq(2))
    assert log.base[:4] == log.head[:4]


async def test_an_empty_log_that_begins_there_already_may_begin_there_again(backend: Backend):
    source, target = await source_log(backend, keep=2), await target_log(backend)
    assert await target.adopt([], after=source.base) == 5
    assert target.head == source.base
    assert await target.adopt(await all_of(source), after=source.base) == 7
    assert text(target) == text(source)


async def test_a_log_with_entries_begins_nowhere_else(backend: Backend):
    source, target = await source_log(backend, keep=2), await target_log(backend)
    await target.append(entries("own"))
    with pytest.raises(InvalidInput, match="ends at entry 1: it can't begin behind entry 5"):
        await target.adopt(await all_of(source), after=source.base)
    await target.truncate_before(Seq(2))
    with pytest.raises(InvalidInput, match="ends at entry 1: it can't begin behind entry 5"):
        await target.adopt(await all_of(source), after=source.base)
    assert await target.append(entries("own")) == 2


def changed(found: list[Entry], index: int, **fields: object) -> list[Entry]:
    return [entry._replace(**fields) if at == index else entry for at, entry in enumerate(found)]


async def test_what_does_not_follow_is_refused_whole(backend: Backend):
    source, target = await source_log(backend), await target_log(backend)
    found = await all_of(source)
    wrong = {
        "entry 2 for .* doesn't follow entry 0": found[1:],
        "entry 3 for .* doesn't follow entry 1": [found[0], *found[2:]],
        "entry 1 for .* doesn't follow entry 1": [found[0], found[0]],
        "entry 3 for .* isn't the last of its batch": found[:3],
        "entry 3 for .* isn't what its batch goes on with": changed(found, 2, more=2),
        "entry 5 for .* another checksum": changed(found, 4, data=b'{"x": [1, 2.5]}'),
        "entry 4 for .* another checksum": changed(found, 3, crc=found[3].crc ^ 1),
        "entry 6 for .* another checksum": changed(found, 5, actor="uid:0/root"),
        "entry 5 for .* has the time": changed(found, 4, ts=found[3].ts - 1),
        "entry 7 for .* has the time": changed(found, 6, ts=10**15),
        "entry 7 for .* isn't one line": changed(found, 6, data=b"1\n"),
        "entry 1 for .* isn't one line": changed(found, 0, data=b""),
        "entry 5 for .* whose time is none": changed(found, 4, origin=Origin("x", Millis(-1))),
        "entry 1 for .* can't be written": changed(found, 0, actor="\ud800"),
    }
    for why, bad in wrong.items():
        with pytest.raises(InvalidInput, match=why):
            await target.adopt(bad)
        assert target.head == EMPTY_HEAD
        assert await (await target_log(backend)).refresh() == EMPTY_HEAD
    with pytest.raises(InvalidInput, match="entry 1 for"):
        await target.adopt(changed(found, 0, data=b"1" * (LINE_MAX + 1)))
    with pytest.raises(LineTooLong):
        await target.append([NewEntry(b"1" * (LINE_MAX + 1), "a")])
    await target.adopt(found)
    assert text(target) == text(source)


async def test_a_log_that_went_on_by_itself_is_not_forked(backend: Backend):
    source, target = await source_log(backend), await target_log(backend)
    found = await all_of(source)
    await target.adopt(found[:1])
    await (await target_log(backend)).append(entries("own"))
    with pytest.raises(InvalidInput, match=r"entry 2 for .* doesn't follow entry 2"):
        await target.adopt(found[1:])
    with pytest.raises(InvalidInput, match=r"entry 5 for .* doesn't follow entry 2"):
        await target.adopt(found[4:])
    assert [entry.seq for entry in await all_of(target)] == [1, 2]


@pytest.mark.parametrize("keep", [2, 8])
@pytest.mark.parametrize("label", ["log.append", "log.adopt", "log.base"])
async def test_a_disk_that_is_full(backend: Backend, keep: int, label: str):
    source, target = await source_log(backend, keep=keep), await target_log(backend)
    found, after = await all_of(source), source.base if keep == 2 else None
    with backend.failing(label, OSError(errno.ENOSPC, "full")):
        try:
            await target.adopt(found, after=after)
        except StoreFull:
            pass
        else:
            # Not a step that this driver takes here.
            assert text(target) == text(source)
            return
    there = await target_log(backend)
    assert there.head[:3] in {EMPTY_HEAD[:3], source.base[:3]}
    assert there.head.first_seq == there.head.seq + 1
    await target.recover()
    assert await target.adopt(found, after=after) == 7
    assert text(target) == text(source)
    assert await there.refresh() == source.head


async def test_a_store_that_is_only_read(file_backend: FileBackend):
    source = await source_log(file_backend)
    await target_log(file_backend)
    driver = await open_driver(str(file_backend.path), access=Access.READ)
    log = await driver.open_log(CHAT)
    with pytest.raises(ReadOnly):
        await log.adopt(await all_of(source))
    await log.aclose()
    await driver.aclose()


async def test_the_base_of_a_log_that_was_cut_by_a_crash(file_backend: FileBackend):
    """The base is there, the log that it is for isn't: it is an empty one behind it."""
    source, target = await source_log(file_backend, keep=2), await target_log(file_backend)
    with file_backend.failing("log.adopt", OSError(errno.EIO, "gone")), pytest.raises(StoreError):
        await target.adopt(await all_of(source), after=source.base)
    target_path = file_backend.path / CHAT / LOG_NAME
    assert target_path.read_bytes() == b""
    again = await target_log(file_backend)
    await again.adopt(await all_of(source), after=source.base)
    assert target_path.read_bytes() == (file_backend.path / SPACE / LOG_NAME).read_bytes()


def batches() -> st.SearchStrategy[list[list[NewEntry]]]:
    data = st.one_of(
        st.just(b"1"), st.text(max_size=9).map(lambda text: b'{"t":%d}' % len(text)), st.just(b'"\\u0000"')
    )
    origin = st.none() | st.builds(Origin, st.text(max_size=4), st.integers(0, 10**12).map(Millis))
    new = st.tuples(data, st.text(max_size=5), origin).map(lambda found: NewEntry(*found))
    return st.lists(st.lists(new, min_size=1, max_size=4), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=batches(), drop=st.integers(0, 40), cut=st.lists(st.integers(1, 30), max_size=3))
async def test_any_log_comes_over_as_it_is(backend: Backend, made: list[list[NewEntry]], drop: int, cut: list[int]):
    driver = await backend.open()
    for space in (SPACE, CHAT):
        if space in [*await driver.spaces(), *await driver.spaces(SPACE)]:
            await driver.delete_space(space)
    source = await driver.open_log(SPACE, create=True)
    for batch in made:
        await source.append(batch)
    await source.truncate_before(Seq(min(drop, source.head.seq) + 1))
    target = await driver.open_log(CHAT, create=True)
    if source.base.seq:
        await target.adopt([], after=source.base)
    held: list[Entry] = []
    async for entry in source.read():
        held.append(entry)
        if not entry.more and entry.seq in cut:
            await target.adopt(held)
            held = []
    await target.adopt(held)
    assert text(target) == text(source)
    assert target.head == source.head == (await target_log(backend)).head
    for log in (source, target):
        await log.aclose()
