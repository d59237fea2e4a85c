"""One run's settings, stores and targets, for the workloads.

For one thread. Stores are built when a workload first asks for them, under the run's temporary directory.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

from tests.bench import corpus
from tests.bench.measure import Goal, Measure, Unit, take_turns
from tests.bench.peers import Cast
from tests.bench.stage import Sizes, Stage
from tests.bench.target import Chatfs, Native, Target

QUICK: Final = 10
"""What a quick run divides sizes and counts by."""
SMOKE: Final = 200
"""What a smoke test divides them by."""
MIB: Final = 1 << 20
_EVERYBODY: Final = Cast()
TOLD: Final = 100
"""How many of the many chats have messages."""


class Bench:
    """What a workload gets."""

    def __init__(self, directory: Path, *, runs: int, divisor: int = 1, cast: Cast = _EVERYBODY) -> None:
        self.runs = runs
        self.directory = directory
        self.divisor = divisor
        self.cast = cast
        self.text_size = self.scaled(50_000_000)
        self.many = self.scaled(10_000)
        self.huge = self.scaled(20_000 if divisor > 1 else 100_000)

    def scaled(self, size: int) -> int:
        """`size`, or less of it in a quick run."""
        return size // self.divisor

    @staticmethod
    def tell(what: str) -> None:
        """Progress, on stderr."""
        sys.stderr.write(f"==> {what}\n")

    # ---- stores

    @cached_property
    def chats_store(self) -> Path:
        """A store with an empty chat and one of `text_size` bytes."""
        self.tell(f"building a chat of {self.text_size // 1_000_000} MB")
        store = self.directory / "chats"
        corpus.build_chats(store, self.text_size)
        return store

    @cached_property
    def many_store(self) -> Path:
        """A store with `many` chats, of which TOLD have messages."""
        self.tell(f"building a store of {self.many} chats")
        store = self.directory / "many"
        corpus.build_many(store, self.many, min(TOLD, self.many))
        return store

    @cached_property
    def huge_store(self) -> Path:
        """A store with `huge` chats of a few messages each."""
        self.tell(f"building a store of {self.huge} chats with {corpus.MESSAGES} messages each")
        store = self.directory / "huge"
        corpus.build_searched(store, self.huge)
        return store

    @cached_property
    def stage(self) -> Stage:
        """chatfs and its peers, with the same files in each."""
        sizes = Sizes(self.scaled(10_000), max(1, self.scaled(256)) * MIB, self.text_size)
        return Stage(self.directory / "stage", sizes, self.runs, self.cast, self.tell)

    @property
    def staged(self) -> bool:
        """Whether a workload asked for the stage."""
        return "stage" in vars(self)

    @cached_property
    def native(self) -> Native:
        """The tree that everything is compared with."""
        return Native(self.directory / "native")

    # ---- targets

    def mounted(self, store: Path, durability: str = "strict") -> Chatfs:
        """A mount of the store; enter it."""
        return Chatfs(store, corpus.WORKSPACE, durability)

    @contextlib.contextmanager
    def targets(self, durability: str = "strict") -> Iterator[list[Target]]:
        """Mounts that show the same chats, BIG among them; the native file system comes first."""
        with self.mounted(self.chats_store, durability) as chatfs:
            big = self.native.chats / corpus.BIG
            if not big.exists():
                self.native.new_chat(corpus.BIG)
                for name in ("history.md", "history.jsonl"):
                    (big / name).write_bytes((chatfs.chats / corpus.BIG / name).read_bytes())
            yield [self.native, chatfs]

    def compare(
        self,
        targets: Iterable[Target],
        name: str,
        unit: Unit,
        sample: Callable[[Target], float],
        goal: Goal | None = None,
    ) -> list[Measure]:
        """The same on all targets, in turns: one measure for each beside the first."""

        def bound(target: Target) -> Callable[[], float]:
            return lambda: sample(target)

        native, *others = take_turns(self.runs, {target.name: bound(target) for target in targets}).values()
        return [Measure(name, unit, other, native, goal) for other in others]
