"""Real git, for the tests of the `git:` driver."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from store.driver import AppendLog
from tests.contract.backends import SPACE, GitBackend

REF = f"refs/chatfs/{SPACE}/log"
_CLEAN = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def run(path: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _CLEAN
    return subprocess.run(
        ["git", "-C", str(path), *args], check=check, capture_output=True, text=True, env=env, timeout=60
    )


def git(path: Path, *args: str) -> str:
    """What it prints. Raises where it fails."""
    return run(path, *args).stdout.strip()


def fsck(path: Path) -> None:
    """Nothing is missing or broken."""
    found = run(path, "fsck", "--full", "--strict", "--no-dangling")
    complaints = [line for line in (found.stdout + found.stderr).splitlines() if not line.startswith("notice:")]
    assert complaints == []


async def open_log(backend: GitBackend) -> AppendLog:
    return await (await backend.open()).open_log(SPACE, create=True)


def project(path: Path) -> Path:
    """A repository with a work tree, a commit, something staged and something not."""
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "code.py").write_text("print()\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "begin")
    (path / "staged.py").write_text("1\n")
    git(path, "add", "staged.py")
    (path / "code.py").write_text("changed\n")
    return path
