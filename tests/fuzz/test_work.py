"""Input that is made to be slow: four times as much of it takes about four times the work, never sixteen times.

Work is counted, not timed: calls of functions, of which the interpreter's profiling hook tells, those written in C too.
What one such call does inside isn't seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import orjson
import pytest

from store import codec, intake, markdown, metadata
from store.errors import CorruptLog, InvalidInput, StoreError
from store.fold import ChatState
from store.history import diff, diff_append, merge, render
from store.model import Seq
from tests.fuzz.imports import imported_messages, imported_sessions
from tests.fuzz.lines import whole_log
from tests.fuzz.support import TALK, apply, new_ids

FEW, FACTOR = 100, 4
SLACK = 1.6
"""What is allowed beyond linear: a logarithm, and caches that fill."""


def calls_of(action: Callable[[], Any]) -> int:
    count = 0

    def profile(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def check_linear(action: Callable[[bytes], Any], unit: Callable[[int], bytes]) -> None:
    """`unit(n)` is the input of size n."""
    few, many = unit(FEW), unit(FEW * FACTOR)
    action(few)  # imports and caches
    less, more = calls_of(lambda: action(few)), calls_of(lambda: action(many))
    assert more <= FACTOR * SLACK * max(less, 200), (less, more)


def test_the_measure_notices_what_is_quadratic():
    def pairs(text: bytes) -> None:
        for start in range(len(text)):
            for _ in range(start):
                text.startswith(b"a")

    with pytest.raises(AssertionError):
        check_linear(pairs, lambda n: b"a" * n)


UNITS = [
    "## user\n",
    "## user · 2026-11-21T06:13:02Z\n",
    "\\## user\n",
    "```\n",
    "````\n```\n",
    "~~~ x\n",
    "```\n## user\n",
    "\\",
    "`",
    "#",
    "\n",
    "\r",
    "\r\n\n",
    " ",
    "x\n\n",
    "# t\n",
    "## user\n\n```\n\n## user\n",
    "![a](attachments/a.png)\n",
]
TEXTS: dict[str, Callable[[int], bytes]] = {repr(unit): lambda n, unit=unit: unit.encode() * n for unit in UNITS} | {
    "fences that grow": lambda n: b"".join(b"`" * (3 + i % 60) + b"\n" for i in range(n)),
    "fences that shrink": lambda n: b"".join(b"`" * (63 - i % 60) + b"\n" for i in range(n)),
    "different lines": lambda n: b"".join(b"line %d\n" % i for i in range(n)),
    "different messages": lambda n: b"".join(b"## user\n\nmessage %d\n\n" % i for i in range(n)),
}


@pytest.mark.parametrize("shape", TEXTS)
def test_the_lens(shape: str):
    def save_over_nothing(text: bytes) -> None:
        state = ChatState()
        apply(state, diff(state, text, new_ids()))
        assert render(state) == text

    def save_over_a_conversation(text: bytes) -> None:
        state = ChatState()
        apply(state, diff(state, TALK, new_ids("talk")))
        apply(state, diff(state, text, new_ids()))
        apply(state, diff(state, text[::2].replace(b"\r", b""), new_ids("half")) if text.isascii() else [])
        render(state)

    def append(text: bytes) -> None:
        state = ChatState()
        apply(state, diff(state, TALK, new_ids("talk")))
        apply(state, diff_append(state, text, new_ids()))
        assert render(state) == TALK + text

    for action in (save_over_nothing, save_over_a_conversation, append, markdown.escape, markdown.scan):
        check_linear(action, TEXTS[shape])


@pytest.mark.parametrize("shape", TEXTS)
def test_merging(shape: str):
    def both_added(text: bytes) -> None:
        base = ChatState()
        apply(base, diff(base, text, new_ids("base")))
        current = ChatState()
        apply(current, diff(current, text, new_ids("base")))
        apply(current, diff_append(current, b"\n## user\n\n" + text, new_ids("now")))
        apply(current, merge(base, current, b"first\n\n" + text, new_ids()).events)
        render(current)

    check_linear(both_added, TEXTS[shape])


LINES: dict[str, Callable[[int], bytes]] = {
    "open brackets": lambda n: b"[" * (n * 100),
    "open objects": lambda n: b'{"a":' * (n * 20),
    "backslashes": lambda n: b'"' + b"\\" * (n * 100),
    "escapes": lambda n: b'"' + b"\\ud83d" * n + b'"',
    "glued values": lambda n: b'{"role":"user","content":"a"}' * n,
    "glued numbers": lambda n: b"1 " * n,
    "quotes": lambda n: b'"' * n,
    "one object of many keys": lambda n: orjson.dumps({f"k{i}": i for i in range(n)}),
    "many labels": lambda n: orjson.dumps({"title": "x", "labels": [f"l{i}" for i in range(n)]}),
    "many blocks": lambda n: orjson.dumps({"role": "user", "content": [{"type": "text", "text": "x"}] * n}),
    "many messages": lambda n: b'{"role":"user","content":"a"}\n' * n,
    "many bad lines": lambda n: b"{\n" * n,
    "blank lines": lambda n: b"\n" * n,
}


@pytest.mark.parametrize("shape", LINES)
def test_lines_from_outside(shape: str):
    def accept(text: bytes) -> None:
        state = ChatState()
        for number, line in enumerate(text.split(b"\n"), 1):
            try:
                new = intake.accept(line, "uid:0/test", lambda number=number: f"id-{number}")
            except StoreError:
                continue
            encoded, _crc = codec.encode(new, number, 1, 0)
            entry = codec.parse(encoded[:-1])
            assert entry is not None
            state.apply(entry._replace(seq=Seq(state.seq + 1)))
        render(state)

    def save(text: bytes) -> None:
        with contextlib.suppress(InvalidInput):
            metadata.parse_saved(text, metadata.EDITABLE_WORKSPACE)

    for action in (accept, save, imported_messages, imported_sessions):
        check_linear(action, LINES[shape])


@pytest.mark.parametrize(
    "unit", [b"\n", b"\0", b'{"seq":1,', b'"\\', whole_log(), b'{"seq":1,"ts":1,"actor":"' + b"\\\\" * 40]
)
def test_damaged_logs(unit: bytes):
    def decode(text: bytes) -> None:
        codec.decode(text, after=Seq(0), previous_crc=0)
        with contextlib.suppress(CorruptLog):
            list(codec.decode_lines(text, after=Seq(0), previous_crc=0))
        for line in text.split(b"\n"):
            codec.parse(line)

    check_linear(decode, lambda n: unit * n)
