"""The laws of the lens (store.history), over arbitrary logs and arbitrary saved texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.errors import InvalidText
from store.fold import fold
from store.history import diff, diff_append, render, render_pieces
from store.markdown import trim
from store.model import Entry
from tests.unit.strategies import LOGS, SOBER_LOGS, apply, examples, new_ids, said, saves, texts


@examples
@given(data=st.data(), entries=LOGS | SOBER_LOGS)
def test_put_get(data: st.DataObject, entries: list[Entry]):
    saved = data.draw(saves(entries))
    state = fold(entries)
    apply(state, diff(state, saved, new_ids()))
    assert render(state) == saved
    assert state.size == len(saved)


@examples
@given(data=st.data(), entries=LOGS | SOBER_LOGS)
def test_put_get_twice(data: st.DataObject, entries: list[Entry]):
    state = fold(entries)
    for prefix in ("first", "second", "third"):
        saved = data.draw(saves(entries))
        apply(state, diff(state, saved, new_ids(prefix)))
        assert render(state) == saved
        assert diff(state, saved, new_ids()) == []


@examples
@given(LOGS | SOBER_LOGS)
def test_get_put(entries: list[Entry]):
    state = fold(entries)
    assert diff(state, render(state), new_ids()) == []
    assert diff_append(state, b"", new_ids()) == []


@examples
@given(entries=LOGS | SOBER_LOGS, appended=texts())
def test_appended_bytes_put_get(entries: list[Entry], appended: str):
    state = fold(entries)
    old = render(state)
    apply(state, diff_append(state, appended.encode(), new_ids()))
    assert render(state) == old + appended.encode()


@examples
@given(entries=LOGS, chunks=st.lists(texts(3), max_size=5))
def test_text_appended_in_any_pieces_reads_as_written(entries: list[Entry], chunks: list[str]):
    state = fold(entries)
    written = render(state)
    for number, chunk in enumerate(chunks):
        apply(state, diff_append(state, chunk.encode(), new_ids(f"n{number}")))
        written += chunk.encode()
        assert render(state) == written


@examples
@given(entries=LOGS, offset=st.integers(0, 300))
def test_pieces_from_an_offset(entries: list[Entry], offset: int):
    state = fold(entries)
    assert b"".join(render_pieces(state, offset)) == render(state)[offset:]


@examples
@given(data=st.data(), entries=SOBER_LOGS.filter(bool))
def test_locality(data: st.DataObject, entries: list[Entry]):
    """Changing words in one message's body is one event, which names it."""
    state = fold(entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    items = list(state.document.items())
    item = items[index + 1]
    head, _, body = bytes(item.text).partition(b"\n\n")
    if not body:
        return
    lines = body.split(b"\n")
    words = [n for n, line in enumerate(lines) if line.strip() and not set(line) & set(b"#`~")]
    if not words:
        return
    line = data.draw(st.sampled_from(words))
    lines[line] = lines[line].rstrip(b"\r") + data.draw(st.sampled_from([b"!", " é".encode(), b"\nmore", b"\n\nlast"]))
    pieces = [bytes(other.text) for other in items]
    pieces[index + 1] = head + b"\n\n" + b"\n".join(lines)
    saved = b"\n\n".join(pieces[1:]) + b"\n"
    events = diff(state, saved, new_ids())
    assert [type(event) for event in events] == [ev.MessageEdited]
    assert isinstance(events[0], ev.MessageEdited)
    assert events[0].id == item.id
    assert (events[0].lead, events[0].tail, events[0].after, events[0].role) == (None, None, None, None)


@examples
@given(st.lists(st.tuples(st.sampled_from(["user", "a b"]), texts()), max_size=4))
def test_content_survives_a_round_trip(pairs: list[tuple[str, str]]):
    state = fold(said(*pairs))
    assert [message.content for message in state.messages()] == [trim(text.encode()).decode() for _, text in pairs]
    copy = fold([])
    apply(copy, diff(copy, render(state), new_ids()))
    assert [(m.role, m.content) for m in copy.messages()] == [(m.role, m.content) for m in state.messages()]


@examples
@given(data=st.data(), entries=LOGS)
def test_an_unchanged_message_gets_no_event(data: st.DataObject, entries: list[Entry]):
    state = fold(entries)
    before = {message.id: bytes(state.document.get(message.id).text) for message in state.messages()}
    apply(state, events := diff(state, data.draw(saves(entries)), new_ids()))
    for event in events:
        if isinstance(event, ev.MessageEdited) and event.content is not None:
            assert bytes(state.document.get(event.id).text) != before[event.id]


def test_text_that_is_not_utf_8_is_refused():
    state = fold(said(("user", "hello"), ("user", "there")))
    text = render(state)
    for broken in (text.replace(b"hello", b"h\xff"), text + b"\xc3", b"\xed\xa0\x80"):
        with pytest.raises(InvalidText):
            diff(state, broken, new_ids())
    with pytest.raises(InvalidText):
        diff_append(state, b"\xc3", new_ids())
