"""What is typed to search: what it means, and that nothing is a syntax error."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import InvalidInput
from store.index import schema
from store.index.words import match_expression
from tests.unit.strategies import examples, texts

TEXTS = {
    1: "Lisbon or Porto in May",
    2: "Porto in the rain",
    3: "a café in Lisbonne, May is warm",
    4: "MAY. In Lisbon.",
    5: "AND OR NOT NEAR",
}


def found(words: str) -> set[int]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE VIRTUAL TABLE one USING fts5 (text, tokenize = '{schema.TOKENIZER}')")
        connection.executemany("INSERT INTO one (rowid, text) VALUES (?, ?)", TEXTS.items())
        rows = connection.execute("SELECT rowid FROM one WHERE one MATCH ?", (match_expression(words),))
        return {row[0] for row in rows}
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("lisbon", {1, 4}),
        ("lisbon may", {1, 4}),
        ("may lisbon porto", {1}),
        ("lisbo*", {1, 3, 4}),
        ("LISBO* -porto", {3, 4}),
        ("-porto lisbon", {4}),
        ('"in may"', {1}),
        ('"may in"', {4}),
        ('"may in', {4}),
        ('in -"in may"', {2, 3, 4}),
        ('"in lis"*', {3, 4}),
        ("cafe", {3}),
        ("CAFÉ", {3}),
        ("in-may", {1}),
        ("or", {1, 5}),
        ("AND OR", {5}),
        ("NOT", {5}),
        ("NEAR(and or)", set()),
        ("NOT(near)", {5}),
        ("lisbon 🙂", {1, 4}),
        ("lisbon -🙂", {1, 4}),
        ("text:lisbon", set()),
        ("lisbon ^", {1, 4}),
        ("(lisbon)", {1, 4}),
        ("por'to", set()),
        ("nowhere", set()),
    ],
)
def test_what_words_find(words: str, numbers: set[int]) -> None:
    assert found(words) == numbers


@pytest.mark.parametrize("words", ["", " ", "-lisbon", "!", '"', '""', "*", "🙂", "-", "- ** (", "\0"])
def test_at_least_one_word_must_be_wanted(words: str) -> None:
    with pytest.raises(InvalidInput, match="at least one word"):
        match_expression(words)


@examples
@given(st.text() | texts() | st.text(alphabet='"-*^:(){}+ NOTANDR\0é\n\\'))
def test_nothing_is_a_syntax_error(words: str) -> None:
    with contextlib.suppress(InvalidInput):
        found(words)
