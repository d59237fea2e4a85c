"""How a batch becomes lines: checked, its entries' times made monotonic. The same for every driver that writes text.

Concurrency: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from store import codec
from store.driver import Clock
from store.errors import LineTooLong
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
