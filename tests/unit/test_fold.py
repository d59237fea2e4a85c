"""The chat fold: what each event does, and that no log breaks it."""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.fold import ChatState, Effect, fold
from store.history import render
from store.markdown import escape, is_plain, trim
from store.model import Entries, Entry, Millis, Origin, Seq
from tests.unit.strategies import IDS, JSON, LOGS, ODD, ROLES, entry, examples, log, said, texts

FENCES = st.sampled_from(["```", "```json", "````", "``` ", "~~~", "```a`", "\\```", " ```"])
DIGEST = "sha256:" + "a" * 64


def shown(*values: Any) -> str:
    return render(fold(log(*values))).decode()


def ids(state: ChatState) -> list[str]:
    return [message.id for message in state.messages()]


def put(name: str, **fields: Any) -> ev.AttachmentPut:
    return ev.AttachmentPut(f"id-{name}", name, DIGEST, 3, "text/plain", **fields)


def user(id_: str, content: ev.Content = "hi", **fields: Any) -> ev.MessageAppended:
    return ev.MessageAppended(id_, "user", content, **fields)


# ---- laws


@examples
@given(LOGS)
def test_size_is_that_of_the_rendered_text_after_every_entry(entries: list[Entry]):
    state = ChatState()
    for item in entries:
        state.apply(item)
        assert state.size == len(render(state))
        assert state.message_count == sum(not message.hidden for message in state.messages())
        assert (state.seq, state.ts) == (item.seq, item.ts)


@given(st.lists(st.builds(Effect, st.binary(max_size=3), st.booleans(), st.booleans(), st.tuples(st.text()))))
def test_the_effect_of_many_is_that_of_one_after_the_other(effects: list[Effect]):
    found = functools.reduce(Effect.__or__, effects, Effect())
    assert Effect.joined(effects) == found
    assert found.rewritten == any(effect.rewritten for effect in effects)
    assert found.appended == (b"" if found.rewritten else b"".join(effect.appended for effect in effects))
    assert found.attachments == tuple(name for effect in effects for name in effect.attachments)


@examples
@given(LOGS)
def test_effects_tell_what_changed(entries: list[Entry]):
    state = ChatState()
    for item in entries:
        before = (render(state), (state.title, state.labels), dict(state.attachments))
        effect = state.apply(item)
        after = (render(state), (state.title, state.labels), dict(state.attachments))
        assert not (effect.appended and effect.rewritten)
        if not effect.rewritten:
            assert after[0] == before[0] + effect.appended
        assert effect.metadata == (before[1] != after[1])
        assert effect.attachments or before[2] == after[2]


@examples
@given(LOGS)
def test_the_same_log_gives_the_same_state(entries: list[Entry]):
    one, other = fold(entries), fold(entries)
    assert render(one) == render(other)
    assert list(one.messages()) == list(other.messages())
    assert one.attachments == other.attachments


def observed(state: ChatState) -> list[Any]:
    return [
        (state.seq, state.ts, state.created, state.title, state.labels, state.size, state.message_count),
        (state.text_changed_ns, state.attachments_changed_ns, state.preamble_edited),
        (list(state.attachments.items()), list(state.attachment_state.removed.items())),
        (render(state), list(state.messages()), [(item.lead, item.tail) for item in state.document.messages()]),
    ]


SHAPELESS = st.fixed_dictionaries(
    {"type": st.sampled_from([*sorted(ev.KNOWN), "else"]) | JSON},
    optional={
        "id": IDS | st.sampled_from(["", "x" * 257, "a\nb"]) | JSON,
        "role": ROLES | st.sampled_from(["", " x", "a·b", "x" * 65]) | JSON,
        "content": texts() | JSON,
        **dict.fromkeys(["after", "md", "append", "lead", "tail", "hidden", "attachments", "name", "text"], JSON),
        "other": JSON,
    },
)
ORIGINS = st.none() | st.builds(Origin, st.just("somebody"), st.integers(0, 10**15).map(Millis))


@examples
@given(st.lists(st.tuples(ODD | SHAPELESS, ORIGINS), max_size=20), st.data())
def test_replaying_gives_the_same_state(values: list[tuple[Any, Origin | None]], data: st.DataObject):
    entries = [entry(seq, value, origin=origin) for seq, (value, origin) in enumerate(values, 1)]
    if data.draw(st.booleans()):
        entries = [item if data.draw(st.integers(0, 9)) else item._replace(data=b"[") for item in entries]
    state, other = ChatState(), ChatState()
    at = 0
    while at < len(entries):
        step = data.draw(st.integers(1, 9))
        other.replay(Entries.of(entries[at : at + step]))
        for item in entries[at : at + step]:
            state.apply(item)
        assert (other.size, other.text_changed_ns) == (state.size, state.text_changed_ns)
        at += step
    assert observed(other) == observed(state)


@pytest.mark.parametrize(
    "values",
    [
        [{"type": "message.appended", "id": id_, "role": role, "content": content}]
        for id_, role, content in [
            ("", "user", "hi"),
            ("x" * 257, "user", "hi"),
            ("a\nb", "user", "hi"),
            (5, "user", "hi"),
            ("a", "a·b", "hi"),
            ("a", "my agent", "hi"),
            ("a", ["user"], "hi"),
            ("a", "user", None),
            ("a", "user", 5),
            ("a", "user", {}),
            ("a", "user", []),
            ("a", "user", ["hi"]),
        ]
    ]
    + [
        [user("a", hidden=True), ev.MessageEdited("a", append="more")],
        [user("a"), ev.MessageEdited("a", append="")],
        [user("a"), user("a"), ev.MessageEdited("a~2", append="more")],
        [user("x" * 256), user("x" * 256), ev.MessageEdited("x" * 256 + "~2", append="more")],
        [user("a"), {"type": "message.edited", "id": "a", "append": 5}],
        [user("a"), {"type": "message.edited", "id": "a", "append": "more", "role": "tool"}],
        [user("a"), {"type": "message.edited", "id": "", "append": "more"}],
        [user("a"), {"type": "message", "id": "b", "role": "user", "content": "hi", "name": 5, "more": {}}],
        [user("a"), {"type": "message", "id": "b", "role": "user", "content": "hi", "hidden": 5}],
        [user("a", tail=""), user("b"), user("c", lead="\n"), user("d")],
        [user("a", tail="x\n"), user("b")],
        [ev.PreambleEdited(text="intro", tail=""), user("a")],
    ],
)
def test_replaying_what_is_nearly_ordinary_gives_the_same_state(values: list[Any]):
    state = ChatState()
    state.replay(Entries.of(log(*values)))
    assert observed(state) == observed(fold(log(*values)))


def test_ordinary_events_are_replayed_without_event_objects():
    words = [ev.MessageEdited("m2", append=" more"), {"type": "else"}, [1]]
    entries = said(("user", "hi"), ("assistant", "ho"))
    entries += [entry(3 + n, value) for n, value in enumerate(words)]
    state = ChatState()
    with patch.object(ev, "interpret", side_effect=AssertionError):
        state.replay(Entries.of(entries))
    assert observed(state) == observed(fold(entries))


@examples
@given(st.lists(JSON | st.binary(max_size=5), max_size=5))
def test_what_it_does_not_know_moves_only_the_seq(values: list[Any]):
    state = ChatState()
    for seq, value in enumerate(values, 1):
        item = (
            Entry(Seq(seq), Millis(seq), "test", value, 0)
            if isinstance(value, bytes)
            else entry(seq, {"type": "else", "x": value})
        )
        effect = state.apply(item)
        assert (effect.appended, effect.rewritten, effect.metadata, effect.attachments) == (b"", False, False, ())
        assert (state.seq, render(state)) == (seq, b"")


# ---- messages


def test_messages_render_below_each_other():
    assert shown(ev.ChatChanged(title="Trip"), user("a", "\n\nhi\n"), user("b", "")) == (
        "# Trip\n\n## user · 2026-11-21T06:13:04Z\n\nhi\n\n## user · 2026-11-21T06:13:05Z\n"
    )


def test_an_empty_log_renders_nothing():
    assert (render(fold([])), fold([]).size, fold([]).created) == (b"", 0, 0)


def test_a_copied_message_shows_when_it_was_written():
    state = fold([entry(1, user("a"), origin=Origin("somebody", Millis(0)))])
    assert render(state) == b"## user \xc2\xb7 1970-01-01T00:00:00Z\n\nhi\n"
    assert next(state.messages()).ts == 0
    assert state.created == 1_795_241_583_000


def test_a_time_beyond_the_calendar_is_shown_as_its_end():
    state = fold([entry(1, user("a"), origin=Origin("somebody", Millis(10**18 - 1)))])
    assert b"9999-12-31T23:59:59Z" in render(state)


def test_a_taken_id_gets_the_seq_and_a_removed_one_can_come_back():
    state = fold(log(user("a"), user("a"), ev.MessageRemoved("a"), user("a")))
    assert ids(state) == ["a~2", "a"]


def test_after_places_a_message():
    state = fold(
        log(user("a"), user("b", after=""), user("c", after="a"), user("d", after="nobody"), user("e", after="b"))
    )
    assert ids(state) == ["b", "e", "a", "c", "d"]
    state.apply(entry(6, ev.MessageEdited("d", after="")))
    state.apply(entry(7, ev.MessageEdited("b", after="nobody")))
    state.apply(entry(8, ev.MessageEdited("a", after="a")))
    assert ids(state) == ["d", "e", "a", "c", "b"]


def test_hidden_messages_keep_their_place_unseen():
    state = fold(log(user("a", "one"), user("h", "secret", hidden=True), user("b", "two")))
    assert b"secret" not in render(state)
    assert ids(state) == ["a", "h", "b"]
    assert state.message_count == 2
    assert state.apply(entry(4, ev.MessageEdited("h", append=" more"))).appended == b""
    message = state.message("h")
    assert message is not None
    assert (message.content, message.hidden, message.edited) == ("secret more", True, True)


def test_edits_and_removals_of_the_unknown_do_nothing():
    state = fold(said(("user", "hi")))
    before = render(state)
    for event in (ev.MessageEdited("x", content="y"), ev.MessageRemoved("x"), ev.AttachmentRemoved("x")):
        effect = state.apply(entry(state.seq + 1, event))
        assert (render(state), effect.rewritten, effect.attachments) == (before, False, ())


def test_an_edit_keeps_the_time_and_clears_verbatim_text():
    state = fold(log(user("a", "hi", md="## user\nhi"), ev.MessageEdited("a", role="tool", content="new")))
    assert render(state) == "## tool · 2026-11-21T06:13:03Z\n\nnew\n".encode()


def test_a_new_role_rewrites_the_heading_only():
    state = fold(log(user("a", "hi", md="## user\n  hi"), ev.MessageEdited("a", role="tool")))
    assert render(state) == "## tool · 2026-11-21T06:13:03Z\n  hi\n".encode()


def test_streamed_text_is_appended():
    state = fold(log(user("a", "one")))
    effects = [
        state.apply(entry(2 + n, ev.MessageEdited("a", append=word))) for n, word in enumerate([" two", "\n\nx"])
    ]
    assert render(state).endswith(b"\n\none two\n\nx\n")
    assert [(effect.appended, effect.rewritten) for effect in effects] == [(b"", True), (b"\nx\n", False)]


def test_content_of_a_message_is_unescaped():
    state = fold(said(("user", "## user\n```\n\\## tool")))
    assert render(state).endswith(b"\\## user\n\\```\n\\\\## tool\n")
    assert next(state.messages()).content == "## user\n```\n\\## tool"


# ---- blocks


def body_of(content: ev.Content, **fields: Any) -> str:
    return shown(user("a", content, **fields)).partition("\n\n")[2]


def test_blocks_render_readably():
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Look:\n## user"},
        {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}},
        {"type": "tool_result", "content": [{"type": "text", "text": "a\n```\nb"}], "is_error": True},
        {"type": "image", "attachment": "a b.png"},
        {"type": "new", "x": 1},
    ]
    assert body_of(content) == (
        'Look:\n\\## user\n\n**tool** `Bash` `{"command":"ls"}`\n\n**error**\n\n````\na\n```\nb\n````\n\n'
        '![a b.png](attachments/a%20b.png)\n\n```json\n{\n  "type": "new",\n  "x": 1\n}\n```\n'
    )


def test_long_results_are_clipped():
    shown_text = body_of([{"type": "tool_result", "content": "x" * 5000}])
    assert shown_text == "```\n" + "x" * 2000 + "\n… 3000 more characters in history.jsonl\n```\n"


def test_thinking_shows_where_there_is_nothing_else():
    assert body_of([{"type": "thinking", "thinking": "a\n\n## user"}]) == "> a\n>\n> ## user\n"


def test_a_dated_heading_in_a_result_is_escaped():
    assert "\n\\## user · 2026" in body_of([{"type": "tool_result", "content": "## user · 2026-11-21T06:13:02Z"}])


def test_attachments_of_a_message_are_linked():
    assert body_of("hi", attachments=["a.png", "x [1].pdf"]) == (
        "hi\n\n![a.png](attachments/a.png)\n[x \\[1\\].pdf](attachments/x%20%5B1%5D.pdf)\n"
    )


def test_a_block_nested_too_deep_for_json_still_renders():
    data = b'{"type":"message.appended","id":"a","role":"user","content":[%b1%b]}' % (b"[" * 500, b"]" * 500)
    state = fold([Entry(Seq(1), Millis(0), "test", data, 0)])
    assert "…" in render(state).decode()


def test_a_block_whose_type_is_no_text_renders_as_json():
    assert body_of([{"type": []}]) == '```json\n{\n  "type": []\n}\n```\n'


@examples
@given(texts(4) | st.builds("{}\n{}\n{}".format, FENCES, texts(3), FENCES))
def test_a_plain_body_needs_no_escaping(text: str):
    if is_plain(text):
        assert escape(trim(text.encode())) == text.encode()


@pytest.mark.parametrize("text", ["hi", "é\n\n# hi `x`", "```\n```", "```json\n{}\n```", "```\n\n# x\n```"])
def test_most_bodies_are_plain(text: str):
    assert is_plain(text)


# ---- preamble


def test_the_title_is_the_preambles_first_line():
    state = fold(log(ev.ChatChanged(title="One"), ev.PreambleEdited(text="# Two\n\nIntro")))
    assert state.title == "Two"
    state.apply(entry(3, ev.ChatChanged(title="Three")))
    assert render(state) == b"# Three\n\nIntro\n"
    state.apply(entry(4, ev.PreambleEdited(append="\nmore")))
    assert (render(state), state.title) == (b"# Three\n\nIntro\nmore\n", "Three")
    state.apply(entry(5, ev.PreambleEdited(text="Intro")))
    assert state.title == ""
    state.apply(entry(6, ev.ChatChanged(title="Four")))
    assert (render(state), state.title) == (b"Intro\n", "Four")


def test_removing_the_title_removes_its_line():
    state = fold(log(ev.PreambleEdited(text="# Two\r\n\r\nIntro"), ev.ChatChanged(title="")))
    assert (render(state), state.title) == (b"Intro\n", "")


def test_labels_replace_each_other():
    state = fold(log(ev.ChatChanged(labels=["a"]), ev.ChatChanged(labels=["b", "c"])))
    assert state.labels == ("b", "c")


# ---- attachments


def test_attachments_come_change_and_go():
    state = fold(log(put("a"), put("b", mode=0o600, mtime_ns=5), ev.AttachmentRenamed("a", "c")))
    assert list(state.attachments) == ["b", "c"]
    assert state.attachments["c"].mtime_ns == 1_795_241_583_000_000_001
    assert (state.attachments["b"].mode, state.attachments["b"].mtime_ns) == (0o600, 5)
    state.apply(entry(4, ev.AttachmentChanged("b", mode=0o640)))
    assert (state.attachments["b"].mode, state.attachments["b"].mtime_ns) == (0o640, 5)
    state.apply(entry(5, put("b")))
    assert (state.attachments["b"].mode, state.attachments["b"].mtime_ns) == (None, 1_795_241_587_000_000_005)
    state.apply(entry(6, ev.AttachmentRenamed("b", "c")))
    assert list(state.attachments) == ["c"]
    state.apply(entry(7, ev.AttachmentRemoved("c")))
    assert state.attachments == {}


def test_names_and_digests_that_cannot_be_are_ignored():
    wrong = ev.AttachmentPut("id", "a", "sha256:zz", 1, "text/plain")
    state = fold(log(put(".x"), put("a/b"), put("history.md"), wrong, put("a"), ev.AttachmentRenamed("a", "..")))
    assert list(state.attachments) == ["a"]


def test_restoring_brings_back_what_the_same_removal_took():
    state = fold(
        log(
            put("a"),
            put("b"),
            put("c"),
            ev.AttachmentRemoved("a"),
            ev.AttachmentRemoved("b"),
            ev.AttachmentRemoved("c"),
        )
    )
    again = ev.AttachmentPut("other", "c", DIGEST, 9, "text/plain")
    state.apply(entry(7, again))
    state.apply(entry(8, ev.ChatRestored(since=5)))
    assert list(state.attachments) == ["c", "b"]
    assert state.attachments["c"].size == 9
    state.apply(entry(9, ev.ChatRestored()))
    assert list(state.attachments) == ["c", "b"]


# ---- size


def test_many_appends_to_one_message_cost_what_is_appended():
    state = fold(said(("assistant", "x")))
    event = ev.MessageEdited("m1", append="word " * 20)
    for seq in range(2, 20_002):
        state.apply(entry(seq, event))
    assert state.size == len(render(state)) > 2_000_000
