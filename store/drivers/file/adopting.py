"""A log that begins where another log's beginning was truncated away.

The base is written before the log is replaced by one that begins behind it, as a truncation does it. After a crash in
between, the log is an empty one behind that base. It is always another file: who has the old one open looks anew.

Concurrency: under the log's lock; `begin` in a thread.
"""

from __future__ import annotations

from store import durability
from store.drivers.file.stable import Stable
from store.drivers.file.tail import Mark
from store.drivers.file.text import BASE_NAME, Text, encode_base
from store.model import EMPTY_HEAD, Head, Millis, Seq


def begin(_fd: int, text: Text, stable: Stable, base: Head, data: bytes) -> None:
    """Put a log with these lines behind `base` in the place of the empty one. The caller attaches the text to it."""
    directory = text.directory

    def write_base() -> None:
        durability.atomic_replace("log.base", directory / BASE_NAME, encode_base(Mark(base.seq, base.ts, base.crc)))

    with durability.replacing("log.adopt", text.path, before_rename=write_base) as target:
        durability.write_all("log.adopt", target, data)
    with stable.decisive("beginning"):
        durability.fsync_dir("log.adopt", directory)


def base_of(text: Text) -> Head:
    """See `AppendLog.base`."""
    base = text.base
    return Head(Seq(base.seq), Millis(base.ts), base.crc, Seq(base.seq + 1), 0) if base.seq else EMPTY_HEAD
