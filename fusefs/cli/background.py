"""A mount as a process of its own: started, waited for until it is usable, its error told.

The child is `chatfs mount --foreground --ready-fd N`; it writes `ready` into that pipe, or its error in one line. Its
own output goes to the mount's log file.

Concurrency: blocks, for at most `START_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from fusefs.cli import mount_records
from fusefs.cli.errors import CommandFailed

START_SECONDS: Final = 60
END_SECONDS: Final = 10
READY: Final = b"ready\n"
_PACKAGES: Final = str(Path(__file__).parents[2])
_SAID_BY_FUSE: Final = b"fusermount3: "


def start(mountpoint: Path, words: list[str], alive: int | None = None) -> None:
    """Start `chatfs WORDS… --foreground` and return when its mount is usable. Raises CommandFailed.

    `alive`: a pipe's end to read from; when nobody can write into it any more, it unmounts.
    """
    words = words + ["--while-fd", str(alive)] * (alive is not None)
    path = os.pathsep.join(filter(None, [_PACKAGES, os.environ.get("PYTHONPATH")]))
    log = mount_records.open_log(mountpoint)
    ready, theirs = os.pipe()
    try:
        try:
            before = os.fstat(log).st_size
            process = subprocess.Popen(
                # -P: nothing that happens to lie in the caller's directory is to be run as a module.
                [sys.executable, "-P", "-m", "fusefs", *words, "--foreground", "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(theirs,) if alive is None else (theirs, alive),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
            os.close(log)
        said = _read(ready)
    finally:
        os.close(ready)
    if said == READY:
        process.returncode = 0  # it goes on by itself; nothing is left to be waited for
        return
    _end(process)
    said_in = mount_records.log_path(mountpoint)
    if said is None:
        raise CommandFailed(f"the mount wasn't ready after {START_SECONDS} s: see {said_in}")
    reason = said.decode(errors="replace").strip() or f"the mount's process ended with status {process.returncode}"
    raise CommandFailed(f"{reason}{_said_by_fuse(said_in, before)}: see {said_in}")


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


def _end(process: subprocess.Popen[bytes]) -> None:
    """It may be on its way out already; it must not stay."""
    process.terminate()
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


def tell(pipe: int | None, message: bytes) -> None:
    """In the child: say `message` to whoever started it, if they are still there."""
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, message)
        os.close(pipe)
