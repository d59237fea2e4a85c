"""Headings, fences and escapes (store.markdown), and recognising messages (store.alignment)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.alignment import Alignment, Shape, matching_lines, rising
from store.markdown import canonical, content_of, end_of_text, escape, heading, headings, timestamp, trim, unescape
from tests.unit.strategies import examples, texts


@examples
@given(texts(14))
def test_unescape_undoes_escape(text: str):
    body = text.encode()
    assert unescape(escape(body)) == body


@examples
@given(texts(14), texts(6))
def test_an_escaped_body_has_no_heading_whatever_follows(text: str, other: str):
    message = canonical("user", 0, escape(trim(text.encode())))
    short = b"\n\n## user\n\n" + other.encode()
    assert [mark.start for mark in headings(message + short)][:2] == [0, len(message) + 2]
    assert end_of_text(message + b"\n\n", 0, len(message) + 2) == len(message)
    assert content_of(message).encode() == trim(text.encode())


@examples
@given(texts(10))
def test_trimming_twice_is_trimming_once(text: str):
    once = trim(text.encode())
    assert trim(once) == once


@pytest.mark.parametrize(
    ("line", "role"),
    [
        ("## user", "user"),
        ("## tool \t\r", "tool"),
        ("## User", None),
        ("##  user", None),
        (" ## user", None),
        ("## user:", None),
        ("## my agent · 2026-11-21T06:13:02Z", "my agent"),
        ("## é · 2026-11-21T06:13:02.123Z\r", "é"),
        ("## a · b · 2026-11-21T06:13:02Z", None),
        ("## user · 2026-11-21T06:13:02+01:00", None),
        ("## user · 2026-11-21", None),
        ("## " + "x" * 65 + " · 2026-11-21T06:13:02Z", None),
    ],
)
def test_heading_lines(line: str, role: str | None):
    found = heading(line.encode())
    assert (None if found is None else found.role) == role


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("```\n## user\n```\n## user", [16]),
        ("```\n## user\n", [4]),
        ("~~~\n```\n## user\n~~~\n```\n", []),
        ("````\n```\n## user\n````", []),
        ("```\n## user · 2026-11-21T06:13:02Z\n```", [4]),
        ("    ```\n## user\n    ```", [8]),
        ("``` a`b\n## user\n```", [8]),
        ("```\n## user\n``` x\n", [4]),
        ("x\r## user", []),
        ("\\## user", []),
    ],
)
def test_headings_in_and_out_of_fences(text: str, starts: list[int]):
    assert [mark.start for mark in headings(text.encode())] == starts


def test_times():
    assert timestamp(1_795_241_582_999) == b"2026-11-21T06:13:02Z"
    assert timestamp(0) == b"1970-01-01T00:00:00Z"


@examples
@given(st.lists(st.integers(0, 6), max_size=12))
def test_a_longest_rising_subsequence(values: list[int]):
    found = rising(values)
    picked = [values[index] for index in found]
    assert found == sorted(set(found))
    assert picked == sorted(set(picked))
    best = [0] * (len(values) + 1)
    for index, value in enumerate(values):
        best[index] = 1 + max((best[i] for i in range(index) if values[i] < value), default=0)
    assert len(found) == max(best)


def shapes(words: str) -> list[Shape]:
    """`role:heading:body` per word; a heading that begins with a digit has a time."""
    found = []
    for word in words.split():
        role, line, body = word.split(":")
        found.append(Shape(f"{line}{body}".encode(), line.encode(), role, line[:1].isdigit()))
    return found


@pytest.mark.parametrize(
    ("old", "new", "partner"),
    [
        ("u:1:a u:2:b", "u:2:b u:1:a", [1, 0]),
        ("u:1:a u:2:b u:3:c", "u:1:a u:3:c", [0, 2]),
        ("u:1:a u:2:b", "u:1:x u:h:new u:2:y", [0, None, 1]),
        ("u:1:a u:2:b u:3:c", "u:3:x u:1:a u:2:b", [2, 0, 1]),
        ("u:h:ok a:h:x u:h:ok", "a:h:x u:h:ok", [1, 2]),
        ("u:h:a a:g:b", "u:h:new u:h:a! a:g:b", [0, None, 1]),
        ("u:h:body", "a:g:body", [0]),
        ("u:h:a a:g:b", "a:g:c", [1]),
    ],
)
def test_recognising_messages(old: str, new: str, partner: list[int | None]):
    assert Alignment(shapes(old), shapes(new)).partner == partner


@examples
@given(st.data())
def test_every_partner_is_somebody_elses_only_once_and_anchors_rise(data: st.DataObject):
    word = st.builds("{}:{}:{}".format, st.sampled_from("ua"), st.sampled_from("h123"), st.sampled_from("xyz"))
    old, new = (shapes(" ".join(data.draw(st.lists(word, max_size=8)))) for _ in range(2))
    found = Alignment(old, new)
    known = [partner for partner in found.partner if partner is not None]
    assert len(set(known)) == len(known) <= min(len(old), len(new))
    texts_of = [shape.text for shape in old]
    for shape, partner in zip(new, found.partner, strict=True):
        assert partner is not None or texts_of.count(shape.text) <= [each.text for each in new].count(shape.text)
    anchors = [partner for partner, kept in zip(found.partner, found.in_order, strict=True) if kept]
    assert anchors == sorted(anchors)


@examples
@given(
    st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=9), st.lists(st.sampled_from([b"a", b"b", b"d"]), max_size=9)
)
def test_matching_lines_match_and_rise(old: list[bytes], new: list[bytes]):
    pairs = matching_lines(old, new)
    assert all(old[i] == new[j] for i, j in pairs)
    assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
    assert [j for _, j in pairs] == sorted({j for _, j in pairs})


def test_matching_many_lines():
    old = [b"%d" % n for n in range(50_000)]
    new = [b"x", *old[:20_000], b"y", *old[20_001:], b"z"]
    assert len(matching_lines(old, new)) == 49_999
