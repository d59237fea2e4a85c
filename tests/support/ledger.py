"""What a writer was promised: a file that says what it began, and what was acknowledged, in this order.

A line is in the page cache before the next system call is made: it outlives a SIGKILL of its writer. An operation that
was begun and not acknowledged is in flight: both outcomes are right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Ledger:
    """Written by one writer. `begin` before the operation, `acknowledged` after its system call has returned."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _write(self, value: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(value).encode() + b"\n")

    @contextmanager
    def operation(self, **what: Any) -> Iterator[None]:
        """Notes `what` before, and that it was acknowledged once the block has ended well."""
        self._write({"begun": what})
        yield
        self._write({"acknowledged": True})


@dataclass(frozen=True)
class Operation:
    """One operation of a ledger."""

    what: dict[str, Any]
    acknowledged: bool


def operations(path: Path) -> list[Operation]:
    """All of them, in order. Only the last line may be torn."""
    found: list[Operation] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines[:-1]:
        value = json.loads(line)
        if "begun" in value:
            found.append(Operation(value["begun"], acknowledged=False))
        else:
            found[-1] = Operation(found[-1].what, acknowledged=True)
    return found
