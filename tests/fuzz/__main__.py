"""The long form of the fuzzers: `python -m tests.fuzz [TARGET…] [--seconds N] [--keep DIRECTORY]`; see `scripts/fuzz`.

Each target runs in a process of its own, for so many seconds, from its seeds and from what earlier runs thought worth
keeping in `DIRECTORY/corpus`. An input that breaks a promise is written to `DIRECTORY/crashes/TARGET-…`; with `TARGET
--replay FILE` it is shown again. Without atheris, Hypothesis tries as long.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.fuzz.test_fuzz import mutated

FOUND = 77
"""libFuzzer's exit code where something was found."""
LINE_LENGTH_MAX = 1 << 16
HANG_SECONDS = 30
MEMORY_MB = 3072


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def guided(name: str, seconds: int, keep: Path) -> bool:
    """Whether nothing was found."""
    corpus, crashes = keep / "corpus" / name, keep / "crashes"
    for directory in (corpus, crashes):
        directory.mkdir(parents=True, exist_ok=True)
    for data in TARGETS[name].seeds():
        (corpus / hashlib.sha256(data).hexdigest()).write_bytes(data)
    options = {
        "max_total_time": seconds,
        "max_len": LINE_LENGTH_MAX,
        "timeout": HANG_SECONDS,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{crashes}/{name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    return (
        subprocess.run([sys.executable, "-m", "tests.fuzz.guided", name, corpus, *words], check=False).returncode == 0
    )


def tried(name: str, seconds: int, keep: Path) -> bool:
    """The same by Hypothesis, with other examples in each round."""
    target = TARGETS[name]
    tries = 0
    end = time.monotonic() + seconds
    last = b""
    while time.monotonic() < end:

        @seed(time.time_ns())
        @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mutated(target) | st.binary(max_size=1000))
        def check(data: bytes) -> None:
            nonlocal last, tries
            last = data
            tries += 1
            target.check(data)

        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a find
            crashes = keep / "crashes"
            crashes.mkdir(parents=True, exist_ok=True)
            path = crashes / f"{name}-{hashlib.sha256(last).hexdigest()[:16]}"
            path.write_bytes(last)
            say(f"{type(error).__name__}: {error}\nwritten to {path}")
            return False
    say(f"{tries} inputs")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz chatfs.")
    parser.add_argument("targets", metavar="TARGET", nargs="*", help=f"some of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="where the corpus and crashes go (default: build/fuzz)"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on this input alone")
    args = parser.parse_args()
    if unknown := set(args.targets) - TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}: choose from {', '.join(TARGETS)}")
    if args.replay is not None:
        if len(args.targets) != 1:
            parser.error("--replay needs the one TARGET that the file is for")
        TARGETS[args.targets[0]].check(args.replay.read_bytes())
        say("nothing is wrong with it")
        return 0
    run = guided
    if importlib.util.find_spec("atheris") is None:
        say("atheris isn't installed: Hypothesis tries instead, without looking at what the inputs reach")
        run = tried
    bad = []
    for name in args.targets or TARGETS:
        say(f"==> {name}, {args.seconds} s")
        if not run(name, args.seconds, args.keep.absolute()):
            bad.append(name)
    crashes = args.keep / "crashes"
    for path in sorted(crashes.iterdir()) if crashes.is_dir() else ():
        target = next(name for name in sorted(TARGETS, key=len, reverse=True) if path.name.startswith(f"{name}-"))
        say(f"found: scripts/fuzz {target} --replay {path}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
