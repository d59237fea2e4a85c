"""The lease of `file:` as files: what a crash, a power cut, another version or a stranger may have left there."""

# A test may block.
# ruff: noqa: ASYNC240

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from store.driver import Access, Driver, Grant
from store.drivers.file import fence
from store.drivers.file.lease import FileLease
from store.errors import FormatError, LeaseHeld, NotHolder, ReadOnly, StaleEpoch, StoreFull
from store.model import Epoch, Millis, SpaceId
from store.registry import open_driver
from tests.contract.backends import SPACE, FakeClock, FaultySystem, FileBackend, entries, faulty


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def driver(file_backend: FileBackend, clock: FakeClock) -> Driver:
    driver = await file_backend.open(clock)
    await driver.open_log(SPACE, create=True)
    return driver


@pytest.fixture
def directory(file_backend: FileBackend) -> Path:
    return file_backend.path / SPACE


def leases(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "lease" in path.name)


async def test_only_the_present_grant_stays(driver: Driver, directory: Path) -> None:
    for epoch in (1, 2, 3):
        grant = await driver.leases.acquire(SPACE, "one", 500)
        assert grant.epoch == epoch
        assert leases(directory) == [f"lease-{epoch}.json"]
    await driver.leases.renew(grant, 900)
    await driver.leases.release(grant)
    assert leases(directory) == ["lease-3.json"]


@pytest.mark.parametrize("content", [b"", b"\0" * 60])
async def test_what_a_power_cut_emptied_has_expired(driver: Driver, directory: Path, content: bytes) -> None:
    log = await driver.open_log(SPACE)
    old = await driver.leases.acquire(SPACE, "one", 500)
    (directory / "lease-7.json").write_bytes(content)
    found = await driver.leases.current(SPACE)
    assert found is not None
    assert (found.epoch, found.expires) == (7, 0)
    with pytest.raises(NotHolder):
        await driver.leases.renew(old, 500)
    assert (await driver.leases.acquire(SPACE, "two", 500)).epoch == 8
    assert leases(directory) == ["lease-8.json"]
    with pytest.raises(StaleEpoch):
        await log.append(entries("a"), epoch=Epoch(7))


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b"\0{}",
        b'{"holder":"one","epoch":7}',
        b'{"holder":1,"epoch":7,"expires":0}',
        b'{"holder":"one","epoch":8,"expires":0}',
        b'{"holder":"one","epoch":7,"expires":true}',
        b'{"holder":"one","epoch":7,"expires":1.5}',
        b"\xff\xff",
    ],
)
async def test_another_format_is_said_and_nothing_is_written(driver: Driver, directory: Path, content: bytes) -> None:
    (directory / "lease-7.json").write_bytes(content)
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    log = await driver.open_log(SPACE)
    for attempt in (
        driver.leases.acquire(SPACE, "two", 500),
        driver.leases.current(SPACE),
        log.append(entries("a"), epoch=Epoch(9)),
    ):
        with pytest.raises(FormatError) as caught:
            await attempt
        assert "lease-7.json" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before


async def test_the_lease_of_an_older_version_counts(driver: Driver, directory: Path, clock: FakeClock) -> None:
    (directory / "lease.json").write_bytes(b'{"holder":"one","epoch":4,"expires":%d}\n' % (clock.now + 100))
    log = await driver.open_log(SPACE)
    with pytest.raises(LeaseHeld):
        await driver.leases.acquire(SPACE, "two", 500)
    with pytest.raises(StaleEpoch):
        await log.append(entries("a"), epoch=Epoch(3))
    assert await log.append(entries("a"), epoch=Epoch(4)) == 1
    clock.now += 100
    assert (await driver.leases.acquire(SPACE, "two", 500)).epoch == 5
    assert leases(directory) == ["lease-5.json"]
    with pytest.raises(StaleEpoch):
        await log.append(entries("a"), epoch=Epoch(4))


async def test_a_holder_that_is_known_to_be_dead_is_replaced_at_once(
    driver: Driver, directory: Path, clock: FakeClock
) -> None:
    await driver.leases.acquire(SPACE, "one", 500)
    lease = FileLease(lambda _space: directory, clock, trio.CapacityLimiter(1), lambda holder: holder == "one")
    assert (await lease.acquire(SPACE, "two", 500)).epoch == 2
    with pytest.raises(LeaseHeld):
        await lease.acquire(SPACE, "three", 500)


async def test_other_files_arent_leases(driver: Driver, directory: Path) -> None:
    for name in ("lease-0.json", "lease-01.json", "lease-x.json", "lease-5.json.bak", "lease--1.json", "lease-٣.json"):
        (directory / name).write_bytes(b"?")
    assert await driver.leases.current(SPACE) is None
    assert (await driver.leases.acquire(SPACE, "one", 500)).epoch == 1


async def test_what_dead_ones_were_writing_is_removed(driver: Driver, directory: Path) -> None:
    (directory / ".lease-1.json.0123456789abcdef.tmp").write_bytes(b"")
    os.link(directory / ".lease-1.json.0123456789abcdef.tmp", directory / "lease-1.json")
    (directory / ".lease-9.json.0123456789abcdef.tmp").write_bytes(b"")
    assert (await driver.leases.acquire(SPACE, "one", 500)).epoch == 2
    assert leases(directory) == [".lease-9.json.0123456789abcdef.tmp", "lease-2.json"]


async def test_a_full_disk_changes_nothing(driver: Driver, directory: Path, clock: FakeClock) -> None:
    grant = await driver.leases.acquire(SPACE, "one", 500)
    for attempt in (driver.leases.renew(grant, 900), driver.leases.acquire(SPACE, "one", 500)):
        with faulty(FaultySystem("lease", OSError(errno.ENOSPC, "full"))), pytest.raises(StoreFull):
            await attempt
        assert leases(directory) == ["lease-1.json"]
        assert await driver.leases.current(SPACE) == grant


async def test_a_read_only_store_grants_nothing(driver: Driver, file_backend: FileBackend) -> None:
    grant = await driver.leases.acquire(SPACE, "one", 500)
    other = await open_driver(file_backend.path.as_uri(), access=Access.READ)
    for attempt in (
        other.leases.acquire(SPACE, "two", 500),
        other.leases.renew(grant, 500),
        other.leases.release(grant),
    ):
        with pytest.raises(ReadOnly):
            await attempt
    assert await other.leases.current(SPACE) == grant
    await other.aclose()


def test_what_is_written_is_read() -> None:
    grant = Grant(SpaceId("space"), "h", Epoch(3), Millis(5))
    assert fence.decode(grant.space, fence.name_of(3), fence.encode(grant)) == grant
