"""What this user's mounts leave in the state directory: a log file each, and while it runs a record of its process.

`$XDG_STATE_HOME/chatfs/` (`~/.local/state/chatfs/`) has `mount-<name>.log` and `mount-<name>.json`, which is
`{"pid", "started", "mountpoint", "store"}`; `started` is the process's start in clock ticks since boot
(proc_pid_stat(5)), so that a later process of the same number isn't taken for it. A record is a hint: the kernel says
what is mounted.

Concurrency: one mount writes its own two files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

LOG_MAX: Final = 1024 * 1024
"""A log file that has grown beyond it is emptied by the next mount."""


@dataclass(frozen=True, slots=True)
class MountRecord:
    """The process that serves a mount."""

    pid: int
    started: int
    mountpoint: str
    store: str

    def wait(self, seconds: float) -> bool:
        """Wait for the process's end; False where it hasn't come in time."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if _started(self.pid) != self.started:
                return True
            poll = select.poll()
            poll.register(process, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        finally:
            os.close(process)


def state_directory() -> Path:
    """Where the files are (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "chatfs"


def log_path(mountpoint: Path) -> Path:
    """The log file of the mount there."""
    return state_directory() / f"mount-{_name(mountpoint)}.log"


def _record_path(mountpoint: Path) -> Path:
    return state_directory() / f"mount-{_name(mountpoint)}.json"


def _name(mountpoint: Path) -> str:
    words = re.sub(r"[^A-Za-z0-9._]+", "-", str(mountpoint)).strip("-")[-80:]
    return f"{words}-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]}"


def open_log(mountpoint: Path) -> int:
    """A descriptor that appends to the log file. Raises OSError."""
    path = log_path(mountpoint)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(log).st_size > LOG_MAX:
        os.ftruncate(log, 0)
    return log


@contextlib.contextmanager
def recorded(mountpoint: Path, store: str) -> Iterator[None]:
    """Say meanwhile that this process serves the mount there; without effect where that can't be written down."""
    path = _record_path(mountpoint)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    shown = os.fsencode(mountpoint).decode(errors="backslashreplace")
    record = MountRecord(os.getpid(), _started(os.getpid()) or 0, shown, store)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.write_bytes(orjson.dumps(asdict(record)) + b"\n")
        beside.rename(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if find(mountpoint) == record:
                path.unlink()


def find(mountpoint: Path) -> MountRecord | None:
    """The record of the mount there, if its process still runs."""
    try:
        found = orjson.loads(_record_path(mountpoint).read_bytes())
        record = MountRecord(int(found["pid"]), int(found["started"]), str(found["mountpoint"]), str(found["store"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if _started(record.pid) == record.started else None


def _started(pid: int) -> int | None:
    """When the process began; None where it has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The program's name, in parentheses, may hold anything; the state is the third field, the start is the 22nd.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
