"""A log's lines, what becomes one, and what is kept of many: the codec, intake, metadata, snapshots, store.json."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import orjson

from store import codec, intake, metadata
from store import events as ev
from store.drivers.file import format as store_format
from store.errors import CorruptLog, CorruptSnapshot, FormatError, InvalidEvent, InvalidInput, LineTooLong
from store.fold import ChatState, fold
from store.history import diff, render
from store.model import Entry, Millis, NewEntry, Origin, Seq
from store.snapshot import Dump, dump, load
from tests.fuzz.support import ENTRIES, NOW, TALK, apply, conversation, entry, new_ids, said

CRC_FIELD = len(b',"crc":"00000000"}\n')


# ---- a log's lines

BATCHES = [
    [NewEntry(b'{"type":"message.appended","id":"m1","role":"user","content":"hi"}', "uid:1000/vim")],
    [NewEntry(b"null", "a"), NewEntry(b'"\\"crc\\":"', 'q"uote\\'), NewEntry(b"[1.50]", "\u00fc")],
    [NewEntry(b'{"a":{"b":[]}}', "", Origin("uid:0/x", Millis(7)))],
    [NewEntry(b"0", "uid:1000/vim")],
]


@functools.cache
def whole_log() -> bytes:
    text, seq, crc = b"", Seq(0), 0
    for batch in BATCHES:
        lines, encoded = codec.encode_batch(batch, seq, [NOW + seq] * len(batch), crc)
        crc = encoded[-1].crc
        text += lines
        seq = Seq(seq + len(batch))
    return text


def lines_of_a_log(data: bytes) -> None:
    """Decoding raises CorruptLog or gives entries, which encode to what says the same; both decoders agree."""
    entries, damage = codec.decode(data, after=Seq(0), previous_crc=0)
    slowly: list[Entry] = []
    found: CorruptLog | None = None
    try:
        for entry, _end in codec.decode_lines(data, after=Seq(0), previous_crc=0):
            slowly.append(entry)
    except CorruptLog as error:
        found = error
    assert slowly == list(entries)
    assert (found is None) == (damage is None)
    if found is not None and damage is not None:
        assert (found.seq, found.offset, str(found)) == (damage.seq, damage.offset, str(damage))
    crc = 0
    for entry in entries:
        line, crc = codec.encode(
            NewEntry(entry.data, entry.actor, entry.origin), entry.seq, entry.ts, crc, more=entry.more
        )
        again = codec.parse(line[:-1])
        assert again is not None
        assert again._replace(crc=0) == entry._replace(crc=0)
    for line in data.split(b"\n"):
        codec.parse(line)


def damaged_log(data: bytes) -> None:
    """One change of at most four bytes in a row, anywhere in a good log: what is read are entries of that log.

    CRC-32 finds any such change within a line; what was lost at the end can't be seen by a checksum.
    """
    text = whole_log()
    at = int.from_bytes(data[:2], "big") % len(text)
    kind, patch = data[2:3], data[3:7]
    if kind < b"\x60":
        changed = text[:at] + patch + text[at + len(patch) :]
    elif kind < b"\xa0":
        changed = text[:at] + patch + text[at:]
    else:
        changed = text[:at] + text[at + 1 + len(patch) :]
    entries, damage = codec.decode(changed, after=Seq(0), previous_crc=0)
    good, _ = codec.decode(text, after=Seq(0), previous_crc=0)
    assert list(entries) == good[: len(entries)]
    if damage is None:
        # Nothing is wrong, or the end is missing, or blank.
        assert text.startswith(changed.rstrip(b"\n"))


def log_seeds() -> list[bytes]:
    text = whole_log()
    odd = [
        b'{"seq":1,"ts":1,"actor":"\\ud83d","data":1,"crc":"00000000"}\n',
        b'{"seq":1,"ts":1795241582000,"actor":"a","origin":{"actor":"b","ts":2},"more":1,"data":[],"crc":"00000000"}',
        b"\0" * 40,
    ]
    return [text, text[: len(text) // 2], *text.splitlines(keepends=True)[:2], *map(sealed, odd)]


def sealed(line: bytes) -> bytes:
    """The line with the crc that it must have, as the first of a log."""
    body = line.rstrip(b"\n")[: -CRC_FIELD + 1]
    return b'%b,"crc":"%08x"}\n' % (body, codec.crc32(body))


# ---- what is saved or appended


def saved_metadata(data: bytes) -> None:
    """InvalidInput, or values that make an event which says the same when it is read back."""
    for editable in (metadata.EDITABLE_CHAT, metadata.EDITABLE_WORKSPACE):
        try:
            wanted = metadata.parse_saved(data, editable)
        except InvalidInput as error:
            said(error)
            continue
        labels = None if wanted.labels is None else list(wanted.labels)
        changed = ev.ChatChanged(wanted.title, labels)
        assert ev.parse(changed.encode()) == changed
        workspace = ev.WorkspaceChanged(title=wanted.title, labels=labels, quota_bytes=wanted.quota_bytes)
        assert ev.parse(workspace.encode()) == workspace
        state = ChatState()
        apply(state, [changed])
        text = render(state)
        assert text.count(b"\n") <= 2
        assert diff(state, text, new_ids()) == []


def metadata_seeds() -> list[bytes]:
    values = [
        {"title": "x", "labels": ["a", "b"], "quota_bytes": 1 << 40},
        {"title": "", "labels": []},
        {"title": " x"},
        {"labels": [1]},
        {"quota_bytes": -1},
        {"quota_bytes": 1e99},
        {"title": "\u2028"},
    ]
    return [*map(orjson.dumps, values), b'{"title":"\\ud800"}', b"[" * 3000, b'{"labels":' + b"[" * 1500, b"", b"{}"]


def check_number(error: Exception, number: int) -> None:
    assert said(error).startswith(f"line {number} ")


def accepted_lines(data: bytes) -> None:
    """A line is refused, or is one JSON value that says the same in the log; and any such log can be read as a chat."""
    state = ChatState()
    entries: list[Entry] = []
    ids = map("id-{}".format, itertools.count()).__next__
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            new = intake.accept(line, "uid:0/test", ids, number=number)
        except (InvalidEvent, LineTooLong) as error:
            check_number(error, number)
            continue
        assert b"\n" not in new.data
        value = orjson.loads(new.data)
        encoded, _crc = codec.encode(new, len(entries) + 1, NOW, 0)
        found = codec.parse(encoded[:-1])
        assert found is not None
        assert (found.data, found.actor, found.origin) == (new.data, new.actor, new.origin)
        if type(value) is dict:
            given = orjson.loads(line)
            given = given if given.keys() <= value.keys() else given["data"]
            assert {name: value[name] for name in given} == given
        # A copy of the line keeps its data; it names who said it first.
        copied = intake.accept(encoded, "uid:1/test", ids)
        assert copied.data == new.data
        assert copied.origin == (new.origin or Origin("uid:0/test", NOW))
        entries.append(found)
        ev.parse(found.data)
        state.apply(found)
    text = render(state)
    assert text.decode().encode() == text
    assert state.size == len(text)
    assert diff(state, text, new_ids()) == []
    together = fold(entries)
    assert render(together) == text
    check_snapshot(state, text)


class Dumped:
    """What a dump says, as a snapshot's files would."""

    def __init__(self, found: Dump, rendered: bytes) -> None:
        self._items = found.items
        self._text = rendered

    def items(self) -> bytes:
        return self._items

    def text(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self._text):
            raise CorruptSnapshot("beyond the end")
        return self._text[offset : offset + size]


def check_snapshot(state: ChatState, text: bytes) -> None:
    found = dump(state)
    loaded = load(orjson.loads(orjson.dumps(found.state)), Dumped(found, text))
    loaded.complete()
    assert render(loaded) == text
    assert dump(loaded) == found


DOUBLED = b'{"seq":3,"ts":1,"actor":"a","data":"x","crc":"a3b2a7dd","data":null,"crc":"36b0217b"}'


def line_seeds() -> list[bytes]:
    values = [*ENTRIES, {"role": "user", "content": "x"}, {"type": "message", "role": "user", "content": []}]
    lines = [orjson.dumps(value) for value in values]
    attachment = {
        "type": "attachment.put",
        "id": "a1",
        "name": "a.png",
        "digest": "sha256:" + "0" * 64,
        "size": 3,
        "content_type": "image/png",
    }
    lines += [
        orjson.dumps(attachment),
        b'{"type":"attachment.removed","name":"a.png"}',
        b'{"type":"chat.restored","since":1}',
        b'{"type":"message.removed","id":"m1"}',
        b'{"type":"preamble.edited","append":"x"}',
        b"[" * 1100 + b"]" * 1100,
        b"[" * 1023 + b"]" * 1023,
        b'{"a":1,"a":2,"type":"x","type":"y"}',
        b'{"\\u0074ype":"message.removed","id":"m2"}',
        b"1e999",
        b"-0",
        b'"\\u0000"',
        DOUBLED,
        *whole_log().splitlines(),
    ]
    return [*lines, b"\n".join(lines)]


def loaded_snapshots(data: bytes) -> None:
    """Whatever a snapshot's JSON says, it loads or is CorruptSnapshot, and what was loaded can be looked at."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    if type(value) is not dict or type(value.get("state")) is not dict:
        return
    items = value.get("items")
    source = Dumped(Dump({}, items.encode() if isinstance(items, str) else b"", 0), TALK * 3)
    try:
        state = load(value["state"], source)
        state.complete()
        render(state)
    except CorruptSnapshot as error:
        said(error)


def snapshot_seeds() -> list[bytes]:
    state = conversation()
    few = dump(state)
    many = ChatState()
    for seq in range(1, 90):
        many.apply(entry(seq, ev.MessageAppended(f"m{seq}", "user", "x" * (seq % 7)).encode()))
    apply(many, [ev.AttachmentPut("a1", "a", "sha256:" + "0" * 64, 3, "text/plain"), ev.AttachmentRemoved("a")])
    found = dump(many)
    return [
        orjson.dumps({"state": few.state, "items": ""}),
        orjson.dumps({"state": found.state, "items": found.items.decode(errors="replace")}),
        orjson.dumps({"state": {}}),
    ]


def described_stores(data: bytes) -> None:
    """Any bytes as `store.json`: a format that is known, or FormatError."""
    with tempfile.TemporaryDirectory(prefix="chatfs-fuzz-") as directory:
        root = Path(directory)
        (root / "store.json").write_bytes(data)
        try:
            found = store_format.read(root)
        except FormatError as error:
            said(error)
            return
        assert found is not None
        assert 1 <= found.format <= store_format.FORMAT
        assert orjson.loads(found.with_format(2))["format"] == 2
