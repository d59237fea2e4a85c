"""Whether the process that wrote itself down somewhere still runs, as far as this machine can tell.

A process is told by its number, when it started (clock ticks since boot, proc_pid_stat(5)), and where: the machine's
boot id and the pid namespace, of which each numbers its own.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple


class Runner(NamedTuple):
    """A process, as others can find it."""

    pid: int
    started: int
    where: str


@functools.cache
def here() -> str:
    """The machine's present run and the pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def started(pid: int) -> int:
    """When a process started. Raises OSError where there is none, or one that has ended and isn't waited for."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] in {b"Z", b"X"}:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])


def this() -> Runner:
    """The caller's process."""
    return Runner(os.getpid(), started(os.getpid()), here())


def is_here(runner: Runner) -> bool:
    """Whether its number means something to this process."""
    return runner.where == here()


def runs(runner: Runner) -> bool | None:
    """Whether it runs; None: nobody here can tell."""
    if not is_here(runner):
        return None
    try:
        return started(runner.pid) == runner.started
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return None


def is_dead(runner: Runner) -> bool:
    """Whether it certainly runs no more."""
    return runs(runner) is False
