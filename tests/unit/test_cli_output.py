"""What commands print and how they read their words."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.cli.arguments import ChatPath, chat_path, size, space_path
from fusefs.cli.output import escape, size_text, width, write_table
from store.errors import InvalidInput
from store.registry import directory_of
from tests.unit.strategies import examples

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@examples
@given(ANY_TEXT)
def test_what_is_escaped_is_one_line_that_no_terminal_obeys(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in shown)
    shown.encode()


@examples
@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert escape(text) == text


def test_marks_that_turn_the_direction_are_escaped() -> None:
    assert escape("a\u202eb\u2066c") == "a\\u202eb\\u2066c"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("漢字", 4), ("e\u0301", 1), ("", 0), ("\U0001f600", 2)])
def test_how_wide_text_is(text: str, columns: int) -> None:
    assert width(text) == columns


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("A", "B"), [("漢字", "1"), ("x\ty", "2"), ("", "")])
    assert capsys.readouterr().out == "A       B\n漢字    1\nx\\x09y  2\n\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", 0),
        ("none", 0),
        ("1024", 1024),
        ("10k", 10 << 10),
        ("500M", 500 << 20),
        ("10GiB", 10 << 30),
        ("1.5T", 3 << 39),
        ("2 GB", 2 << 30),
    ],
)
def test_sizes(text: str, found: int) -> None:
    assert size(text) == found


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5.2", "1e9", "5Z", "9999999999G", "1٢"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        size(text)


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (10 << 30, "10.0 GiB")]
)
def test_sizes_for_reading(amount: int, text: str) -> None:
    assert size_text(amount) == text


def test_what_names_a_chat() -> None:
    assert chat_path("demo/trip") == chat_path("demo/trip/") == ChatPath("demo", "trip")
    assert space_path("demo") == space_path("demo/") == ChatPath("demo", "")
    for text in ("", "/", "demo", "demo/", "/trip", "a/b/c"):
        with pytest.raises(ArgumentTypeError):
            chat_path(text)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a b", Path("/a b")),
        ("file:///a%20b", Path("/a b")),
        ("file://localhost/a", Path("/a")),
        ("a", Path("a").absolute()),
        ("file:///a%FFb", Path(os.fsdecode(b"/a\xffb"))),
        ("memory:", None),
    ],
)
def test_which_stores_are_directories(url: str, path: Path | None) -> None:
    assert directory_of(url) == path


@pytest.mark.parametrize(
    "url", ["", "nats://host/x", "file://host/a", "file:", "file://[", "/a\0b", "file:///a%00b", "~nobody-has-it/x"]
)
def test_what_names_no_store(url: str) -> None:
    with pytest.raises(InvalidInput):
        directory_of(url)
