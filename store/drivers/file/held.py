"""A lock of a file, held for a block: entered for every blob, so it isn't a generator.

Concurrency: for any thread; each block has a descriptor of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable


class Held(contextlib.AbstractContextManager[None]):
    """flock(2) of what `open_lock` opens. Raises BlockingIOError where `how` says not to wait."""

    __slots__ = ("_fd", "_how", "_open_lock")

    def __init__(self, open_lock: Callable[[], int], how: int) -> None:
        self._open_lock = open_lock
        self._how = how
        self._fd = -1

    def __enter__(self) -> None:
        fd = self._open_lock()
        try:
            fcntl.flock(fd, self._how)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
