"""The command: choose workloads, run them, print tables, write JSON, Markdown and a plot.

It ends with 0 whether goals are reached or not: that depends on the machine, and the tables say it. 1: a workload
failed, or chatfs at one. 2: usage.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson

from fusefs.unmount import mounts
from tests.bench import peers, plot, report
from tests.bench.bench import QUICK, SMOKE, Bench
from tests.bench.comparison import FAILURES, Comparison
from tests.bench.measure import BenchError, Measure
from tests.bench.target import CHATFS, ROOT
from tests.bench.workloads import PEERS, WORKLOADS

_README: Final = ROOT / "README.md"
_PLOT: Final = ROOT / "tests" / "bench" / "speed.svg"
_RUNS: Final = 5


def _arguments() -> argparse.Namespace:
    def positive(text: str) -> int:
        number = int(text)
        if number < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure chatfs beside the native file system and other FUSE file systems. Numbers are medians "
        "(and ranges); a ratio is the median of the turns' ratios. Pin everything to one processor for steadier ones: "
        "taskset -c 0 scripts/bench",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a tenth of all sizes: what changes much is seen")
    size.add_argument("--smoke", action="store_true", help="tiny sizes, one run: only whether it works")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=WORKLOADS, help=", ".join(WORKLOADS))
    parser.add_argument("--peers-only", action="store_true", help=f"the same as --only {' '.join(PEERS)}")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        choices=peers.NAMES,
        help=f"these alone, or none: {', '.join(peers.NAMES)}",
    )
    parser.add_argument("--runs", type=positive, metavar="N", help=f"samples of each ({_RUNS}, or 2 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG of how the peers stand")
    parser.add_argument("--readme", action="store_true", help=f"write table and plot into README.md and {_PLOT.name}")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to make stores (TMPDIR)")
    parser.add_argument(
        "--install-peers", action="store_true", help=f"install what is missing of {', '.join(peers.PACKAGES)}, as root"
    )
    parser.add_argument(
        "--passthrough-ll", type=Path, metavar="PATH", help="libfuse's example program: the C pass-through, then"
    )
    asked = parser.parse_args()
    if asked.passthrough_ll is not None and not os.access(asked.passthrough_ll, os.X_OK):
        parser.error(f"{asked.passthrough_ll} isn't a program: compile libfuse's example/passthrough_ll.c")
    asked.cast = peers.Cast(asked.passthrough_ll and asked.passthrough_ll.resolve(), asked.peers)
    asked.only = asked.only or (list(PEERS) if asked.peers_only else list(WORKLOADS))
    return asked


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
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


def _private_mounts() -> None:
    """A mount namespace of our own, where we may: whatever happens to us, our mounts end with us."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive, detach = 0x20000, 0x40000, 0x4000, 2
    if libc.unshare(new_namespace) == 0:
        libc.mount(b"none", b"/", None, private | recursive, None)
        # Copies of others' mounts would keep their daemons, long after they were unmounted there.
        for mounted in mounts():
            libc.umount2(os.fsencode(mounted.mountpoint), detach)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    """Run the benchmark; the exit status."""
    asked = _arguments()
    # So that every with statement is left properly, and with it every mount.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    if asked.install_peers:
        try:
            peers.install(Bench.tell)
        except BenchError as error:
            sys.stderr.write(f"scripts/bench: {error}\n")
            return 1
    _private_mounts()
    directory = Path(tempfile.mkdtemp(prefix="chatfs-bench-", dir=asked.directory)).resolve()
    try:
        return _run(asked, directory)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(directory)


def _run(asked: argparse.Namespace, directory: Path) -> int:
    environment = _environment(directory)
    divisor = SMOKE if asked.smoke else QUICK if asked.quick else 1
    runs = asked.runs or (1 if asked.smoke else 2 if asked.quick else _RUNS)
    bench = Bench(directory, runs=runs, divisor=divisor, cast=asked.cast)
    found: dict[str, list[Comparison] | list[Measure]] = {}
    failures: dict[str, str] = {}
    start = time.monotonic()
    for name in WORKLOADS:
        if name not in asked.only:
            continue
        begun = time.monotonic()
        try:
            found[name] = WORKLOADS[name](bench)
            bench.tell(f"{name}: {time.monotonic() - begun:.1f} s")
        except FAILURES as error:
            failures[name] = f"{type(error).__name__}: {error}"
            bench.tell(f"{name} failed: {failures[name]}")
    environment["load after"] = round(os.getloadavg()[0], 2)
    environment["minutes"] = round((time.monotonic() - start) / 60, 1)
    comparisons = [one for several in found.values() for one in several if isinstance(one, Comparison)]
    measures = [one for several in found.values() for one in several if isinstance(one, Measure)]
    failures |= {one.key: one.failures[CHATFS] for one in comparisons if CHATFS in one.failures}
    options = bench.stage.options() if comparisons and bench.staged else {}
    text = _text(bench, comparisons, measures, options, environment, failures)
    sys.stdout.write(text)
    if asked.markdown:
        asked.markdown.write_text(text)
    if asked.json:
        written = {
            "format": 2,
            "divisor": divisor,
            "runs": bench.runs,
            "environment": environment,
            "targets": options,
            "comparisons": [one.to_json() for one in comparisons],
            "measures": [
                {"workload": name, **one.to_json()}
                for name, several in found.items()
                for one in several
                if isinstance(one, Measure)
            ],
            "failures": failures,
        }
        asked.json.write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2) + b"\n")
    if comparisons:
        _draw(asked, comparisons, _facts(bench, environment))
    return 1 if failures else 0


def _facts(bench: Bench, environment: dict[str, Any]) -> str:
    size = f"{bench.runs} runs"
    if bench.divisor > 1:
        size = f"sizes divided by {bench.divisor}, so goals don't apply; {size}"
    return f"{size}; " + ", ".join(f"{key} {value}" for key, value in environment.items() if value != "")


def _text(
    bench: Bench,
    comparisons: list[Comparison],
    measures: list[Measure],
    options: dict[str, str],
    environment: dict[str, Any],
    failures: dict[str, str],
) -> str:
    small = bench.divisor > 1
    parts = []
    if comparisons:
        parts += [report.targets_table(comparisons), report.ratios_table(comparisons, small=small)]
    if measures:
        parts.append(report.measures_table(measures, small=small))
    if options:
        parts.append("\n".join(f"{name}: {how}" for name, how in options.items()))
    parts.append(_facts(bench, environment))
    parts += [f"failed: {name}: {reason}" for name, reason in failures.items()]
    parts += [
        f"{name} failed at {one.key}: {reason}"
        for one in comparisons
        for name, reason in one.failures.items()
        if name != CHATFS
    ]
    return "\n\n".join(parts) + "\n"


def _draw(asked: argparse.Namespace, comparisons: list[Comparison], facts: str) -> None:
    targets = [asked.plot] if asked.plot else []
    if asked.readme:
        targets.append(_PLOT)
        picture = f"![How fast chatfs and its peers are beside the native file system]({_PLOT.relative_to(ROOT)})"
        text = f"{picture}\n\n{report.summary(comparisons)}\n\n({facts})"
        _README.write_text(report.put_into(_README.read_text(), text))
    for target in targets:
        target.write_text(plot.svg(comparisons))


if __name__ == "__main__":
    sys.exit(main())
