"""What large chats cost: limits are far above what it takes, and far below what anything quadratic would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from store.fold import ChatState, fold
from store.history import diff, diff_append, render
from store.model import Entries
from tests.support import torture
from tests.unit.strategies import apply, new_ids, said

LARGE = torture.either(30_000, 100_000)
EQUAL = torture.either(10_000, 20_000)


@pytest.fixture(scope="module")
def large() -> ChatState:
    state = ChatState()
    talk = (("user" if n % 2 else "assistant", f"message {n}\n\n```\nls\n```") for n in range(LARGE))
    state.replay(Entries.of(said(*talk)))
    return state


def elapsed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and what it takes of the processor, however busy that is with others."""
    start = time.process_time()
    return action(), time.process_time() - start


def test_a_local_edit_of_very_many_messages(large: ChatState):
    saved = render(large).replace(b"message 20000\n", b"message twenty\n")
    events, seconds = elapsed(lambda: diff(large, saved, new_ids()))
    assert [event.to_json()["id"] for event in events] == ["m20001"]
    assert seconds < 2


def test_an_edit_of_a_fifth_of_very_many_messages(large: ChatState):
    saved = render(large).replace(b"message", b"Message", LARGE // 5)
    events, seconds = elapsed(lambda: diff(large, saved, new_ids()))
    assert [event.to_json()["id"] for event in events] == [f"m{n}" for n in range(1, LARGE // 5 + 1)]
    assert seconds < 20


def test_many_equal_messages():
    state = fold([])
    text = b"## user\n\nok\n\n" * EQUAL
    apply(state, diff(state, text, new_ids("a")))
    assert render(state) == text
    events, seconds = elapsed(lambda: diff(state, text.replace(b"ok", b"OK"), new_ids()))
    assert len(events) == EQUAL
    assert seconds < 20


def test_appending_to_a_large_file_costs_what_is_appended(large: ChatState):
    events, seconds = elapsed(lambda: [diff_append(large, b"\n## user\n\nhi\n", new_ids()) for _ in range(100)])
    assert all(len(each) == 1 for each in events)
    assert seconds < 1


def test_a_line_of_one_megabyte():
    line = "x" * 1_000_000
    state = fold([])
    text = f"## user\n\n{line}\n".encode()
    apply(state, diff(state, text, new_ids()))
    assert render(state) == text
    assert [event.to_json()["content"] for event in diff(state, text.replace(b"x\n", b"y\n"), new_ids())] == [
        line[1:] + "y"
    ]


@pytest.mark.parametrize("line", ["```a\n", "## user\n", "~~~~\n```\n", "\\## user\n", " \n", "\r"])
def test_many_lines_of_one_kind(line: str):
    state = fold([])
    text = ("## user\n\nx\n" + line * 20_000).encode()
    events, seconds = elapsed(lambda: diff(state, text, new_ids()))
    apply(state, events)
    assert render(state) == text
    assert seconds < 20
