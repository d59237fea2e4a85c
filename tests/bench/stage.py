"""Where chatfs and its peers stand side by side: the targets, with the same files in each.

All targets have the chats FILES (many small attachments), LARGE (one large attachment) and BIG (a long history.md);
those that pass the native tree through have them from there. chatfs is mounted with relaxed durability throughout. For
one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import corpus
from tests.bench.comparison import FAILURES, Comparison, take_turns_apart
from tests.bench.measure import BenchError, Unit
from tests.bench.peers import Cast, PassThrough, peers
from tests.bench.target import Chatfs, Kind, Native, Target

FILES: Final = "files"
LARGE: Final = "large"
LARGE_NAME: Final = "large.bin"
SMALL: Final = 100
"""Bytes of a small attachment."""
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_MIB: Final = 1 << 20
_FEW: Final = 2
"""Runs, of which the first counts, too."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    files: int
    """Small attachments in one directory."""
    large: int
    """Bytes of the large attachment, in whole MiB."""
    text: int
    """Bytes of the long history.md, roughly."""


class Stage:
    """The targets, and how they take turns."""

    def __init__(self, directory: Path, sizes: Sizes, runs: int, cast: Cast, tell: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.tell = tell
        self._runs = runs
        self._directory = directory
        self._numbers = itertools.count(1)
        shutil.rmtree(directory, ignore_errors=True)  # an attempt that failed
        directory.mkdir()
        self.native = Native(directory / "native")
        self.chatfs = Chatfs(directory / "store", corpus.WORKSPACE, "relaxed")
        self.targets: list[Target] = [self.native, self.chatfs, *peers(self.native, directory, cast, tell)]
        start = time.monotonic()
        self._fill()
        tell(f"filled: {time.monotonic() - start:.1f} s")

    # ---- what is there

    def _fill(self) -> None:
        self.tell(f"filling {self.sizes.files} files, {self.sizes.large // _MIB} MiB and a long history.md")
        corpus.build_chats(self.chatfs.store, self.sizes.text)
        with self.chatfs:
            text = (self.chatfs.chats / corpus.BIG / "history.md").read_bytes()
        for target in list(self.targets):
            if isinstance(target, PassThrough):
                continue
            try:
                with target:
                    target.chats.mkdir(exist_ok=True)
                    if target is not self.chatfs:
                        (target.new_chat(corpus.BIG) / "history.md").write_bytes(text)
                    _fill_chats(target, self.sizes)
            except FAILURES as error:
                if target in {self.native, self.chatfs}:
                    raise
                self._leave_out(target, error)

    def _leave_out(self, target: Target, error: Exception) -> None:
        self.tell(f"{target.name} is left out: {error}")
        self.targets.remove(target)

    def options(self) -> dict[str, str]:
        """How each target is mounted."""
        return {target.name: target.options for target in self.targets}

    # ---- using it

    @contextlib.contextmanager
    def mounted(self, targets: Iterable[Target] | None = None) -> Iterator[list[Target]]:
        """All of them at once, but those that can't be mounted now."""
        with contextlib.ExitStack() as stack:
            there = []
            for target in list(self.targets if targets is None else targets):
                try:
                    there.append(stack.enter_context(target))
                except FAILURES as error:
                    if target.kind is Kind.CHATFS:
                        raise
                    self._leave_out(target, error)
            yield there

    def fresh_chats(self, targets: Iterable[Target]) -> dict[str, Iterator[Path]]:
        """For each target as many empty chats as `compare` takes samples, and all of it done."""
        targets = list(targets)
        chats = {
            target.name: iter([target.new_chat(f"fresh-{next(self._numbers):04d}") for _ in range(self._runs + 1)])
            for target in targets
        }
        for target in targets:
            target.settle()
        return chats

    def sync(self) -> None:
        """Write back what earlier samples left to be written."""
        subprocess.run(["sync", "--file-system", str(self._directory)], check=True)

    def compare(
        self,
        key: str,
        detail: str,
        unit: Unit,
        targets: Sequence[Target],
        sample: Callable[[Target], float],
        *,
        warm_up: bool = True,
    ) -> Comparison:
        """The same on all of the targets, in turns."""

        def bound(target: Target) -> Callable[[], float]:
            return lambda: sample(target)

        subjects = {target.name: bound(target) for target in targets}
        series, failures = take_turns_apart(self._runs, subjects, warm_up=warm_up and self._runs > _FEW)
        for name, reason in failures.items():
            self.tell(f"{name} failed at {key}: {reason}")
        kinds = {target.name: target.kind for target in targets}
        return Comparison(key, detail, unit, series, kinds, failures)

    def compare_cold(
        self, key: str, detail: str, unit: Unit, sample: Callable[[Target], float], targets: Sequence[Target] = ()
    ) -> Comparison:
        """As `compare`, each time in a mount of its own, in which nothing has been looked up or read yet.

        What is stored below is in the page cache. The native file system can't be mounted again: its figure is that of
        its caches, a floor.
        """

        def cold(target: Target) -> float:
            target.warm_below()
            with target:
                return sample(target)

        return self.compare(key, detail, unit, targets or self.targets, cold, warm_up=False)


def _fill_chats(target: Target, sizes: Sizes) -> None:
    files = target.new_chat(FILES) / "attachments"
    for number in range(sizes.files):
        (files / f"{number:06d}.bin").write_bytes(os.urandom(SMALL))
    with (target.new_chat(LARGE) / "attachments" / LARGE_NAME).open("wb", buffering=0) as large:
        for _ in range(sizes.large // _MIB):
            large.write(os.urandom(_MIB))
    if large.closed and (found := (target.chats / LARGE / "attachments" / LARGE_NAME).stat().st_size) != sizes.large:
        raise BenchError(f"{target.name} kept {found} bytes of {sizes.large}")
