"""What a daemon keeps of names that were listed once, and that the kernel has forgotten since."""

from __future__ import annotations

import os

from tests.bench.bench import Bench
from tests.bench.client import run
from tests.bench.comparison import FAILURES, Comparison
from tests.bench.corpus import WORKSPACE, chat_name
from tests.bench.daemons import resident
from tests.bench.measure import Series, Unit
from tests.bench.peers import PassThrough, peers
from tests.bench.stage import DROP_CACHES
from tests.bench.target import Chatfs, Kind, Mounted, Native

_RUNS = 2
"""It hardly varies."""


def forgetting(bench: Bench) -> list[Comparison]:
    """ls -l of very many directories, then the kernel's caches dropped: the daemon's memory, over that before."""
    if not os.access(DROP_CACHES, os.W_OK):
        bench.tell("memory after listing is left out: only root can make the kernel forget")
        return []
    native = Native(bench.directory / "native-huge")
    bench.tell(f"making {bench.huge} native directories")
    for number in range(bench.huge):
        (native.chats / chat_name(number)).mkdir()
    targets: list[Mounted] = [
        Chatfs(bench.huge_store, WORKSPACE, "relaxed"),
        # pyfuse3's example lists in quadratic time, and an encrypted tree takes too long to make.
        *(
            peer
            for peer in peers(native, bench.directory, bench.cast, lambda _: None)
            if isinstance(peer, PassThrough) and peer.kind is not Kind.EXAMPLE
        ),
    ]
    found = []
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    listed: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for _ in range(min(_RUNS, bench.runs)):
        for target in targets:
            if target.name in failures:
                continue
            try:
                sizes = _sizes(target, bench.huge)
            except FAILURES as error:
                failures[target.name] = f"{type(error).__name__}: {error}"
                continue
            for where, size in zip((before, listed, after), sizes, strict=True):
                where.setdefault(target.name, []).append(size)
    kinds = {target.name: target.kind for target in targets}
    detail = f"{bench.huge:,} directories"
    shares = {
        name: Series(name, tuple(now / then for now, then in zip(after[name], before[name], strict=True)))
        for name in after
    }
    found.append(Comparison("memory after listing", f"of that before, {detail}", Unit.COUNT, shares, kinds, failures))
    for key, taken in (("memory, mounted", before), ("memory, listed", listed), ("memory, forgotten", after)):
        series = {name: Series(name, tuple(sizes)) for name, sizes in taken.items()}
        found.append(Comparison(key, detail, Unit.BYTES, series, kinds))
    return found


def _sizes(target: Mounted, count: int) -> tuple[float, float, float]:
    """The daemon's resident bytes: mounted, everything listed, everything forgotten."""
    with target:
        os.stat(target.chats)
        target.settle()
        before = resident(target.daemon)
        run(target, "ls", target.chats, count)
        target.settle()
        listed = resident(target.daemon)
        os.sync()  # what is dirty isn't dropped
        DROP_CACHES.write_text("2\n")
        target.settle()
        return before, listed, resident(target.daemon)
