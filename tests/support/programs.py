"""Ordinary programs, run as a user runs them, except that their settings come from nowhere."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    status: int
    stdout: bytes
    stderr: str


def clean_environment(home: Path) -> dict[str, str]:
    """No settings of the user's; English messages; UTF-8."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    own = {"HOME": str(home), "LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1", "EDITOR": "false", "TERM": "dumb"}
    return kept | own | {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}


def attempt(
    home: Path, *words: str | Path, given: bytes = b"", cwd: Path | None = None, variables: dict[str, str] | None = None
) -> Done:
    """Run a program to its end (60 s at most), whatever that is; `home` must not be in a mount."""
    environment = clean_environment(home) | (variables or {})
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        input=given,
        capture_output=True,
        cwd=cwd or home,
        env=environment,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def run(
    home: Path, *words: str | Path, given: bytes = b"", cwd: Path | None = None, variables: dict[str, str] | None = None
) -> bytes:
    """Run a program that must succeed without a complaint; its output."""
    done = attempt(home, *words, given=given, cwd=cwd, variables=variables)
    assert (done.status, done.stderr) == (0, ""), f"{words[0]}: {done}"
    return done.stdout
