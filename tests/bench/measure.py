"""What is measured: series of samples, the ratio of two, goals. Pure, apart from the clock.

The machine that a benchmark runs on is rarely idle. So whatever is compared takes turns, a ratio is the median of
the turns' ratios, and every number is shown with its range.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class BenchError(Exception):
    """Something that a workload relies on doesn't hold, so its numbers would mean nothing."""


class Unit(StrEnum):
    """What a sample counts."""

    SECONDS = "s"
    RATE = "1/s"
    THROUGHPUT = "B/s"
    BYTES = "B"
    COUNT = ""


_SCALES = {
    Unit.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    Unit.RATE: ((1.0, "/s"),),
    Unit.THROUGHPUT: ((1e9, "GB/s"), (1e6, "MB/s")),
    Unit.BYTES: ((1e6, "MB"),),
    Unit.COUNT: ((1.0, ""),),
}


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one thing, in the order they were taken. `label` says of what."""

    label: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def show(self, unit: Unit) -> str:
        """The median and, where there are several samples, the range."""
        scales = _SCALES[unit]
        scale, name = next((found for found in scales if abs(self.median) >= found[0]), scales[-1])
        low, middle, high = (_number(value / scale) for value in (min(self.samples), self.median, max(self.samples)))
        name = f" {name}" if name[:1].isalpha() or name[:1] == "µ" else name
        return f"{middle}{name}" if len(self.samples) == 1 else f"{middle}{name} ({low}–{high})"  # noqa: RUF001

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "median": self.median,
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
        }


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` of all don't exceed (nearest rank)."""
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a measure's median, or for its ratio to the baseline."""

    limit: float
    at_least: bool = False
    of_ratio: bool = False

    def show(self, unit: Unit) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {_number(self.limit)}×" if self.of_ratio else f"{sign} {Series('', (self.limit,)).show(unit)}"  # noqa: RUF001

    def reached(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the result: what was measured, beside what, and what it should be."""

    name: str
    unit: Unit
    value: Series
    baseline: Series | None = None
    goal: Goal | None = None

    @property
    def ratio(self) -> Series | None:
        """Value over baseline, turn by turn."""
        if self.baseline is None:
            return None
        pairs = zip(self.value.samples, self.baseline.samples, strict=True)
        return Series("ratio", tuple(mine / other for mine, other in pairs))

    @property
    def reached(self) -> bool | None:
        """Whether the goal is; None without one."""
        if self.goal is None:
            return None
        measured = self.ratio if self.goal.of_ratio else self.value
        assert measured is not None, "a goal for a ratio needs a baseline"
        return self.goal.reached(measured.median)

    def to_json(self) -> dict[str, Any]:
        goal = None
        if self.goal is not None:
            goal = {
                "limit": self.goal.limit,
                "at_least": self.goal.at_least,
                "of": "ratio" if self.goal.of_ratio else "value",
                "reached": self.reached,
            }
        return {
            "name": self.name,
            "unit": self.unit.value,
            "value": self.value.to_json(),
            "baseline": None if self.baseline is None else self.baseline.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "goal": goal,
        }


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def seconds_each(count: int, action: Callable[[], object]) -> float:
    """How long `action` takes on average, done `count` times."""
    start = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - start) / count


def take_turns(runs: int, subjects: Mapping[str, Callable[[], float]]) -> dict[str, Series]:
    """`runs` samples of each subject, in alternating order, after one round that isn't counted."""
    samples: dict[str, list[float]] = {label: [] for label in subjects}
    for turn in range(runs + 1):
        for label in list(subjects) if turn % 2 else reversed(list(subjects)):
            sample = subjects[label]()
            if turn:
                samples[label].append(sample)
    return {label: Series(label, tuple(taken)) for label, taken in samples.items()}
