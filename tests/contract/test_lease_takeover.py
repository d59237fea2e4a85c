"""A log that is taken over: what crashes in the middle leave, and what stands in the way."""

# A test may block.
# ruff: noqa: ASYNC240

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store import durability, locks
from store.driver import AppendLog, Driver
from store.drivers.file import takeover
from store.drivers.file.text import LOG_NAME
from store.errors import StoreError, StoreFailed, StoreFull
from tests.contract.backends import SPACE, FaultySystem, FileBackend, entries, faulty


@pytest.fixture
async def driver(file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(takeover, "STUCK_SECONDS", 0.05)
    monkeypatch.setattr(takeover, "PATIENCE_SECONDS", 0.3)
    driver = await file_backend.open()
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    await log.append(entries("b", "c"))
    await log.append(entries("d"))
    await log.aclose()
    return driver


@pytest.fixture
def path(file_backend: FileBackend) -> Path:
    return file_backend.path / SPACE / LOG_NAME


@pytest.fixture
def taken(path: Path) -> Path:
    return path.with_name(takeover.TAKEN_NAME)


@contextmanager
def stuck(path: Path) -> Iterator[None]:
    """Somebody has the log's lock and doesn't give it back."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


async def texts(log: AppendLog) -> list[str]:
    return [entry.data.decode().strip('"') async for entry in log.read()]


async def test_all_that_was_there_is_in_the_new_log(driver: Driver, path: Path, taken: Path) -> None:
    log = await driver.open_log(SPACE)
    before, inode = path.read_bytes(), path.stat().st_ino
    with stuck(path):
        other = await driver.open_log(SPACE)
        assert path.stat().st_ino != inode
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (before, 0o600)
        assert await log.append(entries("e")) == 5
    assert await log.append(entries("f")) == 6
    await other.refresh()
    assert await texts(log) == await texts(other) == ["a", "b", "c", "d", "e", "f"]
    assert sorted(os.listdir(path.parent)) == sorted({LOG_NAME, *os.listdir(path.parent)} - {taken.name})


@pytest.mark.parametrize("copied", [0, 1, 2], ids=["nothing", "some", "torn"])
async def test_an_interrupted_takeover_is_finished(driver: Driver, path: Path, taken: Path, copied: int) -> None:
    """It crashed behind the rename: the old inode has entries that the new one hasn't."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.rename(taken)
    # What had been copied, and how much of the rest.
    path.write_bytes(lines[0] + [b"", b"".join(lines[1:3]), lines[1] + lines[2][:9]][copied])
    path.chmod(0o600)
    log = await driver.open_log(SPACE)
    assert await texts(log) == ["a", "b", "c", "d"]
    assert not taken.exists()
    assert await log.append(entries("e")) == 5
    assert not (path.parents[2] / "quarantine").exists()


async def test_nobody_reads_what_was_written_too_late(driver: Driver, path: Path, taken: Path) -> None:
    """Whoever still reads the old inode doesn't show what its owner wrote behind the last look."""
    log, late = await driver.open_log(SPACE), await driver.open_log(SPACE)
    with stuck(path):
        old = os.open(path, os.O_WRONLY | os.O_APPEND)
        other = await driver.open_log(SPACE)
        await other.append(entries("e"))
        await late.append(entries("f"))
        os.write(old, path.read_bytes().splitlines(keepends=True)[4].replace(b'"e"', b'"x"'))
        os.close(old)
    assert (await log.refresh()).seq == 6
    assert await texts(log) == ["a", "b", "c", "d", "e", "f"]
    assert not taken.exists()


async def test_what_a_beginning_takeover_left_is_dropped_by_the_next(driver: Driver, path: Path, taken: Path) -> None:
    os.link(path, taken)
    log = await driver.open_log(SPACE)
    assert await log.append(entries("e")) == 5
    with stuck(path):
        assert await log.append(entries("f")) == 6
    assert not taken.exists()
    assert await texts(log) == ["a", "b", "c", "d", "e", "f"]


async def test_a_lock_of_a_replaced_file_isnt_the_logs(
    driver: Driver, path: Path, taken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was replaced between being opened and locked, and has its second name still."""
    await driver.aclose()
    lock = locks.try_lock

    def late(fd: int) -> bool:
        if not taken.exists():
            os.link(path, taken)
            beside = path.with_name("beside")
            beside.write_bytes(path.read_bytes())
            beside.rename(path)
        return lock(fd)

    monkeypatch.setattr(locks, "try_lock", late)
    assert takeover._try_hold(path.parent, writable=True, maintained=False) == -1


async def test_a_lock_under_which_the_log_grows_isnt_stuck(
    driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = path.stat().st_ino
    ticks = iter(range(1000))
    monkeypatch.setattr(takeover.os, "lstat", _moving(path, ticks))
    with stuck(path), pytest.raises(StoreFailed, match=f"process {os.getpid()} .*keeps the log of {SPACE} locked"):
        await driver.open_log(SPACE)
    assert path.stat().st_ino == inode


def _moving(path: Path, ticks: Iterator[int]):  # type: ignore[no-untyped-def]
    usual = os.lstat

    def lstat(asked: Path) -> os.stat_result:
        if asked == path:
            os.utime(path, ns=(next(ticks), next(ticks)))
        return usual(asked)

    return lstat


@pytest.mark.parametrize("call", ["open", "write", "fchmod", "fsync", "link", "rename"])
async def test_a_takeover_that_fails_changes_nothing(driver: Driver, path: Path, call: str) -> None:
    before, there = path.read_bytes(), sorted(os.listdir(path.parent))
    inode = path.stat().st_ino

    class Failing(FaultySystem):
        def __getattribute__(self, name: str) -> object:
            found = super().__getattribute__(name)
            if name != call:
                return found

            def fail(label: str, *arguments: object) -> object:
                if label == "log.take":
                    raise OSError(errno.ENOSPC, "full")
                return found(label, *arguments)  # type: ignore[operator]

            return fail

    with stuck(path), faulty(Failing("nothing", OSError())), pytest.raises(StoreFull):
        await driver.open_log(SPACE)
    assert (path.read_bytes(), path.stat().st_ino, sorted(os.listdir(path.parent))) == (before, inode, there)
    assert await texts(await driver.open_log(SPACE)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("call", ["ftruncate", "fdatasync", "unlink", "fchmod"])
async def test_one_that_fails_behind_the_rename_is_finished_later(
    driver: Driver, path: Path, taken: Path, call: str
) -> None:
    class Failing(durability.System):
        renamed = False

        def rename(self, label: str, source: str | Path, target: str | Path) -> None:
            super().rename(label, source, target)
            self.renamed = True

        def __getattribute__(self, name: str) -> object:
            found = super().__getattribute__(name)
            if name != call:
                return found

            def fail(label: str, *arguments: object) -> object:
                if label == "log.take" and self.renamed:
                    raise OSError(errno.EIO, "broken")
                return found(label, *arguments)  # type: ignore[operator]

            return fail

    with stuck(path):
        try:
            with faulty(Failing()):
                await driver.open_log(SPACE)
        except StoreError:
            assert taken.exists()
        log = await driver.open_log(SPACE)
    assert await texts(log) == ["a", "b", "c", "d"]
    assert not taken.exists()


async def test_a_file_system_without_modes_is_said(driver: Driver, path: Path) -> None:
    class Modeless(durability.System):
        def fchmod(self, label: str, fd: int, mode: int) -> None:
            pass

    before, inode = path.read_bytes(), path.stat().st_ino
    with stuck(path), faulty(Modeless()), pytest.raises(StoreFailed, match="keeps no modes"):
        await driver.open_log(SPACE)
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)


async def test_a_torn_tail_stays_one(driver: Driver, path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"seq":5,"ts":')
    with stuck(path):
        log = await driver.open_log(SPACE)
    assert await texts(log) == ["a", "b", "c", "d"]
    (kept,) = (path.parents[2] / "quarantine").glob("*.torn")
    assert kept.read_bytes() == b'{"seq":5,"ts":'


async def test_damage_stays_damage(driver: Driver, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"?" + data[-19:])
    before = path.read_bytes()
    with stuck(path):
        log = await driver.open_log(SPACE)
        assert log.damage is not None
    assert path.read_bytes() == before


async def test_a_truncation_breaks_a_lock_too(driver: Driver, path: Path) -> None:
    log = await driver.open_log(SPACE)
    with stuck(path):
        await log.truncate_before(log.head.seq)
    assert await texts(log) == ["d"]
    assert await log.append(entries("e")) == 5
