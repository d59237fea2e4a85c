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
from collections.abc import Iterator
from typing import Final
from zlib import crc32

import orjson

from store.errors import CorruptLog
from store.model import Entry, Millis, NewEntry, Origin, Seq

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
_CRC_FIELD: Final = len(b',"crc":"00000000"}')
_TS_DIGITS: Final = 13
"""As many has every time from 2001 to 2286."""
_Who = tuple[str, Origin | None, int]
_KNOWN_MAX: Final = 4096
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
        orjson.dumps(new.actor),
        origin,
        b',"more":%d' % more if more else b"",
        new.data,
    )
    crc = crc32(body, previous_crc)
    return b'%b,"crc":"%08x"}\n' % (body, crc), crc


def encode_batch(batch: list[NewEntry], after: Seq, ts: list[int], previous_crc: int) -> tuple[bytes, int]:
    """All lines of one batch, the first with seq `after + 1`, and the last line's crc."""
    lines: list[bytes] = []
    crc = previous_crc
    last = len(batch) - 1
    for index, new in enumerate(batch):
        line, crc = encode(new, after + 1 + index, ts[index], crc, last - index)
        lines.append(line)
    return b"".join(lines), crc


def parse(line: bytes) -> Entry | None:
    """The entry in `line` (without its newline), its crc not checked; None where the form is another."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    seq, ts, *middle, data, crc = match.groups()
    who = _who(*middle)
    return None if who is None else Entry(Seq(int(seq)), Millis(int(ts)), who[0], data, int(crc, 16), who[1], who[2])


def _who(actor: bytes, origin: bytes | None, more: bytes | None) -> _Who | None:
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
    return crc32(memoryview(line)[: len(line) - _CRC_FIELD], previous_crc) == entry.crc


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
        f"the log is damaged after entry {seq}, at byte {offset}: run chatfs fsck", seq=seq, offset=offset
    )


def decode(text: bytes, *, after: Seq, previous_crc: int, offset: int = 0) -> tuple[list[Entry], CorruptLog | None]:
    """All entries that `decode_lines` would give, and the damage that it would raise behind them; a third of the cost.

    The common form of a line is taken apart by hand; all that isn't exactly that goes to `parse`.
    """
    entries: list[Entry] = []
    append, make = entries.append, tuple.__new__
    known: dict[bytes, _Who] = {}
    seq, crc = int(after), previous_crc
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for line in lines:
        seq += 1
        body = line[:-_CRC_FIELD]
        check = crc32(body, crc)
        begin = b'{"seq":%d,"ts":' % seq
        at = len(begin)
        ts = body[at : at + _TS_DIGITS]
        end = body.find(b',"data":', at)
        middle = body[at + _TS_DIGITS : end]
        who = known.get(middle)
        if who is None:
            who = _learn(middle, known)
        if (
            who is not None
            and end > 0
            and body.startswith(begin)
            and ts.isdigit()
            and line[-_CRC_FIELD:] == b',"crc":"%08x"}' % check
        ):
            append(make(Entry, (seq, int(ts), who[0], body[end + 8 :], check, who[1], who[2])))
            crc = check
            continue
        entry = _decode_line(line, seq - 1, crc)
        if entry is None:
            at = sum(map(len, lines[: len(entries)])) + len(entries)
            return entries, _corrupt(seq - 1, offset + at)
        append(entry)
        crc = entry.crc
    return entries, None


def _learn(middle: bytes, known: dict[bytes, _Who]) -> _Who | None:
    """What stands between a line's ts and its data says; kept, as long as it may come again."""
    actor, found, more = middle.rpartition(_MORE)
    if found and len(more) <= _MORE_DIGITS and more.isdigit():
        # Within a batch only that counts down. No string holds those quotes without backslashes.
        who = known.get(actor)
        if who is not None and not who[2]:
            who = known[middle] = who[0], who[1], int(more)
            return who
    match = _MIDDLE.fullmatch(middle)
    who = None if match is None else _who(*match.groups())
    if who is not None and who[1] is None and len(known) < _KNOWN_MAX:
        known[middle] = who
        known[actor if found else middle] = (who[0], None, 0)
    return who
