"""The drivers under test, each behind the same few handles: open another instance, make a kind of change fail."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import orjson
import trio

from store import durability
from store.driver import Clock, Driver
from store.drivers.memory import MemoryDriver
from store.model import Millis, NewEntry, SpaceId, clock_ms
from store.registry import open_driver

S = TypeVar("S", bound="FaultySystem")
SPACE = SpaceId("workspace/w1")
CHAT = SpaceId("workspace/w1/chats/c1")
_names = itertools.count(1)


class FakeClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: int = 1_795_241_582_000) -> None:
        self.now = now

    def __call__(self) -> Millis:
        return Millis(self.now)


class Backend(Protocol):
    """One store, which any number of driver instances may have open."""

    async def open(self, clock: Clock = clock_ms) -> Driver: ...

    def failing(self, label: str, error: OSError, *, times: int = 1) -> contextlib.AbstractContextManager[None]:
        """The next changes whose label begins so fail, `times` times, and are then as usual."""
        ...

    async def aclose(self) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.url = f"memory:contract-{next(_names)}"
        self._opened: list[Driver] = []

    async def open(self, clock: Clock = clock_ms) -> Driver:
        if not self._opened:
            # Keeps the store while no other instance has it open.
            self._opened.append(await open_driver(self.url))
        driver = await open_driver(self.url, clock=clock)
        self._opened.append(driver)
        return driver

    @contextlib.contextmanager
    def failing(self, label: str, error: OSError, *, times: int = 1) -> Iterator[None]:
        driver = self._opened[0]
        assert isinstance(driver, MemoryDriver)
        left = times

        def before(found: str) -> None:
            nonlocal left
            if found.startswith(label) and left:
                left -= 1
                raise error

        usual = driver.shared.before
        driver.shared.before = before
        try:
            yield
        finally:
            driver.shared.before = usual

    async def aclose(self) -> None:
        for driver in self._opened:
            await driver.aclose()


class FaultySystem(durability.System):
    """Fails for a label, `times` times; with `short`, writes only so many bytes first."""

    def __init__(self, label: str, error: OSError, *, times: int = 1, short: int | None = None) -> None:
        self.label = label
        self.error = error
        self.times = times
        self.short = short
        self.seen: list[str] = []

    def _meet(self, label: str) -> None:
        self.seen.append(label)
        if label.startswith(self.label) and self.times:
            self.times -= 1
            raise self.error

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        if self.short is not None and label.startswith(self.label) and self.times:
            count, self.short = self.short, None
            return super().write(label, fd, data[:count])
        self._meet(label)
        return super().write(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._meet(label)
        return super().pwrite(label, fd, data, offset)

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        self._meet(label)
        super().ftruncate(label, fd, size)

    def fsync(self, label: str, fd: int) -> None:
        self._meet(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._meet(label)
        super().fdatasync(label, fd)

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet(label)
        super().rename(label, source, target)

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet(label)
        super().link(label, source, target)


@contextlib.contextmanager
def faulty(system: S) -> Iterator[S]:
    """Stand in for the system calls."""
    usual = durability.system
    durability.system = system
    try:
        yield system
    finally:
        durability.system = usual


class FileBackend:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: list[Driver] = []
        self._fds = len(os.listdir("/proc/self/fd"))

    async def open(self, clock: Clock = clock_ms) -> Driver:
        driver = await open_driver(self.path.as_uri(), clock=clock)
        self._opened.append(driver)
        return driver

    @contextlib.contextmanager
    def failing(self, label: str, error: OSError, *, times: int = 1) -> Iterator[None]:
        with faulty(FaultySystem(label, error, times=times)):
            yield

    async def aclose(self) -> None:
        for driver in self._opened:
            await driver.aclose()


class GitBackend(FileBackend):
    """A bare repository that is made with the store."""

    async def open(self, clock: Clock = clock_ms) -> Driver:
        driver = await open_driver(self.path.as_uri().replace("file:", "git:", 1), clock=clock)
        self._opened.append(driver)
        return driver


def drafts_in(backend: Backend) -> list[str]:
    """The files of drafts; not the labels that wait for the next one."""
    if not isinstance(backend, FileBackend) or not (backend.path / "drafts").exists():
        return []
    files = list((backend.path / "drafts").iterdir())
    return [
        path.name for path in files if path.suffix != ".json" or orjson.loads(path.read_bytes())["label"] is not None
    ]


def entries(*texts: str) -> list[NewEntry]:
    """A batch whose entries' data are these texts, as JSON strings."""
    return [NewEntry(f'"{text}"'.encode(), "uid:1/test") for text in texts]


async def take(iterator: object, count: int, within: float = 10) -> list:
    """The next `count` items."""
    found = []
    with trio.fail_after(within):
        while len(found) < count:
            found.append(await anext(iterator))  # type: ignore[call-overload]
    return found
