"""The command's standard files, and what it writes on its way to this process's own and into the log.

What a sandbox is given as a descriptor it can open anew, by /proc/self/fd, and with other rights: what it should read
it could overwrite, and of what it should append to it could read all. So bubblewrap gets only pipes, sockets, terminals
and /dev/null as they are; what goes to and from any other file goes through a pipe. Podman always has its own.

Concurrency: a task for each file that is copied, in the caller's nurseries.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from fusefs.sandbox import terminal
from fusefs.sandbox.record import Recorder

_PIECE: Final = 65536
AFTER_SECONDS: Final = 1.0
"""How long what a command has left running may be silent until it isn't listened to any more."""


def can_be_given(fd: int) -> bool:
    """Whether there is nothing in it that its holder doesn't get anyway."""
    found = os.fstat(fd)
    if stat.S_ISCHR(found.st_mode):
        return os.isatty(fd) or found.st_rdev == os.stat(os.devnull).st_rdev
    return stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)


def standard_files(*, isolated: bool, recorded: bool) -> tuple[int | None, int | None, int | None]:
    """What the command gets as stdin, stdout and stderr, as subprocess.Popen takes them."""
    piped = [(recorded and fd > 0) or (isolated and not can_be_given(fd)) for fd in range(3)]
    stdin, stdout, stderr = (subprocess.PIPE if pipe else None for pipe in piped)
    if stdout and stderr and not recorded and os.path.sameopenfile(1, 2):
        stderr = subprocess.STDOUT  # so that the order stays
    return stdin, stdout, stderr


async def feed(stream: trio.abc.SendStream) -> None:
    """Copy this process's stdin to the command."""
    async with stream:
        try:
            while piece := await trio.to_thread.run_sync(os.read, 0, _PIECE, abandon_on_cancel=True):
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            return  # the command has closed it


class Copies:
    """What the command writes."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._reading: set[trio.CancelScope] = set()
        self._ended = False

    async def copy(self, read: Callable[[], Awaitable[bytes | bytearray]], name: str, fd: int) -> None:
        """What `read` gives, up to its end, to the file `fd` and, as `name`, to the log."""
        while piece := await self._next(read):
            if self._recorder is not None:
                await self._recorder.output(name, piece)
            try:
                await terminal.write_all(fd, piece)
            except BrokenPipeError:
                fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # nobody reads it any more; the log does

    def ended(self) -> None:
        """The command has: what it left running, with its files open, isn't waited for beyond a silence."""
        self._ended = True
        for scope in self._reading:
            scope.deadline = trio.current_time() + AFTER_SECONDS

    async def _next(self, read: Callable[[], Awaitable[bytes | bytearray]]) -> bytes:
        with trio.CancelScope() as scope:
            if self._ended:
                scope.deadline = trio.current_time() + AFTER_SECONDS
            self._reading.add(scope)
            try:
                return bytes(await read())
            finally:
                self._reading.discard(scope)
        return b""
