"""Compaction: the old events of a chat's log give way to the state that they led to. history.md stays as it is.

The state at entry B goes into the blob store, in one piece (`store.snapshots.pack`). Then the event `log.compacted`
({"through": B, "state": digest, "size", "events"}) is appended and made durable, and only then the log is truncated
before entry B + 1. A crash in between leaves an event that names what nobody needs yet. What is dropped: the events up
to B with their actors and times, earlier texts of edited messages, and what was removed. Of a chat in the trash, the
attachments stay that went with it: restoring it brings them back.

Concurrency: trio; the chat is held meanwhile. Others may append: then it is decided anew.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
import trio

from store import codec, history
from store.beginning import COMPACTED, COMPACTOR, Base, read_base
from store.errors import CorruptSnapshot, InvalidInput, SeqConflict, StoreFailed
from store.fold import ChatState
from store.import_keys import base_keys, key_of
from store.kinds import CHAT
from store.model import NewEntry, Seq
from store.snapshots import pack

if TYPE_CHECKING:
    from store.chat import Chat


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did, or would do: `events` of the log dropped, `size` bytes of it, for a state of `state_size`.

    `through` is the last entry dropped, 0 where there was nothing to drop.
    """

    through: Seq
    events: int
    size: int
    state_size: int


_LINE: Final = 256
"""Bytes of an entry's line, at most, besides its data."""
KEPT: Final = 1000
"""Events that stay in the log if nobody says otherwise: who has the text open in an editor needs the latest."""


async def compact(chat: Chat, *, keep: int = KEPT, dry_run: bool = False) -> Compacted:
    """Drop all but the last `keep` events of a chat's log.

    Raises CorruptLog where what would be dropped can't be read: only a sound log is compacted.
    """
    if keep < 0:
        raise InvalidInput("how many events to keep can't be negative")
    with chat.hold():
        while True:
            head = await chat.head()
            await chat.whole()
            chat.space.check_sound()
            found = await _survey(chat, await _last_to_drop(chat, keep))
            if (await chat.head()).first_seq != head.first_seq:
                continue  # another compaction came between
            if found.events == 0:
                return Compacted(Seq(0), 0, 0, 0)
            through = found.through
            state = await chat.state_at(through)
            since = await _comes_back_since(chat)
            _forget_removed(state, through, since)
            import_keys = sorted(found.import_keys)
            packed = await trio.to_thread.run_sync(
                lambda: pack(CHAT, state, through, found.crc, import_keys=import_keys)  # noqa: B023 - ends before
            )
            if dry_run:
                return Compacted(through, found.events, found.size, len(packed))
            ref = await chat.workspace.driver.blobs.put(packed)
            await _check(chat, Base(through, ref.digest), state)
            event = {
                "type": COMPACTED,
                "through": through,
                "state": ref.digest,
                "size": ref.size,
                "events": found.events,
            }
            entry = NewEntry(orjson.dumps(event), COMPACTOR)
            size = len(packed) + len(entry.data) + _LINE
            try:
                # It is for having more room: it is never refused.
                async with chat.workspace.quota.taking(functools.partial(int, size), tidying=True, removing=True):
                    await chat.space.append([entry], expected_seq=head.seq)
                    await chat.sync()
                    if await _comes_back_since(chat) != since:
                        continue  # it went to the trash meanwhile, or came from there
                    log = await chat.space.log()
                    await log.truncate_before(Seq(through + 1))
            except SeqConflict:
                await trio.lowlevel.checkpoint()
                continue
            async with chat.space.frozen() as present:
                _forget_removed(present, through, since)
            await chat.space.keep_snapshot()
            return Compacted(through, found.events, found.size, ref.size)


@dataclass(frozen=True, slots=True)
class _Survey:
    """The entries that would go: up to `through`, whose crc is `crc`."""

    through: Seq
    crc: int
    events: int
    size: int
    import_keys: set[str]


async def _comes_back_since(chat: Chat) -> int | None:
    """From which entry on removed attachments would be restored with the chat; None: it isn't in the trash."""
    record = (await chat.workspace.load()).chats.get(chat.id)
    return None if record is None else record.removed_since


def _forget_removed(state: ChatState, through: Seq, since: int | None) -> None:
    """Forget the attachments that were removed up to entry `through`, and that nothing brings back."""
    attachments = state.attachment_state
    attachments.removed = {
        name: (seq, found)
        for name, (seq, found) in attachments.removed.items()
        if seq > through or (since is not None and seq >= since)
    }


async def _last_to_drop(chat: Chat, keep: int) -> Seq:
    """The entry that `keep` events follow, compactions' own not counted; 0 where there is none."""
    async for entry in chat.log(reverse=True):
        if entry.actor == COMPACTOR:
            continue
        if not keep:
            return entry.seq
        keep -= 1
    return Seq(0)


async def _survey(chat: Chat, through: Seq) -> _Survey:
    """Reads, and so checks, the whole log."""
    events = kept = crc = 0
    keys = await base_keys(chat)
    async for entry in chat.log():
        if entry.seq > through:
            kept += len(
                codec.encode(NewEntry(entry.data, entry.actor, entry.origin), entry.seq, entry.ts, 0, entry.more)[0]
            )
            continue
        events += 1
        crc = entry.crc
        key = key_of(entry.data)
        if key is not None:
            keys.add(key)
    return _Survey(through, crc, events, chat.space.head.size - kept, keys)


async def _check(chat: Chat, base: Base, state: ChatState) -> None:
    """Read back what was stored, before anything is dropped: it must render what the log renders."""
    stored, _ = await read_base(chat.workspace.driver, CHAT, base)
    try:
        await trio.to_thread.run_sync(stored.complete)
    except CorruptSnapshot as error:
        raise StoreFailed(f"the compacted state can't be read back ({error}): nothing was dropped") from error
    if _digest(stored) != _digest(state) or stored.seq != state.seq or stored.attachments != state.attachments:
        raise StoreFailed("the compacted state isn't what the log says: nothing was dropped; please report this")


def _digest(state: ChatState) -> bytes:
    found = hashlib.sha256()
    for piece in history.render_pieces(state):
        found.update(piece)
    return found.digest()
