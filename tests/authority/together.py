"""Workers in one process, each with a store of its own opened on the same chat: as in `harness`, without the kills."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from store.library import Store, open_store
from tests.authority import faults
from tests.authority.harness import LAST, PATIENCE, make, read_all, the_chat, what_is_wrong
from tests.authority.recorded import ACKNOWLEDGED, Recorder, count_of, gather
from tests.authority.worker import Clock, Options, Worker, opened


class Instance:
    """A worker, and what ends it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.clock = Clock(options.ahead_ms)
        self.recorder = Recorder(Path(options.record), options.name)
        self.worker = Worker(options, self.recorder, self.clock)
        self.leave = trio.Event()
        self.left = trio.Event()

    async def run(self) -> None:
        try:
            async with opened(self.options, self.clock) as (chat, _holder):
                await self.worker.run(chat, self.leave)
        finally:
            self.recorder.close()
            self.left.set()

    def acknowledged(self) -> int:
        """How many of its appends have been."""
        return count_of(ACKNOWLEDGED, Path(self.options.record))


class Together:
    """All of a run. Made by `together`."""

    def __init__(self, root: Path, store: Store, url: str, seed: str, lease_ms: int, nursery: trio.Nursery) -> None:
        self.living: list[Instance] = []
        self._root = root
        self._store = store
        self._url = url
        self._seed = seed
        self._lease_ms = lease_ms
        self._nursery = nursery
        self._records: list[Path] = []

    def start(self, *, ahead_ms: int = 0, drops: bool = True) -> Instance:
        """One more."""
        name = f"p{len(self._records)}"
        self._records.append(self._root / f"{name}.jsonl")
        record = str(self._records[-1])
        options = Options(name, self._url, record, self._seed, self._lease_ms, ahead_ms=ahead_ms, drops=drops)
        instance = Instance(options)
        self.living.append(instance)
        self._nursery.start_soon(instance.run)
        return instance

    async def leave(self, instance: Instance) -> None:
        """It ends properly, in the middle of its work."""
        self.living.remove(instance)
        instance.leave.set()
        await instance.left.wait()

    async def go(self, most: int = 5) -> None:
        """Wait until everybody has had appends acknowledged."""
        with trio.fail_after(PATIENCE):
            for instance in self.living:
                before = instance.acknowledged()
                while instance.acknowledged() < before + most:  # noqa: ASYNC110 - a file tells
                    await trio.sleep(0.01)  # the poll's interval; the condition decides

    async def finish(self) -> list[str]:
        """Everybody stops, hears of all entries, and ends; what is wrong."""
        with trio.fail_after(PATIENCE):
            for instance in self.living:
                await instance.worker.stop()
            last = await (await the_chat(self._store)).append_events([{"role": "user", "content": LAST}], "test")
            for instance in self.living:
                instance.worker.finish(last)
            for instance in self.living:
                await instance.left.wait()
        return what_is_wrong(await read_all(self._store), gather(self._records))


@asynccontextmanager
async def together(root: Path, url: str, seed: str, *, lease_ms: int = 500) -> AsyncIterator[Together]:
    """A store that stays open, and room for workers."""
    root.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - one call
    recorder = Recorder(root / "epochs.jsonl", "epochs")
    async with open_store(url, lease_ms=lease_ms) as store:
        await make(store)
        log = await (await the_chat(store)).space.log()
        with faults.watching(log, recorder):
            async with trio.open_nursery() as nursery:
                made = Together(root, store, url, seed, lease_ms, nursery)
                made._records.append(root / "epochs.jsonl")
                yield made
                nursery.cancel_scope.cancel()
    recorder.close()
