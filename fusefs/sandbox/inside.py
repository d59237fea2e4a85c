"""The command among bubblewrap's processes: signals are for it. Bubblewrap would end at once, and all in it.

Bubblewrap says which process is the first of its namespace; the command is its first child (proc_pid_children(5)).

Concurrency: one task of the caller's asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import orjson
import trio

PATIENCE_SECONDS: Final = 5
"""How long a signal may wait for the command to be there."""
_POLL_SECONDS: Final = 0.01
_PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None)


class Inside:
    """The command of one bubblewrap. `theirs` is for its --info-fd."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        self._first = 0
        self._said = b""
        self._command = -1

    def started(self) -> None:
        """Bubblewrap has its end."""
        os.close(self.theirs)
        self.theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for fd in (self._ours, self.theirs, self._command):
            if fd >= 0:
                os.close(fd)

    async def signal(self, outer: trio.Process, number: int) -> None:
        """Send it to the command; where that isn't to be found, to bubblewrap."""
        if self._command < 0:
            with trio.move_on_after(PATIENCE_SECONDS):
                self._command = await self._find(outer)
        with contextlib.suppress(ProcessLookupError):
            if self._command < 0:
                outer.send_signal(number)
            else:
                signal.pidfd_send_signal(self._command, number)

    async def used(self) -> resource.struct_rusage | None:
        """What all of its processes have used, when bubblewrap has ended, which waits for none of them: see `adopting`.

        None where they don't end.
        """
        if not await self._told():
            return None
        try:
            with _descriptor(self._first) as first, trio.move_on_after(PATIENCE_SECONDS):
                await trio.lowlevel.wait_readable(first)
            found, _, used = os.wait4(self._first, os.WNOHANG)  # noqa: ASYNC222 - it doesn't wait
        except (ProcessLookupError, ChildProcessError):
            return None
        return used if found else None

    async def _told(self) -> bool:
        """Whether bubblewrap has come as far as to say which process is its first."""
        while not self._first:
            await trio.lowlevel.wait_readable(self._ours)
            piece = os.read(self._ours, 4096)
            if not piece:
                return False
            self._said += piece
            with contextlib.suppress(orjson.JSONDecodeError):
                self._first = int(orjson.loads(self._said)["child-pid"])
        return True

    async def _find(self, outer: trio.Process) -> int:
        """A descriptor of the process; -1 where this system doesn't tell."""
        if not await self._told():
            return -1
        while outer.returncode is None:
            try:
                for child in _children(self._first):
                    with _descriptor(child) as command:
                        # The numbers are those processes' for as long as their parents haven't waited for them.
                        if _parent(child) == self._first and _parent(self._first) == outer.pid:
                            return os.dup(command)
            except FileNotFoundError:
                return -1
            except ProcessLookupError:
                pass
            await trio.sleep(_POLL_SECONDS)
        return -1


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Processes below, whose parents end before them, are this one's own meanwhile: it can wait for them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


@contextlib.contextmanager
def _descriptor(pid: int) -> Iterator[int]:
    found = os.pidfd_open(pid)
    try:
        yield found
    finally:
        os.close(found)
