"""Commands can be given in any directory: what lies there isn't run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Cli


@pytest.mark.mount
@pytest.mark.parametrize("name", ["orjson.py", "store/__init__.py"])
def test_a_mount_runs_no_modules_of_the_directory_that_it_is_started_in(cli: Cli, tmp_path: Path, name: str) -> None:
    directory, mountpoint, run = tmp_path / "somewhere", tmp_path / "mnt", tmp_path / "run"
    planted = directory / name
    planted.parent.mkdir(parents=True)
    planted.write_text(f"import pathlib\npathlib.Path({str(run)!r}).touch()\n")
    mountpoint.mkdir()
    done = subprocess.run(
        # Installed, chatfs is a script, which doesn't look for modules in the directory either.
        [sys.executable, "-P", "-m", "fusefs", "mount", mountpoint],
        check=False,
        capture_output=True,
        env=cli.environment | {"PYTHONPATH": str(REPOSITORY)},
        cwd=directory,
        timeout=60,
    )
    assert not run.exists()
    assert done.returncode == 0, done.stderr
    cli.run("umount", mountpoint)
