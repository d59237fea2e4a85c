"""A terminal of its own for what runs in a sandbox: what it does to it, it does to nobody else's.

The caller's terminal is raw meanwhile and only carries bytes; size changes are passed on.

Concurrency: two tasks of the caller's nursery copy, what is written by a thread; all else doesn't wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios
import tty
from collections.abc import Iterator

import trio

_PIECE = 65536


def is_there() -> bool:
    """Whether somebody sits at a terminal: in and out."""
    return os.isatty(0) and os.isatty(1)


class Terminal:
    """A pseudo-terminal; `theirs` is for the command, `ours` carries what it writes and reads."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        os.set_blocking(self.ours, False)
        self.resize()

    def resize(self) -> None:
        """Give it the size of the caller's."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.ours, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    def enter(self) -> None:
        """In the new process, before the command: this is its terminal."""
        os.login_tty(self.theirs)

    def started(self) -> None:
        """The command has it: nothing here keeps it open any more."""
        os.close(self.theirs)

    def close(self) -> None:
        """The caller is done with it."""
        os.close(self.ours)

    async def read(self) -> bytes:
        """What the command has written; nothing at its end."""
        while True:
            try:
                await trio.lowlevel.wait_readable(self.ours)
                return os.read(self.ours, _PIECE)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.EIO:  # nobody has the other side open any more
                    return b""
                raise

    async def type(self) -> None:
        """Copy what is typed, for ever."""
        while True:
            await trio.lowlevel.wait_readable(0)
            piece = os.read(0, _PIECE)
            if not piece:
                return
            while piece:
                try:
                    piece = piece[os.write(self.ours, piece) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.ours)


async def write_all(fd: int, data: bytes) -> None:
    """Write to what may be a pipe that nobody reads now, or a terminal that is halted: nothing else waits for that."""
    left = memoryview(data)
    while left:
        left = left[await trio.to_thread.run_sync(os.write, fd, left, abandon_on_cancel=True) :]


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """The caller's terminal passes every key on as it is."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
