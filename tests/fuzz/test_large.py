"""Input that is large or deep: what is too much is refused, or kept as it is, and nothing exhausts the stack."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import orjson
import pytest

from store import codec, intake, metadata
from store.errors import InvalidEvent, InvalidInput, LineTooLong
from store.fold import ChatState
from store.history import diff, render
from store.importers.messages import read_messages
from store.importers.payloads import RECORD_MAX
from store.model import LINE_MAX, Seq
from tests.fuzz.imports import check_import, imported_messages, imported_sessions
from tests.fuzz.support import apply, entry, new_ids

DEEP: dict[str, Callable[[int], bytes]] = {
    "lists": lambda n: b"[" * n + b"]" * n,
    "open lists": lambda n: b"[" * n,
    "objects": lambda n: b'{"a":' * n + b"1" + b"}" * n,
    "both": lambda n: b'[{"content":' * n + b"1" + b"}]" * n,
    "a message": lambda n: b'{"role":"user","content":' + b"[" * n + b"]" * n + b"}",
    "an entry": lambda n: b'{"seq":1,"ts":1,"actor":"a","data":' + b"[" * n + b"]" * n + b',"crc":"00000000"}',
    "labels": lambda n: b'{"title":"x","labels":' + b"[" * n + b"]" * n + b"}",
}


@pytest.mark.parametrize("shape", DEEP)
def test_what_is_nested_a_hundred_thousand_times_is_refused(shape: str):
    text = DEEP[shape](100_000)
    with pytest.raises(InvalidEvent):
        intake.accept(text, "uid:0/test", lambda: "an-id")
    with pytest.raises(InvalidInput):
        metadata.parse_saved(text, metadata.EDITABLE_CHAT)
    imported_messages(text)
    imported_sessions(text)


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("depth", [250, 253, 254, 255, 256, 1000, 1020, 1021, 1022, 1023, 1024, 1025])
def test_at_the_limits_of_nesting_a_line_is_refused_or_works_as_any_other(shape: str, depth: int):
    text = DEEP[shape](depth)
    imported_messages(text)
    imported_sessions(text)
    try:
        new = intake.accept(text, "uid:0/test", lambda: "an-id")
    except InvalidEvent:
        return
    line, _crc = codec.encode(new, 1, 1, 0)
    again = intake.accept(line, "uid:0/test", lambda: "an-id")
    assert again.data == new.data
    state = ChatState()
    state.apply(entry(1, new.data))
    assert diff(state, render(state), new_ids()) == []


def test_a_line_of_16_mib_and_one_byte_more():
    around = len(b'{"role":"user","content":""}')
    line = b'{"role":"user","content":"%b"}' % (b"x" * (LINE_MAX - around))
    found = intake.accept(line, "uid:0/test", lambda: "an-id")
    state = ChatState()
    state.apply(entry(Seq(1), found.data))
    assert len(render(state)) > LINE_MAX - around
    with pytest.raises(LineTooLong, match=f"line 1 has {LINE_MAX + 1} bytes"):
        intake.accept(line.replace(b"xx", b"xxx", 1), "uid:0/test", lambda: "an-id")


def test_an_imported_line_beyond_16_mib_is_kept_beside_the_log():
    line = b'{"role":"user","content":"%b"}\n' % (b"x" * (LINE_MAX + 1))
    chat = read_messages(io.BytesIO(line))
    check_import(chat)
    (record,) = chat.records
    assert len(record.data) <= RECORD_MAX
    assert [found.data for found in record.attachments] == [line.rstrip()]


@pytest.mark.parametrize(
    "payload",
    [
        "A" * 1_000_001,
        "=" * 100_000,
        "\u00e4" * 100_000,
        "AAAA\n" * 100_000,
        base64.b64encode(bytes(3000)).decode() + "!",
        "data:image/png;base64,AAAA",
        "",
    ],
)
def test_base64_that_is_none(payload: str):
    source = {"type": "base64", "media_type": "image/png", "data": payload}
    value = {"role": "user", "content": [{"type": "image", "source": source}]}
    imported_messages(orjson.dumps(value))
    imported_sessions(orjson.dumps({"type": "user", "uuid": "u", "message": value}))


def test_what_repeats_itself():
    state = ChatState()
    for text in (b"## user\n" * 10_000, b"\\" * 1_000_000, b"```\n" * 50_000, b"#" * 1_000_000):
        apply(state, diff(state, text, new_ids(f"n{len(text)}")))
        assert render(state) == text
