"""Where a fold begins: at the latest snapshot that fits its log, at the base of a compacted log, or at nothing.

A compacted log begins behind an entry B > 0. The state at B is a blob, which the event `log.compacted` with
`"through": B` names: written by `store.compaction`, whose actor nobody gets through a mount.

Concurrency: on the trio loop; reads a few small files inline.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Final, Generic

import orjson
import trio

from store.driver import AppendLog, Driver
from store.errors import CorruptBlob, CorruptLog, CorruptSnapshot, NotFound, Truncated
from store.events import LOG_LOST, REPAIRER
from store.folded import S
from store.model import Digest, Entry, Seq
from store.snapshots import FileSource, Kind, Snapshots, unpack

log = logging.getLogger("chatfs")

COMPACTOR: Final = "chatfs/compact"
"""The actor of `log.compacted`."""
COMPACTED: Final = "log.compacted"


@dataclass(frozen=True, slots=True)
class Beginning(Generic[S]):
    """A state to go on from, as of `seq`; `source` is what it still reads from, `log_size` how long the log was.

    `damage`: the log was compacted, and what stood before its first entry can't be read.
    """

    state: S
    seq: Seq
    source: FileSource | None = None
    log_size: int = 0
    damage: CorruptLog | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """What the event of a compaction says."""

    through: Seq
    digest: Digest


def base_of(entry: Entry) -> Base | None:
    """The base that an entry names, if it is a compaction's."""
    if entry.actor != COMPACTOR or entry.origin is not None or COMPACTED.encode() not in entry.data:
        return None
    value = orjson.loads(entry.data)
    if not isinstance(value, dict) or value.get("type") != COMPACTED:
        return None
    through, digest = value.get("through"), value.get("state")
    return Base(Seq(through), Digest(digest)) if type(through) is int and isinstance(digest, str) else None


async def find_base(opened: AppendLog) -> Base | None:
    """The base of a log that doesn't begin with entry 1; None where none was ever named.

    Raises CorruptLog where the entry that names it may have been lost.
    """
    through = opened.head.first_seq - 1
    if through <= 0:
        return None
    lost = False
    try:
        async for entry in opened.read():
            found = base_of(entry)
            if found is not None and found.through == through:
                return found
            lost = lost or (entry.actor == REPAIRER and LOG_LOST.encode() in entry.data)
    except CorruptLog as damage:
        # It may stand behind the damage.
        with contextlib.suppress(CorruptLog):
            async for entry in opened.read(reverse=True):
                found = base_of(entry)
                if found is not None and found.through == through:
                    return found
        raise _unreadable(opened, str(damage)) from damage
    if lost:
        raise _unreadable(opened, "the entry that says where it is was damaged")
    return None


def _unreadable(opened: AppendLog, why: str) -> CorruptLog:
    first = opened.head.first_seq
    return CorruptLog(
        f"was compacted, and what stood before entry {first} can't be read ({why}): run chatfs fsck --repair, "
        "or restore objects/ from a backup",
        seq=first - 1,
        offset=0,
    )


async def read_base(driver: Driver, kind: Kind[S], base: Base) -> tuple[S, dict[str, Any]]:
    """The state at a base, and the JSON line that it was packed with. Raises NotFound, CorruptBlob, CorruptSnapshot."""
    data = b"".join([piece async for piece in driver.blobs.get(base.digest)])
    state, head = unpack(kind, data, f"the compacted state {base.digest}")
    if head["seq"] != base.through:
        raise CorruptSnapshot(f"the compacted state {base.digest} is of entry {head['seq']}, not {base.through}")
    return state, head


async def begin(
    driver: Driver, opened: AppendLog, kind: Kind[S], snapshots: Snapshots[S], *, until: Seq | None = None
) -> Beginning[S]:
    """The latest state that there is at or before `until` (None: the log's head)."""
    head = opened.head
    limit = head.seq if until is None else until
    for seq in snapshots.seqs():
        if not head.first_seq - 1 <= seq <= limit:
            continue
        try:
            found = snapshots.find(seq)
            if await fits(opened, seq, found.crc):
                source = found.open()
                state = kind.load(found.head["state"], source)
                return Beginning(state, seq, source, int(found.head.get("log_size", 0)))
        except CorruptSnapshot as damage:
            log.warning("%s: the chat is read from its log instead", damage)
        snapshots.distrust(seq)
    try:
        base = await find_base(opened)
        if base is None:
            return Beginning(kind.make(), Seq(0))
        state, _ = await read_base(driver, kind, base)
        await trio.to_thread.run_sync(kind.complete, state)
    except CorruptLog as damage:
        return Beginning(kind.make(), Seq(0), damage=damage)
    except (NotFound, CorruptBlob, CorruptSnapshot) as error:
        return Beginning(kind.make(), Seq(0), damage=_unreadable(opened, str(error)))
    return Beginning(state, base.through)


async def state_at(driver: Driver, opened: AppendLog, kind: Kind[S], snapshots: Snapshots[S], seq: Seq) -> S:
    """A state of its own, as it was at `seq`, whole: see `Space.state_at`. Raises Truncated."""
    first = opened.head.first_seq
    if seq < first - 1:
        raise Truncated(f"entries of {opened.space} before {first} were compacted away", first_seq=first)
    while True:
        begun = await begin(driver, opened, kind, snapshots, until=seq)
        state = begun.state
        try:
            async for entry in opened.read(state.seq, max(0, seq - max(state.seq, first - 1))):
                state.apply(entry)
            kind.complete(state)
        except CorruptSnapshot as damage:
            assert begun.source is not None, "only a snapshot is read lazily"
            log.warning("%s: the chat is read from its log instead", damage)
            snapshots.distrust(begun.seq)
            continue
        finally:
            if begun.source is not None:
                begun.source.close()
        return state


async def fits(opened: AppendLog, seq: Seq, crc: int) -> bool:
    """Whether the log has the entry that the snapshot was taken behind."""
    head = opened.head
    if seq > head.seq:
        return False
    if seq == head.seq:
        return crc == head.crc
    if seq < head.first_seq:
        # That entry was compacted away: its seq is never used again.
        return True
    try:
        async for entry in opened.read(Seq(seq - 1), 1):
            return entry.crc == crc
    except (CorruptLog, Truncated):
        pass
    return False
