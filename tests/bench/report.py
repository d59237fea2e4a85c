"""The result as text: a table of all targets, one of what chatfs is beside them, one of chatfs alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from tests.bench.comparison import Comparison, Verdict
from tests.bench.measure import Measure, Series, Unit
from tests.bench.target import Kind

_TIMES: Final = "×"  # noqa: RUF001
BEGIN: Final = "<!-- scripts/bench writes from here -->"
END: Final = "<!-- to here -->"
_REACHED: Final = {None: "", True: "reached", False: "NOT REACHED"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as it is."""
    cells = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _verdict(reached: bool | None, *, small: bool) -> str:  # noqa: FBT001
    said = _REACHED[reached]
    return f"({said.lower()})" if small and said else said


# ---- beside others


def targets_table(comparisons: Sequence[Comparison]) -> str:
    """Medians with ranges: a line for each workload, a column for each target."""
    names = list(dict.fromkeys(name for found in comparisons for name in found.kinds))

    def cell(found: Comparison, name: str) -> str:
        series = found.series.get(name)
        if series is not None:
            return series.show(found.unit)
        return "failed" if name in found.failures else ""

    rows = [(_title(found), *(cell(found, name) for name in names)) for found in comparisons]
    return table(("", *names), rows)


def _title(found: Comparison) -> str:
    return f"{found.key} ({found.detail})"


def _ratio(ratio: Series | None, *, named: bool = False) -> str:
    if ratio is None:
        return ""
    return f"{ratio.median:.3g}{_TIMES}" + (f" {ratio.label}" if named else "")


def _goal(found: Comparison, verdict: Verdict) -> str:
    beside = f" {verdict.aim.beside.value}" if verdict.aim.beside.value else ""
    return verdict.aim.goal(found.unit).show(found.unit) + beside


def ratios_table(comparisons: Sequence[Comparison], *, small: bool) -> str:
    """What chatfs's figures are beside the native ones, a C pass-through's and the example's; goals."""
    rows = []
    for found in comparisons:
        chatfs = found.chatfs
        verdicts = found.verdicts()
        ratios = (_ratio(found.ratio(Kind.NATIVE)), _ratio(found.ratio(Kind.C), named=True))
        example = _ratio(found.ratio(Kind.EXAMPLE))
        value = "failed" if chatfs is None else chatfs.show(found.unit)
        goals = "; ".join(_goal(found, verdict) for verdict in verdicts)
        said = "; ".join(_verdict(verdict.reached, small=small) for verdict in verdicts)
        rows.append((_title(found), value, *ratios, example, goals, said))
    return table(("", "chatfs", "native", "C pass-through", "pyfuse3 example", "goal", ""), rows)


# ---- chatfs alone


def measures_table(measures: Sequence[Measure], *, small: bool) -> str:
    """Values, what they are beside, and goals."""
    rows = []
    for measure in measures:
        beside = measure.baseline
        goal = "" if measure.goal is None else measure.goal.show(measure.unit)
        value = measure.value.show(measure.unit)
        if measure.value.label != "chatfs":
            value = f"{measure.value.label}: {value}"
        other = "" if beside is None else f"{beside.label}: {beside.show(measure.unit)}"
        verdict = _verdict(measure.reached, small=small)
        rows.append((measure.name, value, other, _ratio(measure.ratio), goal, verdict))
    return table(("measured", "chatfs", "beside", "ratio", "goal", ""), rows)


# ---- README.md


def summary(comparisons: Sequence[Comparison]) -> str:
    """A short table for readers: chatfs, and how it stands beside the others."""
    rows = [
        (
            found.key,
            "" if found.chatfs is None else _median(found.chatfs, found.unit),
            _ratio(found.ratio(Kind.NATIVE)),
            _ratio(found.ratio(Kind.C), named=True),
            _ratio(found.ratio(Kind.EXAMPLE)),
        )
        for found in comparisons
    ]
    return table(("", "chatfs", "of native", "of a C pass-through", "of pyfuse3's example"), rows)


def _median(series: Series, unit: Unit) -> str:
    return Series(series.label, (series.median,)).show(unit)


def put_into(readme: str, text: str) -> str:
    """The README with `text` between the marks; ValueError where they aren't."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"there must be one {BEGIN} … {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{text.strip()}\n{END}", readme)
