"""Which events the edits that people make become."""

from __future__ import annotations

from typing import Any

from store import events as ev
from store.fold import ChatState, fold
from store.history import diff, diff_append, render
from tests.unit.strategies import apply, log, new_ids, said

H1, H2, H3 = (f"## {role} · 2026-11-21T06:13:0{n}Z" for role, n in (("user", 3), ("assistant", 4), ("user", 5)))
TALK = said(("user", "hello"), ("assistant", "hi there"), ("user", "bye"))
TEXT = f"{H1}\n\nhello\n\n{H2}\n\nhi there\n\n{H3}\n\nbye\n"


def saving(saved: str, entries: Any = TALK) -> list[ev.Event]:
    """The events of a save, after checking that they give exactly what was saved."""
    state = fold(entries)
    events = diff(state, saved.encode(), new_ids())
    apply(state, events)
    assert render(state).decode() == saved
    return events


def order(state: ChatState) -> list[str]:
    return [message.id for message in state.messages()]


def test_the_text_is_what_these_tests_think():
    assert render(fold(TALK)).decode() == TEXT


def test_a_changed_word():
    assert saving(TEXT.replace("there", "you")) == [ev.MessageEdited("m2", content="hi you")]


def test_a_message_typed_at_the_end_stands_nowhere_in_particular():
    assert saving(TEXT + "\n## user\n\nmore\n") == [
        ev.MessageAppended("new-0", "user", "more", md="## user\n\nmore"),
    ]


def test_a_message_typed_in_between_stands_behind_its_neighbour():
    saved = TEXT.replace(H2, f"## system\nBe brief.\n\n{H2}")
    assert saving(saved) == [
        ev.MessageAppended("new-0", "system", "Be brief.", after="m1", md="## system\nBe brief."),
    ]


def test_a_message_typed_first():
    saved = f"## user\n\nfirst\n\n{TEXT}"
    events = saving(saved)
    assert events[0] == ev.MessageAppended("new-0", "user", "first", after="", md="## user\n\nfirst")
    assert len(events) == 1


def test_deleted_messages():
    assert saving(f"{H1}\n\nhello\n") == [ev.MessageRemoved("m2"), ev.MessageRemoved("m3")]
    assert saving(TEXT.replace(f"{H2}\n\nhi there\n\n", "")) == [ev.MessageRemoved("m2")]
    assert saving("") == [ev.MessageRemoved(f"m{n}") for n in (1, 2, 3)]


def test_swapped_messages_keep_their_ids():
    events = saving(f"{H2}\n\nhi there\n\n{H1}\n\nhello\n\n{H3}\n\nbye\n")
    assert len(events) == 1
    assert isinstance(events[0], ev.MessageEdited)
    assert (events[0].content, events[0].after is not None) == (None, True)


def test_a_message_that_is_moved_and_edited_keeps_its_id():
    state = fold(TALK)
    apply(state, diff(state, f"{H2}\n\nhi there\n\n{H3}\n\nbye\n\n{H1}\n\nhello!\n".encode(), new_ids()))
    assert order(state) == ["m2", "m3", "m1"]


def test_a_message_typed_before_one_that_is_edited_takes_nothing_of_it():
    saved = TEXT.replace(f"{H2}\n\nhi there", f"## user\n\nwait\n\n{H2}\n\nhi here")
    assert saving(saved) == [
        ev.MessageAppended("new-0", "user", "wait", after="m1", md="## user\n\nwait"),
        ev.MessageEdited("m2", content="hi here"),
    ]


def test_another_role_for_the_same_text():
    assert saving(TEXT.replace(H2, H2.replace("assistant", "my agent"))) == [
        ev.MessageEdited("m2", role="my agent", content="hi there"),
    ]


def test_text_before_the_first_heading():
    state = fold(TALK)
    events = saving("# Trip\n\n" + TEXT)
    assert events == [ev.PreambleEdited(text="# Trip")]
    apply(state, events)
    assert state.title == "Trip"


def test_no_final_newline_is_kept_and_the_next_message_stands_apart():
    state = fold(TALK)
    apply(state, saving(TEXT.rstrip("\n")))
    apply(state, [ev.MessageAppended("m4", "user", "next")])
    assert render(state).decode().startswith(TEXT.rstrip("\n") + "\n\n## user")


def test_line_ends_of_another_system():
    events = saving(TEXT.replace("\n", "\r\n"))
    assert [event.content for event in events if isinstance(event, ev.MessageEdited)] == ["hello", "hi there", "bye"]
    assert len(events) == 3


def test_a_short_heading_in_a_fence_is_text_and_a_dated_one_is_not():
    fenced = TEXT.replace("hi there", "```\n## user\n```\nhi there")
    assert [type(event) for event in saving(fenced)] == [ev.MessageEdited]
    dated = TEXT.replace("hi there", "```\n## user · 2020-01-01T00:00:00Z\n```\nhi there")
    assert [type(event) for event in saving(dated)] == [ev.MessageEdited, ev.MessageAppended]


def test_a_heading_typed_behind_an_open_fence_belongs_to_it_once_it_is_closed():
    entries = log(ev.MessageAppended("m1", "user", "x", md="## user\n\n```\nx"))
    assert [type(event) for event in saving("## user\n\n```\nx\n\n## user\n```\n", entries)] == [ev.MessageEdited]


def test_blank_lines_alone():
    assert saving(TEXT.replace(f"\n\n{H2}", f"\n\n\n\n{H2}")) == [ev.MessageEdited("m2", lead="\n\n\n\n")]
    assert saving(TEXT + "\n\n") == [ev.MessageEdited("m3", tail="\n\n\n")]
    assert saving("\n\n", []) == [ev.PreambleEdited(tail="\n\n")]


def test_a_neighbour_that_ends_in_blank_lines_is_left_alone():
    """Streamed text often ends in a line end: editing another message, or this one, must not touch the rest."""
    entries = [*TALK, *log(ev.MessageEdited("m1", append=" world\n\n"), ev.MessageEdited("m2", append="\n"))]
    saved = render(fold(entries)).decode()
    assert saving(saved.replace("world", "World"), entries)[0].to_json()["id"] == "m1"
    assert len(saving(saved.replace("world", "World"), entries)) == 1
    assert [event.to_json()["id"] for event in saving(saved.replace("there", "you"), entries)] == ["m2"]


def test_appended_bytes_continue_the_last_message():
    state = fold(TALK)
    assert diff_append(state, b"and more\n", new_ids()) == [ev.MessageEdited("m3", append="\nand more")]
    assert diff_append(state, b"\n## user\nx\n## tool\ny", new_ids()) == [
        ev.MessageAppended("new-0", "user", "x", md="## user\nx"),
        ev.MessageAppended("new-1", "tool", "y", md="## tool\ny", lead="\n", tail=""),
    ]


def test_blank_lines_appended_to_nothing():
    assert diff_append(fold([]), b"\n", new_ids()) == [ev.PreambleEdited(tail="\n")]


def test_a_heading_appended_in_two_pieces_is_one():
    state = fold(TALK)
    apply(state, diff_append(state, b"\n## us", new_ids("a")))
    apply(state, diff_append(state, b"er\n\nhi\n", new_ids("b")))
    assert [message.content for message in state.messages()] == ["hello", "hi there", "bye", "hi"]


def test_what_blocks_rendered_becomes_text_when_it_is_edited():
    entries = log(ev.MessageAppended("m1", "assistant", [{"type": "tool_use", "name": "Bash", "input": {"x": 1}}]))
    assert saving(render(fold(entries)).decode().replace("Bash", "Zsh"), entries) == [
        ev.MessageEdited("m1", content='**tool** `Zsh` `{"x":1}`'),
    ]
