"""Who moves a log's ref: processes that contend, are killed, or stand still at any point; git's own locks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from store import durability, locks
from store.drivers.git import commits
from store.drivers.git import turn as turns
from store.drivers.git.log import GitLog
from store.errors import CorruptLog, LeaseHeld, SpaceNotFound, StaleEpoch, StoreFailed
from store.model import Head, Seq
from tests.contract.backends import SPACE, FakeClock, GitBackend, entries, faulty, take
from tests.contract.git import REF, fsck, git, open_log
from tests.support.torture import LONG
from tests.support.waiting import wait_for

APPENDERS = 3
TURNS = 20
TOTAL = APPENDERS * sum(number % 3 + 1 for number in range(TURNS))


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "tests.contract.child", *args]


def url(backend: GitBackend) -> str:
    return f"git://{backend.path}"


async def opened(backend: GitBackend) -> GitLog:
    log = await open_log(backend)
    assert isinstance(log, GitLog)
    return log


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    for module in ("log", "lease", "driver"):
        monkeypatch.setattr(f"store.drivers.git.{module}.PATIENCE", 0.05)


async def test_processes_append_and_one_follows(git_backend: GitBackend):
    log = await open_log(git_backend)
    async with log.subscribe(Seq(0)) as following, trio.open_nursery() as nursery:
        for name in "abc"[:APPENDERS]:
            nursery.start_soon(trio.run_process, command("append", url(git_backend), SPACE, name, str(TURNS)))
        found = await take(following, TOTAL, within=90)
    assert [entry.seq for entry in found] == list(range(1, TOTAL + 1))
    assert (await log.refresh()).seq == TOTAL
    for name in "abc"[:APPENDERS]:
        said = [int(entry.data[3:-1]) for entry in found if entry.actor == name]
        assert said == sorted(said)
        assert [said.count(number) for number in range(TURNS)] == [number % 3 + 1 for number in range(TURNS)]
    for before, entry in pairwise(found):
        if before.more:
            assert (entry.data, entry.more) == (before.data, before.more - 1)
    fsck(git_backend.path)


def stopped(pid: int) -> None:
    """Return when it stands still."""
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED)


@contextlib.contextmanager
def appender(backend: GitBackend):
    process = subprocess.Popen(command("append", url(backend), SPACE, "a", "1000000"))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_processes_that_are_killed_or_stopped_while_they_append(git_backend: GitBackend, impatient: None):
    """Whoever comes next goes on; one that stood still and wakes up has appended what is in the log, or nothing."""
    random_ = random.Random(7)
    log = await open_log(git_backend)
    mine = []
    for _ in range(2):
        with appender(git_backend) as process:
            async with log.subscribe() as following:
                await take(following, 20 + random_.randrange(20), within=30)
            for _ in range(8):
                os.kill(process.pid, signal.SIGSTOP)
                stopped(process.pid)
                with trio.fail_after(20):
                    mine.append(await log.append(entries("mine")))
                os.kill(process.pid, signal.SIGCONT)
                seq = mine[-1]
                async with log.subscribe(Seq(seq)) as following:
                    await take(following, 1 + random_.randrange(3), within=30)
    found = [entry async for entry in log.read()]
    head = await log.refresh()
    found += [entry async for entry in log.read(found[-1].seq)]
    assert [entry.seq for entry in found] == list(range(1, head.seq + 1))
    assert [entry.seq for entry in found if entry.data == b'"mine"'] == mine
    assert not (git_backend.path / f"{REF}.lock").exists() or await log.append(entries("x"))
    fsck(git_backend.path)
    assert git(git_backend.path, "pack-refs", "--all") == ""


class Stopping(durability.System):
    """Before some of its steps, counted from 1, a process stands still, and `then` happens."""

    def __init__(self, stops: Container[int], then: Callable[[], None]) -> None:
        self.stops = stops
        self.then = then
        self.steps = 0
        self._own = True

    def _meet(self, label: str) -> None:
        if self._own and label in {"log.append", "turn.lock"}:
            self.steps += 1
            if self.steps in self.stops:
                self._own = False
                self.then()
                self._own = True

    def open(self, label: str, path: str | Path, flags: int) -> int:
        self._meet(label)
        return super().open(label, path, flags)

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        self._meet(label)
        return super().write(label, fd, data)

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet(label)
        super().rename(label, source, target)

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet(label)
        super().link(label, source, target)

    def unlink(self, label: str, path: str | bytes | Path) -> None:
        self._meet(label)
        super().unlink(label, path)


class Other:
    """Another process: appends, or raises the epoch, and takes the turn away where somebody has it."""

    def __init__(self, log: GitLog, does: str) -> None:
        self.log = log
        self.does = does
        self.done: list[int] = []

    def __call__(self) -> None:
        place = self.log._place
        for _ in range(3):
            if place.turn.try_take():
                place.turn.give_back()
                break
            place.turn._take_away()
        if self.does == "append":
            found = self.log.append_now(entries(f"other {len(self.done)}"))
            if found is None:  # it has to look first
                found = self.log.append_now(entries(f"other {len(self.done)}"))
            assert found is not None
            self.done.append(found[0].seq)
            return
        assert place.turn.try_take()
        name = place.refs.read(SPACE)
        info = place.texts.commit(name)
        raised = replace(info, parents=(name,), epoch=info.epoch + 1)
        commit = place.objects.write("lease", b"commit", commits.encode(raised, "chatfs", "lease"))[0]
        assert place.turn.move("lease", name, commit) is turns.Moved.DONE
        place.turn.give_back()
        self.done.append(-1)


STEPS = 17
"""Of an append that has no rival: see `test_the_steps_of_an_append_are_all_tried`."""


async def stand_still(backend: GitBackend, stops: tuple[int, ...], does: str) -> None:
    """Another appends, or takes the lease, whenever this one stands still: the log is what both were told."""
    driver, other_driver = await backend.open(FakeClock()), await backend.open(FakeClock())
    log = await driver.open_log(SPACE, create=True)
    rival = await other_driver.open_log(SPACE)
    assert isinstance(rival, GitLog)
    grant = await driver.leases.acquire(SPACE, "me", 1)
    first = await log.append(entries("first"), epoch=grant.epoch)
    other = Other(rival, does)
    seq = None
    with faulty(Stopping(stops, other)), contextlib.suppress(StaleEpoch):  # type: ignore[type-var]
        seq = await log.append(entries("mine"), epoch=grant.epoch)
    fresh = await (await backend.open()).open_log(SPACE)
    found = {entry.seq: entry.data async for entry in fresh.read(Seq(first))}
    assert sorted(found) == list(range(first + 1, fresh.head.seq + 1))
    assert list(found.values()).count(b'"mine"') == (0 if seq is None else 1)
    assert seq is None or found[seq] == b'"mine"'
    if does == "append":
        assert seq is not None
        assert [found.get(each) for each in other.done] == [b'"other %d"' % turn for turn in range(len(other.done))]
        assert len(found) == 1 + len(other.done)
    else:
        epoch = int(git(backend.path, "log", "-1", "--format=%(trailers:key=Chatfs-Epoch,valueonly)", REF))
        assert epoch == grant.epoch + len(other.done)
    for each in (log, rival, fresh):
        await each.aclose()
    await driver.delete_space(SPACE)
    for each in (driver, other_driver):
        await each.aclose()


PAIRS = [(one, two) for one in range(1, STEPS + 1) for two in range(one, STEPS + 9)]


@pytest.mark.parametrize("does", ["append", "acquire"])
async def test_one_who_stands_still_at_any_two_steps_forks_nothing(git_backend: GitBackend, does: str):
    """All of them in the long form; in the quick one every step, and some of the pairs."""
    some = [pair for number, pair in enumerate(PAIRS) if LONG or pair[0] == pair[1] or number % 13 == 0]
    for stops in some:
        await stand_still(git_backend, stops, does)
    fsck(git_backend.path)


def never_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the turn is still one's own isn't asked after one's file was made."""
    monkeypatch.setattr(turns.Turn, "_is_current", lambda _turn: True)


def leaving_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another lock is made, but what the one who stands still would rename stays where it was."""

    def take_away(turn: turns.Turn) -> None:
        os.rename(turn._lock, f"{turn._directory}/gone")
        Path(turn._lock).write_bytes(turns._MARK)

    monkeypatch.setattr(turns.Turn, "_take_away", take_away)
    monkeypatch.setattr(turns.Turn, "_tidy", lambda turn: turn.unlock_git(stale=True))


def not_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ref is moved whatever it names."""
    move = turns.Turn.move

    def moving(turn: turns.Turn, label: str, expected: str, to: str, before=None) -> turns.Moved:
        found = turn._refs.read(turn._space)
        return move(turn, label, found, to, before)

    monkeypatch.setattr(turns.Turn, "move", moving)


@pytest.mark.parametrize("mutant", [never_looking_again, leaving_the_files, not_comparing])
async def test_a_protocol_that_forks_is_found_out(git_backend: GitBackend, monkeypatch: pytest.MonkeyPatch, mutant):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, CorruptLog, StoreFailed)):
        for stops in PAIRS[::-1]:
            await stand_still(git_backend, stops, "append")


async def test_the_steps_of_an_append_are_all_tried(git_backend: GitBackend):
    # Always the same objects: at other times one of them may find its directory made already, which is a step less.
    log = await (await git_backend.open(FakeClock())).open_log(SPACE, create=True)
    await log.append(entries("a"))
    with faulty(Stopping((), lambda: None)) as system:  # type: ignore[type-var]
        await log.append(entries("b"))
    assert system.steps == STEPS


async def test_a_lock_that_a_dead_chatfs_left_is_no_obstacle(git_backend: GitBackend, impatient: None):
    log = await opened(git_backend)
    await log.append(entries("a"))
    lock = git_backend.path / f"{REF}.lock"
    os.link(log._place.turn._lock, lock)  # killed before the ref was moved
    assert await log.append(entries("b")) == 2
    assert not lock.exists()
    os.link(log._place.turn._lock, lock)
    log._place.turn._take_away()  # its turn was taken away, and it never came back
    assert await log.append(entries("c")) == 3
    assert not lock.exists()
    os.link(log._place.turn._lock, lock)
    again = await open_log(git_backend)
    assert await again.append(entries("d")) == 4
    assert not lock.exists()


async def test_gits_own_lock_is_waited_for_and_never_removed(git_backend: GitBackend, impatient: None):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    driver = await git_backend.open()
    lock = git_backend.path / f"{REF}.lock"
    for data in (b"", b"1" * 40 + b"\n"):
        lock.write_bytes(data)
        for attempt in (
            log.append(entries("b")),
            driver.leases.acquire(SPACE, "me", 1),
            driver.delete_space(SPACE),
        ):
            with pytest.raises(StoreFailed, match=r"log.lock is there: another git process") as caught:
                await attempt
            assert "\n" not in str(caught.value)
        assert log.append_now(entries("b")) is None
        assert lock.read_bytes() == data
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.append, entries("b"))
        await trio.testing.wait_all_tasks_blocked()
        lock.unlink()
    assert log.head.seq == 2


async def test_a_turn_that_is_kept_is_taken_away(git_backend: GitBackend, impatient: None):
    log, other = await opened(git_backend), await open_log(git_backend)
    await log.append(entries("a"))
    assert log._place.turn.try_take()
    assert other.append_now(entries("x")) is None
    with trio.fail_after(10):
        assert await other.append(entries("b")) == 2
    log._place.turn.give_back()
    assert await log.append(entries("c")) == 3
    names = os.listdir(git_backend.path / "chatfs" / SPACE)
    assert [name for name in names if name.startswith(".")] == []


async def test_what_moves_is_not_taken_away(git_backend: GitBackend, impatient: None, monkeypatch: pytest.MonkeyPatch):
    """Waiting long where others append is no reason."""
    log, other = await opened(git_backend), await opened(git_backend)
    await log.append(entries("a"))
    taken: list[str] = []
    monkeypatch.setattr(turns.Turn, "_take_away", lambda _turn: taken.append("away"))
    tries = 0
    usual = locks.try_lock

    def busy(fd: int) -> bool:
        nonlocal tries
        tries += 1
        if tries < 40 and fd == other._place.turn._fd:
            log.append_now(entries("x"))
            return False
        return usual(fd)

    assert other._place.turn.try_take()
    other._place.turn.give_back()
    monkeypatch.setattr(locks, "try_lock", busy)
    await other.append(entries("b"))
    assert tries >= 40
    assert taken == []


async def test_two_who_acquire_at_once(git_backend: GitBackend):
    """The second finds the first's commit behind it."""
    clock = FakeClock()
    one, two = await git_backend.open(clock), await git_backend.open(clock)
    log = await one.open_log(SPACE, create=True)
    grant = await one.leases.acquire(SPACE, "one", 1000)
    with pytest.raises(LeaseHeld):
        await two.leases.acquire(SPACE, "two", 1000)
    # Killed before it had written the file beside: the commit says as much.
    (one.local_dir(SPACE) / f"lease-{grant.epoch}.json").unlink()
    assert await two.leases.current(SPACE) == grant
    with pytest.raises(LeaseHeld):
        await two.leases.acquire(SPACE, "two", 1000)
    heads: list[Head] = []
    await log.append(entries("a"), epoch=grant.epoch, intent=heads.append)
    assert heads == [log.head]
    assert git(git_backend.path, "log", "-1", "--format=%(trailers:key=Chatfs-Epoch,valueonly)", REF).strip() == "1"


async def test_an_appender_that_meets_a_deletion(git_backend: GitBackend):
    log = await opened(git_backend)
    await log.append(entries("a"))
    other = await git_backend.open()
    await other.delete_space(SPACE)
    with pytest.raises(SpaceNotFound):
        await log.append(entries("b"))
    assert not (git_backend.path / "chatfs" / SPACE).exists()
    assert not (git_backend.path / f"refs/chatfs/{SPACE}").exists()
    wait_for(lambda: not list((git_backend.path / "chatfs").glob(".deleted-*")))


async def test_two_tasks_with_one_instance_that_have_to_wait(git_backend: GitBackend, impatient: None):
    """What one has built is old when the other was quicker, though the instance knows the newest by then."""
    log, other = await opened(git_backend), await opened(git_backend)
    await log.append(entries("first"))
    assert other._place.turn.try_take()
    done: list[int] = []

    async def append(text: str) -> None:
        done.append(await log.append(entries(text)))

    async with trio.open_nursery() as nursery:
        for text in "abcd":
            nursery.start_soon(append, text)
        await trio.testing.wait_all_tasks_blocked()
        other._place.turn.give_back()
    assert sorted(done) == [2, 3, 4, 5]
    assert sorted([entry.data async for entry in log.read()]) == [b'"a"', b'"b"', b'"c"', b'"d"', b'"first"']
    assert log.head == await other.refresh()
