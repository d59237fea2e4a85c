"""What is read of a space that is moved: its entries in whole batches, its fold, and how far another store has it.

Concurrency: trio. A log that is moved isn't looked at anew meanwhile, so that its head stays what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import orjson
import trio

from store.beginning import find_base, read_base
from store.driver import AppendLog, Driver
from store.errors import CorruptBlob, CorruptLog, CorruptSnapshot, Diverged, NotFound, SpaceNotFound
from store.folded import replay
from store.kinds import CHAT, WORKSPACE
from store.model import Entry, Seq, SpaceId
from store.snapshots import Kind
from store.workspace_state import WorkspaceState

FOLD_MAX: Final = 32 * 1024 * 1024
"""Bytes of a log whose fold is held in memory to be compared; of a longer one the text is."""
_PIECE: Final = 1024 * 1024


def kind_of(space: SpaceId) -> Kind[Any]:
    """What the space's log folds into."""
    return CHAT if "/chats/" in space else WORKSPACE


async def batches(log: AppendLog, since: Seq = Seq(0)) -> AsyncGenerator[list[Entry], None]:
    """The entries behind `since`, some whole batches at a time. Raises CorruptLog, Truncated."""
    held: list[Entry] = []
    async with aclosing(log.read_batches(since)) as pieces:
        async for piece in pieces:
            held += piece
            whole = len(held)
            while whole and held[whole - 1].more:
                whole -= 1
            if whole:
                yield held[:whole]
                del held[:whole]


async def fold(driver: Driver, log: AppendLog, kind: Kind[Any]) -> Any:
    """The state at the log's head, folded from its beginning, whatever snapshots say. Raises CorruptLog."""
    state = await _beginning(driver, log, kind)
    await replay(log, state)
    return state


async def _beginning(driver: Driver, log: AppendLog, kind: Kind[Any]) -> Any:
    """The state that the log begins at."""
    base = await find_base(log)
    if base is None:
        return kind.make()
    try:
        state, _ = await read_base(driver, kind, base)
        await trio.to_thread.run_sync(kind.complete, state)
    except (NotFound, CorruptBlob, CorruptSnapshot) as error:
        raise CorruptLog(
            f"was compacted, and what stood before entry {base.through + 1} can't be read ({error}): run chatfs fsck "
            "--repair, or restore objects/ from a backup",
            seq=base.through,
            offset=0,
            log=log.space,
        ) from error
    return state


async def check(driver: Driver, log: AppendLog, *, fold_max: int = FOLD_MAX) -> str:
    """Read all of the log: the digest of its fold, "" where it is too long for that. Raises CorruptLog."""
    if log.head.size > fold_max:
        await _beginning(driver, log, kind_of(log.space))
        async with aclosing(log.read_batches()) as pieces:
            async for _ in pieces:
                pass
        return ""
    kind = kind_of(log.space)
    state = await fold(driver, log, kind)
    return await trio.to_thread.run_sync(state_digest, kind, state)


def state_digest(kind: Kind[Any], state: Any) -> str:
    """SHA-256 of all that a snapshot of the state would say: its JSON, its older items, its rendered text.

    Of logs that begin at different entries, these differ: a compaction forgets what nobody can get at any more.
    """
    dump = kind.dump(state)
    found = hashlib.sha256(orjson.dumps([dump.state, len(dump.items), dump.text_size]))
    found.update(dump.items)
    for piece in kind.pieces(state):
        found.update(piece)
    return found.hexdigest()


async def same_text(one: AppendLog, other: AppendLog) -> bool:
    """Whether two logs have the same bytes, as far back as both have them."""
    size = min(one.head.size, other.head.size)
    for offset in range(0, size, _PIECE):
        await trio.lowlevel.checkpoint()
        count = min(_PIECE, size - offset)
        starts = (one.head.size - size + offset, other.head.size - size + offset)
        if one.read_text(starts[0], count) != other.read_text(starts[1], count):
            return False
    return True


async def workspace_state(driver: Driver, space: SpaceId) -> WorkspaceState | None:
    """What a workspace's log says; None where it has none (yet). Raises CorruptLog."""
    try:
        log = await driver.open_log(space)
    except SpaceNotFound:
        return None
    try:
        state: WorkspaceState = await fold(driver, log, WORKSPACE)
    finally:
        await log.aclose()
    return state if state.id else None


# ---- how far another store has it


async def shared(source: AppendLog, target: AppendLog, name: str) -> Seq:
    """Up to which entry `target` has what `source` has: where it has all, it may have more.

    Raises Diverged where they differ, or where what lies between them was compacted away.
    """
    ours, theirs = source.head, target.head
    if theirs.seq == 0:
        return source.base.seq
    if theirs.seq < source.base.seq:
        raise Diverged(
            f"{name} ends at entry {theirs.seq} in the other store, and the entries up to {source.base.seq} were "
            "compacted away since: move it to another store"
        )
    if ours.seq < target.base.seq:
        raise Diverged(f"{name} begins behind entry {target.base.seq} in the other store, and ends at {ours.seq} here")
    common = min(ours.seq, theirs.seq)
    if await _crc(source, common) != await _crc(target, common):
        first = await _first_difference(source, target, common)
        raise Diverged(
            f"{name} diverged at entry {first}: the other store has another one there; move it to another store"
        )
    return Seq(common)


async def _crc(log: AppendLog, seq: int) -> int:
    """The crc of an entry, or of the one that the log begins behind. Raises CorruptLog."""
    if seq == log.head.seq:
        return log.head.crc
    if seq == log.base.seq:
        return log.base.crc
    async for entry in log.read(Seq(seq - 1), 1):
        return entry.crc
    raise CorruptLog(f"has no entry {seq}: run chatfs fsck --repair", seq=seq - 1, offset=0, log=log.space)


async def _first_difference(source: AppendLog, target: AppendLog, last: int) -> int:
    """The first entry that isn't the same, the one at `last` not being so: each crc depends on all before."""
    low, high = int(max(source.base.seq, target.base.seq)), last
    while low + 1 < high:
        middle = (low + high) // 2
        if await _crc(source, middle) == await _crc(target, middle):
            low = middle
        else:
            high = middle
    return high
