"""A day's use in a few minutes, and what is left of it: `python -m tests.attacks.soak [--rounds N]`, see scripts/soak.

One mount stays for the whole time; sandboxes, mounts and commands come and go beside it. After some rounds to warm up,
what the mount's process has (memory, descriptors, threads) and what the machine and the store have (processes, mounts,
files) is written down, and again at the end: the two must be the same, but for the memory, which may have grown a bit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store.library import CHATS_IN_MEMORY
from store.snapshots import KEPT
from tests.support.mounts import Mounted, message
from tests.support.waiting import wait_for

WARM_UP = 0.3
"""Of the rounds: caches fill, the kernel and the allocator take what they will need."""
GROWTH = 0.25
"""Of its memory, how much a mount may have more at the end."""
GROWTH_BYTES = 24 << 20
"""Or so much, where that is more: an allocator's whims."""


@dataclass
class Figures:
    """What there is at one moment."""

    memory: int
    descriptors: int
    threads: int
    processes: int
    mounts: int
    files: int
    drafts: int
    snapshots: int = 0
    """The most that one log has: a log that has grown long has some, and no more however long it gets."""
    chats: int = 0
    """How many have been made so far."""
    names: frozenset[str] = frozenset()
    """Of the files."""

    def rows(self, other: Figures) -> list[tuple[str, int, int, bool]]:
        """Name, here, in the other, and whether that is well."""
        found = []
        for name, before in vars(self).items():
            if name == "names":
                continue
            after = getattr(other, name)
            well = after <= before
            if name == "memory":
                well = after - before <= max(GROWTH_BYTES, before * GROWTH)
            elif name == "descriptors":
                # Chats that were used last stay open, also deleted ones, as many as the library keeps in memory.
                more = min(other.chats, CHATS_IN_MEMORY) - min(self.chats, CHATS_IN_MEMORY)
                well = after <= before + 8 + 5 * more
            elif name == "snapshots":
                well = after <= KEPT
            elif name == "chats":
                well = True
            elif name == "threads":
                well = after <= before + 2  # workers come and go
            found.append((name, before, after, well))
        return found


def measure(mounted: Mounted) -> Figures:
    """Of the mount and its store, at rest."""
    assert mounted.process is not None
    process = Path(f"/proc/{mounted.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    ours = os.fsencode(mounted.root)
    running = 0
    for each in Path("/proc").glob("[0-9]*/environ"):
        try:
            running += ours in each.read_bytes()
        except OSError:
            continue
    files = [path.relative_to(mounted.store) for path in mounted.store.rglob("*") if not path.is_dir()]
    kept = Counter(path.parent for path in files if path.parent.name == "snapshots" and path.suffix == ".json")
    others = [path for path in files if path.parent.name != "snapshots"]
    return Figures(
        memory=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(os.listdir(process / "fd")),
        threads=int(status["Threads"]),
        processes=running,
        mounts=Path("/proc/self/mountinfo").read_text().count(str(mounted.root)),
        files=len(others),
        drafts=len(os.listdir(mounted.store / "drafts")) + len(os.listdir(mounted.store / "instances")),
        snapshots=max(kept.values(), default=0),
        names=frozenset(map(str, others)),
    )


def use(mounted: Mounted, number: int) -> None:
    """One round through the mount: a chat is made, used in all ways, renamed, and thrown away for good."""
    chats = mounted.mountpoint / "demo/chats"
    chat = chats / f"chat-{number}"
    chat.mkdir()
    with (chat / "history.jsonl").open("ab", buffering=0) as log:
        for count in range(20):
            log.write(message(f"message {count} " + "x" * 200))
    text = (chat / "history.md").read_text()
    (chat / "history.md").write_text(text.replace("message 3 ", "edited "))
    (chat / "history.md~").write_text("scratch")
    (chat / "history.md~").unlink()
    (chat / "attachments/a").write_bytes(os.urandom(300_000))
    (chat / "attachments/a").rename(chat / "attachments/b")
    (chat / "attachments/b").read_bytes()
    (chat / "attachments/b").unlink()
    (chat / "chat.json").read_bytes()
    renamed = chat.rename(chats / f"renamed-{number}")
    renamed = renamed.rename(mounted.mountpoint / "demo/archive" / renamed.name)
    renamed = renamed.rename(chats / renamed.name)
    shutil.rmtree(renamed)
    (chats / "stays/history.md").read_bytes()


def come_and_go(mounted: Mounted, *, sandbox: bool) -> None:
    """Other processes: commands, a mount of a part, a sandbox, one that is killed."""
    mounted.cli("append", "demo/stays", "-", given=message("from a command"))
    other = mounted.root / "other"
    other.mkdir(exist_ok=True)
    mounted.cli("mount", other, "--root", "demo/stays")
    (other / "history.jsonl").read_bytes()
    mounted.cli("umount", other)
    if sandbox:
        mounted.cli("sandbox", "run", "demo/stays", "--", "sh", "-c", "cat history.md > /dev/null; echo x > note~")
        words = ["sandbox", "run", "demo/stays", "--", "sh", "-c", "echo ready; sleep 600"]
        killed = subprocess.Popen(
            [sys.executable, "-m", "fusefs", *words],
            stdout=subprocess.PIPE,
            env=mounted.environment(),
            cwd=Path(__file__).parents[2],
        )
        assert killed.stdout is not None
        with killed.stdout:
            assert killed.stdout.readline() == b"ready\n"
            killed.kill()
            killed.wait(30)
        mounted.cli("sandbox", "run", "demo/stays", "--", "rm", "note~")
    mounted.cli("compact", "demo/stays")


def tidy(mounted: Mounted) -> None:
    """What a user does now and then. What gc leaves alone for an hour is made older."""
    old = time.time() - 7200
    for path in (mounted.store / "objects").glob("??/*"):
        os.utime(path, (old, old))
    mounted.cli("gc", "--retention", "0")


def soak(root: Path, rounds: int, *, sandbox: bool, say: Callable[[str], None]) -> tuple[Figures, Figures]:
    """Use a store for so many rounds; what there was after the warm-up, and what there is at the end."""
    with Mounted(root) as mounted:
        (mounted.mountpoint / "demo").mkdir()
        (mounted.mountpoint / "demo/chats/stays").mkdir()
        first = None
        warm = max(2, int(rounds * WARM_UP))
        for number in range(rounds):
            for each in range(4):
                use(mounted, number * 4 + each)
            if number % 2 == 0:
                come_and_go(mounted, sandbox=sandbox)
            if number in {warm - 1, rounds - 1}:
                tidy(mounted)
                last = rest(mounted)
                last.chats = number * 4 + 5
                first = first or last
            say(f"round {number + 1} of {rounds}")
        assert first is not None
        assert mounted.cli("fsck").returncode == 0
        return first, last


def rest(mounted: Mounted) -> Figures:
    """The figures when what was started has ended."""
    found = measure(mounted)

    def is_same() -> bool:
        nonlocal found
        before, found = found, measure(mounted)
        return (before.processes, before.mounts, before.files) == (found.processes, found.mounts, found.files) and (
            found.mounts == 1
        )

    wait_for(is_same, 30, what="rest")
    return found


def table(first: Figures, last: Figures) -> str:
    """For reading."""
    lines = [f"{'':12} {'start':>12} {'end':>12}"]
    lines += [
        f"{name:12} {before:12,} {after:12,}{'' if well else '   MORE'}"
        for name, before, after, well in first.rows(last)
    ]
    more = sorted(last.names - first.names) if last.files > first.files else []
    return "\n".join([*lines, *(f"  new: {name}" for name in more)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--no-sandbox", action="store_true", help="where bubblewrap can't run")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also then no mount is left
    with tempfile.TemporaryDirectory(prefix="chatfs-soak-") as path:
        first, last = soak(
            Path(path).resolve(),
            max(4, asked.rounds),
            sandbox=not asked.no_sandbox,
            say=lambda text: print(  # noqa: T201 - as below
                f"\r{text}", end="", file=sys.stderr, flush=True
            ),
        )
    print(f"\n{table(first, last)}")  # noqa: T201 - its output
    return 0 if all(well for *_, well in first.rows(last)) else 1


if __name__ == "__main__":
    sys.exit(main())
