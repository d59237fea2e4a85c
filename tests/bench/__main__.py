"""The command: choose workloads, run them, print a table, write JSON and Markdown.

It ends with 0 whether goals are reached or not: that depends on the machine, and the table says it. 1: a workload
failed. 2: usage.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from store.errors import StoreError
from tests.bench.bench import Bench
from tests.bench.measure import BenchError, Measure
from tests.bench.target import ROOT
from tests.bench.workloads import WORKLOADS

_HEADINGS = ("measured", "chatfs", "beside", "ratio", "goal", "")


def _arguments() -> argparse.Namespace:
    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure a mount beside the native file system. Numbers are medians (and ranges); a ratio is the "
        "median of the turns' ratios. Pin everything to one processor for steadier ones: taskset -c 0 scripts/bench",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of all sizes: a smoke test")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=WORKLOADS, help=", ".join(WORKLOADS))
    parser.add_argument("--runs", type=positive, metavar="N", help="samples of each (7, or 2 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to make stores (TMPDIR)")
    return parser.parse_args()


def _output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def _environment(directory: Path) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "revision": _output("git", "describe", "--always", "--dirty"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "filesystem": _output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)),
    }


def _row(measure: Measure, *, quick: bool) -> tuple[str, ...]:
    beside = measure.baseline
    goal = "" if measure.goal is None else measure.goal.show(measure.unit)
    ratio = "" if measure.ratio is None else f"{measure.ratio.median:.3g}×"  # noqa: RUF001
    verdict = {None: "", True: "reached", False: "NOT REACHED"}[measure.reached]
    if quick and verdict:
        verdict = f"({verdict.lower()})"
    value = measure.value.show(measure.unit)
    if measure.value.label != "chatfs":
        value = f"{measure.value.label}: {value}"
    other = "" if beside is None else f"{beside.label}: {beside.show(measure.unit)}"
    return measure.name, value, other, ratio, goal, verdict


def _table(measures: Sequence[Measure], *, quick: bool) -> str:
    """A Markdown table, aligned for reading as it is."""
    rows = [_HEADINGS, *(_row(measure, quick=quick) for measure in measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    """Run the benchmark; the exit status."""
    asked = _arguments()
    # So that every with statement is left properly, and with it every mount.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    directory = Path(tempfile.mkdtemp(prefix="chatfs-bench-", dir=asked.directory)).resolve()
    try:
        return _run(asked, directory)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(directory)


def _run(asked: argparse.Namespace, directory: Path) -> int:
    environment = _environment(directory)
    bench = Bench(directory, runs=asked.runs or (2 if asked.quick else 7), quick=asked.quick)
    found: dict[str, list[Measure]] = {}
    failures: dict[str, str] = {}
    for name, workload in WORKLOADS.items():
        if asked.only and name not in asked.only:
            continue
        start = time.monotonic()
        try:
            found[name] = workload(bench)
            bench.tell(f"{name}: {time.monotonic() - start:.1f} s")
        except (BenchError, StoreError, OSError, subprocess.SubprocessError) as error:
            failures[name] = f"{type(error).__name__}: {error}"
            bench.tell(f"{name} failed: {failures[name]}")
    environment["load after"] = round(os.getloadavg()[0], 2)
    facts = ", ".join(f"{key} {value}" for key, value in environment.items() if value != "")
    size = "a quick run, only a smoke test: goals are for the full sizes" if asked.quick else f"{bench.runs} runs"
    table = _table([measure for measures in found.values() for measure in measures], quick=asked.quick)
    text = f"{table}\n\n{size}; {facts}\n"
    text += "".join(f"\nfailed: {name}: {reason}\n" for name, reason in failures.items())
    sys.stdout.write(text)
    if asked.markdown:
        asked.markdown.write_text(text)
    if asked.json:
        report = {
            "format": 1,
            "quick": asked.quick,
            "runs": bench.runs,
            "environment": environment,
            "measures": [
                {"workload": name, **measure.to_json()} for name, measures in found.items() for measure in measures
            ],
            "failures": failures,
        }
        asked.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
