"""What every part of a check needs: where the store is, where findings go, whether to repair, and how.

Concurrency: shared by the check's threads; `Findings` guards itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict, Unpack

from store import durability
from store.drivers.file import aside, takeover
from store.errors import StoreError
from store.fsck.findings import Finding, Findings, Severity
from store.model import Millis, clock_ms

CRASH_SECONDS: Final = 3600
"""Temporary files that are older were left by a crash."""
_PATIENCE: Final = 30.0
_REPAIR: Final = "chatfs fsck --repair"
RESTORE: Final = "restore it from a backup"

Fix = Callable[[], str]
"""Repairs something, and says in a few words what it did."""


class _More(TypedDict, total=False):
    """What to do about it; what repairs it; whether it is an error even then."""

    advice: str
    fix: Fix | None
    stays: bool


@dataclass(slots=True)
class Context:
    """One check. `read` is told of bytes as they are read; `full` compares with folds of the logs, too."""

    root: Path
    findings: Findings
    repair: bool
    read: Callable[[int], None]
    full: bool = False

    def now(self) -> Millis:
        """The time, for what is written."""
        return clock_ms()

    def relative(self, path: Path) -> str:
        """A path as findings have it."""
        return str(path.relative_to(self.root)) if path != self.root else ""

    def say(self, severity: Severity, kind: str, what: str, path: Path, where: str = "", **more: Unpack[_More]) -> None:
        """Report something, and repair it where that is asked for and can be done."""
        advice, fix, done = more.get("advice", ""), more.get("fix"), ""
        if fix is not None and self.repair:
            try:
                done = fix()
            except (OSError, StoreError) as error:
                advice = f"it couldn't be repaired: {error}"
        elif fix is not None:
            advice = advice or f"{_REPAIR} does what can be done"
        stays = more.get("stays", False)
        self.findings.add(Finding(severity, kind, what, where, self.relative(path), advice, done, stays))

    def error(self, kind: str, what: str, path: Path, where: str = "", **more: Unpack[_More]) -> None:
        """Data is lost or damaged."""
        self.say(Severity.ERROR, kind, what, path, where, **more)

    def warning(self, kind: str, what: str, path: Path, where: str = "", **more: Unpack[_More]) -> None:
        """Something that can be rebuilt is wrong, or something is odd."""
        self.say(Severity.WARNING, kind, what, path, where, **more)

    def info(self, kind: str, what: str, path: Path, where: str = "", **more: Unpack[_More]) -> None:
        """Worth knowing."""
        self.say(Severity.INFO, kind, what, path, where, **more)

    # ---- files

    def open(self, path: Path) -> int:
        """A descriptor of an ordinary file; nothing is followed, and no FIFO is waited for. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        return fd

    def content(self, path: Path, limit: int = 1 << 30) -> bytes:
        """All bytes of a file. Raises OSError."""
        fd = self.open(path)
        with os.fdopen(fd, "rb") as file:
            data = file.read(limit)
        self.read(len(data))
        return data

    def check_mode(self, path: Path, found: os.stat_result, where: str = "") -> None:
        """Warn where others than the owner may read it, or the owner is somebody else."""
        wanted = durability.DIRECTORY_MODE if stat.S_ISDIR(found.st_mode) else durability.FILE_MODE
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077 or mode & wanted != wanted:
            self.warning(
                "mode",
                f"has mode {mode:04o} instead of {wanted:04o}",
                path,
                where,
                fix=lambda: _chmod(path, wanted),
            )
        if found.st_uid != os.geteuid() and os.geteuid() != 0:
            self.warning("owner", f"belongs to user {found.st_uid}", path, where, advice="give it back with chown")


def _chmod(path: Path, mode: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return f"set to {mode:04o}"


def is_old(found: os.stat_result) -> bool:
    """Whether nobody can be making it any more."""
    return time.time() - found.st_mtime > CRASH_SECONDS


def reason(error: OSError) -> str:
    """What an OSError says, without the path."""
    return error.strerror or str(error)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the flock of the log that is at `path` now; a descriptor for reading. Raises OSError."""
    until = time.monotonic() + _PATIENCE
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(errno.ETIMEDOUT, "another process keeps it locked") from None
                    time.sleep(0.005)
            if os.fstat(fd).st_nlink:
                yield fd
                return
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked_log(path: Path, *, repair: bool = True) -> Iterator[int]:
    """The same with the maintenance lock, so that nobody replaces the log; one that was taken over is completed."""
    with takeover.maintenance_now(path.parent, _PATIENCE), locked(path) as fd:
        if repair:
            takeover.finish_now(path.parent)
        yield fd


def keep_copies(context: Context, paths: Iterable[Path]) -> None:
    """Move files to quarantine, which may have what the log has lost. Names of one file give one copy."""
    seen: set[int] = set()
    for path in paths:
        try:
            fd = context.open(path)
        except OSError:
            continue
        with os.fdopen(fd, "rb") as file:
            inode = os.fstat(fd).st_ino
            if inode not in seen:
                seen.add(inode)
                note = {"why": "made from the log when it had more entries"}
                pieces = iter(functools.partial(file.read, 1 << 20), b"")
                aside.keep(context.root, context.relative(path), pieces, note, context.now(), suffix="copy")
        durability.system.unlink("quarantine", path)
