"""`chatfs migrate` and `chatfs import --jsonl`, killed at any system call and run again."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Cli
from tests.cli.test_moving import fill, truth


def run(cli: Cli, kill_at: int, *words: str | Path) -> tuple[int, str]:
    """The exit code and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_mover", str(kill_at), *map(str, words)],
        check=False,
        capture_output=True,
        env=cli.environment,
        cwd=REPOSITORY,
        timeout=60,
    )
    return done.returncode, done.stderr.decode()


def moments(cli: Cli, words: Sequence[str | Path], target: Path, count: int) -> Iterator[int]:
    """The calls at which to kill: some of each part of a run."""
    code, err = run(cli, 0, *words)
    assert code == 0, err
    total = int(err.split()[-1])
    shutil.rmtree(target)
    choose = random.Random(total)
    for part in range(count):
        yield choose.randint(1 + total * part // count, total * (part + 1) // count)


@pytest.mark.parametrize("form", ["migrate", "import"])
def test_it_goes_on_where_it_was(cli: Cli, form: str) -> None:
    fill(cli)
    target = cli.root / "other"
    words: tuple[str | Path, ...] = ("migrate", cli.store, target)
    if form == "import":
        cli.run("export", "demo", "--jsonl", "-o", cli.root / "stream")
        words = ("--store", target, "import", "--jsonl", cli.root / "stream")
    killed = 0
    for moment in moments(cli, words, target, 5):
        code, err = run(cli, moment, *words)
        # What was brought before isn't brought again, so a later moment may not come.
        assert code in {-signal.SIGKILL, 0}, err
        killed += code != 0
        whole = truth(cli.store)
        for name, data in truth(target).items():
            assert whole[name].startswith(data), name
        own = [log for log in target.glob("workspace/*/history.jsonl") if log.stat().st_size]
        assert not own or truth(target).keys() == whole.keys()
    assert killed
    assert run(cli, 0, *words)[0] == 0
    assert truth(target) == truth(cli.store)
    assert cli.attempt("--store", target, "fsck")[0] == 0
