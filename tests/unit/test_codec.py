"""The log's line format: what goes in comes out, and no damage goes unseen."""

from __future__ import annotations

import string
from unittest.mock import patch
from zlib import crc32

import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from store import codec
from store.errors import CorruptLog
from store.model import Entry, Millis, NewEntry, Origin, Seq
from tests.unit.strategies import examples

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.sampled_from([None, True, 0, -(2**53), 2**53, 0.5, 1e300, "", ",", '"'])
json_values = scalars | texts | st.lists(scalars | texts, max_size=3) | st.dictionaries(texts, scalars, max_size=3)
spaced = json_values.map(lambda value: orjson.dumps(value).replace(b",", b" , "))
lookalikes = st.sampled_from(
    [
        b'{"seq":1,"ts":2,"actor":"x","data":1,"crc":"00000000"}',
        b'"\\",\\"crc\\":\\"00000000\\"}"',
        b'{"more":3,"data":{"origin":{"actor":"x","ts":1}}}',
        b'"\\u0000\\n"',
    ]
)
times = (st.integers(10**12, 10**13 - 1) | st.integers(0, 10**15)).map(Millis)
new_entries = st.builds(
    NewEntry,
    data=json_values.map(orjson.dumps) | lookalikes | spaced.filter(lambda data: b"\n" not in data),
    actor=texts | st.sampled_from(['"', "\\", '","data":', "a/b"]),
    origin=st.none() | st.builds(Origin, actor=texts, ts=times),
    ts=times,
)
batches = st.lists(new_entries, min_size=1, max_size=3)
logs = st.lists(batches, min_size=1, max_size=3)


def encode(log: list[list[NewEntry]]) -> bytes:
    text, seq, crc = b"", 0, 0
    for batch in log:
        lines, encoded = codec.encode_batch(batch, Seq(seq), [new.ts or 0 for new in batch], crc)
        crc = encoded[-1].crc
        seq += len(batch)
        text += lines
    return text


def decode(text: bytes) -> list[Entry]:
    return [entry for entry, _ in codec.decode_lines(text, after=Seq(0), previous_crc=0)]


@examples
@given(logs)
def test_roundtrip(log: list[list[NewEntry]]):
    text = encode(log)
    found = decode(text)
    given_ = [(new, len(batch) - 1 - index) for batch in log for index, new in enumerate(batch)]
    assert [(entry.data, entry.actor, entry.origin, entry.ts, entry.more) for entry in found] == [
        (new.data, new.actor, new.origin, new.ts, more) for new, more in given_
    ]
    assert [entry.seq for entry in found] == list(range(1, len(found) + 1))


@examples
@given(logs)
def test_every_line_is_json_with_its_keys_in_order(log: list[list[NewEntry]]):
    for line in encode(log).splitlines():
        keys = list(orjson.loads(line))
        assert keys == [key for key in ("seq", "ts", "actor", "origin", "more", "data", "crc") if key in keys]
        assert {"seq", "ts", "actor", "data", "crc"} <= set(keys)


@examples
@given(logs)
def test_offsets_are_the_lines_ends(log: list[list[NewEntry]]):
    text = encode(log)
    ends = [end for _, end in codec.decode_lines(text, after=Seq(0), previous_crc=0, offset=100)]
    assert ends == [100 + index + 1 for index, byte in enumerate(text) if byte == 0x0A]


@examples
@given(logs, st.data())
def test_any_changed_byte_is_found(log: list[list[NewEntry]], data: st.DataObject):
    text = encode(log)
    at = data.draw(st.integers(0, len(text) - 2))  # a lost last newline is a torn tail, which isn't the codec's to find
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    before = text.count(b"\n", 0, at)
    found: list[Entry] = []
    with pytest.raises(CorruptLog) as caught:
        for entry, _ in codec.decode_lines(text[:at] + bytes([byte]) + text[at + 1 :], after=Seq(0), previous_crc=0):
            found.append(entry)
    # What comes before the damage is right, and where it starts is said.
    assert found == decode(text)[: len(found)]
    assert caught.value.seq == len(found) == before
    assert caught.value.offset == sum(len(line) for line in text.splitlines(keepends=True)[:before])


@examples
@given(logs, st.data())
def test_any_dropped_line_but_the_last_is_found(log: list[list[NewEntry]], data: st.DataObject):
    lines = encode(log).splitlines(keepends=True)
    assume(len(lines) > 1)
    at = data.draw(st.integers(0, len(lines) - 2))
    with pytest.raises(CorruptLog) as caught:
        decode(b"".join(lines[:at] + lines[at + 1 :]))
    assert caught.value.seq == at


@examples
@given(logs, st.data())
def test_any_reordering_is_found(log: list[list[NewEntry]], data: st.DataObject):
    lines = encode(log).splitlines(keepends=True)
    assume(len(lines) > 1)
    order = data.draw(st.permutations(range(len(lines))))
    assume(order != sorted(order))
    with pytest.raises(CorruptLog):
        decode(b"".join(lines[index] for index in order))


@examples
@given(logs, st.data())
def test_any_doubled_line_is_found(log: list[list[NewEntry]], data: st.DataObject):
    lines = encode(log).splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    with pytest.raises(CorruptLog):
        decode(b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]))


@examples
@given(batches, batches)
def test_a_line_of_another_log_is_found(one: list[NewEntry], other: list[NewEntry]):
    first, last = encode([one]), encode([one[:-1] or other, other])
    lines = last.splitlines(keepends=True)
    assume(len(lines) > len(one) and not last.startswith(first))
    with pytest.raises(CorruptLog):
        decode(first + b"".join(lines[len(one) :]))


@examples
@given(logs, st.data())
def test_any_inserted_or_removed_byte_is_found(log: list[list[NewEntry]], data: st.DataObject):
    text = encode(log)
    at = data.draw(st.integers(0, len(text) - 2))
    inserted = bytes([data.draw(st.integers(0, 255))])
    assume(inserted != b"\n" or at)
    for changed in (text[:at] + text[at + 1 :], text[:at] + inserted + text[at:]):
        with pytest.raises(CorruptLog):
            decode(changed)


@examples
@given(st.binary(max_size=80) | st.text(string.printable, max_size=80).map(str.encode))
@example(b'{"seq":1,"ts":1,"actor":"\\q","data":1,"crc":"00000000"}')
@example(b'{"seq":1,"ts":1,"actor":"a","origin":{"actor":"\\q","ts":1},"data":1,"crc":"00000000"}')
@example(b'{"seq":99999999999999999999,"ts":1,"actor":"a","data":1,"crc":"00000000"}')
@example(b'{"seq":1,"ts":1,"actor":"\xff","data":1,"crc":"00000000"}')
def test_other_lines_are_no_entries(line: bytes):
    assert codec.parse(line) is None


@examples
@given(logs, st.data())
def test_reading_may_begin_anywhere(log: list[list[NewEntry]], data: st.DataObject):
    text = encode(log)
    everything = decode(text)
    lines = text.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(everything)))
    crc = everything[at - 1].crc if at else 0
    rest = b"".join(lines[at:])
    assert [entry for entry, _ in codec.decode_lines(rest, after=Seq(at), previous_crc=crc)] == everything[at:]


# ---- many at once


def outcome(text: bytes, after: int = 0, previous_crc: int = 0, offset: int = 0) -> tuple[list[Entry], object]:
    """What `decode_lines` gives, in the form of `decode`."""
    entries: list[Entry] = []
    try:
        for entry, _ in codec.decode_lines(text, after=Seq(after), previous_crc=previous_crc, offset=offset):
            entries.append(entry)
    except CorruptLog as damage:
        return entries, (str(damage), damage.seq, damage.offset)
    return entries, None


def at_once(text: bytes, after: int = 0, previous_crc: int = 0, offset: int = 0) -> tuple[list[Entry], object]:
    entries, damage = codec.decode(text, after=Seq(after), previous_crc=previous_crc, offset=offset)
    return list(entries), damage and (str(damage), damage.seq, damage.offset)


def changed(text: bytes, data: st.DataObject) -> bytes:
    """`text` with a few changes, most of them where lines begin and end."""
    for _ in range(data.draw(st.integers(0, 2))):
        ends = [index for index, byte in enumerate(text) if byte == 0x0A] or [len(text)]
        near = data.draw(st.sampled_from([-1, *ends])) + data.draw(st.integers(-20, 60))
        at = max(0, min(len(text), near if data.draw(st.integers(0, 3)) else data.draw(st.integers(0, len(text)))))
        cut = data.draw(st.sampled_from([0, 1, 1, 1, 2, 3]))
        pieces = st.sampled_from(
            [b"\n", b'"', b'\\"', b",", b'"data":', b'"actor":"x"', b"0", b"7", b" ", b"-", b"_", b"}"]
        )
        text = text[:at] + data.draw(pieces | st.binary(max_size=2)) + text[at + cut :]
    return text


@examples
@given(logs, st.data())
def test_decoding_at_once_gives_the_same(log: list[list[NewEntry]], data: st.DataObject):
    text = encode(log)
    assert at_once(text) == outcome(text) == (decode(text), None)
    text = changed(text, data)
    after, crc = data.draw(st.sampled_from([(0, 0), (1, 0), (0, 5)]))
    assert at_once(text, after, crc, 100) == outcome(text, after, crc, 100)


@examples
@given(logs, st.data())
def test_decoding_at_once_sees_forms_as_parse_does(log: list[list[NewEntry]], data: st.DataObject):
    # The checksums are right, whatever became of the lines: only their form can tell.
    crc, lines = 0, []
    for line in encode(log).splitlines():
        body = changed(line[:-18], data).replace(b"\n", b" ")
        crc = crc32(body, crc)
        lines.append(b'%b,"crc":"%08x"}\n' % (body, crc))
    text = b"".join(lines)
    assert at_once(text) == outcome(text)


@pytest.mark.parametrize(
    "body",
    [
        b'{"seq":1,"ts":179524158200_,"actor":"x","data":1',
        b'{"seq":1,"ts":+795241582000,"actor":"x","data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x"',
        b'{"seq":1,"ts":1795241582000,"actor":"x"}',
        b'{"seq":01,"ts":1795241582000,"actor":"x","data":1',
        b'{"seq":2,"ts":1795241582000,"actor":"x","data":1',
        b' {"seq":1,"ts":795241582000,"actor":"x","data":1',
        b'{"sek":1,"ts":1795241582000,"actor":"x","data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x","more":-1,"data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x","more":0,"more":5,"data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x","more":7,"other":1,"data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x","origin":{"actor":"y","ts":1},"more":7,"data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"\\q","data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x,\\"data\\":","data":1',
        b'{"seq":1,"ts":1795241582000,"actor":"x","data":',
        b'{"seq":1,"ts":795241582000,"actor":"x","data":1',
        b'{"seq":1,"ts":17952415820001,"actor":"x","data":1',
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_line_decoded_at_once_has_the_one_form(body: bytes, checked: bool):  # noqa: FBT001
    text = b'%b,"crc":"%08x"}\n' % (body, crc32(body) if checked else 1)
    assert at_once(text) == outcome(text)


@pytest.mark.parametrize("text", [b"", b"\n", b"\n\n", b"x", b'{"seq":1,"ts":1'])
def test_decoding_next_to_nothing_at_once(text: bytes):
    assert at_once(text) == outcome(text)


def test_common_lines_need_no_parser():
    batch = [NewEntry(b'{"n":%d}' % n, "uid:1000/vim") for n in range(500)]
    text, _ = codec.encode_batch(batch, Seq(9), [1_795_241_582_000 + n for n in range(500)], 7)
    with patch.object(codec, "parse", side_effect=AssertionError):
        entries, damage = codec.decode(text, after=Seq(9), previous_crc=7)
    assert damage is None
    assert [entry.data for entry in entries] == [new.data for new in batch]
