"""`chatfs` with a durability seam that fails on demand: `python -m tests.support.faulty WORDS…` is `chatfs WORDS…`.

Before every system call on the write path, the file that `CHATFS_FAULT` names is looked at. If it is there and its
`call` and `label` fit, and `skip` more such calls have been made, the call fails with `errno` (once), and the file is
renamed to `….fired`. An errno of 0 (`SHORT`) makes a write take only half of its bytes; other calls then do as ever.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusefs.__main__ import main as chatfs
from store import durability

CALLS = ["open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "link", "unlink", "mkdir"]

SHORT = 0
"""In place of an errno: the write isn't refused, but short."""


class FaultySystem:
    """Stands in for `durability.system`."""

    def __init__(self, real: durability.System, control: Path) -> None:
        self._real = real
        self._control = control
        self._wanted = (0, 0)
        self._count = 0

    def __getattr__(self, call: str) -> Any:
        real: Callable[..., Any] = getattr(self._real, call)

        def made(label: str, *arguments: Any) -> Any:
            if self._is_due(call, label):
                code = json.loads(Path(f"{self._control}.fired").read_text())["errno"]
                if code != SHORT:
                    raise OSError(code, os.strerror(code))
                if call in {"write", "pwrite"}:
                    fd, data, *offset = arguments
                    return real(label, fd, data[: (len(data) + 1) // 2], *offset)
            return real(label, *arguments)

        return made

    def _is_due(self, call: str, label: str) -> bool:
        """Whether this is the call that goes wrong."""
        try:
            stat = self._control.stat()
        except FileNotFoundError:
            return False
        wanted = json.loads(self._control.read_text())
        if call != wanted["call"] or not re.fullmatch(wanted["label"], label):
            return False
        if self._wanted != (stat.st_ino, stat.st_mtime_ns):
            self._wanted, self._count = (stat.st_ino, stat.st_mtime_ns), 0
        self._count += 1
        if self._count <= wanted["skip"]:
            return False
        self._control.rename(f"{self._control}.fired")
        return True


@dataclass
class Faults:
    """The tests' side."""

    control: Path
    fired: bool = False

    @contextmanager
    def one(self, call: str, code: int = errno.EIO, *, label: str = ".*", skip: int = 0) -> Iterator[None]:
        """Within the block, one such call fails; afterwards `fired` says whether there was one."""
        fired = Path(f"{self.control}.fired")
        fired.unlink(missing_ok=True)
        beside = self.control.with_suffix(".new")
        beside.write_text(json.dumps({"call": call, "label": label, "errno": int(code), "skip": skip}))
        beside.rename(self.control)
        try:
            yield
        finally:
            self.control.unlink(missing_ok=True)
            self.fired = fired.exists()


def main() -> None:
    durability.system = FaultySystem(durability.system, Path(os.environ["CHATFS_FAULT"]))  # type: ignore[assignment]
    sys.exit(chatfs())


if __name__ == "__main__":
    main()
