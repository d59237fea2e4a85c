"""The index's rows: after any events, in any pieces, they say what the fold says."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.document import lead_of
from store.fold import ChatState, fold
from store.index import document, schema
from store.index.document import unpacked
from store.index.query import Search, hits
from store.index.update import Known, Stamp, Update, apply, chat_words, clear, spaces_where
from store.model import Entry, Seq
from tests.unit.strategies import BLANK, LOGS, ROLES, _event, entry, examples, log, optional, said, texts

FEW = st.sampled_from(["m1", "m2", "m3", "m4"])
AFTER = FEW | st.just("")
GAPS = BLANK | st.sampled_from(["\n\n\n", "\n\n\n\n", "x\n\n\n"])
BUSY = st.lists(
    _event(ev.MessageAppended, id=FEW, role=ROLES, content=texts(2))
    | _event(
        ev.MessageAppended,
        id=FEW,
        role=ROLES,
        content=texts(2),
        **optional(after=AFTER, lead=GAPS, tail=GAPS, hidden=st.booleans()),
    )
    | _event(ev.MessageEdited, id=FEW, append=texts(2))
    | _event(ev.MessageEdited, id=FEW, after=AFTER)
    | _event(ev.MessageEdited, id=FEW, tail=GAPS)
    | _event(ev.MessageEdited, id=FEW, **optional(content=texts(2), md=texts(2), lead=GAPS, tail=GAPS))
    | _event(ev.MessageRemoved, id=FEW)
    | _event(ev.PreambleEdited, **optional(text=texts(2), append=texts(2), tail=GAPS)),
    min_size=3,
    max_size=14,
).map(lambda values: log(*values))
"""Few messages, to which much happens."""

SPACE = "workspace/w/chats/c"
STAMP = Stamp(1, 2, 3)
DIGEST = "sha256:" + "a" * 64


@contextlib.contextmanager
def index() -> Iterator[sqlite3.Connection]:
    """Tables with one chat, of which nothing is taken in yet."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.create(connection)
        connection.execute("INSERT INTO spaces (id, space, kind) VALUES (1, 'workspace/w', 'workspace')")
        connection.execute("INSERT INTO workspaces (id, uuid, name) VALUES (1, 'w', 'demo')")
        connection.execute("INSERT INTO spaces (id, space, kind) VALUES (2, ?, 'chat')", (SPACE,))
        connection.execute(
            "INSERT INTO chats (id, workspace, uuid, name, shown, place, created, moved)"
            " VALUES (2, 1, 'c', 'trip', 'trip', 'chats', 0, 0)"
        )
        connection.execute("INSERT INTO words (rowid, title) VALUES (17, 'trip')")
        yield connection
    finally:
        connection.close()


def chat(connection: sqlite3.Connection) -> Known:
    (found,) = spaces_where(connection, "space = ?", SPACE)
    return found


def take_in(connection: sqlite3.Connection, *pieces: list[Entry]) -> None:
    for piece in pieces:
        apply(connection, [Update(chat(connection), piece, STAMP)])


def contents(connection: sqlite3.Connection) -> dict[str, Any]:
    """Everything that doesn't depend on the order in which rows came to be."""
    connection.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(main, words, instance)")
    names = {
        key * schema.KINDS + schema.MESSAGE: ("message", name)
        for key, name in connection.execute("SELECT id, message FROM messages")
    }
    names |= {
        key * schema.KINDS + schema.ATTACHMENT: ("attachment", name)
        for key, name in connection.execute("SELECT id, name FROM attachments")
    }
    return {
        "space": connection.execute("SELECT seq, crc FROM spaces WHERE id = 2").fetchone(),
        "chat": connection.execute("SELECT * FROM chats").fetchall(),
        "messages": [
            (*row, unpacked(text))
            for *row, text in connection.execute(
                "SELECT message, seq, ts, role, hidden, edited, lines, before, behind, text FROM messages"
                " ORDER BY position"
            )
        ],
        "attachments": connection.execute(
            "SELECT name, removed, attachment, digest, size, content_type, mtime_ns, mode FROM attachments"
            " ORDER BY name, removed"
        ).fetchall(),
        "blobs": connection.execute("SELECT digest, size FROM blobs ORDER BY digest").fetchall(),
        "words": sorted(
            (str(names.get(doc, doc)), col, offset, term)
            for term, doc, col, offset in connection.execute("SELECT term, doc, col, offset FROM temp.terms")
        ),
    }


def agree(connection: sqlite3.Connection, state: ChatState) -> None:
    """The rows say what the state says."""
    title, labels, messages, attachments, begun, changed = connection.execute(
        "SELECT title, labels, messages, attachments, begun, changed FROM chats"
    ).fetchone()
    assert (title, tuple(orjson.loads(labels))) == (state.title, state.labels)
    assert (messages, attachments) == (state.message_count, len(state.attachments))
    assert (begun, changed) == (state.created, state.ts)
    rows = connection.execute(
        "SELECT message, role, ts, seq, hidden, edited, text FROM messages ORDER BY position"
    ).fetchall()
    assert [row[:6] for row in rows] == [
        (found.id, found.role, found.ts, found.seq, found.hidden, found.edited) for found in state.messages()
    ]
    assert [unpacked(row[6]) for row in rows if not row[4]] == [
        bytes(item.text) for item in state.document.items() if item.id
    ]
    assert dict(connection.execute("SELECT name, digest FROM attachments WHERE removed IS NULL")) == {
        name: found.digest for name, found in state.attachments.items()
    }
    assert placed(connection) == in_text(state)


def placed(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
    """Of each shown message: id, number, and the line of history.md in which it begins."""
    from store.index import query  # noqa: PLC0415 - looks inside

    rows = connection.execute("SELECT id, message FROM messages WHERE NOT hidden ORDER BY position").fetchall()
    found = dict(query._numbers(connection, 2, orjson.dumps([key for key, _ in rows]).decode()))
    return [(name, found[key][0], found[key][1] + 1) for key, name in rows]


def in_text(state: ChatState) -> list[tuple[str, int, int]]:
    found = []
    before, text = None, b""
    for number, item in enumerate(state.document.items()):
        text += b"" if before is None else lead_of(item, before)
        if before is not None:
            found.append((item.id, number, text.count(b"\n") + 1))
        text += bytes(item.text)
        before = item
    return found


def pieces_of(entries: list[Entry], cuts: list[int]) -> list[list[Entry]]:
    bounds = [0, *sorted(min(cut, len(entries)) for cut in cuts), len(entries)]
    return [entries[start:end] for start, end in pairwise(bounds) if start < end]


@examples
@given(LOGS | BUSY, st.lists(st.integers(0, 14), max_size=6))
def test_any_log_in_any_pieces_gives_what_the_fold_says(entries, cuts):
    with index() as whole, index() as growing:
        take_in(whole, entries)
        take_in(growing, *pieces_of(entries, cuts))
        agree(whole, fold(entries))
        assert contents(growing) == contents(whole)


@examples
@given(BUSY, st.lists(st.integers(0, 14), max_size=4))
def test_positions_run_out_and_are_dealt_anew(entries, cuts):
    with pytest.MonkeyPatch.context() as patch, index() as connection:
        patch.setattr(document, "_STEP", 2)
        take_in(connection, *pieces_of(entries, cuts))
        agree(connection, fold(entries))


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize("behind", ["the one before", "the first", "nothing", "the second last"])
def test_many_messages_in_one_gap(behind, pieces, monkeypatch):
    monkeypatch.setattr(document, "_STEP", 2)
    values = [ev.MessageAppended(name, "user", name) for name in ("m0", "m1", "end")]
    for number in range(2, 40):
        after = {"the one before": number - 1, "the first": 0, "nothing": None, "the second last": number - 2}[behind]
        place = "" if after is None else f"m{after}"
        values.append(ev.MessageAppended(f"m{number}", "user", "text", after=place))
    entries = log(*values)
    with index() as connection:
        take_in(connection, *([entries] if pieces == 1 else ([each] for each in entries)))
        agree(connection, fold(entries))


@examples
@given(LOGS | BUSY, LOGS | BUSY, st.integers(0, 14))
def test_a_whole_state_is_as_good_as_its_log(entries, more, cut):
    later = log(*(orjson.loads(each.data) for each in entries + more))
    entries, rest = later[:cut], later[cut:]
    with index() as begun, index() as whole:
        apply(begun, [Update(chat(begun), [], STAMP, base=fold(entries))])
        agree(begun, fold(entries))
        take_in(begun, rest)
        take_in(whole, entries, rest)
        agree(begun, fold(later))
        found, expected = contents(begun), contents(whole)
        # What isn't named by the log any more takes no room, unless an attachment is made of it.
        assert set(found.pop("blobs")) <= set(expected.pop("blobs"))
        assert found == expected


@examples
@given(LOGS | BUSY)
def test_what_is_cleared_leaves_nothing(entries):
    with index() as connection, index() as fresh:
        take_in(connection, entries)
        clear(connection, chat(connection), forget=False)
        assert contents(connection) == contents(fresh)
        take_in(connection, entries)
        take_in(fresh, entries)
        assert contents(connection) == contents(fresh)
        clear(connection, chat(connection), forget=True)
        assert [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES] == [0] * 4
        assert contents(connection)["words"] == []


TABLES = ("chats", "messages", "attachments", "blobs")


def test_an_update_that_another_process_has_made_changes_nothing():
    entries = said(("user", "one"), ("assistant", "two"))
    with index() as connection:
        before = chat(connection)
        apply(connection, [Update(before, entries, STAMP)])
        done = contents(connection)
        apply(connection, [Update(before, entries, STAMP)])
        assert contents(connection) == done


@examples
@given(LOGS | BUSY, st.integers(0, 14), st.integers(0, 14))
def test_another_process_may_be_anywhere_between(entries, ours, theirs):
    with index() as connection, index() as alone:
        ours, theirs = sorted((min(ours, len(entries)), min(theirs, len(entries))))
        take_in(connection, entries[:ours])
        before = chat(connection)
        take_in(connection, entries[ours:theirs])
        assert apply(connection, [Update(before, entries[ours:], STAMP)]) == set()
        take_in(alone, entries)
        assert contents(connection) == contents(alone)


def test_an_update_of_another_log_is_said_to_be_missed():
    entries = said(("user", "one"), ("assistant", "two"))
    with index() as connection:
        before = chat(connection)
        first = entries[0]
        take_in(connection, [Entry(first.seq, first.ts, first.actor, first.data, 7)])
        done = contents(connection)
        assert apply(connection, [Update(before, entries, STAMP)]) == {before.key}
        assert contents(connection) == done


def test_an_update_that_fails_leaves_all_as_it_was():
    entries = said(("user", "one"), ("assistant", "two"))
    with index() as connection:
        before = contents(connection)
        with pytest.raises(AttributeError):
            apply(connection, [Update(chat(connection), [*entries, None], STAMP)])  # type: ignore[list-item]
        assert contents(connection) == before


def test_a_message_that_grows_is_found_by_all_of_it():
    appended = ev.MessageAppended("m1", "assistant", "first")
    additions = [ev.MessageEdited("m1", append=f" word{number}") for number in range(300)]
    with index() as connection:
        for number, event in enumerate([appended, *additions], 1):
            take_in(connection, [entry(number, event)])
        (hit,) = hits(connection, Search("first word7 word299"))
        assert hit.message == "m1"
        assert hits(connection, Search("word300")) == []


def test_much_text_is_written_in_parts(monkeypatch):
    monkeypatch.setattr("store.index.update.HELD_BYTES", 100)
    entries = [*said(*(("user", f"text {number} " * 20) for number in range(20)))]
    entries.append(entry(21, ev.MessageEdited("m3", append="later")))
    entries.append(entry(22, ev.MessageRemoved("m4")))
    with index() as connection:
        take_in(connection, entries)
        agree(connection, fold(entries))


def test_hidden_messages_are_not_found():
    with index() as connection:
        take_in(connection, log(ev.MessageAppended("m1", "user", "secret", hidden=True)))
        take_in(connection, [entry(2, ev.MessageEdited("m1", append=" secret"))])
        assert hits(connection, Search("secret")) == []


def test_a_title_that_the_preamble_shows_is_no_message():
    words = chat_words("trip", "To Rome", ["a", "b"], b"# To Rome\n\nby train")
    assert words == {schema.TITLE: "To Rome\ntrip", schema.LABELS: "a\nb", schema.PREAMBLE: "\nby train"}
    with index() as connection:
        take_in(connection, log(ev.PreambleEdited("# To Rome\n\nby train"), ev.MessageAppended("m1", "user", "hi")))
        (found,) = hits(connection, Search("rome"))
        assert (found.kind, found.line) == ("title", 0)
        (found,) = hits(connection, Search("train"))
        assert (found.kind, found.number, found.line) == ("message", 0, 3)


def test_usage_counts_a_blob_once_in_a_workspace():
    put = [ev.AttachmentPut(f"a{n}", name, DIGEST, 1000, "text/plain") for n, name in enumerate(("a", "b"))]
    with index() as connection:
        take_in(connection, log(*put, ev.AttachmentRemoved("a")))
        assert connection.execute("SELECT logs, blobs FROM usage").fetchall() == [(STAMP.size, 1000)]


def test_a_space_whose_removal_was_interrupted_is_as_it_says(monkeypatch):
    monkeypatch.setattr("store.index.update.CLEARED_ROWS", 2)
    entries = said(*(("user", f"word{number}") for number in range(9)))
    with index() as connection, index() as fresh:
        take_in(connection, entries)

        class Crash(Exception):
            pass

        class Pace:
            def breathe(self) -> None:
                raise Crash

        with pytest.raises(Crash):
            clear(connection, chat(connection), forget=False, pace=Pace())  # type: ignore[arg-type]
        assert chat(connection).seq == schema.CLEARING
        clear(connection, chat(connection), forget=False)
        assert chat(connection).seq == Seq(0)
        assert contents(connection) == contents(fresh)
