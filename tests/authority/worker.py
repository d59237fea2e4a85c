"""One process of the proof: several tasks that append to a chat, read it and follow it, and record what they did.

`python -m tests.authority.worker OPTIONS` (one JSON object). Commands come as lines on stdin, and are answered on
stdout: `stop` (begin nothing more; `stopped`), `finish N` (when every subscription has delivered entry N, close the
store and end; `finished`), `clock MS` (be so much ahead from now on), `leave` (close the store properly, and end).
Ends, at once, when stdin does.

It says `ready HOLDER` when it has the chat open; HOLDER is the name of its instance. At SIGUSR1 it says on stderr where
each of its tasks is.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from store.chat import Chat
from store.errors import SeqConflict, StaleEpoch, StoreError
from store.library import open_store
from store.model import Entry, Millis, Seq, clock_ms
from tests.authority import faults
from tests.authority.recorded import Recorder
from tests.support.linearizable import Outcome, digest

WORKSPACE: Final = "demo"
CHAT: Final = "trip"


@dataclass(frozen=True)
class Options:
    """How a worker works."""

    name: str
    url: str
    record: str
    seed: str
    lease_ms: int
    writers: int = 2
    ahead_ms: int = 0
    """How much its clock is ahead."""
    drops: bool = True
    """Whether it lets go of the chat now and then, and with it of the lease."""
    pace_ms: float = 8
    """How long a task waits between two operations, at most."""
    fault: str = ""
    """What of the code is switched off or made to fail: functions of `tests.authority.faults`, separated by commas."""


class Clock:
    """The machine's clock, so many milliseconds ahead."""

    def __init__(self, ahead_ms: int) -> None:
        self.ahead_ms = ahead_ms

    def __call__(self) -> Millis:
        return Millis(clock_ms() + self.ahead_ms)


def word_of(entry: Entry) -> str:
    """What the entry says."""
    return str(orjson.loads(entry.data)["content"])


class Worker:
    """The tasks on one opened chat."""

    def __init__(self, options: Options, recorder: Recorder, clock: Clock) -> None:
        self.clock = clock
        self._options = options
        self._recorder = recorder
        self._stopping = False
        self._busy = 0
        self._idle = trio.Event()
        self._last: int | None = None
        self._followings: set[_Following] = set()
        self._following = trio.Event()

    async def run(self, chat: Chat, until: trio.Event) -> None:
        """Work until told to stop; then follow until all is delivered. `until` ends it at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end, nursery.cancel_scope, until)
            async with trio.open_nursery() as working:
                for number in range(self._options.writers):
                    self._busy += 1
                    working.start_soon(self._write, chat, f"w{number}")
                self._busy += 1
                working.start_soon(self._live, chat)
                working.start_soon(self._tail, chat)
            nursery.cancel_scope.cancel()

    async def _end(self, scope: trio.CancelScope, until: trio.Event) -> None:
        await until.wait()
        scope.cancel()

    async def stop(self) -> None:
        """Return when nothing more is begun, and every subscription is there."""
        self._stopping = True
        await self._idle.wait()
        await self._following.wait()

    def finish(self, last: int) -> None:
        """The log ends at `last`: the subscriptions end there."""
        self._last = last
        for following in self._followings:
            following.end_at(last)

    def _rests(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.set()

    # ---- appending and reading

    async def _write(self, chat: Chat, who: str) -> None:
        choose = random.Random(f"{self._options.seed} {self._options.name} {who}")
        operations = _Operations(self._recorder, f"{self._options.name}.{who}", who, choose, drops=self._options.drops)
        try:
            while not self._stopping:
                await operations.some(chat)
                await trio.sleep(choose.random() * self._options.pace_ms / 1000)  # the workload's pace
        finally:
            self._rests()

    # ---- following

    async def _tail(self, chat: Chat) -> None:
        """One subscription from the beginning, all the time."""
        identity = self._recorder.follow("tail", 0)
        async with chat.follow(Seq(0)) as entries:
            self._recorder.note("entered", id=identity)
            self._following.set()
            await self._take(identity, entries)

    async def _live(self, chat: Chat) -> None:
        """Subscriptions to what is new, one after the other."""
        choose = random.Random(f"{self._options.seed} {self._options.name} live")
        while True:
            identity = self._recorder.follow("live", None)
            with trio.CancelScope() as scope:
                async with chat.follow() as entries:
                    self._recorder.note("entered", id=identity)
                    if self._stopping:
                        self._rests()
                        await self._take(identity, entries)
                        return
                    # Given up in the middle, wherever that is.
                    scope.deadline = trio.current_time() + choose.uniform(0.05, 0.5)
                    await self._take(identity, entries)
            self._recorder.note("followed", id=identity, complete=False)

    async def _take(self, identity: str, entries: AsyncIterator[Entry]) -> None:
        """Record what comes, until the log's end."""
        following = _Following()
        following.end_at(self._last)
        self._followings.add(following)
        try:
            with following.scope:
                async for entry in entries:
                    self._recorder.note("delivered", id=identity, seq=entry.seq, word=word_of(entry))
                    following.has(entry.seq)
            self._recorder.note("followed", id=identity, complete=True)
        finally:
            self._followings.discard(following)


class _Following:
    """How far a subscription is, and where it is to end."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self._seq = 0
        self._last: int | None = None

    def has(self, seq: int) -> None:
        """It has delivered entry `seq`."""
        self._seq = seq
        self._look()

    def end_at(self, last: int | None) -> None:
        """It is at its end when it has delivered that."""
        self._last = last
        self._look()

    def _look(self) -> None:
        if self._last is not None and self._seq >= self._last:
            self.scope.cancel()


class _Operations:
    """What one task does, one operation after the other."""

    def __init__(self, recorder: Recorder, name: str, who: str, choose: random.Random, *, drops: bool) -> None:
        self._recorder = recorder
        self._name = name
        self._who = who
        self._choose = choose
        self._drops = drops
        self._number = 0

    async def some(self, chat: Chat) -> None:
        """One of them, by chance."""
        kinds: list[tuple[int, Callable[[Chat], Any]]] = [
            (40, self.append),
            (14, self.append_expecting),
            (3, self.append_expecting_wrongly),
            (8, self.append_and_give_up),
            (14, self.read_log),
            (8, self.read_state),
            (8, self.read_length),
            (3, self.sync),
            (2 if self._drops else 0, self.drop),
        ]
        weights = [weight for weight, _ in kinds]
        ((_, operation),) = self._choose.choices(kinds, weights)
        try:
            await operation(chat)
        except StoreError as error:
            self._recorder.note("unexpected", error=f"{self._name}: {operation.__name__}: {error!r}")

    def _words(self) -> list[str]:
        self._number += 1
        size = self._choose.choice([1, 1, 1, 2, 3, 20])
        return [f"{self._name}-{self._number}-{part}" for part in range(size)]

    async def append(self, chat: Chat, expected: int | None = None, give_up: float | None = None) -> None:
        words = self._words()
        identity = self._recorder.begin(self._who, words, expected)
        events: list[Any] = [{"role": "user", "content": word} for word in words]
        with trio.CancelScope() as scope:
            if give_up is not None:
                scope.deadline = trio.current_time() + give_up
            try:
                last = await chat.append_events(
                    events, self._name, expected_seq=None if expected is None else Seq(expected)
                )
            except SeqConflict as conflict:
                self._recorder.end(identity, Outcome.REFUSED, current=conflict.current)
            except StaleEpoch:
                self._recorder.end(identity, Outcome.REFUSED, stale=True)
            else:
                self._recorder.end(identity, Outcome.DONE, last=last)
        if scope.cancelled_caught:
            self._recorder.end(identity, Outcome.UNKNOWN)

    async def append_expecting(self, chat: Chat) -> None:
        await self.append(chat, await self.read_length(chat))

    async def append_expecting_wrongly(self, chat: Chat) -> None:
        await self.append(chat, max(0, await self.read_length(chat) - 1))

    async def append_and_give_up(self, chat: Chat) -> None:
        await self.append(chat, give_up=self._choose.choice([0.0, 0.001, 0.01, 0.1]))

    @contextmanager
    def _reading(self) -> Iterator[dict[str, Any]]:
        begun = self._recorder.note("reads")
        answer: dict[str, Any] = {"since": 0, "digest": None}
        yield answer
        self._recorder.note("read", who=f"{self._name}", begun=begun, **answer)

    async def read_length(self, chat: Chat) -> int:
        with self._reading() as answer:
            answer["length"] = (await chat.head()).seq
        return int(answer["length"])

    async def read_log(self, chat: Chat) -> None:
        since = max(0, chat.space.head.seq - self._choose.choice([0, 5, 50, 1 << 40]))
        with self._reading() as answer:
            entries = [entry async for entry in chat.log(Seq(since))]
            answer |= {"since": since, "length": entries[-1].seq if entries else since}
            answer["digest"] = digest(map(word_of, entries))

    async def read_state(self, chat: Chat) -> None:
        with self._reading() as answer:
            state = await chat.whole()
            # From here on nothing is awaited: the state can't move.
            words = [str(message.content) for message in state.messages()]
            answer |= {"length": state.seq, "digest": digest(words)}

    async def sync(self, chat: Chat) -> None:
        await chat.sync()

    async def drop(self, chat: Chat) -> None:
        """From memory: the next use opens it again."""
        await chat.release()


@asynccontextmanager
async def opened(options: Options, clock: Clock) -> AsyncIterator[tuple[Chat, str]]:
    """The chat, and the instance's name."""
    async with open_store(options.url, clock=clock, lease_ms=options.lease_ms) as store:
        chat = await (await store.workspace(WORKSPACE)).chat(CHAT)
        yield chat, store.driver.peers.name


async def commanded(options: Options) -> None:
    """Work as the commands on stdin say."""
    recorder = Recorder(Path(options.record), options.name)
    clock = Clock(options.ahead_ms)
    worker = Worker(options, recorder, clock)
    faults.begin(options.fault)
    gone = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_where)
        nursery.start_soon(_obey, worker, gone)
        async with opened(options, clock) as (chat, holder):
            with faults.watching(await chat.space.log(), recorder):
                say(f"ready {holder}")
                await worker.run(chat, gone)
        say("finished")
        nursery.cancel_scope.cancel()


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def _tell_where() -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            tasks = [trio.lowlevel.current_root_task()]
            while tasks and (task := tasks.pop()):
                places = [f"{Path(f.f_code.co_filename).name}:{line}" for f, line in task.iter_await_frames()]
                os.write(2, f"{task.name}: {' '.join(places)}\n".encode())
                tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            os.write(2, b"that is all\n")


async def _obey(worker: Worker, gone: trio.Event) -> None:
    rest = b""
    commands = trio.lowlevel.FdStream(os.dup(0))
    async for piece in commands:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["stop"]:
                    await worker.stop()
                    say("stopped")
                case ["finish", last]:
                    worker.finish(int(last))
                case ["clock", ahead_ms]:
                    worker.clock.ahead_ms = int(ahead_ms)
                case ["leave"]:
                    gone.set()
    os._exit(3)  # whoever started it is gone


if __name__ == "__main__":
    trio.run(commanded, Options(**orjson.loads(sys.argv[1])))
