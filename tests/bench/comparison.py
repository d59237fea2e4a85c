"""One thing measured on several targets, and what chatfs's figure is beside the others'. Pure, apart from the clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from store.errors import StoreError
from tests.bench.goals import GOALS, HIGHER_IS_BETTER, Aim, Beside
from tests.bench.measure import BenchError, Series, Unit
from tests.bench.target import Kind

FAILURES: Final = (BenchError, StoreError, OSError, subprocess.SubprocessError)
"""What a target's sample may raise without ending the run."""
_BUDGET: Final = 20.0
"""Seconds, after which a target takes no more turns at the same: pyfuse3's example takes 18 s for a long listing."""
PREFERRED: Final = "passthrough_ll"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an aim is reached; `ratio` is None where the aim is for the value alone."""

    aim: Aim
    ratio: Series | None
    reached: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the result: a series for each target that could do it, by name."""

    key: str
    """As in `GOALS`."""
    detail: str
    """How much of it was done."""
    unit: Unit
    series: Mapping[str, Series]
    kinds: Mapping[str, Kind]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def chatfs(self) -> Series | None:
        return self.beside(Kind.CHATFS)

    def beside(self, kind: Kind) -> Series | None:
        """The best series of a kind; of C pass-throughs, libfuse's own where it takes part."""
        if kind is Kind.C and PREFERRED in self.series:
            return self.series[PREFERRED]
        found = [series for name, series in self.series.items() if self.kinds[name] is kind]
        best = max if self.unit in HIGHER_IS_BETTER else min
        return best(found, key=lambda series: series.median, default=None)

    def ratio(self, kind: Kind) -> Series | None:
        """chatfs's value over another's, turn by turn; `label` says whose."""
        mine, other = self.chatfs, self.beside(kind)
        if mine is None or other is None or self.unit is Unit.COUNT or not all(other.samples):
            return None
        # A slow target may have taken fewer turns.
        pairs = zip(mine.samples, other.samples, strict=False)
        return Series(other.label, tuple(value / theirs for value, theirs in pairs))

    def verdicts(self) -> list[Verdict]:
        """One for each aim that can be judged: what it is beside must have taken part."""
        found = []
        for aim in GOALS.get(self.key, ()):
            ratio = None if aim.beside is Beside.NOTHING else self.ratio(_KINDS[aim.beside])
            measured = self.chatfs if aim.beside is Beside.NOTHING else ratio
            if measured is not None:
                found.append(Verdict(aim, ratio, aim.goal(self.unit).reached(measured.median)))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "detail": self.detail,
            "unit": self.unit.value,
            "targets": {name: series.to_json() for name, series in self.series.items()},
            "ratios": {
                beside.value: ratio.to_json()
                for beside, kind in _KINDS.items()
                if (ratio := self.ratio(kind)) is not None
            },
            "goals": [
                {
                    "beside": verdict.aim.beside.value or None,
                    "limit": verdict.aim.limit,
                    "at_least": verdict.aim.goal(self.unit).at_least,
                    "reached": verdict.reached,
                }
                for verdict in self.verdicts()
            ],
            "failures": dict(self.failures),
        }


_KINDS: Final = {Beside.NATIVE: Kind.NATIVE, Beside.C: Kind.C, Beside.EXAMPLE: Kind.EXAMPLE}


def take_turns_apart(
    runs: int,
    subjects: Mapping[str, Callable[[], float]],
    *,
    warm_up: bool,
    budget: float = _BUDGET,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Series], dict[str, str]]:
    """`runs` samples of each subject, in alternating order; and why those that failed did.

    With `warm_up`, a first sample isn't counted. A subject that has used up its budget takes no more turns.
    """
    samples: dict[str, list[float]] = {label: [] for label in subjects}
    spent = dict.fromkeys(subjects, 0.0)
    failures: dict[str, str] = {}
    for turn in range(runs + warm_up):
        for label in list(subjects) if turn % 2 else reversed(list(subjects)):
            if label in failures or (samples[label] and spent[label] >= budget):
                continue
            start = clock()
            try:
                samples[label].append(subjects[label]())
            except FAILURES as error:
                failures[label] = f"{type(error).__name__}: {error}"
            spent[label] += clock() - start
    counted = {label: taken[warm_up:] or taken for label, taken in samples.items() if label not in failures}
    return {label: Series(label, tuple(taken)) for label, taken in counted.items() if taken}, failures
