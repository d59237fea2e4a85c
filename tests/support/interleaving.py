"""Run the `file:` driver's own code in several pretended processes, one system call at a time.

A pretended process is a thread with a trio loop of its own and with descriptors of its own, so its flocks exclude the
others'. Before each system call that others can notice it waits for its turn. It may be killed (its locks are given
back) or never get another turn, as if it were stopped (they aren't).

What a process does depends on nothing else: times, temporary names and inode numbers are made the same in every run.
`exploring` goes through the orders.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from store import durability, locks
from store.drivers.file import fence, lease, locked, log, tail, takeover, text, truncating

MODULES = (fence, lease, locked, locks, log, tail, takeover, text, truncating)
T = TypeVar("T")


class Ended(BaseException):
    """The process was killed, or the run is over."""


class Process:
    """A thread that runs a program whenever it is told to, until its next system call."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.told = 0
        """A hash of the system calls that were made in this run, and of what they answered."""
        self.names = itertools.count()
        self.waiting = False
        self.running = False
        self.ended = False
        self.free = True
        """Its system calls aren't counted: it is being set up, or cleaned up."""
        self.error: BaseException | None = None
        self._go = threading.Lock()
        self._go.acquire()
        self._back = threading.Lock()
        self._back.acquire()
        self._job: Callable[[], Awaitable[None]] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"process {number}")
        self.thread.start()

    def _run(self) -> None:
        trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))

    async def _main(self) -> None:
        while True:
            self._go.acquire()
            if self._job is None:
                return
            try:
                await self._job()
            except Ended:
                pass
            except BaseException as error:  # noqa: BLE001 - the run fails with it
                self.error = error
            self.running = False
            self._back.release()

    def start(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run it up to its first system call."""
        self._job, self.running, self.waiting = job, True, False
        self._switch()

    def finish(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run it to its end."""
        self.free, self.ended = True, False
        self.start(job)
        self.free = False
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _switch(self) -> None:
        self._go.release()
        self._back.acquire()

    def step(self) -> None:
        """Make the system call that it waits for, and run it up to the next."""
        self.waiting = False
        self._switch()

    def end(self) -> None:
        """Kill it: what it does from now on has no effect, but that its descriptors are closed."""
        self.ended = True
        if self.running:
            self._switch()

    def turn(self) -> None:
        """In the thread: wait to be let on."""
        if self.free:
            return
        if self.ended:
            raise Ended
        self.waiting = True
        self._back.release()
        self._go.acquire()
        if self.ended:
            raise Ended

    def quit(self) -> None:
        """End the thread."""
        self._job = None
        self._go.release()
        self.thread.join()


class World:
    """The processes, and the seams through which their system calls come here.

    `last` is one more, which looks at what they have left.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.processes = [Process(number) for number in range(count)]
        self.last = Process(count)
        self.made: dict[int, str] = {}
        """Which process made an inode, with its how-manieth call."""
        self.versions: dict[int, int] = {}
        self.watched = root
        """The directory whose files are the state."""
        self.short = False
        """Whether an append's first write takes only half of it."""
        self._contents: dict[int, tuple[int, int]] = {}
        self._by_thread = {process.thread: process for process in [*self.processes, self.last]}

    def here(self) -> Process | None:
        """The process whose thread this is."""
        return self._by_thread.get(threading.current_thread())

    def reset(self) -> None:
        """An empty directory, nothing told."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.made.clear()
        self._contents.clear()
        self.versions.clear()
        for process in self.processes:
            process.told = 0
            process.names = itertools.count()
            process.ended = process.waiting = process.running = False

    def close(self) -> None:
        """End the threads."""
        for process in [*self.processes, self.last]:
            process.quit()

    def label(self, ino: int) -> str:
        return self.made.get(ino, "given")

    def call(self, name: str, shown: object, make: Callable[[], T], seen: Callable[[T], object] = repr) -> T:
        """A system call at its turn; what it answers is remembered."""
        process = self.here()
        if process is None or process.free:
            return make()
        process.turn()
        try:
            result = make()
        except OSError as error:
            process.told = hash((process.told, name, shown, type(error).__name__))
            raise
        process.told = hash((process.told, name, shown, seen(result)))
        return result

    def state(self) -> int:
        """All that the future depends on."""
        files = []
        for found in os.scandir(self.watched):
            if found.is_file(follow_symlinks=False):
                status = found.stat(follow_symlinks=False)
                ino = status.st_ino
                known = self._contents.get(ino)
                version = self.versions.get(ino, 0)
                if known is None or known[0] != version:
                    known = self._contents[ino] = version, hash(Path(found.path).read_bytes())
                files.append((found.name, self.label(ino), status.st_nlink, status.st_mode, known[1]))
        processes = tuple((each.told, each.running, each.ended) for each in self.processes)
        return hash((tuple(sorted(files)), processes))


def _short(path: object) -> str:
    return os.path.basename(os.fspath(path)) if isinstance(path, str | Path) else str(path)


class _Path:
    def __init__(self, world: World) -> None:
        self._world = world

    def lexists(self, path: Path) -> bool:
        return bool(self._world.call("lexists", _short(path), lambda: os.path.lexists(path)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os.path, name)


class Os:
    """Stands in for `os` in the driver's modules: what only looks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.path = _Path(world)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _shown(self, found: os.stat_result) -> SimpleNamespace:
        return SimpleNamespace(
            st_ino=found.st_ino,
            st_dev=found.st_dev,
            st_size=found.st_size,
            st_nlink=found.st_nlink,
            st_mode=found.st_mode,
            st_mtime_ns=self._world.versions.get(found.st_ino, 0),
        )

    def _seen(self, found: SimpleNamespace) -> object:
        return self._world.label(found.st_ino), found.st_size, found.st_nlink, found.st_mode, found.st_mtime_ns

    def open(self, path: str | Path, flags: int, *rest: int) -> int:
        if str(path) == str(self._world.watched):
            return os.open(path, flags, *rest)
        return self._world.call(
            "open", _short(path), lambda: os.open(path, flags, *rest), lambda fd: self._world.label(os.fstat(fd).st_ino)
        )

    def fstat(self, fd: int) -> Any:
        if _is_private(fd):
            return self._shown(os.fstat(fd))
        return self._world.call("fstat", "", lambda: self._shown(os.fstat(fd)), self._seen)

    def lstat(self, path: Path) -> Any:
        return self._world.call("lstat", _short(path), lambda: self._shown(os.lstat(path)), self._seen)

    stat = lstat

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if _is_private(fd):
            return os.pread(fd, size, offset)
        return self._world.call("pread", offset, lambda: os.pread(fd, size, offset), bytes)

    def listdir(self, path: Path) -> list[str]:
        return self._world.call("listdir", "", lambda: sorted(os.listdir(path)), tuple)

    def close(self, fd: int) -> None:
        # Others may get its flock by that. It is done whatever happens.
        process = self._world.here()
        if process is not None and not process.free and not process.ended and _has_lock(fd):
            with contextlib.suppress(Ended):
                process.turn()
            process.told = hash((process.told, "close"))
        os.close(fd)


def _is_private(fd: int) -> bool:
    """Whether nobody else can have the file open: it has only a temporary name."""
    return os.readlink(f"/proc/self/fd/{fd}").endswith(".tmp")


def _has_lock(fd: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return "FLOCK" in file.read()
    return False


class Fcntl:
    """Stands in for `fcntl` in `locks`."""

    LOCK_EX, LOCK_NB, LOCK_UN, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN, fcntl.LOCK_SH

    def __init__(self, world: World) -> None:
        self._world = world

    def flock(self, fd: int, how: int) -> None:
        process = self._world.here()
        if how == fcntl.LOCK_UN and process is not None and process.ended:
            fcntl.flock(fd, how)
            return
        self._world.call("flock", how, lambda: fcntl.flock(fd, how))


class Calls(durability.System):
    """Stands in for the seam: what changes files."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _made(self, fd: int) -> None:
        process = self._world.here()
        name = "given" if process is None else f"{process.number}.{next(process.names)}"
        ino = os.fstat(fd).st_ino
        self._world.made[ino] = name
        self._world.versions[ino] = 0

    def _changed(self, fd: int) -> None:
        self._world.versions[os.fstat(fd).st_ino] = self._world.versions.get(os.fstat(fd).st_ino, 0) + 1

    def _call(self, name: str, fd: int, shown: object, make: Callable[[], Any]) -> Any:
        if _is_private(fd):
            process = self._world.here()
            if process is not None and process.ended:
                raise Ended
            return make()
        return self._world.call(name, shown, make)

    def open(self, label: str, path: str | Path, flags: int) -> int:
        process = self._world.here()
        if process is not None and process.ended:
            raise Ended
        fd = super().open(label, path, flags)
        if flags & os.O_EXCL:
            self._made(fd)
        return fd

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        if self._world.short and label == "log.append" and isinstance(data, bytes):
            data = data[: len(data) // 2]

        def make() -> int:
            self._changed(fd)
            return durability.System.write(self, label, fd, data)

        return int(self._call("write", fd, bytes(data), make))

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        def make() -> None:
            self._changed(fd)
            durability.System.ftruncate(self, label, fd, size)

        self._call("ftruncate", fd, size, make)

    def fchmod(self, label: str, fd: int, mode: int) -> None:
        self._call("fchmod", fd, mode, lambda: durability.System.fchmod(self, label, fd, mode))

    def fsync(self, label: str, fd: int) -> None:
        pass

    fdatasync = fsync

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        self._world.call("rename", _short(target), lambda: os.rename(source, target))

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        self._world.call("link", _short(target), lambda: os.link(source, target, follow_symlinks=False))

    def unlink(self, label: str, path: str | bytes | Path) -> None:
        self._world.call("unlink", _short(path), lambda: os.unlink(path))


async def _inline(call: Callable[..., Any], *args: Any, **_options: Any) -> Any:
    return call(*args)


@contextlib.contextmanager
def world(root: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """With the driver's modules making their system calls in it."""
    found = World(root, count)
    stand_in = Os(found)
    for module in MODULES:
        if hasattr(module, "os"):
            monkeypatch.setattr(module, "os", stand_in)
    monkeypatch.setattr(locks, "fcntl", Fcntl(found))
    monkeypatch.setattr(durability, "system", Calls(found))
    monkeypatch.setattr(durability, "fsync_dir", lambda _label, _path: None)
    monkeypatch.setattr(durability, "secrets", SimpleNamespace(token_hex=lambda _size: _token(found)))
    monkeypatch.setattr(trio.to_thread, "run_sync", _inline)
    monkeypatch.setattr(takeover, "time", SimpleNamespace(sleep=lambda _seconds: None, monotonic=lambda: 0.0))
    monkeypatch.setattr(takeover, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(takeover, "PATIENCE_SECONDS", 0.004)
    monkeypatch.setattr(takeover, "TRIES_NOW", 2)
    try:
        yield found
    finally:
        found.close()


def _token(found: World) -> str:
    process = found.here()
    return "f" if process is None else f"{process.number:x}{next(process.names):x}"
