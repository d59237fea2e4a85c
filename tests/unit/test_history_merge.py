"""Saving over a log that has moved on: store.history.merge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.fold import ChatState, fold
from store.history import Merge, diff, merge, render
from store.history_merge import merge_lines
from store.model import Entry
from tests.unit.strategies import LOGS, ODD, SOBER_LOGS, apply, entry, examples, log, new_ids, said, saves

TALK = said(("user", "one\ntwo\nthree\nfour\nfive"), ("assistant", "hello"), ("user", "bye"))


def moved_on(*values: Any, base: list[Entry] = TALK) -> ChatState:
    state = fold(base)
    for value in values:
        state.apply(entry(state.seq + 1, value))
    return state


def merged(current: ChatState, saved: bytes, base: list[Entry] = TALK) -> tuple[str, str | None]:
    found = merge(fold(base), current, saved, new_ids())
    apply(current, found.events)
    assert current.size == len(render(current))
    return render(current).decode(), None if found.conflict is None else found.conflict.decode()


def edited(old: str, new: str, base: list[Entry] = TALK) -> bytes:
    text = render(fold(base))
    assert old.encode() in text
    return text.replace(old.encode(), new.encode())


@examples
@given(data=st.data(), entries=LOGS | SOBER_LOGS)
def test_where_nothing_moved_it_is_diff(data: st.DataObject, entries: list[Entry]):
    saved = data.draw(saves(entries))
    current = fold(entries)
    if data.draw(st.booleans()):
        current.apply(entry(current.seq + 1, {"type": "note"}))
    assert merge(fold(entries), current, saved, new_ids()) == Merge(diff(fold(entries), saved, new_ids()), None)


@examples
@given(data=st.data(), entries=LOGS | SOBER_LOGS, more=st.lists(ODD, max_size=4))
def test_it_always_gives_events_that_apply(data: st.DataObject, entries: list[Entry], more: list[Any]):
    saved = data.draw(saves(entries))
    current = fold(entries)
    for value in more:
        current.apply(entry(current.seq + 1, value))
    found = merge(fold(entries), current, saved, new_ids())
    apply(current, found.events)
    assert current.size == len(render(current))
    assert diff(current, render(current), new_ids()) == []


@examples
@given(data=st.data(), entries=SOBER_LOGS, more=SOBER_LOGS)
def test_nothing_of_either_side_is_lost(data: st.DataObject, entries: list[Entry], more: list[Entry]):
    base = render(fold(entries))
    saved = data.draw(saves(entries))
    current = fold(entries)
    for item in more:
        event = ev.parse(item.data)
        assert isinstance(event, ev.MessageAppended)
        known = current.message(event.id) is not None and data.draw(st.booleans())
        change = ev.MessageEdited(event.id, content=event.content) if known else event
        current.apply(entry(current.seq + 1, change))
    theirs = render(current)
    text, conflict = merged(current, saved, entries)
    left = {line.rstrip(" \t\r") for line in f"{text}\n{conflict or ''}".split("\n")}
    # Blanks, at a line's end too, only part the texts: which of them stand is said below.
    for line in (saved + b"\n" + theirs).decode().split("\n"):
        assert line.rstrip(" \t\r") in left | {""} or line.encode() in base.split(b"\n")


def test_edits_of_different_messages_are_both_kept():
    current = moved_on(ev.MessageEdited("m2", content="hello there"), ev.MessageAppended("m4", "user", "new"))
    text, conflict = merged(current, edited("bye", "see you"))
    assert ("hello there" in text, "see you" in text, "\n\nnew\n" in text, conflict) == (True, True, True, None)


def test_edits_of_different_lines_are_both_kept():
    current = moved_on(ev.MessageEdited("m1", content="one!\ntwo\nthree\nfour\nfive"))
    text, conflict = merged(current, edited("four", "4"))
    assert "one!\ntwo\nthree\n4\nfive" in text
    assert conflict is None


def test_edits_of_the_same_line_keep_the_saved_one_and_hand_back_the_other():
    current = moved_on(ev.MessageEdited("m1", content="one\nTWO\nthree\nfour\nfive"))
    text, conflict = merged(current, edited("two", "2"))
    assert "one\n2\nthree" in text
    assert conflict == "## user · 2026-11-21T06:13:03Z\n\nTWO\n"


def test_text_that_streams_in_meanwhile_stays():
    current = moved_on(ev.MessageEdited("m3", append=" and\nthanks"), ev.MessageEdited("m2", append="\nmore"))
    text, conflict = merged(current, edited("hello", "Hello"))
    assert "Hello\nmore" in text
    assert text.endswith("bye and\nthanks\n")
    assert conflict is None


def test_both_appended_a_message():
    current = moved_on(ev.MessageAppended("m4", "assistant", "theirs"))
    text, conflict = merged(current, render(fold(TALK)) + b"\n## user\n\nmine\n")
    assert text.endswith("theirs\n\n## user\n\nmine\n")
    assert conflict is None


def test_the_same_change_on_both_sides_is_one():
    current = moved_on(ev.MessageEdited("m2", content="same"))
    found = merge(fold(TALK), current, edited("hello", "same"), new_ids())
    assert found == Merge([], None)


def test_removing_what_was_edited_meanwhile_hands_it_back():
    gone = render(fold(TALK)).partition(b"## assistant")[0]
    text, conflict = merged(moved_on(ev.MessageEdited("m2", content="precious")), gone)
    assert "precious" not in text
    assert conflict == "## assistant · 2026-11-21T06:13:04Z\n\nprecious\n"


def test_editing_what_was_removed_meanwhile_brings_it_back_in_place():
    current = moved_on(ev.MessageRemoved("m2"), ev.MessageRemoved("m1"))
    text, conflict = merged(current, edited("hello", "still here"))
    assert [message.id for message in current.messages()] == ["m2", "m3"]
    assert "still here" in text
    assert conflict is None


def test_a_message_behind_one_that_was_removed_meanwhile_keeps_its_place():
    saved = edited("## user · 2026-11-21T06:13:05Z", "## system\n\nin between\n\n## user · 2026-11-21T06:13:05Z")
    current = moved_on(ev.MessageRemoved("m2"))
    merged(current, saved)
    assert [message.content for message in current.messages()][1:] == ["in between", "bye"]


def test_preambles_merge_like_messages():
    base = log(ev.PreambleEdited(text="# T\n\nintro\n\nlast"))
    current = moved_on(ev.ChatChanged(title="New"), base=base)
    assert merged(current, edited("last", "end", base), base) == ("# New\n\nintro\n\nend\n", None)
    current = moved_on(ev.ChatChanged(title="New"), base=base)
    text, conflict = merged(current, edited("# T", "# Mine", base), base)
    assert text.startswith("# Mine\n")
    assert current.title == "Mine"
    assert conflict == "# (the text before the first message)\n\n# New\n"


def test_a_first_message_stays_apart_from_a_title_that_came_meanwhile():
    base = log(ev.PreambleEdited(tail="\n\n"))
    current = moved_on(ev.ChatChanged(title="New"), base=base)
    text, _ = merged(current, b"## user\n\nhi\n", base)
    assert text.startswith("# New\n")
    assert text.endswith("\n## user\n\nhi\n")


THREE, TWO = "hello\n\n\n\n## user", "hello\n\n\n## user"
"""Three and two blank lines behind the second message; there is one in TALK."""


@pytest.mark.parametrize(
    ("theirs", "saved", "stands"),
    [(TWO, THREE, THREE), (THREE, TWO, TWO), (TWO, None, TWO), (None, THREE, THREE), (THREE, THREE, THREE)],
)
def test_blank_lines_between_messages_are_those_of_the_save_that_changed_them(
    theirs: str | None, saved: str | None, stands: str
):
    plain = "hello\n\n## user"
    current = fold(TALK)
    apply(current, diff(current, edited(plain, theirs or plain), new_ids("theirs")))
    text, conflict = merged(current, edited(plain, saved or plain).replace(b"bye", b"see you"))
    assert (stands in text, "see you" in text, conflict) == (True, True, None)


def test_blank_lines_at_the_end_give_way_to_what_was_appended():
    current = moved_on(ev.MessageAppended("m4", "assistant", "theirs"))
    before = render(current).decode()
    text, conflict = merged(current, render(fold(TALK)) + b"\n\n\n")
    assert (text, conflict) == (before, None)


@pytest.mark.parametrize(("theirs", "saved"), [(1, 2), (2, 1), (2, 2), (0, 2), (2, 0)])
def test_blank_lines_within_a_message_are_the_more_of_both(theirs: int, saved: int):
    blanks = ["\n" * (number + 1) for number in (theirs, saved)]
    current = moved_on(ev.MessageEdited("m1", content=f"one{blanks[0]}two\nthree\nfour\nfive"))
    text, conflict = merged(current, edited("one\ntwo", f"one{blanks[1]}two"))
    assert f"one{max(blanks)}two\nthree" in text
    assert conflict is None


@examples
@given(data=st.data(), base=st.lists(st.sampled_from([b"a", b"b", b"c", b""]), max_size=6))
def test_lines_of_both_sides_are_in_the_result_or_handed_back(data: st.DataObject, base: list[bytes]):
    side = st.lists(st.sampled_from([b"a", b"b", b"x", b"y", b""]), max_size=6)
    ours, theirs = b"\n".join(data.draw(side)), b"\n".join(data.draw(side))
    text, lost = merge_lines(b"\n".join(base), theirs, ours)
    kept, old = set(text.split(b"\n")), set(b"\n".join(base).split(b"\n"))
    assert set(ours.split(b"\n")) - old <= kept
    assert set(theirs.split(b"\n")) - old <= kept | set(lost.split(b"\n"))
    assert merge_lines(b"\n".join(base), b"\n".join(base), ours) == (ours, b"")
    assert merge_lines(b"\n".join(base), theirs, b"\n".join(base)) == (theirs, b"")
