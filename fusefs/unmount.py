"""Unmounting, and what the kernel says is mounted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.errors import StoreError

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


BUSY_SECONDS: Final = (0.005, 0.02, 0.05, 0.1)
"""When a busy mount is tried again: an announcement to watchers keeps it busy for a moment."""


class UnmountError(StoreError):
    """The kernel or fusermount3 refused. `busy`: because something is open there."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Mounted:
    """A chatfs mount that the kernel knows."""

    mountpoint: Path
    options: str
    device: str
    """The kernel's number for it, as in `0:39`."""


def mounts() -> list[Mounted]:
    """All chatfs mounts that this process can see (proc_pid_mountinfo(5))."""
    found = []
    with Path("/proc/self/mountinfo").open("rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            kind, *_ = after.split(b" ")
            if kind == b"fuse.chatfs":
                fields = before.split(b" ")
                path = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
                found.append(Mounted(Path(os.fsdecode(path)), fields[5].decode(), fields[2].decode()))
    return found


def unmount(mountpoint: Path) -> None:
    """Unmount. Raises UnmountError, with what to do."""
    for pause in BUSY_SECONDS:
        try:
            _fusermount("-u", mountpoint)
        except UnmountError as error:
            if not error.busy:
                raise
            time.sleep(pause)
        else:
            return
    _fusermount("-u", mountpoint)


def lazy_unmount(mountpoint: Path) -> None:
    """Detach it now, even where it is busy or dead."""
    _fusermount("-uz", mountpoint)


def _fusermount(flags: str, mountpoint: Path) -> None:
    tool = shutil.which("fusermount3")
    if tool is None:
        raise UnmountError("fusermount3 isn't installed: install the fuse3 package")
    done = subprocess.run([tool, flags, "--", str(mountpoint)], capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().removeprefix("fusermount3: ")
        busy = reason.lower().endswith("busy")
        if busy:
            reason += ": close what is open there (see fuser -vm), then try again"
        raise UnmountError(reason or f"fusermount3 failed with status {done.returncode}", busy=busy)
