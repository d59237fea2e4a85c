"""The Markdown of history.md, as bytes: headings, fences, escaping, where a text ends. Pure; knows no state.

A *heading line* begins a message. It is `## role` with one of the four usual roles, outside a closed fenced code block;
or `## <role> · 2026-11-21T06:13:02Z` with any role and an RFC 3339 time in UTC, which is a heading inside a fence, too.
Spaces, tabs and one CR may stand at its end.

A *fence* is CommonMark's (https://spec.commonmark.org/0.31.2/#fenced-code-blocks), at most three spaces deep. It counts
only if it is closed before the next long heading and the end of the text at hand; else its opener is ordinary text.

*Escaping* puts a backslash before a line of a body that would be a heading, or that opens a fence and doesn't close it
there; and before every line that is a heading or a fence behind backslashes already. So unescaping, which takes one
backslash from each of the latter wherever it stands, needs no context, and undoes it exactly.

Only LF ends a line; a CR before it belongs to the line's end. A *blank* line has nothing but spaces, tabs and CRs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from store.events import is_role

BLANKS: Final = b" \t\r\n"

_HEADING: Final = re.compile(
    rb"## (?:(user|assistant|system|tool)"
    rb"|([^\n]{1,256}?) \xc2\xb7 [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z)[ \t]*\r?"
)
_HEADING_MAX: Final = 4096
"""No line longer than this is a heading: bounds what looking at a line costs."""
_MARK: Final = re.compile(
    rb"\n(?:(?P<slashes>\\*)(?P<heading>## [^\n]*)"
    rb"|(?P<indent> {0,3})(?P<escaped>\\*)(?P<fence>`{3,}[^`\n]*|~{3,}[^\n]*))(?=\n|\Z)"
)
_BLANK_RUN: Final = re.compile(rb"[ \t\r\n]*")
_LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z: what a heading can say; later times are shown as this one."""


class Heading(NamedTuple):
    """What a heading line says. `long` is the form with a time."""

    role: str
    long: bool


class Mark(NamedTuple):
    """A line that is a heading or a fence, or would be without the backslashes at `at`.

    `fence` is the fence's character, or 0 for a heading; `bare` says that nothing follows its `run` of them, so that it
    can close one.
    """

    start: int
    at: int
    end: int
    slashes: int
    heading: Heading | None
    fence: int
    run: int
    bare: bool


@lru_cache(maxsize=256)
def _day(day: int) -> bytes:
    return time.strftime("%Y-%m-%d", time.gmtime(day * 86400)).encode().rjust(10, b"0")


_MINUTES: Final = tuple(b"T%02d:%02d:" % divmod(minute, 60) for minute in range(1440))
_SECONDS: Final = tuple(b"%02dZ" % second for second in range(60))


def timestamp(ms: int) -> bytes:
    """RFC 3339, UTC, whole seconds."""
    seconds = min(max(ms // 1000, 0), _LAST_SECOND)
    minutes = seconds // 60
    return _day(minutes // 1440) + _MINUTES[minutes % 1440] + _SECONDS[seconds % 60]


@lru_cache(maxsize=256)
def _heading_start(role: str, minutes: int) -> bytes:
    return b"## %b \xc2\xb7 %b%b" % (role.encode(), _day(minutes // 1440), _MINUTES[minutes % 1440])


def heading_line(role: str, ts: int) -> bytes:
    """The long form."""
    return canonical(role, ts, b"")


def canonical(role: str, ts: int, body: bytes) -> bytes:
    """A message's text as it is rendered: heading, blank line, escaped body."""
    seconds = ts // 1000
    if not 0 <= seconds <= _LAST_SECOND:
        seconds = 0 if seconds < 0 else _LAST_SECOND
    minutes, second = divmod(seconds, 60)
    start = _heading_start(role, minutes)
    return b"%b%b\n\n%b" % (start, _SECONDS[second], body) if body else start + _SECONDS[second]


def heading(line: bytes) -> Heading | None:
    """What `line` (without LF) says if it is a heading line, fences aside."""
    if len(line) > _HEADING_MAX or not line.startswith(b"## "):
        return None
    match = _HEADING.fullmatch(line)
    if match is None:
        return None
    if match[1] is not None:
        return Heading(match[1].decode(), long=False)
    role = _role(match[2])
    return None if role is None else Heading(role, long=True)


@lru_cache(maxsize=256)
def _role(name: bytes) -> str | None:
    try:
        role = name.decode()
    except UnicodeDecodeError:
        return None
    return role if is_role(role) else None


def first_line(text: bytes | bytearray) -> bytes:
    """The first line, without LF; of one that is too long for a heading, only enough to see that."""
    end = text.find(b"\n", 0, _HEADING_MAX + 2)
    return bytes(text[: end if end >= 0 else _HEADING_MAX + 2])


def heading_of(text: bytes | bytearray) -> Heading | None:
    """The heading that `text` begins with."""
    return heading(first_line(text))


def skip_blanks(text: bytes, start: int) -> int:
    """Where the first character at or after `start` stands that isn't blank, or the end."""
    match = _BLANK_RUN.match(text, start)
    return match.end() if match is not None else start


def end_of_text(text: bytes | bytearray, start: int, stop: int) -> int:
    """Where the last line of `text[start:stop]` that isn't blank ends, line end excluded; `start` if all are blank."""
    last = stop
    while last > start and text[last - 1] in BLANKS:
        last -= 1
    if last == start:
        return start
    end = text.find(b"\n", last, stop)
    if end < 0:
        return stop
    return end - 1 if end > last and text[end - 1] == 0x0D else end


def trim(body: bytes) -> bytes:
    """`body` without blank lines at its start and end, and without line end."""
    if not body or (body[0] > 0x20 and body[-1] > 0x20):
        return body
    end = end_of_text(body, 0, len(body))
    while end and body[end - 1] == 0x0D:
        end -= 1
    start = 0
    if body[0] in BLANKS:
        start = body.rfind(b"\n", 0, skip_blanks(body, 0)) + 1
    return body[start:end] if start < end else b""


def content_of(text: bytes | bytearray) -> str:
    """The content that a message's text stands for: what is behind its heading, unescaped."""
    start = 0
    if heading_of(text) is not None:
        end = text.find(b"\n")
        start = end + 1 if end >= 0 else len(text)
    return unescape(trim(bytes(text[start:]))).decode()


# ---- marks


def scan(text: bytes) -> list[Mark]:
    """The lines of `text` that matter, in order. `text` begins at a line's start."""
    if not _suspect(text):
        return []
    marks = []
    for match in _MARK.finditer(b"\n" + text):
        start, end = match.start(), match.end() - 1
        line = match["heading"]
        if line is not None:
            found = heading(line)
            if found is not None:
                marks.append(Mark(start, start, end, len(match["slashes"]), found, 0, 0, bare=False))
        else:
            fence: bytes = match["fence"]
            run = len(fence) - len(fence.lstrip(fence[:1]))
            at = start + len(match["indent"])
            bare = not fence[run:].strip(BLANKS)
            marks.append(Mark(start, at, end, len(match["escaped"]), None, fence[0], run, bare))
    return marks


def _suspect(text: bytes) -> bool:
    return b"## " in text or b"```" in text or b"~~~" in text


def headings(text: bytes) -> list[Mark]:
    """The heading lines of `text` that begin a message, fences considered."""
    return [
        mark
        for mark, fenced in _fenced(scan(text), long_ends=True)
        if mark.heading is not None and not mark.slashes and (mark.heading.long or not fenced)
    ]


def has_open_fence(text: bytes) -> bool:
    """Whether `text` opens a fence that it doesn't close."""
    return any(mark.fence and not mark.slashes and not fenced for mark, fenced in _fenced(scan(text), long_ends=True))


def _fenced(marks: Sequence[Mark], *, long_ends: bool) -> Iterator[tuple[Mark, bool]]:
    """Each mark, and whether it belongs to a closed fence (as its opener, its closer, or a line within).

    With `long_ends`, a fence that isn't closed before a long heading isn't closed.
    """
    if not any(mark.fence for mark in marks):
        yield from ((mark, False) for mark in marks)
        return
    reach = _longest_closers(marks, long_ends=long_ends)
    opener: Mark | None = None
    for index, mark in enumerate(marks):
        if opener is not None:
            if mark.fence == opener.fence and mark.bare and not mark.slashes and mark.run >= opener.run:
                opener = None
            yield mark, True
        elif mark.fence and not mark.slashes and reach[mark.fence][index + 1] >= mark.run:
            opener = mark
            yield mark, True
        else:
            yield mark, False


def _longest_closers(marks: Sequence[Mark], *, long_ends: bool) -> dict[int, list[int]]:
    """For each fence character and index: the longest closer from there on. Keeps `_fenced` linear."""
    reach = {ord("`"): [0] * (len(marks) + 1), ord("~"): [0] * (len(marks) + 1)}
    for index in range(len(marks) - 1, -1, -1):
        mark = marks[index]
        ends = long_ends and mark.heading is not None and mark.heading.long and not mark.slashes
        for char, row in reach.items():
            closer = mark.run if mark.fence == char and mark.bare and not mark.slashes else 0
            row[index] = 0 if ends else max(row[index + 1], closer)
    return reach


# ---- escaping


def is_plain(body: str) -> bool:
    """Whether `trim` and `escape` certainly leave it as it is: tells most bodies, at a fraction of their cost."""
    if body[:1] <= " " or body[-1:] <= " " or "## " in body or "~~~" in body:
        return False
    if "```" not in body:
        return True
    # One fence around it all.
    return body.startswith(("```\n", "```json\n")) and body.endswith("\n```") and body.count("```") == 2


def escape(body: bytes) -> bytes:
    """`body` so that no line of it is taken for a heading, and no fence reaches beyond it."""
    if not _suspect(body):
        return body
    places = [
        mark.at
        for mark, fenced in _fenced(scan(body), long_ends=False)
        if mark.slashes or not fenced or (mark.heading is not None and mark.heading.long)
    ]
    if not places:
        return body
    pieces = [body[: places[0]]]
    for start, end in zip(places, [*places[1:], len(body)], strict=True):
        pieces += (b"\\", body[start:end])
    return b"".join(pieces)


def unescape(body: bytes) -> bytes:
    """What `escape` was given."""
    places = [mark.at for mark in scan(body) if mark.slashes]
    if not places:
        return body
    pieces = [body[: places[0]]]
    pieces += [body[start + 1 : end] for start, end in zip(places, [*places[1:], len(body)], strict=True)]
    return b"".join(pieces)
