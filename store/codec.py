r"""An entry as one checksummed JSON line, and back.

::

    {"seq":7,"ts":1795241582000,"actor":"uid:1000/vim","data":{…},"crc":"1f2e3d4c"}\n

Keys stand in exactly this order, without spaces. Between `actor` and `data` there may be `"origin":{"actor":…,"ts":…}`
(the entry was copied from another log) and `"more":N` (N further entries of the same batch follow: a reader that finds
fewer has met a torn batch). `data` is the caller's JSON, byte for byte. `crc` is CRC-32 (zlib) over the bytes before
`,"crc"`, seeded with the previous line's crc, as etcd's write-ahead log chains its records: a line that is damaged,
missing or out of order is found, wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from zlib import crc32

import orjson

from store.errors import CorruptLog
from store.model import Entries, Entry, Millis, NewEntry, Origin, Seq, Who

_STRING: Final = rb'"(?:[^"\\]|\\.)*"'
_WHO: Final = (
    rb',"actor":(' + _STRING + rb")"
    rb'(?:,"origin":(\{"actor":' + _STRING + rb',"ts":[0-9]{1,18}\}))?'
    rb'(?:,"more":([0-9]{1,9}))?'
)
_LINE: Final = re.compile(
    rb'\{"seq":([0-9]{1,18}),"ts":([0-9]{1,18})' + _WHO + rb',"data":(.*),"crc":"([0-9a-f]{8})"\}', re.DOTALL
)
_MIDDLE: Final = re.compile(_WHO, re.DOTALL)
CRC_FIELD: Final = len(b',"crc":"00000000"}')
"""Bytes at a line's end that its crc doesn't cover."""
_TS_DIGITS: Final = 13
"""As many has every time from 2001 to 2286."""
_KNOWN_MAX: Final = 4096
_KNOWN_LENGTH: Final = 256
_COLUMN: Final = 4096
_DATA_FIELD: Final = len(b',"data":')
_MORE: Final = b',"more":'
_MORE_DIGITS: Final = 9


def encode(new: NewEntry, seq: int, ts: int, previous_crc: int, more: int = 0) -> tuple[bytes, int]:
    """The line, with its newline, and its crc."""
    origin = b""
    if new.origin is not None:
        origin = b',"origin":' + orjson.dumps({"actor": new.origin.actor, "ts": new.origin.ts})
    body = b'{"seq":%d,"ts":%d,"actor":%b%b%b,"data":%b' % (
        seq,
        ts,
        _actors.get(new.actor) or _actor(new.actor),
        origin,
        b',"more":%d' % more if more else b"",
        new.data,
    )
    crc = crc32(body, previous_crc)
    return b'%b,"crc":"%08x"}\n' % (body, crc), crc


_actors: dict[str, bytes] = {}
"""Actors as JSON, those that were encoded last."""


def _actor(actor: str) -> bytes:
    text = orjson.dumps(actor)
    if len(text) <= _KNOWN_LENGTH:
        if len(_actors) >= _KNOWN_MAX:
            _actors.clear()
        _actors[actor] = text
    return text


def encode_batch(
    batch: Sequence[NewEntry], after: Seq, ts: Sequence[int], previous_crc: int
) -> tuple[bytes, list[Entry]]:
    """All lines of one batch, the first with seq `after + 1`, and the entries."""
    lines: list[bytes] = []
    entries: list[Entry] = []
    crc = previous_crc
    seq, more = int(after), len(batch)
    for new, at in zip(batch, ts, strict=True):
        seq, more = seq + 1, more - 1
        line, crc = encode(new, seq, at, crc, more)
        lines.append(line)
        entries.append(Entry(Seq(seq), Millis(at), new.actor, new.data, crc, new.origin, more))
    return b"".join(lines), entries


def parse(line: bytes) -> Entry | None:
    """The entry in `line` (without its newline), its crc not checked; None where the form is another."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    seq, ts, *middle, data, crc = match.groups()
    who = _who(*middle)
    return None if who is None else Entry(Seq(int(seq)), Millis(int(ts)), who[0], data, int(crc, 16), who[1], who[2])


def _who(actor: bytes, origin: bytes | None, more: bytes | None) -> Who | None:
    try:
        source = None
        if origin is not None:
            found = orjson.loads(origin)
            source = Origin(found["actor"], Millis(found["ts"]))
        return orjson.loads(actor), source, int(more or 0)
    except orjson.JSONDecodeError:
        return None


def checks(line: bytes, entry: Entry, previous_crc: int) -> bool:
    """Whether `line` (without its newline) has the crc that it should have after `previous_crc`."""
    return crc32(memoryview(line)[: len(line) - CRC_FIELD], previous_crc) == entry.crc


def decode_lines(text: bytes, *, after: Seq, previous_crc: int, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Every entry of `text`, which is whole lines, each with the offset of its end.

    `after` and `previous_crc` are those of the entry before; `offset` is where `text` starts in the log.
    Raises CorruptLog at the first line that isn't what must stand there.
    """
    seq, crc = int(after), previous_crc
    start = 0
    size = len(text)
    while start < size:
        end = text.find(b"\n", start)
        if end < 0:
            end = size
        entry = _decode_line(text[start:end], seq, crc)
        if entry is None:
            raise _corrupt(seq, offset + start)
        seq, crc = entry.seq, entry.crc
        start = end + 1
        yield entry, offset + start


def _decode_line(line: bytes, seq: int, crc: int) -> Entry | None:
    """The entry in `line` if it is what must stand behind the entry with that seq and crc."""
    entry = parse(line)
    return None if entry is None or entry.seq != seq + 1 or not checks(line, entry, crc) else entry


def _corrupt(seq: int, offset: int) -> CorruptLog:
    return CorruptLog(
        f"is damaged after entry {seq}, at byte {offset}: run chatfs fsck --repair", seq=seq, offset=offset
    )


def decode(text: bytes, *, after: Seq, previous_crc: int, offset: int = 0) -> tuple[Entries, CorruptLog | None]:
    """All entries that `decode_lines` would give, and the damage that it would raise behind them; far faster.

    The common form of a line is taken apart by hand, and checked for many lines at once, in columns. Where some line
    isn't exactly that, `parse` goes through them one by one.
    """
    found = Entries(int(after) + 1, [], [], [], [])
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    seq, crc, done = int(after), previous_crc, 0
    while done < len(lines):
        # The seqs of one column have the same number of digits.
        count = min(len(lines) - done, _COLUMN, 10 ** len(b"%d" % (seq + 1)) - seq - 1)
        column = lines[done : done + count] if count < len(lines) else lines
        if not _decode_column(column, seq, crc, found):
            for number, line in enumerate(column, done):
                entry = _decode_line(line, seq, crc)
                if entry is None:
                    at = sum(map(len, lines[:number])) + number
                    return found, _corrupt(seq, offset + at)
                found.add(entry)
                seq, crc = entry.seq, entry.crc
        else:
            seq += count
            crc = found.crc[-1]
        done += count
    return found, None


def chain(lines: list[bytes], previous_crc: int) -> list[int] | None:
    """The crcs of lines (without their newlines) behind that crc; None where one of them states another."""
    crc = previous_crc
    crcs = [crc := crc32(line[:-CRC_FIELD], crc) for line in lines]
    stated = b"".join([line[-CRC_FIELD:] for line in lines])
    return crcs if stated == b',"crc":"%08x"}' * len(lines) % tuple(crcs) else None


def marks(lines: Iterable[bytes]) -> Iterator[int]:
    """How many of its batch follow each line, as it says itself; 0, too, where a line isn't an entry's."""
    known = _known
    for line in lines:
        start = line.find(b',"actor":')
        middle = line[start : line.find(b',"data":', start)]
        who = known.get(middle) or _learn(middle)
        yield 0 if who is None else who[2]


def _decode_column(lines: list[bytes], seq: int, crc: int, found: Entries) -> bool:
    """Take in lines of the common form, the first with seq `seq + 1`; False, and nothing done, if one has another."""
    count = len(lines)
    crcs = chain(lines, crc)
    if crcs is None:
        return False
    at = len(b'{"seq":%d,"ts":' % (seq + 1))
    begins = b"".join([line[:at] for line in lines])
    if begins != b'{"seq":%d,"ts":' * count % tuple(range(seq + 1, seq + 1 + count)):
        return False
    middle = at + _TS_DIGITS
    times = b"".join([line[at:middle] for line in lines])
    if len(times) != count * _TS_DIGITS or not times.isdigit():
        return False
    datas: list[bytes] = []
    who: list[Who] = []
    known = _known
    for line in lines:
        end = line.find(b',"data":', middle)
        by = line[middle:end]
        writer = known.get(by)
        if writer is None:
            writer = _learn(by)
            if writer is None:
                return False
        if end < 0 or end + _DATA_FIELD > len(line) - CRC_FIELD:
            return False
        who.append(writer)
        datas.append(line[end + _DATA_FIELD : -CRC_FIELD])
    found.ts += map(int, [times[start : start + _TS_DIGITS] for start in range(0, len(times), _TS_DIGITS)])
    found.who += who
    found.data += datas
    found.crc += crcs
    return True


_known: dict[bytes, Who] = {}
"""What was learnt last: logs of one user say the same again and again."""


def _learn(middle: bytes) -> Who | None:
    """What stands between a line's ts and its data says; kept, as long as it may come again."""
    known = _known
    if len(known) >= _KNOWN_MAX:
        known.clear()
    actor, found, more = middle.rpartition(_MORE)
    if found and len(more) <= _MORE_DIGITS and more.isdigit() and _MORE not in actor:
        # Within a batch only that counts down. No string holds those quotes without backslashes.
        who = known.get(actor)
        if who is not None and not who[2]:
            who = known[middle] = who[0], who[1], int(more)
            return who
    match = _MIDDLE.fullmatch(middle)
    who = None if match is None else _who(*match.groups())
    if who is not None and who[1] is None and len(middle) <= _KNOWN_LENGTH:
        known[middle] = who
        known[actor if found else middle] = (who[0], None, 0)
    return who
