"""What chatfs is to reach beside others: one table. The other workloads' goals stand with them, as `Goal`.

They are goals, not gates: the bench says what is reached, and no test depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.bench.measure import Goal, Unit

HIGHER_IS_BETTER: Final = frozenset({Unit.RATE, Unit.THROUGHPUT})


class Beside(StrEnum):
    """What chatfs is compared with."""

    NATIVE = "native"
    C = "C pass-through"
    """passthrough_ll where its path was given, or whichever of bindfs and mergerfs does better at that."""
    EXAMPLE = "pyfuse3 example"
    NOTHING = ""
    """The value alone counts."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound for chatfs's value, as a multiple of another's."""

    beside: Beside
    limit: float

    def goal(self, unit: Unit) -> Goal:
        """Rates are to be at least the limit, times and counts at most."""
        return Goal(self.limit, at_least=unit in HIGHER_IS_BETTER, of_ratio=self.beside is not Beside.NOTHING)


GOALS: Final[dict[str, tuple[Aim, ...]]] = {
    "warm read, 256 MB attachment": (Aim(Beside.NATIVE, 0.9),),
    "warm read, 50 MB history.md": (Aim(Beside.NATIVE, 0.9),),
    "warm stat": (Aim(Beside.C, 0.9),),
    "warm stat: requests": (Aim(Beside.NOTHING, 0),),
    "warm pread of 4 KiB": (Aim(Beside.C, 0.9),),
    "warm pread of 4 KiB: requests": (Aim(Beside.NOTHING, 0),),
    "cold lookup": (Aim(Beside.C, 1.5),),
    "getattr": (Aim(Beside.C, 1.5),),
    "append to an open log": (Aim(Beside.C, 1.0), Aim(Beside.EXAMPLE, 3.0)),
    "open + append + close": (Aim(Beside.C, 0.7), Aim(Beside.EXAMPLE, 3.0)),
    "small attachments": (Aim(Beside.C, 1.0),),
    "write, 256 MB attachment": (Aim(Beside.C, 0.8),),
    "cold read, 256 MB attachment": (Aim(Beside.C, 0.8),),
    "cold random reads of 4 KiB": (Aim(Beside.C, 0.4),),
    "cold ls -l": (Aim(Beside.C, 1.0),),
    "commit to visible: median": (Aim(Beside.NOTHING, 0.005),),
    "commit to visible: 99th percentile": (Aim(Beside.NOTHING, 0.050),),
    "memory after listing": (Aim(Beside.NOTHING, 1.3),),
}
"""By what is compared (`Comparison.key`)."""
