"""System calls of which one fails, at any place of a session. Syncs aren't made: no power is cut here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store import durability

KINDS = ("EIO", "ENOSPC", "EINTR", "short", "dead")
"""One call fails so; a write takes half and the next call finds the disk full; or, from then on, everything fails."""

Where = str | bytes | Path


class FailingAt(durability.System):
    """The `at`-th call fails; with `at` 0 none does. `calls` are the labels and calls that were made."""

    def __init__(self, at: int = 0, kind: str = "EIO") -> None:
        self.at = at
        self.kind = kind
        self.calls: list[str] = []
        self.failed = ""

    def _meet(self, call: str, label: str) -> None:
        self.calls.append(f"{call} {label}")
        number = len(self.calls)
        if not self.at or number < self.at or (number > self.at and self.kind != "dead"):
            return
        self.failed = self.failed or self.calls[-1]
        code = errno.EIO if self.kind == "dead" else errno.ENOSPC if self.kind == "short" else getattr(errno, self.kind)
        raise OSError(code, "injected")

    def _half(self, size: int) -> int:
        """How many bytes of a write are taken."""
        if self.kind == "short" and size > 1 and len(self.calls) + 1 == self.at:
            self.calls.append("half of a write")
            self.at += 1
            return size // 2
        return size

    def open(self, label: str, path: str | Path, flags: int) -> int:
        self._meet("open", label)
        return super().open(label, path, flags)

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        half = self._half(len(data))
        if half < len(data):
            return super().write(label, fd, data[:half])
        self._meet("write", label)
        return super().write(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        half = self._half(len(data))
        if half < len(data):
            return super().pwrite(label, fd, data[:half], offset)
        self._meet("pwrite", label)
        return super().pwrite(label, fd, data, offset)

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        self._meet("ftruncate", label)
        super().ftruncate(label, fd, size)

    def fsync(self, label: str, fd: int) -> None:
        self._meet("fsync", label)
        os.fstat(fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._meet("fdatasync", label)
        os.fstat(fd)

    def syncfs(self, label: str, fd: int) -> None:
        self._meet("syncfs", label)
        os.fstat(fd)

    def rename(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet("rename", label)
        super().rename(label, source, target)

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        self._meet("link", label)
        super().link(label, source, target)

    def unlink(self, label: str, path: Where) -> None:
        self._meet("unlink", label)
        super().unlink(label, path)

    def unlink_in(self, label: str, directory: int, path: str) -> None:
        self._meet("unlink", label)
        super().unlink_in(label, directory, path)

    def rmdir_in(self, label: str, directory: int, path: str) -> None:
        self._meet("rmdir", label)
        super().rmdir_in(label, directory, path)

    def mkdir(self, label: str, path: str | Path) -> None:
        self._meet("mkdir", label)
        super().mkdir(label, path)

    def rmdir(self, label: str, path: str | Path) -> None:
        self._meet("rmdir", label)
        super().rmdir(label, path)

    def utime(self, label: str, path: str | Path) -> None:
        self._meet("utime", label)
        super().utime(label, path)


@contextmanager
def standing_in(system: durability.System) -> Iterator[None]:
    """`system` makes the system calls."""
    usual, durability.system = durability.system, system
    try:
        yield
    finally:
        durability.system = usual
