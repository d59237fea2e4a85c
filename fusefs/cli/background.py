"""A mount as a process of its own: started, waited for until it is usable, its error told.

The child is `chatfs mount --foreground --ready-fd N`. Until it could open the store (made or migrated, which may take
long), its stderr is that of whoever started it, for what is said of that. Then its output goes to the mount's log file,
and it writes `opened SIZE` into the pipe N, where SIZE is how long that file is; at last it writes `ready`. Instead of
either it may write its error.

Concurrency: blocks, once the store is open for at most `START_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path
from typing import Final

from fusefs.cli import mount_records
from fusefs.cli.errors import CommandFailed

START_SECONDS: Final = 60
END_SECONDS: Final = 10
READY: Final = b"ready\n"
_OPENED: Final = b"opened "
_PACKAGES: Final = str(Path(__file__).parents[2])
_SAID_BY_FUSE: Final = b"fusermount3: "


def start(mountpoint: Path, words: list[str], alive: int | None = None) -> None:
    """Start `chatfs WORDS… --foreground` and return when its mount is usable. Raises CommandFailed.

    `alive`: a pipe's end to read from; when nobody can write into it any more, it unmounts.
    """
    words = words + ["--while-fd", str(alive)] * (alive is not None)
    path = os.pathsep.join(filter(None, [_PACKAGES, os.environ.get("PYTHONPATH")]))
    ready, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            # -P: nothing that happens to lie in the caller's directory is to be run as a module.
            [sys.executable, "-P", "-m", "fusefs", *words, "--foreground", "--ready-fd", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=(theirs,) if alive is None else (theirs, alive),
            start_new_session=True,
        )
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(theirs)
    with open(ready, "rb", buffering=0) as pipe:
        try:
            _wait(process, pipe, mountpoint)
        except BaseException as error:
            # An interrupt is the child's, too, which only doesn't hear of it: it clears up what it shows.
            _end(process, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
    process.returncode = 0  # it goes on by itself; nothing is left to be waited for


def _wait(process: subprocess.Popen[bytes], pipe: FileIO, mountpoint: Path) -> None:
    """Wait until it is usable. Raises CommandFailed."""
    begun = pipe.readline()
    if not begun.startswith(_OPENED):
        raise CommandFailed(_reason(process, begun + pipe.read()))
    said = _read(pipe.fileno())
    if said == READY:
        return
    said_in = mount_records.log_path(mountpoint)
    if said is None:
        raise CommandFailed(f"the mount wasn't ready after {START_SECONDS} s: see {said_in}")
    before = int(begun.removeprefix(_OPENED))
    raise CommandFailed(f"{_reason(process, said)}{_said_by_fuse(said_in, before)}: see {said_in}")


def _reason(process: subprocess.Popen[bytes], said: bytes) -> str:
    """What the child said, or else how it ended."""
    _end(process, signal.SIGTERM)
    return said.decode(errors="replace").strip() or f"the mount's process ended with status {process.returncode}"


def _read(ready: int) -> bytes | None:
    """What the child says, up to its end of the pipe; None where it doesn't close that in time."""
    said = b""
    deadline = time.monotonic() + START_SECONDS
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    while said != READY and (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            piece = os.read(ready, 4096)
            if not piece:
                return said
            said += piece
    return said if said == READY else None


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """It may be on its way out already; it must not stay."""
    process.send_signal(how)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said_by_fuse(path: Path, before: int) -> str:
    """The reason that fusermount3 gave: it only says it on stderr."""
    with path.open("rb") as file:
        file.seek(before)
        lines = [line for line in file.read().splitlines() if line.startswith(_SAID_BY_FUSE)]
    return f" ({lines[-1].removeprefix(_SAID_BY_FUSE).decode(errors='replace')})" if lines else ""


# ---- in the child


def begin(pipe: int, mountpoint: Path) -> None:
    """The store is open: be a daemon. Raises OSError where nobody waits for the mount any more."""
    log = mount_records.open_log(mountpoint)
    os.chdir("/")  # it must not keep the caller's directory busy
    size = os.fstat(log).st_size
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)
    os.write(pipe, b"%b%d\n" % (_OPENED, size))


def be_quiet() -> None:
    """Say nothing more on stderr."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def tell(pipe: int | None, message: bytes) -> None:
    """Say `message` to whoever started it, if they are still there."""
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, message)
        os.close(pipe)
