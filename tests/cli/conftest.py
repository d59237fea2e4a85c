"""The commands as processes of their own, on a fresh `file:` store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from fusefs.unmount import lazy_unmount, mounts
from store.model import Entry
from tests.support.mounts import read_log

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Cli:
    """`chatfs …`, with all of its state under `root`."""

    root: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    """What runs the command: `setpriv …`."""

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def environment(self) -> dict[str, str]:
        own = {f"XDG_{kind}_HOME": str(self.root / kind.lower()) for kind in ("DATA", "CONFIG", "CACHE", "STATE")}
        settings = {"CHATFS_STORE": f"file://{self.store}", "PYTHONWARNINGS": "error", "LC_ALL": "C.UTF-8"}
        return {**os.environ, **own, **settings}

    @staticmethod
    def command(*words: str | Path) -> list[str]:
        return [sys.executable, "-m", "fusefs", *map(str, words)]

    def attempt(self, *words: str | Path, given: bytes = b"") -> tuple[int, str, str]:
        """Run to the end; exit code, stdout, stderr."""
        done = subprocess.run(
            [*self.before, *self.command(*words)],
            check=False,
            input=given,
            capture_output=True,
            env=self.environment,
            cwd=REPOSITORY,
            timeout=60,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def run(self, *words: str | Path, given: bytes = b"") -> str:
        """What a command that must succeed without a complaint prints. It may make the store, and says so then."""
        there = self.store.exists()
        code, out, err = self.attempt(*words, given=given)
        made = "" if there or not self.store.exists() else f"chatfs: made a new store at {self.store}\n"
        assert (code, err) == (0, made)
        return out

    def json(self, *words: str | Path, given: bytes = b"") -> Any:
        return orjson.loads(self.run(*words, "--json", given=given))

    def fails(self, *words: str | Path, given: bytes = b"", code: int = 1) -> str:
        """The one line that a command which must fail says."""
        found, out, err = self.attempt(*words, given=given)
        assert (found, out) == (code, ""), err
        assert err.startswith("chatfs: ")
        assert err.count("\n") == 1
        return err.removeprefix("chatfs: ").rstrip("\n")

    def begin(self, *words: str | Path, **settings: Any) -> subprocess.Popen[bytes]:
        """Start, to be talked to; ended with the test."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
        process = subprocess.Popen(self.command(*words), env=self.environment, cwd=REPOSITORY, **pipes)
        self.running.append(process)
        return process

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait(15)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def log_file(self, chat: str) -> Path:
        """A chat's log in the store, found without the commands' help."""
        identity = self.json("chat", "show", chat)["id"]
        (found,) = self.store.glob(f"workspace/*/chats/{identity}/history.jsonl")
        return found

    def entries(self, chat: str) -> list[Entry]:
        return read_log(self.log_file(chat))


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """No store yet."""
    found = Cli(tmp_path)
    yield found
    found.close()
    for mounted in mounts():
        if mounted.mountpoint.is_relative_to(tmp_path):
            lazy_unmount(mounted.mountpoint)


@pytest.fixture
def demo(cli: Cli) -> Cli:
    """With a workspace `demo` that has a chat `trip` of two messages."""
    cli.run("workspace", "create", "demo")
    given = b'{"role":"user","content":"hello"}\n{"role":"assistant","content":"hi there"}\n'
    assert cli.run("append", "demo/trip", "-", "--create", given=given) == "2\n"
    return cli
