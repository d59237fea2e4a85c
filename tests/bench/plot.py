"""A plot of the comparisons, as SVG: how fast each target is beside the native file system, on a log scale. Pure.

A line for each workload, a mark for each target: bars have no beginning on a log scale. Further right is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from tests.bench.comparison import Comparison
from tests.bench.goals import HIGHER_IS_BETTER
from tests.bench.measure import Unit
from tests.bench.target import CHATFS, NATIVE

_FONT: Final = 'font-family="system-ui, sans-serif" font-size="13"'
_WIDTH: Final = 860
_LEFT: Final = 250
_RIGHT: Final = 30
_TOP: Final = 74
_LINE: Final = 30
_COLORS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's, which most people can tell apart; chatfs is drawn in black, and larger."""
_SPEEDS: Final = frozenset({Unit.RATE, Unit.THROUGHPUT, Unit.SECONDS})


def relative_speeds(found: Comparison) -> dict[str, float]:
    """How many times as fast as the native file system each target is (medians)."""
    native = found.series.get(NATIVE)
    if found.unit not in _SPEEDS or native is None or not native.median:
        return {}
    speeds = {}
    for name, series in found.series.items():
        if name != NATIVE and series.median:
            ratio = series.median / native.median
            speeds[name] = ratio if found.unit in HIGHER_IS_BETTER else 1 / ratio
    return speeds


def svg(comparisons: Sequence[Comparison]) -> str:
    """The plot; ValueError without anything to show."""
    rows = [(found.key, speeds) for found in comparisons if (speeds := relative_speeds(found))]
    # Where chatfs alone stands beside the native file system, the table says it better.
    rows = [(key, speeds) for key, speeds in rows if len(speeds) > 1] or rows
    if not rows:
        raise ValueError("nothing was compared with the native file system")
    names = list(dict.fromkeys(name for _, speeds in rows for name in speeds))
    others = [name for name in names if name != CHATFS]
    colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(others)} | {CHATFS: "#000"}
    values = [value for _, speeds in rows for value in speeds.values()]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(*values, 1.0))))
    bottom = _TOP + _LINE * len(rows)

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 44}" {_FONT} role="img">',
        "<title>Speed beside the native file system</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    at = 16.0
    for name in [CHATFS, *others] if CHATFS in names else others:
        parts.append(_mark(name, at, 24, colors[name]))
        parts.append(_text(at + 10, 28, name, "start"))
        at += 30 + 7.4 * len(name)
    for exponent in range(low, high + 1):
        place = x(10.0**exponent)
        strong = exponent == 0
        line = "#333" if strong else "#ccc"
        parts.append(f'<line x1="{place:.1f}" y1="{_TOP - 18}" x2="{place:.1f}" y2="{bottom}" stroke="{line}"/>')
        parts.append(_text(place, bottom + 16, "native" if strong else f"{10.0**exponent:g}", "middle"))
    parts.append(_text(x(10.0**low), bottom + 36, "times the native speed; further right is faster", "start"))
    for number, (key, speeds) in enumerate(rows):
        y = _TOP + _LINE * number
        parts.append(_text(_LEFT - 12, y + 4, key, "end"))
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#eee"/>')
        # chatfs comes last, on top of what it is as fast as.
        parts.extend(_mark(name, x(speeds[name]), y, colors[name]) for name in [*others, CHATFS] if name in speeds)
    return "\n".join([*parts, "</svg>", ""])


def _mark(name: str, x: float, y: float, color: str) -> str:
    if name == CHATFS:
        return f'<path d="M{x:.1f} {y - 7} l7 7 l-7 7 l-7 -7 z" fill="{color}"><title>{escape(name)}</title></path>'
    return (
        f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{color}" fill-opacity="0.85"><title>{escape(name)}</title></circle>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
