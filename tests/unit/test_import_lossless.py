"""Importing loses nothing: bad lines, pictures, overlong records, whatever can stand in a file."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.importers.payloads import RECORD_MAX
from store.importers.source import LINE_READ_MAX
from store.model import attachment_name, directory_name
from tests.support.imported import PNG, UUID, one, picture, restored, shown, text, user, written
from tests.unit.strategies import examples


def test_two_records_on_one_line_are_taken_apart(tmp_path: Path) -> None:
    first, second = orjson.dumps(user("one")), orjson.dumps(user("two", 2))
    chat = one(written(tmp_path, first + second))
    assert chat.problems == ["line 1: 2 records without a line end between them, taken apart"]
    assert restored(list(chat.records)) == [first, second]
    assert shown(list(chat.records)) == [("user", "one"), ("user", "two")]


def test_half_a_surrogate_pair_is_shown_as_a_replacement_character_and_kept_as_it_was(tmp_path: Path) -> None:
    line = orjson.dumps(user("XX")).replace(b"XX", rb"cut \ud83d, whole \ud83d\ude00, written \\ud83d")
    chat = one(written(tmp_path, line))
    assert shown(list(chat.records)) == [("user", "cut \ufffd, whole \U0001f600, written \\ud83d")]
    assert restored(list(chat.records)) == [line]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"\x00\x00", b"{", b"NaN", b"[" * 5000 + b"]" * 5000, b'{"a":1}{"b":'])
def test_a_bad_line_is_reported_and_kept(tmp_path: Path, line: bytes) -> None:
    chat = one(written(tmp_path, user("before"), line, user("after", 2)))
    assert len(chat.problems) == 1
    assert chat.problems[0].startswith("line 2: not JSON (")
    assert restored(list(chat.records))[1] == line
    assert shown(list(chat.records)) == [("user", "before"), ("user", "after")]


def test_deep_nesting_that_can_be_read_but_not_wrapped_is_kept_as_text(tmp_path: Path) -> None:
    line = b'{"type":"deep","x":' + b"[" * 1023 + b"]" * 1023 + b"}"
    assert orjson.loads(line)
    (record,) = one(written(tmp_path, line)).records
    assert orjson.loads(record.data) == {"type": "import.record", "source": "claude-code", "text": line.decode()}


def test_numbers_and_blanks_are_kept_as_they_were_written(tmp_path: Path) -> None:
    line = b'{ "type" : "x", "n": [1.50, 1e3, 123456789012345678901234567890], "n": "\\u0041" }'
    (record,) = one(written(tmp_path, line)).records
    assert record.data == b'{"type":"import.record","source":"claude-code","record":%b}' % line


def test_crlf_blank_lines_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    line = orjson.dumps(user("hi"))
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n")
    chat = one(path)
    assert (chat.problems, restored(list(chat.records))) == ([], [line])


# ---- pictures and large records


def test_pictures_become_attachments_and_their_base64_leaves_the_log(tmp_path: Path) -> None:
    other = PNG + b"!"
    encoded = base64.b64encode(other).decode()
    result = {"type": "tool_result", "tool_use_id": "t", "content": [picture(other, "image/jpeg")]}
    document = {"type": "document", "source": picture(b"%PDF-1.7" * 9, "application/pdf")["source"]}
    lines = [
        orjson.dumps(user([picture(), picture()])),
        orjson.dumps(
            user([result], 2) | {"toolUseResult": {"type": "image", "file": {"base64": encoded, "type": "x"}}}
        ),
        orjson.dumps(user([document], 3)),
    ]
    records = list(one(written(tmp_path, *lines)).records)
    files = [item for record in records for item in record.attachments]
    assert [(item.name, item.data, item.content_type) for item in files] == [
        ("image-1.png", PNG, "image/png"),
        ("image-2.jpg", other, "image/jpeg"),
        ("document-1.pdf", b"%PDF-1.7" * 9, "application/pdf"),
    ]
    first = "![image-1.png](attachments/image-1.png)"
    assert shown(records) == [
        ("user", f"{first}\n\n{first}"),
        ("tool", "◂ a tool\n\n![image-2.jpg](attachments/image-2.jpg)"),
        ("user", "[document-1.pdf](attachments/document-1.pdf)"),
    ]
    assert restored(records) == lines
    assert not any(base64.b64encode(item.data) in record.data for item in files for record in records)


def test_base64_that_is_no_base64_or_not_only_a_value_stays_where_it_is(tmp_path: Path) -> None:
    bad = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?" * 40}}
    encoded = base64.b64encode(PNG).decode()
    lines = [
        orjson.dumps(user([bad])),
        orjson.dumps(user([picture()], 2) | {"toolUseResult": {encoded: 1}}),
        orjson.dumps(user([picture(), text(f'"{encoded}')], 3)),
        orjson.dumps(user([picture()], 4) | {"todos": [encoded]}),
    ]
    records = list(one(written(tmp_path, *lines)).records)
    assert restored(records) == lines
    assert not any(record.attachments for record in records)
    assert [message for _, message in shown(records)] == ["[image]", "[image]", f'[image]\n\n"{encoded}', "[image]"]


def test_a_record_that_is_too_long_for_the_log_becomes_an_attachment(tmp_path: Path) -> None:
    line = orjson.dumps(user("word " * (RECORD_MAX // 5 + 1)))
    (record,) = one(written(tmp_path, line)).records
    assert len(record.data) < RECORD_MAX
    (file,) = record.attachments
    assert (file.name, file.data) == ("record-1.json", line)
    ((role, message),) = shown([record])
    assert role == "user"
    assert message.startswith("word word")
    assert message.endswith("more characters in history.jsonl")


def test_a_record_that_is_too_long_only_together_with_its_message_becomes_an_attachment(tmp_path: Path) -> None:
    line = orjson.dumps(user("x" * 600_000) | {"toolUseResult": "y" * (RECORD_MAX - 1_000_000)})
    assert len(line) < RECORD_MAX < len(line) + 600_000
    (record,) = one(written(tmp_path, line)).records
    assert [item.data for item in record.attachments] == [line]
    assert shown([record]) == [("user", "x" * 600_000)]


def test_a_large_picture_leaves_a_small_record(tmp_path: Path) -> None:
    data = PNG + bytes(RECORD_MAX)
    (record,) = one(written(tmp_path, user([picture(data)]))).records
    assert [(item.name, item.data) for item in record.attachments] == [("image-1.png", data)]
    assert len(record.data) < 1000


def test_a_line_beyond_what_is_read_at_once_is_kept_in_pieces(tmp_path: Path) -> None:
    line = b'{"type":"user","x":"' + b"a" * LINE_READ_MAX + b'"}'
    chat = one(written(tmp_path, line, user("after", 2)))
    records = list(chat.records)
    assert b"".join(restored(records[:-1])) == line
    assert [problem[:7] for problem in chat.problems] == ["line 1:", "line 1:"]
    assert shown(records) == [("user", "after")]


# ---- whatever stands in a file

_WORDS = st.sampled_from(
    (
        "user assistant text tool_use tool_result image base64 summary custom-title attachment queued_command system "
        f"local_command msg_1 <system-reminder> <bash-stdout> {UUID} \ud83d"
    ).split()
)
_FIELDS = st.sampled_from(
    ["type", "uuid", "message", "content", "role", "id", "name", "input", "text", "source", "data", "media_type", "cwd"]
) | st.sampled_from(
    ["tool_use_id", "is_error", "summary", "base64", "customTitle", "leafUuid", "attachment", "prompt", "subtype"]
)
_FLAGS = st.sampled_from(
    ["timestamp", "isMeta", "isSidechain", "sessionId", "commandMode", "origin", "model", "sha256"]
)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _WORDS | st.text(max_size=20)
_JSON = st.recursive(
    _LEAVES | st.just(base64.b64encode(PNG).decode()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_FIELDS, inner, max_size=6),
    max_leaves=8,
)
_BLOCKS = st.lists(
    st.dictionaries(_FIELDS, _JSON, max_size=5) | st.builds(text, _WORDS) | st.builds(picture), max_size=4
)
_RECORDS = st.builds(
    lambda kind, message, content, more: more | {"type": kind, "message": {"id": message, "content": content}},
    st.sampled_from(["user", "assistant"]),
    _JSON,
    _BLOCKS | _JSON,
    st.dictionaries(_FIELDS | _FLAGS, _JSON, max_size=3),
)
_LINES = st.lists((_RECORDS | _JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), max_size=8)


@examples
@given(_LINES)
def test_nothing_that_can_stand_in_a_file_is_refused_or_lost(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    chat = one(path)
    records = list(chat.records)
    kept = b"".join(restored(records))
    assert _without_blanks(kept) == _without_blanks(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    assert len({record.key for record in records}) == len(records)
    assert directory_name(chat.suggested_name)
    for record in records:
        assert b"\n" not in record.data
        assert all(attachment_name(item.name) for item in record.attachments)
        value = orjson.loads(record.data)
        known = value["type"] in {"message.appended", "message.edited", "chat.changed"}
        assert known != isinstance(ev.parse(record.data), ev.Unknown)
    shown(records)


def _without_blanks(data: bytes) -> bytes:
    return data.translate(None, b" \t\r\n")


def test_real_sessions_are_imported_whole() -> None:
    samples = os.environ.get("CHATFS_SAMPLES")
    if not samples or not (Path(samples) / "claude-code").is_dir():
        pytest.skip("CHATFS_SAMPLES names no directory with real sessions in claude-code/")
    files = sorted((Path(samples) / "claude-code").glob("*.jsonl"))
    assert files
    for path in files:
        chat = one(path)
        records = list(chat.records)
        assert b"".join(restored(records)) == path.read_bytes().replace(b"\n", b"")
        messages = shown(records)
        assert {"user", "assistant"} <= {role for role, _ in messages}
        assert all(message.strip() for _, message in messages)
        assert not any("<system-reminder>" in message or "tool_use_error>" in message for _, message in messages)
