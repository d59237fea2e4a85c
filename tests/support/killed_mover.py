"""`chatfs …`, killed by SIGKILL at the Nth system call that changes a file: `python -m tests.support.killed_mover N …`.

Of a write that is the Nth, half is done. With N 0, nothing is killed, and the number of calls goes to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from fusefs.cli.entry import main
from store import durability

CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "syncfs", "rename", "link", "unlink", "mkdir")


class Killing(durability.System):
    """Counts, and ends."""

    def __init__(self, last: int) -> None:
        self.count = 0
        for name in CALLS:
            setattr(self, name, self._counted(name, getattr(super(), name), last))

    def _counted(self, name: str, call: Callable[..., Any], last: int) -> Callable[..., Any]:
        def counted(label: str, *args: Any) -> Any:
            self.count += 1
            if self.count == last:
                if name == "write":
                    fd, data = args
                    os.write(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(label, *args)

        return counted


if __name__ == "__main__":
    killing = Killing(int(sys.argv[1]))
    durability.system = killing
    code = main(sys.argv[2:])
    if sys.argv[1] == "0":
        sys.stderr.write(f"{killing.count}\n")
    sys.exit(code)
