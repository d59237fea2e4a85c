"""The lease protocol of `file:` in every order: the driver's own code, one system call at a time (`interleaving`).

Grants expire at once, so that nothing hangs on clocks: whoever asks for the lease gets it. After each run one more
process comes and reads the log. Whatever happened before: seqs are gapless and the chain of crcs is whole; epochs never
run backwards; every entry that was acknowledged is there once, one that was refused isn't, one whose process was killed
or stopped is there at most once, and each process's are in its order.

The protocol is broken on purpose in several ways, too: each has to be found.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import trio

from store import durability
from store.driver import Clock, Grant
from store.drivers.file import fence, lease, log, takeover
from store.drivers.file.lease import FileLease
from store.drivers.file.log import FileLog
from store.drivers.file.stable import Pace
from store.drivers.file.text import LOG_NAME, Text
from store.drivers.signal import Signal
from store.errors import BackendError, LeaseHeld, NotHolder, StaleEpoch
from store.model import Epoch, Millis, NewEntry, SpaceId
from tests.support.exploring import KILL, Bounds, Explored, Scenario, explore
from tests.support.interleaving import World, world
from tests.support.torture import LONG, rounds

SPACE = SpaceId("space")
HOLD, RENEW, RELEASE, LEFT = "hold", "renew", "release", "left"
Program = Sequence[str]
"""What a process does, one after the other: HOLD (get the lease, with a higher epoch), RENEW, RELEASE, LEFT (hold it,
and then another one is killed between making the next grant and removing its temporary name); any other word is an
entry that it appends under the epoch that it got last."""


class Around:
    """See `store.drivers.file.locked.Surroundings`."""

    def __init__(self, root: Path, limiter: trio.CapacityLimiter) -> None:
        self.root = root
        self.limiter = limiter
        self.pace = Pace()
        self.read_only = False
        self.clock: Clock = lambda: Millis(1000)

    def signal(self, _space: SpaceId) -> Signal:
        return Signal()

    def follow(self, _space: SpaceId) -> Callable[[], None]:
        return lambda: None


class Holder:
    """What a process has open, and what it was told."""

    def __init__(self, root: Path, number: int) -> None:
        self.name = f"h{number}"
        self.root = root
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.tried: list[str] = []
        self.granted: list[tuple[Epoch, int]] = []
        """Each epoch, and which entry was the last one when it was granted."""
        self.grant: Grant | None = None
        self.gave_up = False

    async def open(self) -> None:
        limiter = trio.CapacityLimiter(1)
        self.log = FileLog(Around(self.root, limiter), SPACE)
        await self.log.open()
        self.lease = FileLease(lambda _space: self.root / SPACE, lambda: Millis(1000), limiter)

    async def do(self, program: Program) -> None:
        for word in program:
            try:
                await self._do(word)
            except (LeaseHeld, NotHolder):
                self.grant = None
            except BackendError:
                # Somebody else kept a lock for too long: nobody knows what has become of the entry.
                self.gave_up = True
                return

    async def _do(self, word: str) -> None:
        if word == LEFT:
            await self._do(HOLD)
            path = self.root / SPACE / fence.name_of(2)
            path.write_bytes(b'{"holder":"dead","epoch":2,"expires":0}\n')
            os.link(path, durability.temporary(path))
        elif word == HOLD:
            self.grant = None
            self.grant = await self.lease.acquire(SPACE, self.name, 0)
            written = (self.root / SPACE / LOG_NAME).read_bytes().count(b"\n")
            self.granted.append((self.grant.epoch, written))
        elif self.grant is None:
            return
        elif word == RENEW:
            self.grant = await self.lease.renew(self.grant, 0)
        elif word == RELEASE:
            grant, self.grant = self.grant, None
            await self.lease.release(grant)
        else:
            await self._append(word, self.grant.epoch)

    async def _append(self, word: str, epoch: Epoch) -> None:
        batch = [NewEntry(orjson.dumps([self.name, word, epoch]), "uid:0/model")]
        self.tried.append(word)
        try:
            if self.log.append_now(batch, epoch=epoch) is None:
                await self.log.append(batch, epoch=epoch)
        except StaleEpoch:
            self.refused.append(word)
            self.grant = None
        else:
            self.acknowledged.append(word)

    async def close(self) -> None:
        await self.log.aclose()


@dataclass
class Holders(Scenario):
    """Processes that get the lease from each other and append."""

    works: Sequence[Program]
    before: Program = ()
    """What the first has done before the run."""
    old_format: bool = False
    short: bool = False
    """Whether a write takes only half of what it is given at first."""
    found: list[Holder] = field(default_factory=list)
    given_up: int = 0
    """In how many runs somebody waited in vain."""

    def set_up(self, world: World) -> None:
        directory = world.root / SPACE
        directory.mkdir()
        (directory / LOG_NAME).touch(0o600)
        if self.old_format:
            (directory / fence.OLD_NAME).write_bytes(b'{"holder":"h0","epoch":3,"expires":0}\n')
        self.found = [Holder(world.root, number) for number in range(len(self.works))]
        for process, holder in zip(world.processes, self.found, strict=True):
            process.finish(holder.open)
        world.processes[0].finish(lambda: self.found[0].do(self.before))
        world.watched = directory
        world.short = self.short

    def programs(self) -> list[Callable[[], Awaitable[None]]]:
        return [functools.partial(holder.do, work) for holder, work in zip(self.found, self.works, strict=True)]

    def check(self, world: World) -> None:
        stopped = [process for process in world.processes if process.running]
        try:
            world.last.finish(lambda: self._check(world.root))
        except BackendError:
            # One that was stopped in the middle of a takeover has the maintenance lock. The error says: end it.
            assert stopped
            for process in stopped:
                process.end()
            world.last.finish(lambda: self._check(world.root))

    async def _check(self, root: Path) -> None:
        last = Holder(root, 9)
        await last.open()
        await last.do([HOLD, "last"])
        try:
            found = [(entry.seq, *orjson.loads(entry.data)) async for entry in last.log.read()]
        finally:
            await last.close()
        assert [seq for seq, *_ in found] == list(range(1, len(found) + 1))
        epochs = [epoch for *_, epoch in found]
        assert epochs == sorted(epochs), f"epochs run backwards: {found}"
        self.given_up += any(holder.gave_up for holder in self.found)
        for holder in [*self.found, last]:
            for epoch, written in holder.granted:
                late = [entry for entry in found[written:] if entry[3] < epoch]
                assert not late, f"appended after epoch {epoch} was granted: {late}"
            own = [word for _, name, word, _ in found if name == holder.name]
            assert len(own) == len(set(own)), f"twice: {found}"
            assert [word for word in holder.tried if word in own] == own, f"not in order: {found}"
            assert set(holder.acknowledged) <= set(own), f"acknowledged and lost: {holder.acknowledged}, {found}"
            assert not set(holder.refused) & set(own), f"refused and there: {holder.refused}, {found}"

    def tear_down(self, world: World) -> None:
        for process, holder in zip(world.processes, self.found, strict=True):
            process.finish(holder.close)


def explored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Holders, bounds: Bounds) -> Explored:
    with world(tmp_path / "store", len(scenario.works), monkeypatch) as made:
        return explore(scenario, made, bounds)


HELD = (HOLD, "first")
KILLED = Bounds((1,), (KILL,), 2)
TAKEN: list[Program] = [["a"], [HOLD, "c"]]
"""The first, which holds the lease, appends; the second takes it."""


@dataclass(frozen=True)
class Case:
    """What is explored, and how far."""

    works: Sequence[Program]
    bounds: Bounds
    before: Program = HELD
    old_format: bool = False
    short: bool = False

    def holders(self) -> Holders:
        return Holders(self.works, self.before, self.old_format, self.short)


ANYBODY = (0, 1)


def bounds(victims: tuple[int, ...] = (), *, quick: int = 10_000) -> Bounds:
    """All orders with one interruption, or `quick` of them; very many with three in the long form."""
    return Bounds(victims, switches=3 if LONG else 1, runs=rounds(quick, 10_000))


CASES = {
    "the lease is taken from a holder": Case([["a", "b"], [HOLD, "c"]], bounds()),
    "the lease is taken from a holder in the middle of a write": Case(TAKEN, bounds(), short=True),
    "one is killed or stopped for ever": Case(TAKEN, bounds(ANYBODY, quick=150)),
    "one is killed or stopped in the middle of a write": Case(TAKEN, bounds((0,), quick=100), short=True),
    "a race for a free lease": Case([[HOLD, "a"], [HOLD, "b"]], bounds(), before=()),
    "a race in which one is killed": Case([[HOLD, "a"], [HOLD, "b"]], bounds(ANYBODY, quick=100), before=()),
    "a lease of an older version": Case([[HOLD, "a"], [HOLD, "b"]], bounds(), before=(), old_format=True),
    "a holder renews while it is replaced": Case([[RENEW, "a"], [HOLD, "c"]], bounds()),
    "a holder releases and comes back": Case([[RELEASE, HOLD, "a"], [HOLD, "c"]], bounds()),
    "three want it": Case([["a"], [HOLD, "c"], [HOLD, "d"]], bounds(quick=60)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(3600 if LONG else 60)
def test_no_order_forks_a_log(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    holders = case.holders()
    done = explored(tmp_path, monkeypatch, holders, case.bounds)
    print(f"{name}: {done}, {holders.given_up} waited in vain")  # noqa: T201 - pytest shows it with a failure
    assert done.runs > min(30, case.bounds.runs - 1)  # else nothing was interleaved


# ---- the protocol, broken on purpose


def no_look_behind_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overtaken owner believes that its write counts."""
    monkeypatch.setattr(log, "is_left", lambda _fd, _path: False)


def no_lock_when_installing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant counts while an append of a lower epoch goes on."""

    async def hold(*_: object, **__: object) -> int:
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(lease, "takeover", SimpleNamespace(hold=hold))


def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower grants stay, so an old holder doesn't learn of the new one."""
    monkeypatch.setattr(lease, "_remove", lambda _directory, _name: None)


def no_compare_and_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who make the grant of one epoch, both believe to have it."""
    monkeypatch.setattr(type(durability.system), "link", lambda self, label, old, new: self.rename(label, old, new))


def a_file_with_two_names_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant's file that has a temporary name, too, doesn't show that it was surpassed."""

    def current(record: fence.EpochRecord) -> Epoch:
        if record._fd >= 0 and os.fstat(record._fd).st_nlink:
            return record._epoch
        record.close()
        found = fence._open(record._space, record._directory)
        if found is None:
            return Epoch(0)
        record._epoch, record._fd = found[0].epoch, found[1]
        return record._epoch

    monkeypatch.setattr(fence.EpochRecord, "current", current)
    monkeypatch.setattr(fence, "temporaries", lambda _directory, _epoch: [])


def a_grant_is_removed_on_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is forgotten, and given again."""
    monkeypatch.setattr(
        lease, "_write_over", lambda directory, grant: lease._remove(directory, fence.name_of(grant.epoch))
    )


def no_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the old owner writes after it was read for the last time looks like written in time."""
    monkeypatch.setattr(type(durability.system), "fchmod", lambda *_: None)
    monkeypatch.setattr(takeover, "_check_seals", lambda _fd: None)


def sealed_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old inode is read for the last time before it is sealed."""
    copy, seal = takeover._copy, type(durability.system).fchmod
    late: list[int] = []

    def fchmod(_system: object, _label: str, fd: int, mode: int) -> None:
        late[:] = [fd, mode]

    def copied(source: int, target: int, begin: int, end: int | None = None) -> None:
        copy(source, target, begin, end)
        if end is None:
            seal(durability.system, "log.take", *late)

    monkeypatch.setattr(type(durability.system), "fchmod", fchmod)
    monkeypatch.setattr(takeover, "_check_seals", lambda _fd: None)
    monkeypatch.setattr(takeover, "_copy", copied)
    monkeypatch.setattr(takeover, "_SETTLING", 1)  # else it would be read once more


def nothing_is_read_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended while the log was copied is dropped."""
    copy = takeover._copy
    monkeypatch.setattr(
        takeover, "_copy", lambda a, b, begin, end=None: None if end is None else copy(a, b, begin, end)
    )


def an_interrupted_takeover_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes after a crash in the middle of a takeover appends to the copy as it is."""
    monkeypatch.setattr(takeover, "_finish", lambda *_: True)


def the_lock_of_another_inode_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was stopped between locking an inode and opening it appends to the one that has taken its place."""
    attach = Text.attach
    monkeypatch.setattr(Text, "attach", lambda text, _locked=-1: attach(text))


def an_installer_whose_lock_was_broken_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It removes lower grants while somebody who has the new lock has just looked at one."""
    monkeypatch.setattr(lease, "is_left", lambda _fd, _path: False)


def a_found_entry_is_appended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overtaken owner doesn't look whether the new log has its entry."""

    def overtaken(_log: FileLog, _head: object) -> None:
        raise takeover.Overtaken

    monkeypatch.setattr(FileLog, "_find_again", overtaken)


@pytest.mark.parametrize(
    ("broken", "works", "bounds", "before"),
    [
        (no_look_behind_the_write, TAKEN, Bounds(switches=2), HELD),
        (no_lock_when_installing, TAKEN, Bounds(switches=2), HELD),
        (nothing_installed, TAKEN, Bounds(switches=1), HELD),
        (no_compare_and_set, [[HOLD, "a"], [HOLD, "b"]], Bounds(switches=2), ()),
        (a_file_with_two_names_is_remembered, [["a", HOLD, "b", "c"], [HOLD, "d"]], Bounds(switches=2), [LEFT]),
        (a_grant_is_removed_on_release, [["a"], [HOLD, "c", RELEASE]], Bounds(switches=1), HELD),
        (no_seal, TAKEN, Bounds(switches=2), HELD),
        (sealed_too_late, TAKEN, Bounds(switches=2), HELD),
        (nothing_is_read_at_last, TAKEN, Bounds(switches=2), HELD),
        (an_interrupted_takeover_stays_so, [["a"], [HOLD]], KILLED, HELD),
        (the_lock_of_another_inode_will_do, [["a", "b"], [HOLD, "c"]], Bounds(switches=3), HELD),
        (an_installer_whose_lock_was_broken_goes_on, [["a"], [HOLD]], Bounds(switches=2), HELD),
        (a_found_entry_is_appended_again, TAKEN, Bounds(switches=2), HELD),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_what_breaks_the_protocol_is_found(
    broken: Callable[[pytest.MonkeyPatch], None],
    works: Sequence[Program],
    bounds: Bounds,
    before: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holders = Holders(works, before)
    with world(tmp_path / "store", len(works), monkeypatch) as made:
        broken(monkeypatch)
        with pytest.raises(AssertionError, match="; after go "):
            explore(holders, made, bounds)
