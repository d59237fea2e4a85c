"""How entries become lines: a batch is checked and its times made monotonic; what was in another log stays as it was.

The same for every driver that writes text.

Concurrency: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from store import codec
from store.driver import Clock
from store.errors import InvalidInput, LineTooLong
from store.model import LINE_MAX, TS_MAX, Entry, Head, Millis, NewEntry, Seq

TS_STEP: Final = 1_000_000
"""Every entry whose seq is a multiple of this has a later ts than the one before, so that the nanoseconds
`ts * TS_STEP + seq % TS_STEP` grow with every entry."""


def times(batch: Sequence[NewEntry], after: int, previous: int, clock: Clock) -> list[int]:
    """Each entry's ts: its own or the clock's, and at least the previous one's."""
    now: int | None = None
    found = []
    seq = after
    for new in batch:
        seq += 1
        ts: int
        if new.ts is not None:
            ts = new.ts
        else:
            if now is None:
                now = clock()
            ts = now
        if ts <= previous:
            ts = previous if seq % TS_STEP else previous + 1
        found.append(ts)
        previous = ts
    return found


def check(batch: Sequence[NewEntry], space: str) -> None:
    """Raises LineTooLong; ValueError where a value would break the log's form."""
    for new in batch:
        if len(new.data) > LINE_MAX:
            raise LineTooLong(f"a line of {len(new.data)} bytes for {space}: use at most {LINE_MAX}")
        if not new.data or b"\n" in new.data:
            raise ValueError("an entry's data is one JSON value without a newline")
        if new.origin is not None and not 0 <= new.origin.ts <= TS_MAX:
            raise ValueError("an origin's ts is within the years 1970 to 9999")
        if new.ts is not None and not 0 <= new.ts <= TS_MAX:
            raise ValueError("a ts is within the years 1970 to 9999")


def encode(batch: Sequence[NewEntry], head: Head, clock: Clock, space: str) -> tuple[bytes, Head, list[Entry]]:
    """The lines of a batch behind `head`, the head behind them, and the entries."""
    check(batch, space)
    if len(batch) == 1:
        # The usual case, without the lists.
        new = batch[0]
        last = head.seq + 1
        ts: int = clock() if new.ts is None else new.ts
        if ts <= head.ts:
            ts = head.ts if last % TS_STEP else head.ts + 1
        data, crc = codec.encode(new, last, ts, head.crc)
        entries = [Entry(Seq(last), Millis(ts), new.actor, new.data, crc, new.origin)]
    else:
        data, entries = codec.encode_batch(batch, head.seq, times(batch, head.seq, head.ts, clock), head.crc)
        last, ts, crc = entries[-1].seq, entries[-1].ts, entries[-1].crc
    return data, Head(Seq(last), Millis(ts), crc, head.first_seq, head.size + len(data)), entries


def verbatim(entries: Sequence[Entry], head: Head, space: str) -> tuple[bytes, Head]:
    """The lines of entries that were in another log, behind `head`, and the head behind them.

    Raises InvalidInput where they aren't whole batches, each entry what must follow the one before.
    """
    lines = []
    seq, ts, crc, more = int(head.seq), int(head.ts), head.crc, 0
    for entry in entries:
        wrong = why_not(entry, seq, ts, more)
        if not wrong:
            try:
                new = NewEntry(entry.data, entry.actor, entry.origin)
                line, crc = codec.encode(new, entry.seq, entry.ts, crc, entry.more)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"entry {entry.seq} for {space} can't be written: {error}") from None
            lines.append(line)
            wrong = "has another checksum than what follows the entry before" if crc != entry.crc else ""
        if wrong:
            raise InvalidInput(f"entry {entry.seq} for {space} {wrong}: nothing of this was taken")
        seq, ts, more = entry.seq, entry.ts, entry.more
    if more:
        raise InvalidInput(f"entry {seq} for {space} isn't the last of its batch: nothing of this was taken")
    data = b"".join(lines)
    return data, Head(Seq(seq), Millis(ts), crc, head.first_seq, head.size + len(data))


def why_not(entry: Entry, seq: int, ts: int, more: int) -> str:
    """What is wrong with an entry behind the one with that seq, that ts, and so many of its batch behind it."""
    if entry.seq != seq + 1:
        return f"doesn't follow entry {seq}"
    if not ts <= entry.ts <= TS_MAX:
        return f"has the time {entry.ts}, which isn't one at or after {ts}"
    if entry.more != more - 1 if more else entry.more < 0:
        return "isn't what its batch goes on with"
    if not entry.data or b"\n" in entry.data or len(entry.data) > LINE_MAX:
        return f"isn't one line of at most {LINE_MAX} bytes"
    if entry.origin is not None and not 0 <= entry.origin.ts <= TS_MAX:
        return "has an origin whose time is none"
    return ""


def behind(head: Head, after: Head, space: str) -> Head:
    """The head of a log that is to begin behind `after`, and has the head `head` now.

    Raises InvalidInput unless it has no entries, and never had others than that one and those before it.
    """
    if head.first_seq <= head.seq or (head.seq and head[:3] != after[:3]):
        raise InvalidInput(f"{space} ends at entry {head.seq}: it can't begin behind entry {after.seq}")
    return Head(after.seq, after.ts, after.crc, Seq(after.seq + 1), 0)
