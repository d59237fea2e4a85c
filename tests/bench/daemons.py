"""What /proc tells of a daemon: how often it was woken, and how much memory it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tests.bench.measure import BenchError

_PAUSE: Final = 0.02
_STILL: Final = 4
"""Pauses without a switch, after which a process is asleep, and isn't merely waiting for a processor."""


def switches(pid: int) -> int:
    """How often a thread of the process has been put on a processor or taken off it, until now."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def asleep(pid: int) -> int:
    """The same, once the process has gone back to sleep: a switch is counted when it is over."""
    until = time.monotonic() + 2
    count, still = switches(pid), 0
    while still < _STILL and time.monotonic() < until:
        time.sleep(_PAUSE)
        last, count = count, switches(pid)
        still = still + 1 if last == count else 0
    return count


def resident(pid: int) -> float:
    """VmRSS, in bytes (proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has no VmRSS")
