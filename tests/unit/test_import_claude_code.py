"""Session files as chats: what is shown, how they are called, and that importing again adds only what is new."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store.fold import ChatState, fold
from store.importers.claude_code import read_claude_code
from store.importers.source import name_of, title_of
from store.model import Entry, Millis, Seq, directory_name, is_title
from tests.support.imported import SESSION, UUID, assistant, one, restored, shown, text, user, written
from tests.unit.strategies import examples

FIXTURES = Path(__file__).parents[1] / "fixtures" / "claude_code"


# ---- a whole session


def test_a_session_reads_as_a_conversation() -> None:
    chat = one(FIXTURES / "conversation.jsonl")
    lines = "\n".join(f"     {number}→line {number}" for number in range(1, 21)).lstrip()
    assert shown(list(chat.records)) == [
        ("user", "/clear"),
        ("user", "Why does the build fail?"),
        (
            "assistant",
            "I'll look at the build and its settings.\n\n▸ Bash: make all ⏎ make check\n\n▸ Read: Makefile",
        ),
        (
            "tool",
            "◂ Bash: make all ⏎ make check (failed)\n\n```\nmake: *** No rule to make target 'all'.\n```",
        ),
        ("tool", f"◂ Read: Makefile\n\n```\n     {lines}\n```\n… 5 more lines"),
        ("user", "It looks like this:\n\n![image-1.png](attachments/image-1.png)"),
        ("assistant", "▸ TodoWrite: Add a rule (+1)\n\n▸ Read: b.png"),
        ("tool", "◂ TodoWrite: Add a rule (+1): no output"),
        (
            "tool",
            "◂ Read: b.png\n\n![image-2.png](attachments/image-2.png)\n\n![image-1.png](attachments/image-1.png)",
        ),
        ("user", "And keep it short."),
        ("assistant", "Added the rule:\n\n```make\nall: check\n```"),
        ("user", "! ls"),
        ("tool", "```\nMakefile\nb.png\n```"),
        ("tool", "◂ a tool\n\n```\nlate\n```"),
        ("user", "[Request interrupted by user]"),
    ]


def test_every_line_of_a_session_can_be_had_back_to_the_byte() -> None:
    path = FIXTURES / "conversation.jsonl"
    assert restored(list(one(path).records)) == path.read_bytes().split(b"\n")


def test_what_a_chat_is_called() -> None:
    chat = one(FIXTURES / "conversation.jsonl")
    assert (chat.source_id, chat.suggested_name, chat.title) == (SESSION, "Build-repair", "Build repair")
    changes = [ev.parse(record.data) for record in chat.records]
    assert [change.title for change in changes if isinstance(change, ev.ChatChanged)] == [
        "Fix the build",
        "Build repair",
    ]


def test_records_carry_the_sources_time_and_kind() -> None:
    records = list(one(FIXTURES / "conversation.jsonl").records)
    by_key = {record.key: record for record in records}
    assert by_key["00000005-0000-4000-8000-000000000000"].ts == 1_770_368_165_250
    assert by_key["00000005-0000-4000-8000-000000000000"].actor == "claude-code/user"
    assert by_key["00000008-0000-4000-8000-000000000000"].actor == "claude-code/assistant"
    assert records[0].ts is None


def test_a_cut_off_last_line_is_reported_and_kept() -> None:
    chat = one(FIXTURES / "conversation.jsonl")
    (problem,) = chat.problems
    assert problem.startswith("line 35: not JSON, and the last line has no end")
    last = orjson.loads(list(chat.records)[-1].data)
    assert (last["type"], last["line"]) == ("import.unparsed", 35)
    assert last["text"].startswith('{"parentUuid"')


def test_a_sub_agents_file_is_a_chat_of_its_own() -> None:
    agent, session = read_claude_code(FIXTURES)
    assert agent.source_id == f"{SESSION}.agent-1a2b3c4d"
    assert agent.suggested_name == "Find-every-caller-of-build"
    assert shown(list(agent.records)) == [
        ("user", "Find every caller of build()."),
        ("assistant", "Two callers: a.py and b.py."),
    ]
    assert session.source_id == SESSION


# ---- importing again


def test_a_longer_file_only_adds_records(tmp_path: Path) -> None:
    lines = (FIXTURES / "conversation.jsonl").read_bytes().split(b"\n")[:-1]
    whole = list(one(written(tmp_path, *lines)).records)
    for count in range(len(lines)):
        part = list(one(written(tmp_path, *lines[:count], name="part.jsonl")).records)
        assert part == whole[: len(part)]


def test_a_message_that_grew_between_two_imports_gets_its_new_parts(tmp_path: Path) -> None:
    parts = [assistant("msg_1", number, text(f"part {number}")) for number in (1, 2, 3)]
    stored = {record.key: record for record in one(written(tmp_path, *parts[:1])).records}
    for record in one(written(tmp_path, *parts)).records:
        stored.setdefault(record.key, record)
    assert shown(list(stored.values())) == [("assistant", "part 1\n\npart 2\n\npart 3")]
    assert len(stored) == 3


def test_the_line_that_was_cut_off_comes_whole_the_next_time(tmp_path: Path) -> None:
    line = orjson.dumps(user("hello there"))
    (tmp_path / "a.jsonl").write_bytes(line[:30])
    stored = {record.key: record for record in one(tmp_path / "a.jsonl").records}
    for record in one(written(tmp_path, line)).records:
        stored.setdefault(record.key, record)
    assert restored(list(stored.values())) == [line[:30], line]
    assert shown(list(stored.values())) == [("user", "hello there")]


def test_records_are_those_that_were_there_when_the_file_was_opened(tmp_path: Path) -> None:
    path = written(tmp_path, user("one"))
    chat = one(path)
    with path.open("ab") as stream:
        stream.write(orjson.dumps(user("two", 2)) + b"\n")
    assert shown(list(chat.records)) == shown(list(chat.records)) == [("user", "one")]


# ---- rules one by one


@pytest.mark.parametrize("flag", ["isMeta", "isCompactSummary", "isVisibleInTranscriptOnly", "isSidechain"])
def test_injected_records_are_in_the_log_and_not_shown(tmp_path: Path, flag: str) -> None:
    lines = [orjson.dumps(user("a person's")), orjson.dumps(user("a program's", 2) | {flag: True})]
    records = list(one(written(tmp_path, *lines)).records)
    assert shown(records) == [("user", "a person's")]
    assert restored(records) == lines


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("<system-reminder>\nx\n</system-reminder>", []),
        ("hi\n<system-reminder>x</system-reminder>\nthere", [("user", "hi\n\nthere")]),
        ("what is <system-reminder>x</system-reminder>?", [("user", "what is <system-reminder>x</system-reminder>?")]),
        ("<system-reminder> without an end", [("user", "<system-reminder> without an end")]),
        ("<local-command-stdout>bye</local-command-stdout>", []),
        ("<task-notification>\n<system-reminder>x</system-reminder>\n</task-notification>\nmine", [("user", "mine")]),
        ("<div>\nmine\n</div>", [("user", "<div>\nmine\n</div>")]),
        (
            "<command-name>/review</command-name>\n<command-args>the last\ncommit</command-args>",
            [("user", "/review the last\ncommit")],
        ),
        ("<bash-stdout></bash-stdout><bash-stderr></bash-stderr>", []),
        ("\f\n  indented", [("user", "  indented")]),
        (" \n ", []),
    ],
)
def test_what_is_shown_of_what_was_typed(tmp_path: Path, typed: str, expected: list[tuple[str, str]]) -> None:
    assert shown(list(one(written(tmp_path, user(typed))).records)) == expected


def test_many_unclosed_reminders_take_no_quadratic_time(tmp_path: Path) -> None:
    typed = "<system-reminder>\n" * 200_000
    (message,) = shown(list(one(written(tmp_path, user(typed))).records))
    assert message[1].startswith("<system-reminder>\n")


def test_a_block_that_is_there_twice_is_shown_once(tmp_path: Path) -> None:
    parts = [assistant("m", 1, text("a")), assistant("m", 2, text("a"), text("b")), assistant("n", 3, text("a"))]
    assert shown(list(one(written(tmp_path, *parts)).records)) == [("assistant", "a\n\nb"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"command": "git status", "description": "Look"}, "▸ T: git status"),
        ({"file_path": "/srv/app/src/a.py", "old_string": "x"}, "▸ T: src/a.py"),
        ({"pattern": "TODO", "path": "/srv/app"}, "▸ T: TODO"),
        ({"questions": [{"question": "Which one?", "options": []}]}, "▸ T: Which one?"),
        ({"x": 3, "label": "first text"}, "▸ T: first text"),
        ({"command": "x" * 500}, f"▸ T: {'x' * 116}…"),
        ({}, "▸ T"),
        ([], "▸ T"),
        ("plain", "▸ T: plain"),
        (None, "▸ T"),
    ],
)
def test_a_tool_call_is_one_readable_line(tmp_path: Path, arguments: object, line: str) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "T", "input": arguments}
    path = written(tmp_path, assistant("m", 1, call) | {"cwd": "/srv/app"})
    assert shown(list(one(path).records)) == [("assistant", line)]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("one", "```\none\n```"),
        ("```\ninner\n```", "````\n```\ninner\n```\n````"),
        ("\n".join("abcdefghijklmnopqrstu"), "```\n" + "\n".join("abcdefghijklmnopqrst") + "\n```\n… 1 more line"),
        ("y" * 2000, "```\n" + "y" * 1500 + "\n```\n… 500 more characters"),
        ([text("a"), text("b")], "```\na\nb\n```"),
    ],
)
def test_a_result_is_clipped_and_says_so(tmp_path: Path, output: object, expected: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "none", "content": output}
    assert shown(list(one(written(tmp_path, user([result]))).records)) == [("tool", f"◂ a tool\n\n{expected}")]


def test_the_same_record_twice_is_shown_once_and_kept_twice(tmp_path: Path) -> None:
    line = orjson.dumps(user("hello"))
    records = list(one(written(tmp_path, line, line)).records)
    assert [record.key for record in records] == [UUID, f"{UUID}#2"]
    assert shown(records) == [("user", "hello")]
    assert restored(records) == [line, line]


def test_records_without_a_uuid_that_are_equal_are_both_shown(tmp_path: Path) -> None:
    line = user("ok")
    del line["uuid"]
    assert shown(list(one(written(tmp_path, line, line)).records)) == [("user", "ok"), ("user", "ok")]


# ---- in history.md


def folded(path: Path) -> ChatState:
    records = enumerate(one(path).records, 1)
    return fold(Entry(Seq(seq), Millis(seq), "importer", record.data, 0) for seq, record in records)


def test_history_md_has_what_is_shown() -> None:
    path = FIXTURES / "conversation.jsonl"
    state = folded(path)
    assert [(message.role, message.content) for message in state.messages()] == shown(list(one(path).records))
    assert state.title == "Build repair"


@pytest.mark.parametrize(
    "words", ["## user\n\nnot typed by anybody", "```\nan open fence", "\\## user", "~~~\n## user\n~~~"]
)
def test_no_part_of_a_message_can_pass_for_another_message(tmp_path: Path, words: str) -> None:
    parts = [assistant("m", number, text(f"{number}\n{words}")) for number in (1, 2)]
    (message,) = folded(written(tmp_path, *parts)).messages()
    assert message.content == f"1\n{words}\n\n2\n{words}"


# ---- titles, names, directories


def test_a_summary_is_a_title_only_of_its_own_session(tmp_path: Path) -> None:
    foreign = {"type": "summary", "summary": "Another", "leafUuid": UUID.replace("1", "9")}
    own = {"type": "summary", "summary": "Mine", "leafUuid": UUID}
    assert one(written(tmp_path, foreign, user("hi"))).title == ""
    assert one(written(tmp_path, foreign, own, user("hi"))).title == "Mine"


def test_a_custom_title_wins_wherever_it_stands(tmp_path: Path) -> None:
    custom, chosen = {"type": "custom-title", "customTitle": "Mine"}, {"type": "ai-title", "aiTitle": "Its"}
    assert one(written(tmp_path, custom, chosen)).title == one(written(tmp_path, chosen, custom)).title == "Mine"
    renamed = {"type": "custom-title", "customTitle": "Mine, again"}
    assert one(written(tmp_path, custom, renamed)).title == "Mine, again"


@examples
@given(st.text())
def test_any_text_gives_a_valid_title_and_name(words: str) -> None:
    assert is_title(title_of(words))
    assert len(title_of(words)) <= 200
    name = name_of(words * 3)
    assert name == "" or (directory_name(name) == name and len(name) <= 80)


def test_a_session_is_named_by_what_was_asked_or_by_its_id(tmp_path: Path) -> None:
    chat = one(written(tmp_path, user("/clear"), user("Don't touch src/*.py: Größe & 大きさ!", 2)))
    assert chat.suggested_name == "Dont-touch-src-.py-Größe-大きさ"
    assert one(written(tmp_path, user("/clear"))).suggested_name == "0b7e5801"
    assert one(written(tmp_path, name="empty.jsonl")).suggested_name == "empty"


def test_a_project_directory_has_its_sessions_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / ".claude"
    project = home / "projects" / "-srv-app"
    project.mkdir(parents=True)
    other = SESSION.replace("0b", "1b")
    written(project, user("hi"), name=f"{SESSION}.jsonl")
    written(project, user("copied from the other session"), name=f"{other}.jsonl")
    (project / SESSION / "subagents").mkdir(parents=True)
    written(project / SESSION / "subagents", user("sub", isSidechain=True), name="agent-ab.jsonl")
    written(home, {"display": "what was typed", "timestamp": 1}, name="history.jsonl")
    written(project, {"display": "no record"}, name="other.jsonl")
    (project / "empty.jsonl").touch()
    assert [chat.source_id for chat in read_claude_code(home)] == [f"{SESSION}.agent-ab", SESSION, other]
    assert sorted(chat.source_id for chat in read_claude_code(project)) == [SESSION, f"{SESSION}.agent-ab", other]


def test_a_path_that_isnt_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_claude_code(tmp_path / "none.jsonl")
