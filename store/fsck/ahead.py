"""Long logs are read ahead by processes of their own: checking lines keeps an interpreter busy, and there are more.

Only what is found whole is taken from them; everything else is looked at again by the check itself.

A process is given a space's name on a line, and answers with the size of a pickle and the pickle.

Concurrency: for one thread; it has one for each process, which waits for answers. The processes only read, and end when
their standard input does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.drivers.file.objects import Objects
from store.drivers.file.text import LOG_NAME
from store.fsck import logs
from store.fsck.context import Context
from store.fsck.derived import wanted
from store.fsck.findings import Findings
from store.fsck.objects import References
from store.fsck.spaces import SpaceCheck, Told
from store.model import SpaceId

LONG: Final = 4 << 20
"""Bytes of a log that is worth handing over."""
ENOUGH: Final = 256 << 20
"""Bytes of long logs that are worth starting processes for."""
_WORKERS: Final = 4
_PREFETCH: Final = 2
"""How many logs wait for each process."""
_HEADER: Final = struct.Struct(">Q")
_PACKAGES: Final = str(Path(__file__).parents[2])
_SERVE: Final = "from store.fsck.ahead import serve; serve()"


@dataclass(frozen=True, slots=True)
class Scanned:
    """A log that is whole: what it says and tells, and the seqs at which something had been made before it was read."""

    checked: logs.Checked
    told: Told
    made_at: set[int]
    size: int


class Ahead:
    """Reads the logs that it is told of, in that order."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._workers = min(_WORKERS, len(os.sched_getaffinity(0)))
        self._threads: ThreadPoolExecutor | None = None
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._waiting: deque[SpaceId] = deque()
        self._running: dict[SpaceId, Future[Scanned | None]] = {}

    def begin(self, spaces: Iterable[SpaceId]) -> None:
        """These come next."""
        long = [(space, size) for space in spaces if (size := self._size(space)) >= LONG]
        if self._workers < 2 or sum(size for _, size in long) < ENOUGH:
            return
        self._waiting.extend(space for space, _ in long)
        self._submit()

    def take(self, space: SpaceId) -> Scanned | None:
        """What was found of a log; None where that has to be looked at."""
        future = self._running.pop(space, None)
        if future is None:
            return None
        self._submit()
        return future.result()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()

    def _submit(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, "fsck-ahead")
        while self._waiting and len(self._running) < self._workers * _PREFETCH:
            space = self._waiting.popleft()
            self._running[space] = self._threads.submit(self._ask, space)

    def _ask(self, space: SpaceId) -> Scanned | None:
        """In a thread, which has a process to itself. A process that has ended leaves the work to the check."""
        try:
            process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
            if process is None:
                process = self._own.process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(space.encode() + b"\n")
            process.stdin.flush()
            header = process.stdout.read(_HEADER.size)
            if len(header) != _HEADER.size:
                return None
            (size,) = _HEADER.unpack(header)
            answer = process.stdout.read(size)
            found: Scanned | None = pickle.loads(answer) if len(answer) == size else None  # noqa: S301 - our own
        except (OSError, ValueError):
            return None
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [_PACKAGES, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            # -P: nothing that happens to lie in the caller's directory is to be run as a module.
            [sys.executable, "-P", "-c", _SERVE, str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._processes.append(process)
        return process

    def _size(self, space: SpaceId) -> int:
        try:
            return (self._root / space / LOG_NAME).lstat().st_size
        except OSError:
            return 0


def serve() -> None:
    """One of the processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends this
    root = Path(sys.argv[1])
    for line in sys.stdin.buffer:
        answer = pickle.dumps(_scan(root, SpaceId(line.decode().rstrip("\n"))))
        sys.stdout.buffer.write(_HEADER.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()


def _scan(root: Path, space: SpaceId) -> Scanned | None:
    sizes: list[int] = []
    context = Context(root, Findings(), repair=False, read=sizes.append)
    with contextlib.closing(Objects(root)) as objects:
        made_at = wanted(root, space)
        try:
            found, told = SpaceCheck(context, References(context, objects)).look(space, made_at)
        except OSError:
            return None
    if found is None or not found.complete:
        return None
    return Scanned(found, told, made_at, sum(sizes))
