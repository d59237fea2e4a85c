"""Migrations that are interrupted at one system call, counted over the whole migration.

Run as a program, it makes copies of a store, and kills a process with SIGKILL at the first, second … call of the
migration of each, until one gets to its end: `python -m tests.golden.interrupted STORE DIRECTORY`.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from store import durability
from store.drivers.file import migration


class Interrupting(durability.System):
    """Does something instead of the migration's `at`th call, or (`after`) when that is done."""

    def __init__(self, at: int, do: Callable[[], object], *, after: bool = False) -> None:
        self._at = at
        self._do = do
        self._after = after
        self.calls = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        return functools.partial(self._call, found)

    def _call(self, method: Callable[..., Any], label: str, *args: Any) -> Any:
        if not label.startswith("migrate"):
            return method(label, *args)
        self.calls += 1
        if self.calls != self._at:
            return method(label, *args)
        if self._after:
            method(label, *args)
        return self._do()


def silent(_done: int, _total: int) -> None:
    """Reports to nobody."""


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def killed(store: Path, copy: Path, at: int) -> bool:
    """Migrate a copy, killed at that call; whether it got so far."""
    shutil.copytree(store, copy)
    child = os.fork()
    if child == 0:
        try:
            durability.system = Interrupting(at, _die)
            migration.migrate(copy, silent)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


if __name__ == "__main__":
    number = 1
    while killed(Path(sys.argv[1]), Path(sys.argv[2]) / str(number), number):
        number += 1
