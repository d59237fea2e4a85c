"""poll(2) on history.jsonl: whether there are entries that a reader hasn't read.

FUSE doesn't say how far a descriptor has read, and reads that the kernel answers from its pages don't come here. So the
reader's position is looked up in /proc, as far as that can be seen; where it can't (another user's process, another pid
namespace) or says nothing (pread(2), several descriptors for the file), it is the end of the last read that came here.
"""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fusefs.callers import DESCRIPTORS, process_of

if TYPE_CHECKING:
    from fusefs.nodes.log_file import LogHandle

READABLE: Final = select.POLLIN | select.POLLRDNORM
WRITABLE: Final = select.POLLOUT | select.POLLWRNORM
ALWAYS: Final = READABLE | WRITABLE
"""What every other file is."""


def position(thread: int, ino: int) -> int:
    """How far the process of that thread has read the file; 0 where that can't be seen.

    Of several descriptors the one that has read least.
    """
    process = process_of(thread)
    try:
        descriptors = os.listdir(f"/proc/{process}/fd") if process else []
    except OSError:
        return 0
    if len(descriptors) > DESCRIPTORS:
        return 0
    wanted = b"ino:\t%d" % ino
    found = []
    for descriptor in descriptors:
        try:
            # Only of those that may be it: to ask about an epoll instance that is polling this file waits for us.
            # Where the name has been dropped from the kernel's cache since, the link says that it was deleted.
            link = os.readlink(f"/proc/{process}/fd/{descriptor}")
            if not link.removesuffix(" (deleted)").endswith("/history.jsonl"):
                continue
            with Path(f"/proc/{process}/fdinfo/{descriptor}").open("rb", buffering=0) as file:
                lines = file.read(512).splitlines()
        except OSError:
            continue
        if wanted in lines:
            found += [int(line[4:]) for line in lines if line.startswith(b"pos:")]
    return min(found, default=0)


def events(handle: LogHandle, size: int, thread: int) -> int:
    """What poll(2) says of a handle on a log of `size` bytes.

    A log that became shorter is readable, too: the read finds its end, and the reader begins anew.
    """
    found = WRITABLE if handle.writable else 0
    if size != (position(thread, handle.file.ino) or handle.read_to):
        found |= READABLE
    return found
