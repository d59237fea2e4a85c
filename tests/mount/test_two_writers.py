"""Several writers of one chat: saves are merged, appends interleave, and what others change is seen at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests.support.editor import BASE, Editor
from tests.support.mounts import Chat, Workspace, message
from tests.support.ops import append, opened

pytestmark = pytest.mark.mount


@pytest.fixture
def text(workspace: Workspace) -> Chat:
    """A chat with three messages."""
    found = workspace.chat()
    found.md.write_text(BASE)
    found.events()
    return found


@pytest.fixture
def editors(text: Chat) -> Iterator[tuple[Editor, Editor]]:
    both = Editor(text.md), Editor(text.md)
    yield both
    for editor in both:
        editor.end()


def conflicts(chat: Chat) -> list[str]:
    return [path.read_text() for path in sorted(chat.directory.glob("history.md.conflict-*"))]


ways = pytest.mark.parametrize("how", ["save", "rename"])


@ways
def test_edits_of_two_messages_are_both_kept(text: Chat, editors: tuple[Editor, Editor], how: str) -> None:
    first, second = editors
    first.read()
    second.read()
    first.replace("one", "ONE", how)
    second.replace("three", "THREE", how)
    assert text.md.read_text() == BASE.replace("one", "ONE").replace("three", "THREE")
    assert [(e["type"], e["content"]) for e in text.events()] == [
        ("message.edited", "ONE"),
        ("message.edited", "THREE"),
    ]
    assert conflicts(text) == []


@ways
def test_the_second_save_after_a_merge_removes_nothing(text: Chat, editors: tuple[Editor, Editor], how: str) -> None:
    first, second = editors
    first.read()
    text.say("from the log")
    second.read()
    second.replace("two", "TWO", how)
    for number in range(3):
        first.replace("one", f"one {number}", how) if number == 0 else first.replace(
            f"one {number - 1}", f"one {number}", how
        )
    assert "from the log" not in first.text
    final = text.md.read_text()
    assert "from the log" in final
    assert "TWO" in final
    assert "one 2" in final
    assert [event["type"] for event in text.events()] == ["message.edited"] * 4
    assert conflicts(text) == []


@ways
def test_overlapping_edits_save_wins_and_the_other_is_kept_aside(
    text: Chat, editors: tuple[Editor, Editor], how: str
) -> None:
    first, second = editors
    first.read()
    second.read()
    first.replace("two", "two by the first", how)
    second.replace("two", "two by the second", how)
    final = text.md.read_text()
    assert "two by the second" in final
    assert "two by the first" not in final
    [conflict] = conflicts(text)
    assert "two by the first" in conflict
    assert [event["content"] for event in text.events()] == ["two by the first", "two by the second"]


def test_a_removal_and_an_addition(text: Chat, editors: tuple[Editor, Editor]) -> None:
    first, second = editors
    first.read()
    second.read()
    first.replace("## assistant\n\ntwo\n\n", "")
    second.replace("three\n", "three\n\n## assistant\n\nfour\n")
    assert text.types() == ["message.removed", "message.appended"]
    final = text.md.read_text()
    assert "two" not in final
    assert final.endswith("three\n\n## assistant\n\nfour\n")


def test_two_saves_at_once_are_both_kept(text: Chat, editors: tuple[Editor, Editor]) -> None:
    first, second = editors
    first.read()
    second.read()
    first.open("w")
    second.open("w")
    first.write(BASE.replace("one", "ONE"))
    second.write(BASE.replace("three", "THREE"))
    first.close()
    second.close()
    assert text.md.read_text() == BASE.replace("one", "ONE").replace("three", "THREE")
    assert text.types() == ["message.edited", "message.edited"]


def test_an_append_while_another_saves(text: Chat, editors: tuple[Editor, Editor]) -> None:
    first, second = editors
    first.read()
    first.open("w")
    first.write(BASE[:20])
    second.open("a")
    second.write("\n## user\n\nappended\n")
    second.close()
    first.write(BASE[20:].replace("three", "THREE"))
    first.close()
    assert text.md.read_text() == BASE.replace("three", "THREE") + "\n## user\n\nappended\n"
    assert sorted(text.types()) == ["message.appended", "message.edited"]


def test_two_appenders_at_once(text: Chat, editors: tuple[Editor, Editor]) -> None:
    first, second = editors
    first.open("a")
    second.open("a")
    first.write("\n## user\n\nby the first\n")
    second.write("\n## user\n\nby the second\n")
    second.close()
    first.close()
    assert text.md.read_text() == BASE + "\n## user\n\nby the second\n\n## user\n\nby the first\n"
    assert text.types() == ["message.appended", "message.appended"]


def test_a_descriptor_opened_before_the_log_moved(text: Chat, editors: tuple[Editor, Editor]) -> None:
    first, _ = editors
    buffer = first.open("r+")
    append(text.jsonl, message("from the log"))
    first.write("ONE", at=buffer.index("one"))
    first.close()
    final = text.md.read_text()
    assert final.startswith(BASE.replace("one", "ONE"))
    assert "from the log" in final
    assert text.types() == ["message.appended", "message.edited"]


def test_a_descriptor_kept_open_over_saves(text: Chat) -> None:
    """It writes, syncs, the log moves, it writes on: what came between stays."""
    with opened(text.md, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"ONE", BASE.index("one"))
        os.fsync(descriptor)
        text.say("from the log")
        os.pwrite(descriptor, b"TWO", BASE.index("two"))
        os.fsync(descriptor)
    final = text.md.read_text()
    assert final.startswith(BASE.replace("one", "ONE").replace("two", "TWO"))
    assert "from the log" in final


STRESS = textwrap.dedent("""
    import sys
    path, name = sys.argv[1:]
    for number in range(25):
        text = open(path).read()
        with open(path, "w") as file:
            file.write(text + f"\\n## user\\n\\n{name} {number}.\\n")
""")


def test_many_saves_at_once_lose_nothing(text: Chat) -> None:
    names = ["anna", "berta"]
    running = [subprocess.Popen([sys.executable, "-c", STRESS, text.md, name]) for name in names]
    assert [process.wait(60) for process in running] == [0, 0]
    final = text.md.read_text()
    for name in names:
        assert re.findall(rf"^{name} (\d+)\.$", final, re.MULTILINE) == [str(number) for number in range(25)]
    assert final.startswith(BASE)
    assert text.md.stat().st_size == len(final)
    assert conflicts(text) == []
