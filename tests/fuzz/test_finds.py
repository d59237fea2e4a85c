"""What the fuzzers have found, each by its name."""

from __future__ import annotations

import io

import orjson
import pytest

from store import intake
from store.errors import InvalidText
from store.fold import ChatState
from store.history import diff, diff_append
from store.importers.messages import read_messages
from store.model import Origin
from tests.fuzz.lines import DOUBLED
from tests.fuzz.support import TALK, apply, new_ids


@pytest.mark.parametrize("role", [b"my agent \xc2", b"\xff", b"\xed\xa0\x80"])
def test_a_heading_that_is_not_utf_8_is_refused_as_all_such_text_is(role: bytes):
    state = ChatState()
    apply(state, diff(state, TALK, new_ids()))
    heading = b"## %b \xc2\xb7 2026-11-21T06:13:05Z\n\nhello\n" % role
    for action in (
        lambda: diff(state, heading + TALK, new_ids("n")),
        lambda: diff_append(state, heading, new_ids("n")),
    ):
        with pytest.raises(InvalidText):
            action()
    cut = TALK.replace(b"## user \xc2\xb7", b"## user \xc2", 1)
    with pytest.raises(InvalidText):
        diff(state, cut, new_ids("n"))


def test_a_message_of_tool_calls_needs_no_content():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    without = {"role": "assistant", "tool_calls": [call]}
    texts = []
    for value in (without, without | {"content": None}):
        (record,) = read_messages(io.BytesIO(orjson.dumps(value))).records
        texts.append(orjson.loads(record.data)["content"])
    assert texts[0] == texts[1]
    assert "add" in texts[0]


def test_an_entry_that_has_a_key_twice_is_kept_as_json_takes_it():
    found = intake.accept(DOUBLED, "uid:0/test", lambda: "an-id")
    assert (found.data, found.origin) == (b"null", Origin("a", 1))
