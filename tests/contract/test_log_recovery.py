"""A log after a failed sync, or after an append that couldn't be undone: it refuses until it has been recovered."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest
import trio

from store.driver import AppendLog, Driver
from store.drivers.file.stable import NOTE_NAME
from store.drivers.file.text import LOG_NAME, Text
from store.errors import CorruptLog, StoreFailed
from store.model import Seq
from tests.contract.backends import SPACE, Backend, FaultySystem, FileBackend, entries, faulty

EIO = OSError(errno.EIO, "injected")


async def seqs(log: AppendLog) -> list[int]:
    return [entry.seq async for entry in log.read()]


def log_path(backend: FileBackend) -> Path:
    return backend.path / SPACE / LOG_NAME


def quarantined(backend: FileBackend) -> list[bytes]:
    return [path.read_bytes() for path in sorted((backend.path / "quarantine").glob("*.torn"))]


async def failed(backend: Backend, log: AppendLog) -> None:
    """Let a sync fail."""
    with backend.failing("log.sync", EIO), pytest.raises(StoreFailed):
        await log.sync()


# ---- on every driver


async def test_a_failed_sync_is_sticky(backend: Backend, driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a", "b"))
    assert log.failure is None
    with backend.failing("log.sync", EIO):
        results: list[type[BaseException]] = []

        async def sync() -> None:
            try:
                await log.sync()
            except StoreFailed as error:
                results.append(type(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(sync)
    assert results == [StoreFailed] * 5
    assert isinstance(log.failure, StoreFailed)
    for attempt in (log.append(entries("c")), log.sync(), log.truncate_before(Seq(2))):
        with pytest.raises(StoreFailed):
            await attempt
    assert log.failure is not None
    assert await seqs(log) == [1, 2]


async def test_recovery_ends_it(backend: Backend, driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    await failed(backend, log)
    await log.recover()
    assert log.failure is None
    assert await log.append(entries("b")) == 2
    await log.sync()
    again = await (await backend.open()).open_log(SPACE)
    assert again.failure is None
    assert await seqs(again) == [1, 2]


async def test_recovery_that_fails_leaves_it_refused(backend: Backend, driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    await failed(backend, log)
    with backend.failing("log.recover", EIO), pytest.raises(StoreFailed):
        await log.recover()
    assert log.failure is not None
    with pytest.raises(StoreFailed):
        await log.append(entries("b"))
    await log.recover()
    assert await log.append(entries("b")) == 2


async def test_recovery_of_a_log_that_never_failed_does_nothing(driver: Driver):
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    head = log.head
    await log.recover()
    assert log.head == head
    assert await log.append(entries("b")) == 2


async def test_who_reads_or_follows_meanwhile_notices_nothing(backend: Backend, driver: Driver):
    log, other = await driver.open_log(SPACE, create=True), await driver.open_log(SPACE, create=True)
    await log.append(entries("a"))
    async with other.subscribe(Seq(0)) as following:
        with trio.fail_after(10):
            assert (await anext(following)).seq == 1
            await failed(backend, log)
            assert await other.append(entries("b")) == 2
            await log.recover()
            assert await log.append(entries("c")) == 3
            assert [(await anext(following)).seq for _ in range(2)] == [2, 3]
    assert (await other.refresh()) == log.head


# ---- files


class Counting(FaultySystem):
    """What recovery writes, and when it syncs that."""

    def __init__(self) -> None:
        super().__init__("nothing", OSError())
        self.written: list[tuple[int, bytes]] = []

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.written.append((offset, bytes(data)))
        return super().pwrite(label, fd, data, offset)


async def test_what_isnt_known_to_be_stable_is_written_again(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    await log.sync()
    stable = log.head.size
    await log.append(entries("b", "c"))
    await failed(file_backend, log)
    whole = log_path(file_backend).read_bytes()
    inode = log_path(file_backend).stat().st_ino
    with faulty(Counting()) as system:
        await log.recover()
    assert system.written == [(stable, whole[stable:])]
    assert log_path(file_backend).read_bytes() == whole
    assert log_path(file_backend).stat().st_ino == inode
    with faulty(Counting()) as system:
        await log.sync()
    assert system.seen == []


async def test_where_nothing_is_known_the_whole_log_is_written_again(file_backend: FileBackend):
    first = await (await file_backend.open()).open_log(SPACE, create=True)
    await first.append(entries("a", "b"))
    log = await (await file_backend.open()).open_log(SPACE)
    await failed(file_backend, log)
    before = log_path(file_backend).read_bytes()
    inode = log_path(file_backend).stat().st_ino
    await log.recover()
    assert log_path(file_backend).read_bytes() == before
    assert log_path(file_backend).stat().st_ino != inode
    assert await first.append(entries("c")) == 3
    assert await seqs(log) == [1, 2]
    assert (await log.refresh()).seq == 3


async def test_another_process_that_opens_the_log_now_knows(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    await failed(file_backend, log)
    await log.aclose()
    assert (file_backend.path / SPACE / NOTE_NAME).exists()
    again = await (await file_backend.open()).open_log(SPACE)
    assert await seqs(again) == [1]
    for attempt in (again.append(entries("b")), again.sync()):
        with pytest.raises(StoreFailed):
            await attempt
    await again.recover()
    assert not (file_backend.path / SPACE / NOTE_NAME).exists()
    assert await again.append(entries("b")) == 2
    await again.sync()


@pytest.mark.parametrize("label", ["log.truncate", "log.repair"])
async def test_other_failed_syncs_are_sticky_too(file_backend: FileBackend, label: str):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a", "b", "c"))

    class FailingSync(FaultySystem):
        """Only what makes durable fails, once for each call."""

        def fdatasync(self, label: str, fd: int) -> None:
            self.seen.append("sync")
            if label == self.label:
                raise self.error
            super().fdatasync(label, fd)

    if label == "log.repair":
        with log_path(file_backend).open("ab") as file:
            file.write(b'{"seq":4,"ts"')
        attempt = log.append(entries("d"))
    else:
        attempt = log.truncate_before(Seq(3))
    with faulty(FailingSync(label, EIO, times=0)), pytest.raises(StoreFailed):
        await attempt
    with pytest.raises(StoreFailed):
        await log.append(entries("d"))
    again = await (await file_backend.open()).open_log(SPACE)
    assert again.failure is not None
    await log.recover()
    assert await seqs(log) == [1, 2, 3]
    assert await log.append(entries("d")) == 4


async def dead_append(log: AppendLog, *, short: int = 10) -> None:
    """An append that fails after `short` bytes and can't be undone."""

    class Dead(FaultySystem):
        def ftruncate(self, label: str, fd: int, size: int) -> None:
            raise OSError(errno.EIO, f"{label} {fd} {size}")

    with faulty(Dead("log.append", EIO, short=short)), pytest.raises(StoreFailed):
        await log.append(entries("lost"))


@pytest.mark.parametrize("short", [10, 60, 1000])
async def test_an_append_that_cant_be_undone_is_undone_by_recovery(file_backend: FileBackend, short: int):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    before = log_path(file_backend).read_bytes()
    if short < 100:
        await dead_append(log, short=short)
    else:
        await whole_but_failed(log)
    lost = log_path(file_backend).read_bytes()[len(before) :]
    for attempt in (log.append(entries("b")), log.sync(), log.truncate_before(Seq(2))):
        with pytest.raises(StoreFailed):
            await attempt
    assert await seqs(log) == [1]
    await log.recover()
    assert log_path(file_backend).read_bytes() == before
    assert quarantined(file_backend) == [lost]
    assert await log.append(entries("b")) == 2
    await log.sync()
    assert await seqs(await (await file_backend.open()).open_log(SPACE)) == [1, 2]


async def whole_but_failed(log: AppendLog) -> None:
    """An append of which all bytes got there, whatever the system call said."""

    class Liar(FaultySystem):
        def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
            os.write(fd, data)
            raise EIO

        def ftruncate(self, label: str, fd: int, size: int) -> None:
            raise EIO

    with faulty(Liar("log.append", EIO)), pytest.raises(StoreFailed):
        await log.append(entries("lost"))


async def test_another_instance_may_have_gone_on_behind_it(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    await whole_but_failed(log)
    other = await (await file_backend.open()).open_log(SPACE)
    assert await other.append(entries("b")) == 3
    await log.recover()
    assert await log.append(entries("c")) == 4
    assert await seqs(other) == [1, 2, 3]


async def test_entries_that_the_disk_lost_are_damage(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    await log.sync()
    size = log.head.size
    await log.append(entries("b"))
    await failed(file_backend, log)
    os.truncate(log_path(file_backend), size)
    with pytest.raises(CorruptLog, match="shorter"):
        await log.recover()
    assert log.failure is not None
    again = await (await file_backend.open()).open_log(SPACE)
    await again.recover()
    assert await again.append(entries("c")) == 2


async def test_bytes_that_changed_meanwhile_arent_written_again(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a"))
    await log.sync()
    size = log.head.size
    for text in "bcd":
        await log.append(entries(text))
    await failed(file_backend, log)
    with log_path(file_backend).open("r+b") as file:
        file.seek(size + 9)
        file.write(b"\x01")
    before = log_path(file_backend).read_bytes()
    with pytest.raises(CorruptLog):
        await log.recover()
    assert log.failure is not None
    assert log_path(file_backend).read_bytes() == before


@pytest.mark.parametrize("known", [True, False])
async def test_recovery_takes_no_descriptor_from_a_reader(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch, *, known: bool
):
    """The text is closed and attached anew on the loop, where no read is under way."""
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a", "b"))
    if known:
        await log.sync()
        await log.append(entries("c"))
    await failed(file_backend, log)
    whole = log_path(file_backend).read_bytes()
    seen: list[bytes | Exception] = []

    def read() -> None:
        try:
            seen.append(log.read_text(0, 10**6))
        except (OSError, trio.ClosedResourceError) as error:
            seen.append(error)

    close = Text.close

    def closing(text: Text) -> None:
        close(text)
        with contextlib.suppress(RuntimeError):  # on the loop: nobody reads meanwhile
            trio.from_thread.run_sync(read)

    class Reading(FaultySystem):
        def _meet(self, label: str) -> None:
            with contextlib.suppress(RuntimeError):
                trio.from_thread.run_sync(read)

    with monkeypatch.context() as patched, faulty(Reading("", EIO)):
        patched.setattr(Text, "close", closing)
        await log.recover()
    assert seen
    assert set(seen) == {whole}
    assert await log.append(entries("d")) == log.head.seq


async def test_a_log_that_is_closed_during_recovery(file_backend: FileBackend):
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries("a", "b"))
    await failed(file_backend, log)
    whole = log_path(file_backend).read_bytes()

    class Closing(FaultySystem):
        def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
            if label == "log.truncate":
                trio.from_thread.run(log.aclose)
            return super().write(label, fd, data)

    with faulty(Closing("nothing", EIO)), pytest.raises(trio.ClosedResourceError):
        await log.recover()
    assert log_path(file_backend).read_bytes() == whole
    again = await (await file_backend.open()).open_log(SPACE)
    await again.recover()
    assert await again.append(entries("c")) == 3


async def test_recovery_that_first_finishes_a_truncation(file_backend: FileBackend):
    """What was known to be stable was so of the file that is replaced."""
    log = await (await file_backend.open()).open_log(SPACE, create=True)
    await log.append(entries(*("x" * 200 for _ in range(100))))
    await log.sync()

    class NoRename(FaultySystem):
        def rename(self, label: str, source: object, target: object) -> None:
            if label == "log.truncate":
                raise EIO
            super().rename(label, source, target)  # type: ignore[arg-type]

    with faulty(NoRename("nothing", EIO)), pytest.raises(StoreFailed):
        await log.truncate_before(Seq(11))
    await log.append(entries(*("y" * 200 for _ in range(50))))
    await failed(file_backend, log)
    await log.recover()
    assert await seqs(log) == list(range(11, 151))
    assert await log.append(entries("z")) == 151
