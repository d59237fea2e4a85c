"""AppendLog: appending, reading, following."""

from __future__ import annotations

import errno
import random
from itertools import pairwise

import pytest
import trio
import trio.testing

from store import codec
from store.driver import AppendLog, Driver
from store.errors import InvalidName, LineTooLong, SeqConflict, SpaceNotFound, StoreFailed, StoreFull
from store.model import EMPTY_HEAD, LINE_MAX, Head, NewEntry, Origin, Seq
from tests.contract.backends import CHAT, SPACE, Backend, FakeClock, entries, take


async def open_log(backend: Backend) -> AppendLog:
    return await (await backend.open()).open_log(SPACE, create=True)


async def seqs(log: AppendLog, since: int = 0, limit: int | None = None, *, reverse: bool = False) -> list[int]:
    return [entry.seq async for entry in log.read(Seq(since), limit, reverse=reverse)]


async def test_a_missing_space_is_not_found(driver: Driver):
    with pytest.raises(SpaceNotFound):
        await driver.open_log(SPACE)
    assert await driver.spaces() == []


@pytest.mark.parametrize("space", ["", "w1", "workspace/..", "workspace/a/b", "/etc", "workspace/a/chats/../x", "x/y"])
async def test_other_names_are_no_spaces(driver: Driver, space: str):
    with pytest.raises(InvalidName):
        await driver.open_log(space, create=True)  # type: ignore[arg-type]


async def test_a_new_log_is_empty(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    assert log.head == EMPTY_HEAD
    assert await log.refresh() == EMPTY_HEAD
    assert await seqs(log) == await seqs(log, reverse=True) == []
    assert await log.append([]) == 0
    assert log.read_text(0, 100) == b""


async def test_what_is_appended_is_read(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    given = [
        NewEntry(b'{"a": [1,  2]}', 'uid:1/"vim"'),
        NewEntry('"ä\\u2028"'.encode(), "uid:1/ü", Origin('x"y', FakeClock()())),
    ]
    assert await log.append(given) == 2
    found = [entry async for entry in log.read()]
    assert [(entry.seq, entry.data, entry.actor, entry.origin, entry.more) for entry in found] == [
        (1, given[0].data, given[0].actor, None, 1),
        (2, given[1].data, given[1].actor, given[1].origin, 0),
    ]
    assert log.head == Head(Seq(2), found[1].ts, found[1].crc, Seq(1), log.head.size)


async def test_the_text_is_what_the_codec_writes(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a", "b"))
    await log.append(entries("c"))
    text = log.read_text(0, 10**9)
    assert len(text) == log.head.size
    decoded = [entry for entry, _ in codec.decode_lines(text, after=Seq(0), previous_crc=0)]
    assert decoded == [entry async for entry in log.read()]
    assert log.read_text(5, 7) == text[5:12]
    assert log.read_text(len(text), 7) == b""


async def test_seqs_go_on_after_reopening(backend: Backend):
    log = await open_log(backend)
    assert await log.append(entries("a", "b")) == 2
    head = log.head
    await log.aclose()
    again = await open_log(backend)
    assert again.head == head
    assert await again.append(entries("c")) == 3
    assert await seqs(again) == [1, 2, 3]


async def test_since_limit_and_reverse(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    for count in (1, 3, 2, 4):
        await log.append(entries(*"x" * count))
    everything = list(range(1, 11))
    for since in range(13):
        later = [seq for seq in everything if seq > since]
        for limit in (None, 0, 1, 3, 100):
            assert await seqs(log, since, limit) == later[:limit]
            assert await seqs(log, since, limit, reverse=True) == later[::-1][:limit]


async def test_a_long_log_is_read_from_anywhere(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    random_ = random.Random(1)
    for _ in range(300):
        await log.append([NewEntry(b'"%s"' % (b"x" * random_.choice([3, 200, 9000])), "me") for _ in range(7)])
    last = log.head.seq
    assert await seqs(log) == list(range(1, last + 1))
    assert await seqs(log, reverse=True) == list(range(last, 0, -1))
    for since in [1, last - 1, *(random_.randrange(last) for _ in range(60))]:
        assert await seqs(log, since, 5) == list(range(since + 1, min(since + 6, last + 1)))
        assert await seqs(log, since, reverse=True) == list(range(last, since, -1))


async def test_a_reader_sees_what_the_head_says(backend: Backend):
    one, two = await open_log(backend), await open_log(backend)
    await one.append(entries("a"))
    assert two.head == EMPTY_HEAD
    assert await seqs(two) == []
    assert await two.refresh() == one.head == two.head
    assert await seqs(two) == [1]
    assert await two.append(entries("b")) == 2
    assert await one.append(entries("c")) == 3
    assert await two.refresh() == one.head


async def test_expected_seq(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    assert await log.append(entries("a"), expected_seq=Seq(0)) == 1
    with pytest.raises(SeqConflict) as caught:
        await log.append(entries("b"), expected_seq=Seq(0))
    assert caught.value.current == 1
    assert await log.append(entries("b"), expected_seq=Seq(1)) == 2


async def test_expected_seq_has_one_winner(backend: Backend):
    logs = [await open_log(backend) for _ in range(4)]
    won: list[int] = []

    async def attempt(number: int) -> None:
        try:
            await logs[number % 4].append(entries(f"{number}"), expected_seq=Seq(0))
        except SeqConflict:
            return
        won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(attempt, number)
    assert len(won) == 1
    assert [entry.data async for entry in logs[won[0] % 4].read()] == [b'"%d"' % won[0]]


async def test_time_never_runs_backwards(backend: Backend):
    clock = FakeClock(5000)
    log = await (await backend.open(clock)).open_log(SPACE, create=True)
    await log.append(entries("a"))
    clock.now = 4000
    await log.append(entries("b", "c"))
    await log.append([NewEntry(b"1", "me", ts=clock()), NewEntry(b"2", "me", ts=FakeClock(7000)())])
    clock.now = 6000
    await log.append(entries("d"))
    assert [entry.ts async for entry in log.read()] == [5000, 5000, 5000, 5000, 7000, 7000]


async def test_every_millionth_entry_is_later(driver: Driver):
    from store.drivers.batch import TS_STEP, encode  # noqa: PLC0415

    clock = FakeClock(5000)
    before = Head(Seq(TS_STEP - 2), clock(), 0, Seq(1), 0)
    for batch in (entries("a", "b", "c"), entries("a")):
        head = before
        keys = []
        while head.seq < TS_STEP + 1:
            data, head, _ = encode(batch, head, clock, SPACE)
            keys += [
                entry.ts * TS_STEP + entry.seq % TS_STEP
                for line in data.splitlines()
                if (entry := codec.parse(line)) is not None
            ]
        assert keys == sorted(set(keys))
        assert len(keys) >= 3


async def test_a_line_of_16_mib_is_kept_and_a_longer_one_refused(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    longest = b'"' + b"x" * (LINE_MAX - 2) + b'"'
    assert await log.append([*entries("a"), NewEntry(longest, "me"), *entries("b")]) == 3
    with pytest.raises(LineTooLong):
        await log.append([*entries("c"), NewEntry(longest + b" ", "me")])
    assert await log.append(entries("d")) == 4
    assert [len(entry.data) async for entry in log.read()] == [3, LINE_MAX, 3, 3]
    assert [len(entry.data) async for entry in log.read(reverse=True)] == [3, 3, LINE_MAX, 3]
    again = await driver.open_log(SPACE)
    assert again.head == log.head
    assert [len(entry.data) async for entry in again.read(Seq(1), 1)] == [LINE_MAX]


@pytest.mark.parametrize("data", [b"", b'"a"\n', b'{"a":\n1}'])
async def test_data_that_would_break_the_form_is_refused(driver: Driver, data: bytes):
    log = await driver.open_log(SPACE, create=True)
    with pytest.raises(ValueError, match="newline"):
        await log.append([*entries("a"), NewEntry(data, "me")])
    assert await log.refresh() == EMPTY_HEAD


async def test_concurrent_appenders_lose_nothing(backend: Backend):
    logs = [await open_log(backend) for _ in range(5)]

    async def appender(number: int) -> None:
        random_ = random.Random(number)
        for turn in range(40):
            count = random_.randrange(1, 4)
            last = await logs[number % 5].append(entries(*(f"{number}.{turn}" for _ in range(count))))
            assert last >= count
            if random_.random() < 0.3:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(appender, number)
    heads = {await log.refresh() for log in logs}
    assert len(heads) == 1
    found = [entry async for entry in logs[0].read()]
    assert [entry.seq for entry in found] == list(range(1, len(found) + 1))
    for number in range(10):
        own = [entry.data for entry in found if entry.data.startswith(b'"%d.' % number)]
        turns = [int(data[1:-1].split(b".")[1]) for data in own]
        assert turns == sorted(turns)
        assert set(turns) == set(range(40))
    for before, entry in pairwise(found):
        if before.more:
            assert (entry.data, entry.more) == (before.data, before.more - 1)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreFailed)],
)
async def test_a_failed_append_leaves_the_log_as_it_was(backend: Backend, error: int, raised: type[Exception]):
    one, two = await open_log(backend), await open_log(backend)
    await one.append(entries("a"))
    head = one.head
    with backend.failing("log.append", OSError(error, "injected")), pytest.raises(raised) as caught:
        await one.append(entries("lost", "lost"))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert one.head == head == await one.refresh() == await two.refresh()
    assert await one.append(entries("b")) == 2
    assert await two.append(entries("c")) == 3
    assert [entry.data async for entry in two.read()] == [b'"a"', b'"b"', b'"c"']


async def test_sync_returns_when_it_is_done(backend: Backend):
    log = await open_log(backend)
    await log.append(entries("a"))
    await log.sync()
    await log.append(entries("b"))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(log.sync)
    assert await seqs(await open_log(backend)) == [1, 2]


async def test_a_failed_sync_says_so(backend: Backend):
    log = await open_log(backend)
    await log.append(entries("a"))
    with backend.failing("log.sync", OSError(errno.EIO, "injected")), pytest.raises(StoreFailed):
        await log.sync()


async def test_replay_then_live(backend: Backend):
    log, other = await open_log(backend), await open_log(backend)
    await log.append(entries("1", "2", "3"))
    async with log.subscribe(Seq(1)) as following:
        assert [entry.seq for entry in await take(following, 2)] == [2, 3]
        await other.append(entries("4"))
        await log.append(entries("5", "6"))
        assert [entry.data for entry in await take(following, 3)] == [b'"4"', b'"5"', b'"6"']


async def test_live_only(backend: Backend):
    log, other = await open_log(backend), await open_log(backend)
    await log.append(entries("old"))
    async with other.subscribe() as following:
        await log.append(entries("new"))
        assert [entry.data for entry in await take(following, 1)] == [b'"new"']


async def test_subscribing_beyond_the_head_waits_for_it(backend: Backend):
    log = await open_log(backend)
    async with log.subscribe(Seq(2)) as following:
        await log.append(entries("1", "2", "3"))
        assert [entry.seq for entry in await take(following, 1)] == [3]


async def test_a_subscription_wakes_one_who_waits(backend: Backend):
    log, other = await open_log(backend), await open_log(backend)
    found: list[int] = []

    async def follow(task_status: trio.TaskStatus[None]) -> None:
        async with log.subscribe(Seq(0)) as following:
            task_status.started()
            found.extend(entry.seq for entry in await take(following, 2))

    async with trio.open_nursery() as nursery:
        await nursery.start(follow)
        await trio.testing.wait_all_tasks_blocked()
        await other.append(entries("a"))
        await trio.testing.wait_all_tasks_blocked()
        await log.append(entries("b"))
    assert found == [1, 2]


async def test_no_gap_and_no_duplicate_under_concurrent_appends(backend: Backend):
    logs = [await open_log(backend) for _ in range(3)]
    total = 300
    found: dict[int, list[int]] = {}

    async def follow(number: int, since: Seq | None, task_status: trio.TaskStatus[None]) -> None:
        async with logs[number % 3].subscribe(since) as following:
            task_status.started()
            mine = found.setdefault(number, [])
            while not mine or mine[-1] < total:
                mine += [entry.seq for entry in await take(following, 1)]
                if number == 0:
                    # A slow one.
                    await trio.testing.wait_all_tasks_blocked(0.0001)

    async def append(log: AppendLog) -> None:
        for _ in range(50):
            await log.append(entries("x", "y"))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number, since in enumerate([Seq(0), None, Seq(0), Seq(7), None]):
            await nursery.start(follow, number, since)
        for log in logs:
            nursery.start_soon(append, log)
    assert found[0] == found[1] == found[2] == found[4] == list(range(1, total + 1))
    assert found[3] == list(range(8, total + 1))


async def test_closing_the_log_ends_its_subscriptions(backend: Backend):
    log = await open_log(backend)
    async with trio.open_nursery() as nursery, log.subscribe() as following:

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await log.aclose()

        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await take(following, 1)
    with pytest.raises(trio.ClosedResourceError):
        await log.append(entries("a"))


async def test_spaces_are_apart(driver: Driver):
    one = await driver.open_log(SPACE, create=True)
    two = await driver.open_log(CHAT, create=True)
    await one.append(entries("a"))
    assert await two.refresh() == EMPTY_HEAD
    assert await two.append(entries("b", "c")) == 2
    assert await one.append(entries("d")) == 2
