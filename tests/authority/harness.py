"""Workers in processes of their own on one chat, what is done to them, and what must be so in the end.

Whatever is done (see `trouble`), in the end the log is one line of entries 1..n with a whole chain of checksums, the
workers' histories are linearizable on it, no epoch's entry stands behind one of a higher epoch, nobody is stuck, and
nothing is left that the next start doesn't sweep.

For one thread. Waiting is for conditions, with bounds; the bounds are generous, since the machine may be busy.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, TypeVar

import orjson
import trio

from store.chat import Chat
from store.library import Store, open_store
from store.model import Entry, Seq
from tests.authority.recorded import ACKNOWLEDGED, BEGUN, STALE, Recorded, count_of, gather
from tests.authority.worker import CHAT, WORKSPACE, Options, word_of
from tests.support.linearizable import Logged, check
from tests.support.waiting import wait_for

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
LAST: Final = "last"
"""What the log's last entry says, which the test appends."""
PATIENCE: Final = 30.0
"""Seconds that something may take at most on a busy machine."""


class Process:
    """A worker's process."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.holder = ""
        """The name of its instance, once it is ready."""
        self.stopped = False
        self._said = b""
        self._complaints = Path(options.record).with_suffix(".stderr")
        with self._complaints.open("ab") as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.authority.worker", orjson.dumps(asdict(options)).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                cwd=ROOT,
                env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONFAULTHANDLER": "1"},
                bufsize=0,
            )

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def complaints(self) -> str:
        return self._complaints.read_text(errors="replace")

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")

    def set_clock(self, ahead_ms: int) -> None:
        """Its clock is so much ahead from now on."""
        self.tell(f"clock {ahead_ms}")

    def hear(self, wanted: str) -> str:
        """Wait for the line that begins so; what follows."""
        assert self.process.stdout is not None
        while b"\n" not in self._said:
            readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            piece = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            assert piece, f"{self.name} never said {wanted}: {self.where()}"
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        assert word == wanted, f"{self.name} said {line!r}, not {wanted}: {self.complaints}"
        return rest

    def where(self) -> str:
        """What it has said on stderr, and where each of its tasks is."""
        if self.process.poll() is None and not self.stopped:
            self.process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: self.complaints.endswith("that is all\n"), 5)
        return self.complaints

    def ready(self) -> None:
        self.holder = self.holder or self.hear("ready")

    def acknowledged(self) -> int:
        """How many of its appends have been."""
        return count_of(ACKNOWLEDGED, Path(self.options.record))

    def begun(self) -> int:
        """How many it has begun."""
        return count_of(BEGUN, Path(self.options.record))

    def refused(self) -> int:
        """How many were refused since it wasn't the holder any more."""
        return count_of(STALE, Path(self.options.record))

    def has_gone_on(self, acknowledged: int) -> bool:
        """Whether it has so many, or has ended."""
        return self.acknowledged() >= acknowledged or self.process.poll() is not None

    def stop(self) -> None:
        """SIGSTOP, and wait until all its threads stand."""
        self.stopped = True
        self.process.send_signal(signal.SIGSTOP)
        wait_for(self._stands, what=f"{self.name} to stand")

    def _stands(self) -> bool:
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2]
        return stat.split()[0] in "TZ"

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def kill(self) -> None:
        self.process.kill()
        self.ended()

    def ended(self) -> int:
        """Wait for its end."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()


class Party:
    """All the workers of a run, on a fresh store. Made by `party`."""

    def __init__(self, root: Path, url: str, seed: str, *, lease_ms: int) -> None:
        self.url = url
        self.lease_ms = lease_ms
        self.living: list[Process] = []
        self.records: list[Path] = []
        self._root = root
        self._seed = seed
        root.mkdir(parents=True, exist_ok=True)

    def begin(self, count: int) -> None:
        """The store, and so many workers, ready."""
        self.elsewhere(make)
        started = [self.start() for _ in range(count)]
        for process in started:
            process.ready()

    def start(self, *, ahead_ms: int = 0, fault: str = "", **more: object) -> Process:
        """One more, which isn't ready yet."""
        name = f"p{len(self.records)}"
        record = self._root / f"{name}.jsonl"
        options = Options(name, self.url, str(record), self._seed, self.lease_ms, ahead_ms=ahead_ms, fault=fault)
        process = Process(replace(options, **more))  # type: ignore[arg-type]
        self.records.append(record)
        self.living.append(process)
        return process

    def elsewhere(self, do: Callable[[Store], Awaitable[T]]) -> T:
        """Do something in this process, in a store opened for it."""

        async def run() -> T:
            async with open_store(self.url, lease_ms=self.lease_ms) as store:
                return await do(store)

        return trio.run(run)

    def holder(self) -> Process | None:
        """Who has the latest grant, if it lives."""

        async def look(store: Store) -> str:
            chat = await (await store.workspace(WORKSPACE)).chat(CHAT)
            grant = await store.driver.leases.current(chat.space.id)
            return "" if grant is None else grant.holder

        name = self.elsewhere(look)
        return next((process for process in self.living if process.holder == name), None)

    def go(self, most: int = 5) -> None:
        """Wait until every worker that can has had appends acknowledged: nobody is stuck."""
        able = [process for process in self.living if not process.stopped]
        before = {process: process.acknowledged() for process in able}
        for process, count in before.items():
            try:
                wait_for(functools.partial(process.has_gone_on, count + most), PATIENCE)
            except AssertionError:
                raise AssertionError(f"{process.name} doesn't go on: {process.where()}") from None
            assert process.process.poll() is None, f"{process.name} ended: {process.complaints}"

    def leave(self, process: Process) -> None:
        """It ends properly."""
        self.living.remove(process)
        process.tell("leave")
        process.hear("finished")
        assert process.ended() == 0, process.complaints

    def kill(self, process: Process) -> None:
        self.living.remove(process)
        process.kill()

    def finish(self) -> None:
        """Everybody stops, hears of all entries, and ends."""
        for process in self.living:
            process.ready()
            process.tell("stop")
        for process in self.living:
            process.hear("stopped")
        last = self.elsewhere(append_the_last)
        for process in self.living:
            process.tell(f"finish {last}")
        for process in self.living:
            process.hear("finished")
            assert process.ended() == 0, process.complaints
        self.living.clear()

    def recorded(self) -> Recorded:
        """What all of them did."""
        return gather(self.records)

    def wrong(self) -> list[str]:
        """What is wrong with the log, or with what was done on it."""
        entries = self.elsewhere(read_all)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        times = [entry.ts for entry in entries]
        assert times == sorted(times)
        return what_is_wrong(entries, self.recorded())

    def check(self) -> None:
        """The log against the histories; the store."""
        self.check_store()
        wrong = self.wrong()
        assert wrong == [], "\n".join(wrong[:20])

    def check_store(self) -> None:
        if not self.url.startswith("file:"):
            return
        path = self.url.removeprefix("file://")
        command = [sys.executable, "-m", "fusefs", "--store", self.url, "fsck", "--json"]
        done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        found = orjson.loads(done.stdout)["findings"]
        wrong = [f"{finding['path']}: {finding['what']}" for finding in found if finding["severity"] != "info"]
        assert not wrong, wrong
        # Who comes next sweeps what the killed ones left, and then goes, too.
        self.elsewhere(announce)
        instances = Path(path) / "instances"
        left = os.listdir(instances) if instances.exists() else []
        assert not left, left
        for leases in Path(path).rglob("lease-*.json"):
            assert len(list(leases.parent.glob("lease*"))) == 1, os.listdir(leases.parent)

    def end(self) -> None:
        """Leave nobody alive."""
        for process in self.living:
            process.kill()
        self.living.clear()


def what_is_wrong(entries: list[Entry], found: Recorded) -> list[str]:
    """The histories on the log; its last entry is the test's own."""
    log = [Logged(word_of(entry), entry.more) for entry in entries]
    assert log[-1] == Logged(LAST)
    wrong = [*found.unexpected, *check(log, found.operations), *epochs_that_run_backwards(found.epochs)]
    return [line for line in wrong if line != f"nobody has appended entry {len(log)}, {LAST}"]


def epochs_that_run_backwards(epochs: dict[int, set[int]]) -> list[str]:
    """Entries appended under a lower epoch than one before them."""
    wrong: list[str] = []
    highest = 0
    for seq, found in sorted(epochs.items()):
        if len(found) > 1 or min(found) < highest:
            wrong.append(f"entry {seq} was appended under epoch {sorted(found)}, after {highest}")
        highest = max(highest, *found)
    return wrong


async def announce(store: Store) -> None:
    """Be there, as one who appends is."""
    store.driver.peers.announce()


async def make(store: Store) -> None:
    """The chat that all work on."""
    workspace = await store.create_workspace(WORKSPACE, "test")
    await workspace.create_chat(CHAT, "test")


async def the_chat(store: Store) -> Chat:
    """That chat."""
    return await (await store.workspace(WORKSPACE)).chat(CHAT)


async def append_the_last(store: Store) -> int:
    """Its seq."""
    return await (await the_chat(store)).append_events([{"role": "user", "content": LAST}], "test")


async def read_all(store: Store) -> list[Entry]:
    """The log."""
    return [entry async for entry in (await the_chat(store)).log(Seq(0))]


@contextmanager
def party(root: Path, seed: str, *, workers: int = 3, lease_ms: int = 700, url: str = "") -> Iterator[Party]:
    """Workers at work; in the end, all is checked, and nobody is left."""
    made = Party(root, url or f"file://{root / 'store'}", seed, lease_ms=lease_ms)
    try:
        made.begin(workers)
        yield made
        if made.living:
            made.finish()
            made.check()
    finally:
        made.end()
