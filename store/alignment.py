"""Which message of a saved text is which message of the old one. Pure, and about n log n.

The order of trust: the same text, the same heading with a time (both wherever they stand), then, between what was
recognised so far, the same heading, the same body, the same role, and at last merely the same place.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final, NamedTuple

_SMALL: Final = 40_000
"""Up to this many pairs are compared with difflib, which is quadratic at worst."""


class Shape(NamedTuple):
    """What is compared of a message. `dated`: its heading has a time, which hardly two messages share."""

    text: bytes
    heading: bytes
    role: str
    dated: bool

    @property
    def body(self) -> bytes:
        """The text behind the heading."""
        return self.text[len(self.heading) :]


class Alignment:
    """For each new message: the old one's index or None (`partner`), and whether that keeps the order (`in_order`)."""

    __slots__ = ("_new", "_old", "_taken", "in_order", "partner")

    def __init__(self, old: Sequence[Shape], new: Sequence[Shape]) -> None:
        self._old = old
        self._new = new
        self._taken = [False] * len(old)
        self.partner: list[int | None] = [None] * len(new)
        self.in_order = [False] * len(new)
        self._anywhere(lambda shape: shape.text)
        self._between(lambda shape: shape.text)
        self._between(lambda shape: shape.heading)
        self._anywhere(lambda shape: shape.heading if shape.dated else None)
        self._repeated()
        self._between(lambda shape: shape.body or None)
        self._between(lambda shape: shape.role)
        self._between(lambda _: 0)

    def _pair(self, old: int, new: int, *, in_order: bool) -> None:
        self._taken[old] = True
        self.partner[new] = old
        self.in_order[new] = in_order

    def _free(self) -> tuple[list[int], list[int]]:
        return (
            [index for index, taken in enumerate(self._taken) if not taken],
            [index for index, partner in enumerate(self.partner) if partner is None],
        )

    def _anywhere(self, key: Callable[[Shape], Hashable]) -> None:
        """Pair those whose key is unique among the unpaired of both sides; most of them in order, some moved."""
        old, new = self._free()
        pairs = unique_pairs([key(self._old[i]) for i in old], [key(self._new[i]) for i in new])
        found = [(old[i], new[j]) for i, j in pairs]
        anchors = [(partner, j) for j, partner in enumerate(self.partner) if partner is not None and self.in_order[j]]
        fitting = [pair for pair in found if _fits(pair, anchors)]
        ordered = {fitting[i] for i in rising([i for i, _ in fitting])}
        for pair in found:
            self._pair(*pair, in_order=pair in ordered)

    def _repeated(self) -> None:
        """Pair what is left of equal texts, as moved."""
        old, new = self._free()
        places: defaultdict[bytes, deque[int]] = defaultdict(deque)
        for index in old:
            places[self._old[index].text].append(index)
        for index in new:
            if left := places.get(self._new[index].text):
                self._pair(left.popleft(), index, in_order=False)

    def _between(self, key: Callable[[Shape], Hashable]) -> None:
        """Pair those with equal keys, in order, between what is paired in order."""
        for old, new in list(self._gaps()):
            for i, j in _in_order([key(self._old[index]) for index in old], [key(self._new[index]) for index in new]):
                self._pair(old[i], new[j], in_order=True)

    def _gaps(self) -> Iterator[tuple[list[int], list[int]]]:
        """The unpaired on both sides between two neighbours that are paired in order."""
        start = 0
        new: list[int] = []
        for index, partner in enumerate([*self.partner, len(self._old)]):
            if partner is None:
                new.append(index)
            elif index == len(self.partner) or self.in_order[index]:
                if new:
                    old = [place for place in range(start, partner) if not self._taken[place]]
                    if old:
                        yield old, new
                    new = []
                start = partner + 1


def _fits(pair: tuple[int, int], anchors: Sequence[tuple[int, int]]) -> bool:
    """Whether `pair` keeps the order of `anchors`, which rise on both sides."""
    at = bisect_left(anchors, pair[1], key=lambda anchor: anchor[1])
    return (at == 0 or anchors[at - 1][0] < pair[0]) and (at == len(anchors) or pair[0] < anchors[at][0])


def rising(values: Sequence[int]) -> list[int]:
    """Indexes of a longest rising subsequence (patience sorting)."""
    tops: list[int] = []
    piles: list[int] = []
    below: list[int] = []
    for index, value in enumerate(values):
        pile = bisect_left(tops, value)
        below.append(piles[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(value)
            piles.append(index)
        else:
            tops[pile] = value
            piles[pile] = index
    found = []
    index = piles[-1] if piles else -1
    while index >= 0:
        found.append(index)
        index = below[index]
    return found[::-1]


def unique_pairs(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(old index, new index) of the keys that stand exactly once on each side, by new index. None is no key."""
    count_old, count_new = Counter(old), Counter(new)
    place = {key: index for index, key in enumerate(old) if count_old[key] == 1 and key is not None}
    return [(place[key], index) for index, key in enumerate(new) if count_new[key] == 1 and key in place]


def _in_order(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs of equal keys, rising on both sides. None is no key."""
    if len(old) * len(new) <= _SMALL:
        blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
        return [(i, j) for i, j in pairs if old[i] is not None]
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(old):
        if key is not None:
            places[key].append(index)
    found: list[tuple[int, int]] = []
    last = -1
    for index, key in enumerate(new):
        where = places.get(key, [])
        at = bisect_right(where, last)
        if at < len(where):
            last = where[at]
            found.append((last, index))
    return found


def matching_lines(old: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int]]:
    """Pairs of equal lines, rising on both sides, of two versions of one text."""
    start = 0
    limit = min(len(old), len(new))
    while start < limit and old[start] == new[start]:
        start += 1
    end = 0
    while end < limit - start and old[-1 - end] == new[-1 - end]:
        end += 1
    inner_old, inner_new = old[start : len(old) - end], new[start : len(new) - end]
    if len(inner_old) * len(inner_new) <= _SMALL:
        inner = _in_order(inner_old, inner_new)
    else:
        pairs = unique_pairs(inner_old, inner_new)
        inner = [pairs[i] for i in rising([i for i, _ in pairs])]
    found = [(i, i) for i in range(start)]
    found += [(start + i, start + j) for i, j in inner]
    found += [(len(old) - i, len(new) - i) for i in range(end, 0, -1)]
    return found
