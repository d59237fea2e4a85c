"""Real processes that hold the lease, stopped or killed at any moment, also while they hold the log's lock."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from store.driver import AppendLog, Driver, Grant
from store.drivers.file import takeover
from store.drivers.file.text import LOG_NAME
from store.errors import LeaseHeld, StoreFailed
from store.model import clock_ms
from store.registry import open_driver
from tests.contract.backends import SPACE, entries
from tests.support.torture import rounds, seeded
from tests.support.waiting import wait_for


class Child:
    """A process of `stopped_child`, and what it has said."""

    def __init__(self, store: Path, what: str, name: str, output: Path) -> None:
        self.name = name
        self.output = output
        with output.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.stopped_child", what, store.as_uri(), SPACE, name],
                stdin=subprocess.PIPE,
                stdout=said,
            )

    def said(self) -> list[str]:
        # The last line may be half written.
        return self.output.read_text().split("\n")[:-1]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


@contextmanager
def child(store: Path, what: str, name: str, tmp_path: Path) -> Iterator[Child]:
    found = Child(store, what, name, tmp_path / f"{name}.out")
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
async def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    driver = await open_driver(path.as_uri())
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("before"))
    await driver.aclose()
    return path


async def acquire(driver: Driver, holder: str) -> Grant:
    """As soon as the other's grant is over."""
    with trio.fail_after(20):
        while True:
            try:
                return await driver.leases.acquire(SPACE, holder, 60_000)
            except LeaseHeld as held:
                await trio.sleep(max(0, held.expires - clock_ms()) / 1000)


async def texts(log: AppendLog) -> list[str]:
    await log.refresh()
    return [entry.data.decode().strip('"') async for entry in log.read()]


async def test_a_lock_whose_owner_was_stopped_is_broken(store: Path, tmp_path: Path):
    """And when it wakes, its append is refused: the lease was granted anew."""
    driver = await open_driver(store.as_uri())
    log = await driver.open_log(SPACE)
    with child(store, "stuck", "stuck", tmp_path) as stuck:
        await trio.to_thread.run_sync(wait_for, stuck.is_stopped)
        grant = await acquire(driver, "me")
        assert await log.append(entries("mine"), epoch=grant.epoch) == 2
        other = await driver.open_log(SPACE)
        assert await texts(other) == ["before", "mine"]
        stuck.go_on()
        assert await trio.to_thread.run_sync(stuck.process.wait) == 0
        assert stuck.said() == ["stopping", "refused"]
    assert await log.append(entries("more"), epoch=grant.epoch) == 3
    assert await texts(log) == await texts(other) == ["before", "mine", "more"]
    assert not (store / SPACE / takeover.TAKEN_NAME).exists()
    assert not list((store / SPACE).glob(".*"))
    await driver.aclose()


async def test_who_was_overtaken_with_a_lease_that_still_counts_appends_anew(store: Path, tmp_path: Path):
    driver = await open_driver(store.as_uri())
    with child(store, "stuck", "stuck", tmp_path) as stuck:
        await trio.to_thread.run_sync(wait_for, stuck.is_stopped)
        with trio.fail_after(20):
            log = await driver.open_log(SPACE)  # needs the lock, not the lease
        await log.append(entries("between"))
        stuck.go_on()
        assert await trio.to_thread.run_sync(stuck.process.wait) == 0
        assert stuck.said()[-1] == "done 3"
    assert await texts(log) == ["before", "between", "stuck"]
    await driver.aclose()


async def test_a_killed_owner_holds_up_nobody(store: Path, tmp_path: Path):
    driver = await open_driver(store.as_uri())
    log = await driver.open_log(SPACE)
    inode = (store / SPACE / LOG_NAME).stat().st_ino
    with child(store, "stuck", "stuck", tmp_path) as stuck:
        await trio.to_thread.run_sync(wait_for, stuck.is_stopped)
    grant = await acquire(driver, "me")
    assert await log.append(entries("mine"), epoch=grant.epoch) == 2
    assert await texts(log) == ["before", "mine"]
    assert (store / SPACE / LOG_NAME).stat().st_ino == inode  # nothing had to be replaced
    await driver.aclose()


async def test_a_stopped_maintainer_is_named(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(takeover, "PATIENCE_SECONDS", 1.5)
    driver = await open_driver(store.as_uri())
    log = await driver.open_log(SPACE)
    before = (store / SPACE / LOG_NAME).read_bytes()
    with child(store, "maintaining", "maintaining", tmp_path) as other:
        await trio.to_thread.run_sync(wait_for, other.is_stopped)
        for attempt in (log.append(entries("a")), log.truncate_before(log.head.seq)):
            with pytest.raises(StoreFailed) as caught:
                await attempt
            assert f"process {other.process.pid} (python" in str(caught.value)
            assert "kill -CONT" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert (store / SPACE / LOG_NAME).read_bytes() == before
    assert await log.append(entries("a")) == 2
    await driver.aclose()


@pytest.mark.timeout(600)
async def test_holders_that_are_stopped_and_killed_at_random_moments(store: Path, tmp_path: Path):
    dice = seeded("stopped holders")
    names = (f"c{number}" for number in itertools.count())

    def born() -> Child:
        name = next(names)
        return Child(store, "append", name, tmp_path / f"{name}.out")

    children = [born() for _ in range(3)]
    everybody = list(children)
    try:
        for _ in range(rounds(12, 400)):
            await trio.to_thread.run_sync(_disturb, dice, children)
            if dice.random() < 0.2:
                children.pop(dice.randrange(len(children))).kill()
                children.append(born())
                everybody.append(children[-1])
        for each in children:
            each.go_on()
        for each in children:
            await trio.to_thread.run_sync(each.end)
    finally:
        for each in everybody:
            each.kill()
    driver = await open_driver(store.as_uri())
    log = await driver.open_log(SPACE)
    found = await texts(log)
    assert len(found) == log.head.seq
    _check(found[1:], everybody)
    assert [entry.seq async for entry in log.read()] == list(range(1, len(found) + 1))
    await driver.aclose()


def _disturb(dice: random.Random, children: list[Child]) -> None:
    """Stop some of them for some time, once something has been appended."""
    done = sum(len(each.said()) for each in children)
    wait_for(lambda: sum(len(each.said()) for each in children) > done, what="an append")
    stopped = dice.sample(children, dice.choice([1, 1, 2]))
    for each in stopped:
        each.stop()
    until = time.monotonic() + dice.choice([0.02, 0.1, 0.4])
    wait_for(lambda: time.monotonic() > until)
    for each in stopped:
        each.go_on()


def _check(found: list[str], children: list[Child]) -> None:
    epochs = [int(text.split(".")[2]) for text in found]
    assert epochs == sorted(epochs)
    assert len(found) == len(set(found))
    for each in children:
        own = [int(text.split(".")[1]) for text in found if text.startswith(f"{each.name}.")]
        assert own == sorted(own)
        said = [line.split() for line in each.said()]
        assert {int(words[1]) for words in said if words[0] == "done"} <= set(own)
        assert not {int(words[1]) for words in said if words[0] == "refused"} & set(own)
    assert len({text.split(".")[0] for text in found}) > 1
