"""The process that makes an announcer's system calls on the mount.

A process, not a thread of the daemon: a thread that waits for an answer of its own daemon can't die, so a daemon that
is killed meanwhile would never let go of the mount, and everybody in it would wait for ever. This process is executed
afresh and has nothing of the daemon's open; when the daemon is gone, the kernel ends the mount, and with it the call.

Requests are known to be this process's by its id. It can't be another's: until the process was waited for, which comes
after `pid` was forgotten, the kernel doesn't give its number away.

Concurrency: one call at a time, by one task.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import trio

from fusefs import announce_calls

_PROGRAM: Final = Path(announce_calls.__file__)
_REAP_SECONDS: Final = 5.0
NOBODY: Final = -1
"""No process's id. 0 would be that of everybody in another pid namespace, as the kernel gives it in a request."""


class CallingProcess:
    """The process, started when it is first needed, and again after it died."""

    __slots__ = ("_answers", "_commands", "_process", "pid")

    def __init__(self) -> None:
        self.pid = NOBODY
        """Whose requests are the announcer's."""
        self._process: subprocess.Popen[bytes] | None = None
        self._commands: trio.lowlevel.FdStream | None = None
        self._answers: trio.lowlevel.FdStream | None = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={},
            close_fds=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The streams own their descriptors.
        self._commands = trio.lowlevel.FdStream(_detached(self._process.stdin))
        self._answers = trio.lowlevel.FdStream(_detached(self._process.stdout))
        self.pid = self._process.pid

    async def call(self, fields: Sequence[bytes]) -> int:
        """The errno of a call, 0 where it succeeded. Raises BrokenPipeError where the process died, or can't start."""
        if self._process is None:
            try:
                self._start()
            except OSError as error:
                await self.end()
                self.reap()
                raise BrokenPipeError(f"it can't be started: {error}") from error
        assert self._commands is not None
        assert self._answers is not None
        command = b"\0".join(fields)
        answer = b""
        try:
            await self._commands.send_all(announce_calls.LENGTH.pack(len(command)) + command)
            while len(answer) < announce_calls.ANSWER.size:
                piece = await self._answers.receive_some(announce_calls.ANSWER.size - len(answer))
                if not piece:
                    raise BrokenPipeError("it has ended")
                answer += piece
        except (trio.BrokenResourceError, OSError):
            await self.end()
            await trio.to_thread.run_sync(self.reap)
            raise BrokenPipeError("it has ended") from None
        return int(announce_calls.ANSWER.unpack(answer)[0])

    async def end(self) -> None:
        """Have it end: now, or when the call is answered that it is in. Its requests are anybody's from now on."""
        self.pid = NOBODY
        if self._process is not None:
            self._process.kill()
        with trio.CancelScope(shield=True):
            for stream in (self._commands, self._answers):
                if stream is not None:
                    await stream.aclose()
        self._commands = self._answers = None

    def reap(self) -> None:
        """Wait until an ended process is gone. Blocks for as long as its last call does."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_SECONDS)


def _detached(pipe: IO[bytes]) -> int:
    """The descriptor of a pipe, for somebody else to close."""
    descriptor = os.dup(pipe.fileno())
    pipe.close()
    return descriptor
