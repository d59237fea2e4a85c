"""`store.importers.jp` and what stands beside it: JP's files, read to the letter."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.errors import Conflict, InvalidInput
from store.importers import jp as importer
from store.importers.jp import Conversation, JpChat, find_conversations, load, records
from store.importers.jp_format import conversation_id, decoded, directory_of, encoded, id_at, time_text
from store.importers.jp_json import NotJson, compact, elements, members, pretty
from store.importers.source import time_of
from store.model import Millis, directory_name
from tests.support import jp
from tests.support.jp import EVENTS, ID, VALUES, answer, b64, call, request, response, turn, write
from tests.unit.strategies import examples

FIXTURE = Path(__file__).parents[1] / "fixtures" / "jp"


def only(project: Path) -> JpChat:
    (chat,) = find_conversations(project)
    return chat


def shown(project: Path) -> list[tuple[str, str]]:
    """The messages as (role, text)."""
    events = [ev.parse(record.data) for record in records(load(only(project)))]
    return [(event.role, str(event.content)) for event in events if isinstance(event, ev.MessageAppended)]


# ---- JSON in pieces


@given(VALUES, st.sampled_from([None, 0, 1, 4]), st.booleans())
@examples
def test_json_in_pieces_is_what_it_was(value, indent, ascii_):
    text = json.dumps(value, indent=indent, ensure_ascii=True if "\\ud83d" in json.dumps(value) else ascii_).encode()
    assert jp.exact(compact(text)) == jp.exact(text) == jp.exact(pretty(text))
    assert b"\n" not in compact(text)
    assert pretty(pretty(text)) == pretty(text)
    if isinstance(value, list):
        assert [jp.exact(piece) for piece in elements(text)] == jp.exact(text)
    if isinstance(value, dict):
        assert {key: jp.exact(piece) for key, piece in members(text).items()} == jp.exact(text)


@given(VALUES, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from(list(',:[]{}"1 x\\')))))
@examples
def test_json_is_refused_where_it_is_none(value, changes):
    text = json.dumps(value)
    for at, drop, put in changes:
        text = text[:at] + put + text[at + drop :]
    try:
        json.loads(text, parse_constant=int)
        good = True
    except ValueError:
        good = False
    try:
        compact(text.encode())
    except NotJson:
        assert not good
    else:
        assert good


def test_what_is_nested_a_hundred_thousand_deep_is_no_matter():
    deep = b"[" * 100_000 + b"]" * 100_000
    assert compact(deep) == deep
    assert elements(b'[1, %b, {"x": %b}]' % (deep, deep)) == [b"1", deep, b'{"x":%b}' % deep]
    assert len(pretty(deep)) < 100_000_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "cut off in the middle"),
        (b'[1,\n"a', "line 2: not JSON"),
        (b"[1,\n2", "cut off in the middle"),
        (b"[1]\n[2]", "line 2: not JSON"),
        (b'["\xff"]', "line 1: not UTF-8"),
        (b'\n["\x01"]', "line 2: not JSON"),
        (b"[NaN]", "line 1: not JSON"),
        (b"\xef\xbb\xbf[]", "line 1: not JSON"),
    ],
)
def test_a_refusal_says_where(text, why):
    with pytest.raises(NotJson, match=why):
        compact(text)


# ---- names, times, base64


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Missing date in version string", "-missing-date-in-version-string"),
        ("jp CLI cold-start workflow issues", "-jp-cli-cold-start-workflow-issues"),
        ("", ""),
        ("  - ", ""),
        ("Übung: größer?", "-übung--größer"),
        ("a" * 61, ""),
        ("one two " * 9, "-one-two" * 7),
        ("x/../y\x00z", "-x----y-z"),
    ],
)
def test_directories_are_called_as_jp_calls_them(title, name):
    assert directory_of(ID, title) == f"{ID}{name}"
    assert conversation_id(directory_of(ID, title)) == ID


@given(st.text(st.characters(codec="utf-8"), max_size=300))
@examples
def test_any_title_gives_a_name_that_a_directory_can_have(title):
    directory_name(directory_of(92_233_720_368, title))
    assert len(directory_of(92_233_720_368, title).encode()) <= 255


@pytest.mark.parametrize("name", ["", "x", "-5", "12x-y", "92233720369-far", "123456789012", "²-x", "٣-x", ".trash"])
def test_what_is_no_conversations_name(name):
    assert conversation_id(name) is None


@pytest.mark.parametrize(
    ("ts", "text"),
    [
        (0, "1970-01-01 00:00:00.0"),
        (1_700_000_000_100, "2023-11-14 22:13:20.1"),
        (1_700_000_000_120, "2023-11-14 22:13:20.12"),
        (1_700_000_000_005, "2023-11-14 22:13:20.005"),
    ],
)
def test_times_are_written_as_jp_writes_them(ts, text):
    assert time_text(Millis(ts)) == text
    assert time_of(text) == ts
    assert id_at(Millis(ts)) == ts // 100


@given(st.integers(0, 253_402_300_799_999))
@examples
def test_every_time_is_read_back(ts):
    assert time_of(time_text(Millis(ts))) == ts


@given(
    st.recursive(st.one_of(st.text(), st.integers()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
@examples
def test_base64_is_read_back(value):
    assert decoded(encoded(value), depth=100) == value


@pytest.mark.parametrize("text", ["plain text", b64(b"\xff\xfe"), "a", "====", "é"])
def test_what_is_no_base64_of_text_stays(text):
    assert decoded(text) == text


# ---- what is shown


def test_a_conversation_reads_as_one(tmp_path):
    write(tmp_path)
    assert shown(tmp_path) == [
        ("user", "Where to in May?"),
        ("assistant", "▸ fs_read_file: notes/trips.md"),
        ("tool", "◂ fs_read_file: notes/trips.md\n\n```\nLisbon\nPorto\n```"),
        ("assistant", "Lisbon. Or Porto."),
    ]


def test_failed_silent_and_unknown_responses_are_shown_as_such(tmp_path):
    write(
        tmp_path,
        [
            call(0, {}, "a"),
            response(1, "no such file", "a", failed=True),
            response(2, "", "a"),
            response(3, "x", "other"),
            {"timestamp": "?", "type": "chat_response", "data": {"n": [1]}},
            {"timestamp": "?", "type": "chatfs_message", "role": "system", "content": "be terse"},
            {"timestamp": "?", "type": "chatfs_message", "role": "a · b", "content": "x"},
        ],
    )
    assert shown(tmp_path) == [
        ("assistant", "▸ fs_read_file"),
        ("tool", "◂ fs_read_file (failed)\n\n```\nno such file\n```"),
        ("tool", "◂ fs_read_file: no output"),
        ("tool", "◂ a tool\n\n```\nx\n```"),
        ("assistant", '```json\n{\n  "n": [\n    1\n  ]\n}\n```'),
        ("system", "be terse"),
    ]


def test_records_carry_the_source_its_time_and_what_it_is(tmp_path):
    write(tmp_path)
    chat = only(tmp_path)
    assert (chat.source_id, chat.suggested_name, chat.archived) == (f"jp-c{ID}", "plan-a-trip", False)
    config, metadata, first, asked, *_ = records(load(chat))
    assert config.data.startswith(b'{"type":"import.record","source":"jp","part":"base_config","record":{"assistant"')
    value = orjson.loads(metadata.data)
    assert (value["type"], value["title"], value["conversation"]) == ("chat.changed", "Plan a trip", str(ID))
    assert value["record"] == jp.METADATA
    assert (first.actor, first.ts) == ("jp/turn_start", 1_699_999_200_000)
    assert orjson.loads(asked.data)["record"] == EVENTS[1]
    assert orjson.loads(asked.data)["role"] == "user"


def test_a_conversation_that_has_grown_keeps_its_keys(tmp_path):
    write(tmp_path)
    before = [record.key for record in records(load(only(tmp_path)))]
    write(tmp_path, [*EVENTS, request(20, "And now?")])
    after = [record.key for record in records(load(only(tmp_path)))]
    assert after[:-1] == before


def test_the_fixture_is_found_from_all_of_its_places():
    """A project, .jp, the conversations, and each conversation alone."""
    expected = {f"jp-c{ID}": False, f"jp-c{ID + 5}": False, f"jp-c{ID + 9}": True}
    conversations = FIXTURE / ".jp" / "conversations"
    for place in (FIXTURE, FIXTURE / ".jp", conversations):
        assert {chat.source_id: chat.archived for chat in find_conversations(place)} == expected
    assert [chat.archived for chat in find_conversations(conversations / ".archive" / f"{ID + 9}-an-old-one")] == [True]
    assert only(conversations / f"{ID}-plan-a-trip").source_id == f"jp-c{ID}"


def test_the_archive_alone_and_places_without_names_are_what_they_really_are(monkeypatch):
    """Whoever stands in a directory calls it `.`."""
    conversations = FIXTURE / ".jp" / "conversations"
    old = {f"jp-c{ID + 9}": True}
    every = {f"jp-c{ID}": False, f"jp-c{ID + 5}": False} | old
    one = f"{ID + 9}-an-old-one"
    for here, words, expected in (
        (FIXTURE, ".", every),
        (FIXTURE / ".jp", ".", every),
        (conversations, ".", every),
        (conversations, ".archive", old),
        (conversations / ".archive", ".", old),
        (conversations / ".archive", "..", every),
        (conversations / ".archive", one, old),
        (conversations / ".archive" / one, ".", old),
        (conversations / ".archive" / one, "..", old),
        (conversations / f"{ID}-plan-a-trip", ".", {f"jp-c{ID}": False}),
    ):
        monkeypatch.chdir(here)
        assert {chat.source_id: chat.archived for chat in find_conversations(Path(words))} == expected, (here, words)


def test_a_lock_counts_wherever_one_stands(tmp_path, monkeypatch):
    path = write(tmp_path, archived=True)
    lock = tmp_path / ".jp" / "locks" / f"jp-c{ID}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for here in (path, path.parent, path.parent.parent):
            monkeypatch.chdir(here)
            with pytest.raises(Conflict, match="in use by another process"):
                load(only(Path()))


def test_a_directory_without_conversations_has_none(tmp_path):
    (tmp_path / "2024-photos").mkdir()
    assert find_conversations(tmp_path) == []
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        find_conversations(file)


def test_trash_and_other_names_are_passed_over(tmp_path):
    path = write(tmp_path)
    write(tmp_path, conversation=ID + 1).rename(path.parent / "no-conversation")
    write(tmp_path, conversation=ID + 2).rename(path.parent / ".trash")
    (path.parent / "notes.md").touch()
    assert only(tmp_path).path == path


def test_a_conversation_that_is_there_twice_comes_once_and_that_is_said(tmp_path):
    write(tmp_path)
    second = write(tmp_path, archived=True)
    assert only(tmp_path).problems == [f"stands in {second} a second time: that one is left out"]


# ---- what is damaged, missing, hostile


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("events", b'[\n{"type"', "damaged: events.json: cut off in the middle"),
        ("events", b"{}", "damaged: events.json: not an array"),
        ("events", b'["\xe9"]', "damaged: events.json: line 1: not UTF-8"),
        ("metadata", b"[]", "damaged: metadata.json: not an object"),
        ("metadata", b"", "damaged: metadata.json: cut off in the middle"),
        ("base_config", b"{\nx}", "damaged: base_config.json: line 2: not JSON"),
        ("metadata", b'{"x":"%b"}' % (b"x" * (8 << 20)), "metadata.json is longer than 8 MiB"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content, why):
    write(tmp_path, **{file: content})
    with pytest.raises(InvalidInput) as caught:
        load(only(tmp_path))
    assert str(caught.value) == why


def test_missing_files_are_said_and_the_rest_comes(tmp_path):
    write(tmp_path, metadata=None, base_config=None)
    chat = only(tmp_path)
    found = load(chat)
    assert (found.metadata, found.base_config, len(found.events)) == (None, None, len(EVENTS))
    assert chat.problems == ["no metadata.json"]
    write(tmp_path, events=None)
    chat = only(tmp_path)
    assert load(chat).events == []
    assert chat.problems == ["no events.json"]
    write(tmp_path, None, metadata=None)
    with pytest.raises(InvalidInput, match=r"neither metadata\.json nor events\.json"):
        load(only(tmp_path))


@pytest.mark.parametrize("name", ["events.json", "metadata.json", "base_config.json"])
def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path, name):
    path = write(tmp_path / "project")
    (path / name).rename(tmp_path / "secret")
    (path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=f"{name} is a symbolic link, which isn't followed"):
        load(only(tmp_path / "project"))


def test_links_in_the_place_of_directories_are_not_followed(tmp_path):
    path = write(tmp_path / "other")
    link = tmp_path / "project" / ".jp" / "conversations" / path.name
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    with pytest.raises(InvalidInput, match="a symbolic link, which isn't followed"):
        load(only(tmp_path / "project"))
    (link.parent / ".archive").symlink_to(path.parent)
    link.unlink()
    assert find_conversations(tmp_path / "project") == []
    for name in (".jp", ".jp/conversations"):
        project = tmp_path / name.replace("/", "_")
        (project / name).parent.mkdir(parents=True)
        (project / name).symlink_to(path.parent)
        with pytest.raises(OSError, match="a symbolic link, which isn't followed") as caught:
            find_conversations(project)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.timeout(10)
def test_a_pipe_in_the_place_of_a_file_stops_nothing(tmp_path):
    path = write(tmp_path, None)
    os.mkfifo(path / "events.json")
    with pytest.raises(InvalidInput, match=r"events\.json is no ordinary file"):
        load(only(tmp_path))


def test_deep_nesting_huge_numbers_and_half_characters_are_kept_to_the_letter(tmp_path):
    odd = [
        b'{"type":"x","deep":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"type":"x","n":[1e999,-0,1.50,' + b"9" * 5000 + b"]}",
        b'{"type":"chat_request","content":"cut \\ud83d"}',
        b'{"type":"x","type":"chat_request","content":"twice","content":"last"}',
        b'"text"',
        b"null",
    ]
    write(tmp_path, b"[\n" + b",\n".join(odd) + b"\n]")
    found = load(only(tmp_path))
    assert found.events == odd
    assert shown(tmp_path) == [("user", "cut \ufffd"), ("user", "last")]
    for record in records(found):
        assert orjson.loads(record.data)
        assert b"\n" not in record.data


def test_files_that_change_while_they_are_read_are_read_again(tmp_path, monkeypatch):
    path = write(tmp_path)
    read: list[str] = []
    real = importer._read_file

    def between(fd: int, directory: Path, name: str) -> bytes:
        found = real(fd, directory, name)
        read.append(name)
        if len(read) == 2:
            changed = tmp_path / "new"
            changed.write_bytes(b'{"title":"Another"}')
            changed.rename(path / "metadata.json")
        return found

    monkeypatch.setattr(importer, "_read_file", between)
    assert load(only(tmp_path)).title == "Another"
    assert len(read) == 6


def test_files_that_change_all_the_time_are_given_up(tmp_path, monkeypatch):
    path = write(tmp_path)
    real = importer._read_file

    def between(fd: int, directory: Path, name: str) -> bytes:
        (tmp_path / "new").write_bytes(b"{}")
        (tmp_path / "new").rename(path / "metadata.json")
        return real(fd, directory, name)

    monkeypatch.setattr(importer, "_read_file", between)
    with pytest.raises(OSError, match="its files change all the time"):
        load(only(tmp_path))


# ---- the lock


def test_reading_makes_no_lock_and_needs_none(tmp_path):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load(only(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("info", "who"),
    [
        (b'{"pid":7,"acquired_at":"2026-01-01T00:00:00Z"}', "process 7 since 2026-01-01T00:00:00Z"),
        (b'{"pid":7}', "process 7"),
        (b"", "another process"),
        (b"\xff[[", "another process"),
    ],
)
def test_who_has_the_lock_is_said(tmp_path, info, who):
    write(tmp_path)
    lock = tmp_path / ".jp" / "locks" / f"jp-c{ID}.lock"
    lock.parent.mkdir()
    lock.write_bytes(info)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict) as caught:
            load(only(tmp_path))
    assert str(caught.value) == f"in use by {who}: try again when that is done"
    assert load(only(tmp_path)).events  # nobody has it any more


def test_others_may_read_meanwhile(tmp_path):
    write(tmp_path)
    lock = tmp_path / ".jp" / "locks" / f"jp-c{ID}.lock"
    lock.parent.mkdir()
    with lock.open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert load(only(tmp_path)).events


def test_labels_that_a_chat_cannot_have_are_left_in_the_record():
    def labels(value: Any) -> list[str]:
        return Conversation(ID, False, orjson.dumps({"labels": value}), None).labels

    assert labels({"a": "1", "b": ""}) == ["a=1", "b"]
    assert labels({"a": "two\nlines"}) == []
    assert labels({"a": 5}) == []
    assert labels(["a"]) == []


def test_the_first_turn_of_an_answer_alone_is_shown(tmp_path):
    write(tmp_path, [turn(0), answer(1, "unasked"), request(2, "   ")])
    assert shown(tmp_path) == [("assistant", "unasked")]
