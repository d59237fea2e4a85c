"""Which part of a saved history.md must be read, and what messages it consists of. Pure.

Where the old text's messages begin and end is known, and isn't read from the text again. The `Window` is what differs,
widened to whole messages; `parse` cuts it at its headings, and recognises the messages that were there before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from store.alignment import Alignment, Shape, rising
from store.document import lead_of
from store.fold import ChatState
from store.markdown import (
    BLANKS,
    end_of_text,
    first_line,
    has_open_fence,
    heading,
    heading_of,
    headings,
    skip_blanks,
)

_STEP: Final = 1 << 18


def _common_prefix(old: bytes, new: bytes) -> int:
    limit = min(len(old), len(new))
    at = 0
    step = _STEP
    while step:
        while at + step <= limit and old[at : at + step] == new[at : at + step]:
            at += step
        step >>= 1
    return at


def _common_suffix(old: bytes, new: bytes, limit: int) -> int:
    at = 0
    step = _STEP
    while step:
        while (
            at + step <= limit
            and old[len(old) - at - step : len(old) - at] == new[len(new) - at - step : len(new) - at]
        ):
            at += step
        step >>= 1
    return at


class Window:
    """The part of the saved text that is parsed.

    `items[:kept]` and `items[rest:]` are as they were (the first item is the preamble); `saved[start:stop]` is what
    lies between their texts. With `forced`, the first message in it begins there, whatever its first line is.
    """

    __slots__ = ("ends", "forced", "items", "kept", "old", "rest", "saved", "start", "starts", "stop")

    def __init__(self, state: ChatState, old: bytes, saved: bytes) -> None:
        self.old = old
        self.saved = saved
        self.items = list(state.document.items())
        self.starts: list[int] = []
        self.ends: list[int] = []
        at = 0
        before = None
        for item in self.items:
            at += 0 if before is None else len(lead_of(item, before))
            self.starts.append(at)
            at += len(item.text)
            self.ends.append(at)
            before = item
        prefix = _common_prefix(old, saved)
        suffix = _common_suffix(old, saved, min(len(old), len(saved)) - prefix)
        self.kept = bisect_right(self.ends, prefix)
        while self.kept and not self._begins_certainly(prefix) and not self._is_boundary():
            self.kept -= 1
        self.forced = self.starts[self.kept] if self.kept and self._begins_certainly(prefix) else None
        self.rest = max(bisect_left(self.starts, len(old) - suffix), self.kept, 1)
        if self.rest < len(self.items) and not self._still_begins(len(old) - suffix):
            self.rest += 1
        self.start = self.ends[self.kept - 1] if self.kept else 0
        self.stop = self.new_start(self.rest)

    def new_start(self, index: int) -> int:
        """Where an item of the rest begins in the saved text; its end for the one behind the last."""
        if index == len(self.items):
            return len(self.saved)
        return self.starts[index] + len(self.saved) - len(self.old)

    def _begins_certainly(self, prefix: int) -> bool:
        """Whether the first item that isn't kept still begins where it did: its first line is unchanged."""
        if self.kept == len(self.items):
            return False
        return prefix > self.starts[self.kept] + len(first_line(self.items[self.kept].text))

    def _is_boundary(self) -> bool:
        """Whether the last kept item's text ends where it did: blanks and then a heading or nothing follow."""
        end = self.ends[self.kept - 1]
        at = skip_blanks(self.saved, end)
        if at == len(self.saved):
            return True
        if at and self.saved[at - 1] != 0x0A:
            return False
        found = heading(_line_at(self.saved, at))
        return found is not None and (found.long or not has_open_fence(bytes(self.items[self.kept - 1].text)))

    def _still_begins(self, same_from: int) -> bool:
        """Whether the first item of the rest still begins there; the old text is unchanged from `same_from` on."""
        if self.ends[self.rest - 1] > same_from:
            return True
        at = self.new_start(self.rest)
        line_start = at == 0 or self.saved[at - 1] == 0x0A
        return line_start and heading_of(self.items[self.rest].text) is not None

    def end_of(self, index: int | None, following: int | None, start: int, stop: int) -> int:
        """Where in the saved text a text ends that begins at `start`, and what follows begins at `stop`.

        `index` is the old item that it was, `following` the one that follows. If these were neighbours and what was
        between them is there still, it is cut as it was; else the text ends with its last line that isn't blank.
        """
        if index is not None and following == index + 1:
            own_end = end_of_text(self.items[index].text, 0, len(self.items[index].text))
            until = self.starts[following] if following < len(self.items) else len(self.old)
            gap = self.old[self.starts[index] + own_end : until]
            at = stop - len(gap)
            if at > start and self.saved[at - 1] not in BLANKS and self.saved[at:stop] == gap:
                return at + len(self.items[index].text) - own_end
        return end_of_text(self.saved, start, stop)


def _line_at(text: bytes, start: int) -> bytes:
    end = text.find(b"\n", start)
    return text[start : end if end >= 0 else len(text)]


# ---- what the saved text consists of


@dataclass(slots=True)
class Segment:
    """A message in the saved text: its text is `[start:end]`; `old` is the index of the item that it is."""

    start: int
    role: str
    old: int | None = None
    end: int = 0
    moved: bool = False


def parse(window: Window) -> list[Segment]:
    """The messages in the window, recognised, with their ends."""
    segments = _cut(window)
    first = max(window.kept, 1)
    if segments and first < window.rest:
        bounds = pairwise([*(segment.start for segment in segments), window.stop])
        new = [
            _shape(window.saved[start : end_of_text(window.saved, start, stop)], segment.role)
            for segment, (start, stop) in zip(segments, bounds, strict=True)
        ]
        old = [
            _shape(bytes(item.text[: end_of_text(item.text, 0, len(item.text))]), item.role)
            for item in window.items[first : window.rest]
        ]
        for segment, partner in zip(segments, Alignment(old, new).partner, strict=True):
            segment.old = None if partner is None else partner + first
        _find_moves(segments)
    for index, segment in enumerate(segments):
        last = index + 1 == len(segments)
        following = window.rest if last else segments[index + 1].old
        stop = window.stop if last else segments[index + 1].start
        segment.end = window.end_of(segment.old, following, segment.start, stop)
    return segments


def _cut(window: Window) -> list[Segment]:
    start = window.start if window.forced is None else window.forced
    window_text = window.saved[start : window.stop]
    if start and window.saved[start - 1] != 0x0A and window.forced is None:
        # It begins where a kept text ends, in the middle of a line: no heading before the next one.
        line_end = window_text.find(b"\n") + 1
        start += line_end
        window_text = window_text[line_end:] if line_end else b""
    segments = [Segment(start + mark.start, mark.heading.role) for mark in headings(window_text) if mark.heading]
    if window.forced is not None and not (segments and segments[0].start == window.forced):
        segments.insert(0, Segment(window.forced, window.items[window.kept].role))
    return segments


def _shape(text: bytes, role: str) -> Shape:
    line = first_line(text)
    found = heading(line)
    return Shape(text, line, role, found is not None and found.long)


def _find_moves(segments: list[Segment]) -> None:
    known = [segment for segment in segments if segment.old is not None]
    places = [segment.old for segment in known if segment.old is not None]
    staying = set(rising(places))
    for index, segment in enumerate(known):
        segment.moved = index not in staying
