"""The chat fold: what each event does, and that no log breaks it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.fold import ChatState, fold
from store.history import render
from store.model import Entry, Millis, Origin, Seq
from tests.unit.strategies import JSON, LOGS, entry, examples, log, said

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
