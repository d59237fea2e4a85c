"""Lease, and the appends that it fences."""

from __future__ import annotations

import contextlib

import pytest
import trio

from store.driver import Driver, Grant
from store.errors import LeaseHeld, NotHolder, SeqConflict, SpaceNotFound, StaleEpoch
from store.model import Epoch, Head, Millis, Seq
from tests.contract.backends import CHAT, SPACE, Backend, FakeClock, entries


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def driver(backend: Backend, clock: FakeClock) -> Driver:
    driver = await backend.open(clock)
    await driver.open_log(SPACE, create=True)
    return driver


async def test_grant(driver: Driver, clock: FakeClock):
    assert await driver.leases.current(SPACE) is None
    grant = await driver.leases.acquire(SPACE, "one", 500)
    assert grant == Grant(SPACE, "one", Epoch(1), Millis(clock.now + 500))
    assert await driver.leases.current(SPACE) == grant


async def test_another_has_it(driver: Driver, backend: Backend, clock: FakeClock):
    grant = await driver.leases.acquire(SPACE, "one", 500)
    other = await backend.open(clock)
    clock.now += 499
    with pytest.raises(LeaseHeld) as caught:
        await other.leases.acquire(SPACE, "two", 500)
    assert (caught.value.holder, caught.value.expires) == ("one", grant.expires)
    clock.now += 1
    assert (await other.leases.acquire(SPACE, "two", 500)).epoch == 2


async def test_the_same_holder_gets_a_higher_epoch(driver: Driver):
    grants = [await driver.leases.acquire(SPACE, "one", 500) for _ in range(3)]
    assert [grant.epoch for grant in grants] == [1, 2, 3]
    with pytest.raises(NotHolder):
        await driver.leases.renew(grants[0], 500)


async def test_renew(driver: Driver, clock: FakeClock):
    grant = await driver.leases.acquire(SPACE, "one", 500)
    clock.now += 400
    renewed = await driver.leases.renew(grant, 500)
    assert renewed == Grant(SPACE, "one", grant.epoch, Millis(clock.now + 500))
    assert await driver.leases.current(SPACE) == renewed
    # Expired, but nobody took it.
    clock.now += 1000
    assert (await driver.leases.renew(grant, 500)).expires == clock.now + 500
    with pytest.raises(LeaseHeld):
        await driver.leases.acquire(SPACE, "two", 500)


async def test_who_lost_it_cant_renew_or_release(driver: Driver, clock: FakeClock):
    grant = await driver.leases.acquire(SPACE, "one", 500)
    clock.now += 500
    taken = await driver.leases.acquire(SPACE, "two", 500)
    for attempt in (driver.leases.renew(grant, 500), driver.leases.release(grant)):
        with pytest.raises(NotHolder):
            await attempt
    assert await driver.leases.current(SPACE) == taken


async def test_a_released_lease_is_free_and_its_epoch_remembered(driver: Driver, backend: Backend, clock: FakeClock):
    grant = await driver.leases.acquire(SPACE, "one", 500)
    await driver.leases.release(grant)
    found = await driver.leases.current(SPACE)
    assert found is not None
    assert (found.epoch, found.expires <= clock.now) == (1, True)
    other = await backend.open(clock)
    assert (await other.leases.acquire(SPACE, "two", 500)).epoch == 2


async def test_a_released_lease_is_free_by_every_clock(driver: Driver, backend: Backend, clock: FakeClock):
    ahead = await backend.open(FakeClock(clock.now + 3_600_000))
    await ahead.leases.release(await ahead.leases.acquire(SPACE, "ahead", 500))
    assert (await driver.leases.acquire(SPACE, "one", 500)).epoch == 2


async def test_leases_of_spaces_are_apart(driver: Driver):
    await driver.open_log(CHAT, create=True)
    assert (await driver.leases.acquire(SPACE, "one", 500)).epoch == 1
    assert (await driver.leases.acquire(CHAT, "two", 500)).epoch == 1


async def test_a_space_that_isnt_there_has_none(driver: Driver):
    with pytest.raises(SpaceNotFound):
        await driver.leases.acquire(CHAT, "one", 500)
    assert await driver.leases.current(CHAT) is None


async def test_a_stale_epoch_is_refused(driver: Driver, backend: Backend, clock: FakeClock):
    other = await backend.open(clock)
    log, others = await driver.open_log(SPACE), await other.open_log(SPACE)
    old = await driver.leases.acquire(SPACE, "one", 500)
    assert await log.append(entries("a"), epoch=old.epoch) == 1
    clock.now += 500
    new = await other.leases.acquire(SPACE, "two", 500)
    for _ in range(2):
        with pytest.raises(StaleEpoch) as caught:
            await log.append(entries("late"), epoch=old.epoch)
        assert caught.value.current == new.epoch
    with pytest.raises(StaleEpoch):
        await others.append(entries("late"), epoch=old.epoch)
    assert await others.append(entries("b"), epoch=new.epoch) == 2
    assert await log.append(entries("c"), epoch=new.epoch) == 3
    # Without an epoch nothing is checked.
    assert await log.append(entries("d")) == 4
    await other.leases.release(new)
    with pytest.raises(StaleEpoch):
        await log.append(entries("late"), epoch=old.epoch)
    assert [entry.data async for entry in log.read()] == [b'"a"', b'"b"', b'"c"', b'"d"']


async def test_a_stale_epoch_is_refused_by_append_now(driver: Driver, backend: Backend, clock: FakeClock):
    log = await driver.open_log(SPACE)
    old = await driver.leases.acquire(SPACE, "one", 500)
    await log.append(entries("a"))
    await log.sync()
    found = log.append_now(entries("b"), epoch=old.epoch)
    assert found is not None
    assert [entry.seq for entry in found] == [2]
    clock.now += 500
    new = await (await backend.open(clock)).leases.acquire(SPACE, "two", 500)
    with pytest.raises(StaleEpoch) as caught:
        log.append_now(entries("late"), epoch=old.epoch)
    assert caught.value.current == new.epoch
    assert log.append_now(entries("c"), epoch=new.epoch) is not None
    assert [entry.data async for entry in log.read()] == [b'"a"', b'"b"', b'"c"']


async def test_an_intent_is_told_just_before_the_batch_is_written(driver: Driver, backend: Backend):
    log = await driver.open_log(SPACE)
    other = await (await backend.open()).open_log(SPACE)
    told: list[Head] = []
    grant = await driver.leases.acquire(SPACE, "one", 500)
    await other.append(entries("theirs"))
    assert await log.append(entries("a", "b"), epoch=grant.epoch, intent=told.append) == 3
    assert told == [log.head]
    [last] = [entry async for entry in log.read(reverse=True, limit=1)]
    assert (last.seq, last.crc, last.ts) == (told[0].seq, told[0].crc, told[0].ts)
    for refused in (
        log.append(entries("c"), expected_seq=Seq(1), intent=told.append),
        log.append([], intent=told.append),
    ):
        with contextlib.suppress(SeqConflict):
            await refused
    await driver.leases.acquire(SPACE, "one", 500)
    with pytest.raises(StaleEpoch):
        await log.append(entries("c"), epoch=grant.epoch, intent=told.append)
    assert len(told) == 1


async def test_an_intent_that_cant_be_told_keeps_the_batch_from_being_written(driver: Driver):
    log = await driver.open_log(SPACE)

    def refuse(_head: Head) -> None:
        raise BrokenPipeError("nobody hears")

    with pytest.raises(BrokenPipeError):
        await log.append(entries("a"), intent=refuse)
    assert log.head.seq == 0
    assert await log.append(entries("b")) == 1
    assert [entry.data async for entry in log.read()] == [b'"b"']


async def test_epochs_survive_reopening(driver: Driver, backend: Backend, clock: FakeClock):
    await driver.leases.acquire(SPACE, "one", 500)
    grant = await driver.leases.acquire(SPACE, "one", 500)
    await driver.aclose()
    again = await backend.open(clock)
    assert await again.leases.current(SPACE) == grant
    with pytest.raises(StaleEpoch):
        await (await again.open_log(SPACE)).append(entries("a"), epoch=Epoch(1))
    clock.now += 500
    assert (await again.leases.acquire(SPACE, "two", 500)).epoch == 3


async def test_a_race_for_a_lease_has_one_winner(driver: Driver, backend: Backend, clock: FakeClock):
    drivers = [driver, await backend.open(clock), await backend.open(clock)]
    won: list[Grant] = []

    async def attempt(number: int) -> None:
        try:
            won.append(await drivers[number % 3].leases.acquire(SPACE, f"holder-{number}", 500))
        except LeaseHeld:
            return

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(attempt, number)
    assert len(won) == 1
    assert won[0].epoch == 1


async def test_a_fenced_log_never_forks(driver: Driver, backend: Backend, clock: FakeClock):
    """Holders that take the lease from each other at any moment: an epoch's entries never follow a higher one's."""
    drivers = [driver, await backend.open(clock), await backend.open(clock)]

    async def work(number: int) -> None:
        log = await drivers[number].open_log(SPACE)
        for _ in range(15):
            try:
                grant = await drivers[number].leases.acquire(SPACE, f"holder-{number}", 1)
            except LeaseHeld:
                clock.now += 1
                continue
            try:
                for _ in range(5):
                    await log.append(entries(f"{grant.epoch}"), epoch=grant.epoch)
                    clock.now += 1
                    await trio.lowlevel.checkpoint()
            except StaleEpoch:
                continue

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(work, number)
    log = await driver.open_log(SPACE)
    epochs = [int(entry.data[1:-1]) async for entry in log.read()]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 1
