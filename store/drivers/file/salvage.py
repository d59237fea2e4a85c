"""Repair a log whose middle is damaged: keep every entry that can be read, in its place, and set the rest aside.

Entries that can't be read (`survey` says which) become `log.lost` events with the same seqs, so that seqs stay gapless;
all damaged bytes go to `quarantine/` first. The last entry of the new text is a `log.repaired` event, so everything
becomes true in one rename. What is kept has its seq, ts, actor, origin and data as before; crcs are computed anew.
Other instances notice that the file was replaced.

Concurrency: for a thread; under the log's flock.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

import orjson

from store import codec, durability
from store.drivers.file import aside
from store.drivers.file.survey import Kept, Plan, Restored
from store.drivers.file.tail import last_batch
from store.drivers.file.text import BASE_NAME, LOG_NAME, encode_base, read_base
from store.errors import StoreFailed
from store.events import LOG_LOST, REPAIRER
from store.model import Millis, NewEntry, SpaceId

ACTOR: Final = REPAIRER
LOST: Final = LOG_LOST
REPAIRED: Final = "log.repaired"

_WINDOW: Final = 1 << 20
_STRING: Final = rb'"(?:[^"\\]|\\.)*"'
_BEFORE_DATA: Final = re.compile(
    rb'(\{"seq":[0-9]+,"ts":[0-9]+,"actor":' + _STRING + rb'(?:,"origin":\{"actor":' + _STRING + rb',"ts":[0-9]+\})?)'
    rb'(?:,"more":[0-9]+)?(?=,"data":)',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What a repair did. `quarantine` is the name of the file in `quarantine/` that has the damaged bytes."""

    lost: list[list[int]]
    restored: list[int]
    unverified: list[int]
    quarantine: str
    hidden_tail: bool


def salvage(root: Path, space: SpaceId, fd: int, plan: Plan, now: Millis, *, rebase: bool = False) -> Salvaged:
    """Put the repaired log in the place of the one that `fd` reads. Under its flock. `rebase`: write the base, too."""
    directory = root / space
    path = directory / LOG_NAME
    name = _set_aside(root, space, fd, plan, now)
    done = Salvaged(plan.lost, plan.restored, plan.unverified, name, plan.hidden_tail)

    def write_base() -> None:
        if rebase:
            durability.atomic_replace("log.base", directory / BASE_NAME, encode_base(plan.base))

    with durability.replacing("log.salvage", path, before_rename=write_base) as target:
        _Writer(fd, target, plan, done, now).run()
    durability.fsync_dir("log.salvage", directory)
    return done


def _set_aside(root: Path, space: SpaceId, fd: int, plan: Plan, now: Millis) -> str:
    """All damaged bytes, one after the other, and a note that says where each stood. Durable."""
    damaged = [piece for piece in plan.pieces if not isinstance(piece, Kept)]

    def content() -> Iterator[bytes]:
        for piece in damaged:
            yield from _pieces(fd, piece.begin, piece.end)

    note = {
        "why": "these bytes of the log are damaged",
        "base": {"seq": plan.base.seq, "crc": plan.base.crc},
        "ranges": [
            {
                "offset": piece.begin,
                "size": piece.end - piece.begin,
                "seqs": [piece.seq, piece.seq] if isinstance(piece, Restored) else [piece.first, piece.last],
                "restored": isinstance(piece, Restored),
            }
            for piece in damaged
        ],
    }
    return aside.keep(root, space, content(), note, now, suffix="damaged")


def _pieces(fd: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end and (piece := os.pread(fd, min(_WINDOW, end - begin), begin)):
        yield piece
        begin += len(piece)


class _Writer:
    """Writes the new text: every line anew from the first damage on."""

    def __init__(self, source: int, target: int, plan: Plan, done: Salvaged, now: Millis) -> None:
        self._source = source
        self._target = target
        self._plan = plan
        self._done = done
        self._now = now
        self._seq = plan.start.seq
        self._ts = plan.start.ts
        self._crc = plan.start.crc
        self._more = 0
        self._held: list[bytes] = []
        self._size = 0

    def run(self) -> None:
        data = orjson.dumps({"type": LOST, "quarantine": self._done.quarantine})
        for text in _pieces(self._source, self._plan.base.end, self._plan.start.end):
            durability.write_all("log.salvage", self._target, text)
        for piece in self._plan.pieces:
            if isinstance(piece, Kept):
                for line in _lines_between(self._source, piece.begin, piece.end):
                    self._entry(line)
            elif isinstance(piece, Restored):
                body = b"".join(_pieces(self._source, piece.begin, piece.body))
                self._entry(body + b',"crc":"00000000"}')
            else:
                for _ in range(piece.first, piece.last + 1):
                    self._new(data, max(0, self._more - 1))
        while self._more:
            # A batch counts as a whole, or not at all.
            self._new(data, self._more - 1)
        event = {"type": REPAIRED, "lost": self._done.lost, "restored": self._done.restored}
        if self._done.unverified:
            event["unverified"] = self._done.unverified
        self._ts = max(self._ts, self._now)
        self._new(orjson.dumps({**event, "quarantine": self._done.quarantine}), 0)
        self._flush()

    def _entry(self, line: bytes) -> None:
        """A line that stays, its crc computed anew."""
        entry = codec.parse(line)
        assert entry is not None
        body = line[: -codec.CRC_FIELD]
        more = entry.more
        if self._more and more != self._more - 1:
            more = self._more - 1
            body = _with_more(body, more)
        self._crc = crc32(body, self._crc)
        self._seq, self._ts, self._more = entry.seq, entry.ts, more
        self._put(b'%b,"crc":"%08x"}\n' % (body, self._crc))

    def _new(self, data: bytes, more: int) -> None:
        line, self._crc = codec.encode(NewEntry(data, ACTOR), self._seq + 1, self._ts, self._crc, more)
        self._seq += 1
        self._more = more
        self._put(line)

    def _put(self, line: bytes) -> None:
        self._held.append(line)
        self._size += len(line)
        if self._size >= _WINDOW:
            self._flush()

    def _flush(self) -> None:
        durability.write_all("log.salvage", self._target, b"".join(self._held))
        self._held, self._size = [], 0


def _lines_between(fd: int, begin: int, end: int) -> Iterator[bytes]:
    rest = b""
    for piece in _pieces(fd, begin, end):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _with_more(body: bytes, more: int) -> bytes:
    """The body of a line with another count of entries that follow in its batch."""
    match = _BEFORE_DATA.match(body)
    assert match is not None
    return match[1] + (b',"more":%d' % more if more else b"") + body[match.end() :]


def append(directory: Path, fd: int, new: NewEntry, now: Millis) -> None:
    """Append one entry to the sound log that `fd` reads, and make it durable. Under its flock."""
    size = os.fstat(fd).st_size
    head = last_batch(fd, size, read_base(directory))
    if head.end != size:
        raise StoreFailed("the log isn't whole: repair it first")
    line, _ = codec.encode(new, head.seq + 1, max(head.ts, now), head.crc)
    target = os.open(directory / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            durability.write_all("log.salvage", target, line)
        except BaseException:
            durability.system.ftruncate("log.salvage", target, size)
            raise
        durability.system.fdatasync("log.salvage", target)
    finally:
        os.close(target)
