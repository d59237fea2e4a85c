"""Runs the inner loops (`tests.bench.loops`), each in a process of its own.

For one thread. A loop that takes too long is ended, and the daemon first: a process that waits for a FUSE daemon can't
be killed before that.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.measure import BenchError
from tests.bench.target import Target

_LOOPS: Final = Path(__file__).with_name("loops.py")
_PATIENCE: Final = 180.0
"""Seconds for each step of a loop."""


class Client:
    """A loop that is about to run."""

    def __init__(self, target: Target, name: str, arguments: tuple[object, ...], patience: float) -> None:
        self._patience = patience
        self._target = target
        self._name = name
        # Isolated and without site-packages: it starts in 10 ms.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LOOPS), name, *map(str, arguments)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def prepare(self) -> None:
        """Let it do what isn't measured."""
        self._expect("ready")

    def go(self) -> float:
        """Run it; how long it took."""
        self._go()
        return float(self._line())

    def finish(self) -> None:
        """Let it check what it did, and close its files."""
        self._go()
        self._expect("checked")

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    def _expect(self, word: str) -> None:
        if (said := self._line()) != word:
            raise BenchError(f"{self._name} said {said!r}")

    def _line(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self._patience)[0]:
            self._target.abort()
            raise BenchError(f"{self._name} took more than {self._patience:g} s")
        line = stdout.readline()
        if not line:
            stderr = self._process.stderr
            assert stderr is not None
            raise BenchError(stderr.read().decode(errors="replace").strip().split("\n")[-1] or f"{self._name} ended")
        return line.decode().strip()

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def client(target: Target, name: str, *arguments: object, patience: float = _PATIENCE) -> Iterator[Client]:
    """A loop on the target, prepared."""
    made = Client(target, name, arguments, patience)
    try:
        made.prepare()
        yield made
    finally:
        made.close()


def run(target: Target, name: str, *arguments: object, patience: float = _PATIENCE) -> float:
    """How long the loop takes on the target."""
    with client(target, name, *arguments, patience=patience) as loop:
        taken = loop.go()
        loop.finish()
    return taken
