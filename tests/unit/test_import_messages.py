"""JSON lines of messages as a chat."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.fold import fold
from store.importers.imported import ImportedChat
from store.importers.messages import read_messages
from store.importers.payloads import RECORD_MAX
from store.model import Entry, Millis, Seq
from tests.support.imported import PNG, picture, shown
from tests.unit.strategies import examples

FIXTURE = Path(__file__).parents[1] / "fixtures" / "messages" / "chat.jsonl"


def chat_of(*lines: object) -> ImportedChat:
    raw = (line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    return read_messages(io.BytesIO(b"\n".join(raw)))


def test_a_file_of_messages() -> None:
    chat = read_messages(FIXTURE)
    records = list(chat.records)
    events = [ev.parse(record.data) for record in records]
    messages = [event for event in events if isinstance(event, ev.MessageAppended)]
    assert [(message.role, message.content) for message in messages[:4]] == [
        ("system", "Be brief."),
        ("user", "What is 2+2?"),
        ("assistant", '▸ add: {"a": 2, "b": 2}'),
        ("tool", "4"),
    ]
    assert messages[4].id == "given"
    assert [message.content for message in messages[5:]] == ["ok", "ok"]
    assert len({message.id for message in messages}) == 7
    assert events[7] == ev.MessageRemoved("given")
    assert [records[8].data, records[10].data] == [b"[1, 2.5, null]", b'"text"']
    assert (chat.suggested_name, chat.title) == ("What-is-2+2", "")


def test_a_message_keeps_its_other_keys_and_its_time() -> None:
    record = list(read_messages(FIXTURE).records)[2]
    assert orjson.loads(record.data)["tool_calls"][0]["id"] == "c1"
    (timed,) = chat_of({"role": "user", "content": "x", "timestamp": "2026-02-06T08:56:00Z", "extra": [1]}).records
    assert (timed.ts, timed.actor) == (1_770_368_160_000, "messages/user")
    assert orjson.loads(timed.data)["extra"] == [1]


@pytest.mark.parametrize(
    ("time", "ts"),
    [
        (1_770_368_160, 1_770_368_160_000),
        (1_770_368_160_000, 1_770_368_160_000),
        (1_770_368_160.5, 1_770_368_160_500),
        ("2026-02-06T09:56:00+01:00", 1_770_368_160_000),
        ("2026-02-06 08:56:00", 1_770_368_160_000),
        ("1969-12-31", None),
        ("yesterday", None),
        (-1, None),
        (True, None),
        ([], None),
    ],
)
def test_times_come_in_many_forms(time: object, ts: int | None) -> None:
    (record,) = chat_of({"role": "user", "content": "x", "created_at": time}).records
    assert record.ts == ts


def test_an_entry_of_a_log_gives_its_data_and_its_origin() -> None:
    (record,) = chat_of({"seq": 7, "ts": 5, "actor": "uid:1/vim", "data": {"role": "user", "content": "hi"}}).records
    assert (record.ts, record.actor) == (5, "uid:1/vim")
    assert shown([record]) == [("user", "hi")]


def test_importing_again_or_more_gives_the_same_records() -> None:
    lines = FIXTURE.read_bytes().splitlines(keepends=True)
    whole = read_messages(io.BytesIO(b"".join(lines)))
    for count in range(2, len(lines)):
        part = read_messages(io.BytesIO(b"".join(lines[:count])))
        assert part.source_id == whole.source_id
        assert list(part.records) == list(whole.records)[: len(list(part.records))]


def test_a_bad_line_is_reported_and_kept() -> None:
    chat = chat_of(b"not json", {"role": "user", "content": "x"}, b"\xff")
    first, _, last = chat.records
    assert [problem.split(" (")[0] for problem in chat.problems] == [
        "line 1: not JSON",
        "line 3: not JSON, and the last line has no end: cut off while it was written",
    ]
    assert orjson.loads(first.data)["text"] == "not json"
    assert orjson.loads(last.data)["base64"] == "/w=="


def test_a_picture_in_a_message_becomes_an_attachment() -> None:
    (record,) = chat_of({"role": "user", "content": [picture()]}).records
    (file,) = record.attachments
    assert (file.name, file.data) == ("image-1.png", PNG)
    assert orjson.loads(record.data)["content"][0]["source"]["attachment"] == "image-1.png"
    (message,) = fold([Entry(Seq(1), Millis(1), "importer", record.data, 0)]).messages()
    assert message.content == "![image-1.png](attachments/image-1.png)"


def test_a_picture_elsewhere_stays_where_it_is() -> None:
    value = {"type": "note", "content": [picture()]}
    (record,) = chat_of(value).records
    assert (record.data, record.attachments) == (orjson.dumps(value), ())


def test_half_a_surrogate_pair_is_replaced_in_what_is_shown() -> None:
    line = rb'{"role":"user","content":"cut \ud83d"}'
    (record,) = chat_of(line).records
    assert shown([record]) == [("user", "cut \ufffd")]
    assert orjson.loads(record.data)["text"] == line.decode()


@pytest.mark.parametrize("kind", ["message", "note"])
def test_what_is_too_long_for_the_log_becomes_an_attachment(kind: str) -> None:
    line = orjson.dumps({"type": kind, "role": "user", "content": "word " * (RECORD_MAX // 5 + 1)})
    (record,) = chat_of(line).records
    (file,) = record.attachments
    assert (file.name, file.data) == ("record-1.json", line)
    assert len(record.data) < RECORD_MAX
    messages = shown([record])
    assert len(messages) == (kind == "message")
    assert all("[record-1.json](attachments/record-1.json)" in text[-60:] for _, text in messages)


def test_a_deeply_nested_message_is_kept_as_it_is() -> None:
    line = b'{"type":1,"role":"user","content":[' + b"[" * 400 + b"]" * 400 + b"]}"
    (record,) = chat_of(line).records
    assert record.data == line


_FIELDS = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "id",
        "data",
        "seq",
        "ts",
        "actor",
        "origin",
        "name",
        "tool_calls",
        "function",
        "source",
    ]
)
_WORDS = st.sampled_from(["user", "message", "message.appended", "base64", "a\ud83d", "x" * 300, ""])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=6),
    max_leaves=8,
)
_MESSAGES = st.builds(
    lambda more, content: {"role": "user", "content": content} | more,
    st.dictionaries(_FIELDS, _JSON, max_size=4),
    _JSON,
)
_ENVELOPES = st.builds(lambda data: {"seq": 1, "ts": 1, "actor": "a", "data": data}, _MESSAGES | _JSON)
_VALUES = (_JSON | _MESSAGES | _ENVELOPES).map(lambda value: json.dumps(value).encode())


_BAD = st.binary(max_size=20).map(lambda line: b"?" + line.replace(b"\n", b""))


@examples
@given(st.lists(_VALUES | _BAD, max_size=6))
def test_any_line_is_accepted_as_one_record(lines: list[bytes]) -> None:
    records = list(chat_of(*lines).records)
    assert len({record.key for record in records}) == len(records)
    for line, record in zip(lines, records, strict=True):
        value = orjson.loads(record.data)
        try:
            source = orjson.loads(line)
        except orjson.JSONDecodeError:
            bare = line.strip()
            kept = base64.b64decode(value["base64"]) if "base64" in value else value["text"].encode()
            assert kept == bare or kept.strip() == bare.strip(b"\v\f")
            continue
        if type(source) is dict and "data" in source:
            continue  # Perhaps an envelope: only what it is around is kept.
        if type(source) is dict:
            changed = {key for key in source if value.get(key) != source[key]}
            assert changed <= {"id", "type", "content"}
            assert "content" not in changed or source["content"] is None
        else:
            assert record.data == line
