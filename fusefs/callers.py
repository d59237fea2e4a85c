"""Who made a request: the actor that is recorded, and the process behind the kernel's thread id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

DESCRIPTORS: Final = 256
"""Of how many open files of a process `still_open` will look at each."""
_ODD: Final = re.compile(r"[^\w.+:@ -]")


@dataclass(frozen=True, slots=True)
class Caller:
    """`process` is the process id (not the thread's), 0 where it can't be seen from here."""

    uid: int
    gid: int
    process: int
    program: str

    @property
    def actor(self) -> str:
        """`uid:1000/vim`; without the program where it can't be known."""
        return f"uid:{self.uid}/{self.program}" if self.program else f"uid:{self.uid}"


def caller_of(ctx: RequestContext) -> Caller:
    """Looks into /proc: a few dozen microseconds."""
    process, program = _status(ctx.pid)
    return Caller(ctx.uid, ctx.gid, process, program)


def process_of(thread: int) -> int:
    """The process of a thread, both as the kernel numbers them in a request; 0 where it can't be seen from here."""
    return _status(thread)[0]


def _status(thread: int) -> tuple[int, str]:
    """A thread's process and its program's name."""
    process, program = thread, ""
    try:
        with Path(f"/proc/{thread}/status").open("rb") as status:
            for line in status:
                if line.startswith(b"Name:"):
                    program = _ODD.sub("_", line[5:].decode(errors="replace").strip())[:64]
                elif line.startswith(b"Tgid:"):
                    process = int(line[5:])
                    break
    except OSError:
        # The process has ended, or lives in another pid namespace.
        process = 0
    return process, program


def still_open(process: int, ino: int) -> bool | None:
    """Whether `process` has the file open for writing: then a close was that of a duplicate, by a fork perhaps.

    None where that can't be seen.
    """
    try:
        descriptors = os.listdir(f"/proc/{process}/fdinfo")
    except OSError:
        return None
    if len(descriptors) > DESCRIPTORS:
        return None
    wanted = b"ino:\t%d" % ino
    for descriptor in descriptors:
        try:
            with Path(f"/proc/{process}/fdinfo/{descriptor}").open("rb", buffering=0) as file:
                lines = file.read(512).splitlines()
        except OSError:
            continue
        flags = next((int(line[6:], 8) for line in lines if line.startswith(b"flags:")), 0)
        if wanted in lines and flags & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False
