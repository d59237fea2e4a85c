"""Who made a request: the actor that is recorded, and the process behind the kernel's thread id.

What /proc said of a thread is kept with its comm file open: reading that again is one system call, says which program
it runs by now, and fails once the thread has ended, even where another has its number by then.

Concurrency: on the event loop.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

DESCRIPTORS: Final = 256
"""Of how many open files of a process `still_open` will look at each."""
THREADS: Final = 64
"""How many threads' comm files are kept open."""
PROCESSES: Final = 16
"""Of how many processes /proc/PID/fd is kept open."""
_ODD: Final = re.compile(r"[^\w.+:@ -]")
_COMM_MAX: Final = 64
_STATUS_MAX: Final = 4096


class Caller:
    """Who made a request. Looked for in /proc when first asked for, or by `look`, while the request keeps it alive."""

    __slots__ = ("_found", "_thread", "gid", "uid")

    def __init__(self, uid: int, gid: int, thread: int) -> None:
        self.uid = uid
        self.gid = gid
        self._thread = thread
        self._found: tuple[int, str] | None = None

    def look(self) -> tuple[int, str]:
        """The process and its program, as of the first call."""
        if self._found is None:
            self._found = _look(self._thread)
        return self._found

    @property
    def process(self) -> int:
        """The process id (not the thread's), 0 where it can't be seen from here."""
        return self.look()[0]

    @property
    def program(self) -> str:
        """The program's name, empty where it can't be seen from here."""
        return self.look()[1]

    @property
    def actor(self) -> str:
        """`uid:1000/vim`; without the program where it can't be known."""
        program = self.look()[1]
        return f"uid:{self.uid}/{program}" if program else f"uid:{self.uid}"


def caller_of(ctx: RequestContext) -> Caller:
    """Who made the request."""
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def process_of(thread: int) -> int:
    """The process of a thread, both as the kernel numbers them in a request; 0 where it can't be seen from here."""
    return _look(thread)[0]


class _Thread:
    """A thread that made a request, with its comm file."""

    __slots__ = ("comm", "descriptor", "process", "program")

    def __init__(self, descriptor: int, process: int) -> None:
        self.descriptor = descriptor
        self.process = process
        self.comm = b""
        self.program = ""

    def look(self) -> tuple[int, str]:
        """Its process, and the program that it runs now. Raises ProcessLookupError once it has ended."""
        comm = os.pread(self.descriptor, _COMM_MAX, 0)
        if comm != self.comm:
            self.comm = comm
            self.program = _ODD.sub("_", comm.decode(errors="replace").strip())[:_COMM_MAX]
        return self.process, self.program


_threads: OrderedDict[int, _Thread] = OrderedDict()


def _look(thread: int) -> tuple[int, str]:
    known = _threads.get(thread)
    if known is not None:
        try:
            found = known.look()
        except OSError:
            os.close(_threads.pop(thread).descriptor)
        else:
            _threads.move_to_end(thread)
            return found
    return _meet(thread)


def _meet(thread: int) -> tuple[int, str]:
    """A thread that isn't known yet; (0, "") where it has ended, or lives in another pid namespace."""
    try:
        descriptor = os.open(f"/proc/{thread}/comm", os.O_RDONLY)
    except OSError:
        return 0, ""
    try:
        process = _process_of(thread)
        met = _Thread(descriptor, process)
        # That it is still there now says that the number meant this one all the time.
        found = met.look()
    except OSError:
        os.close(descriptor)
        return 0, ""
    _threads[thread] = met
    if len(_threads) > THREADS:
        os.close(_threads.popitem(last=False)[1].descriptor)
    return found


def _process_of(thread: int) -> int:
    descriptor = os.open(f"/proc/{thread}/status", os.O_RDONLY)
    try:
        status = os.read(descriptor, _STATUS_MAX)
    finally:
        os.close(descriptor)
    return next((int(line[5:]) for line in status.splitlines() if line.startswith(b"Tgid:")), thread)


_ELSEWHERE: Final = ("pipe:[", "socket:[", "anon_inode:", "/dev/null", "/dev/pts/", "/dev/tty")
"""How the links in /proc/PID/fd begin that lead to no file of a mount."""


class _Descriptors:
    """The open files of a process. Its /proc/PID/fd stays open: from there the way to each is short, and once the
    process has ended there is none, even where another has its number by then.
    """

    __slots__ = ("_directory", "_names", "_process")

    def __init__(self, process: int) -> None:
        """Raises OSError."""
        self._directory = os.open(f"/proc/{process}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._process = process
        self._names: list[str] = []

    def close(self) -> None:
        os.close(self._directory)

    def has(self, ino: int) -> bool | None:
        """See `still_open`. Raises OSError where the process has ended, or mustn't be looked at."""
        # How many there are, since Linux 6.2: as long as all that were there still are, these are all.
        known = os.fstat(self._directory).st_size == len(self._names) > 0
        while True:
            if not known:
                self._names = os.listdir(self._directory)
            if len(self._names) > DESCRIPTORS:
                return None
            for name in self._names:
                try:
                    # One call instead of three: most of a program's files are none of ours.
                    elsewhere = os.readlink(name, dir_fd=self._directory).startswith(_ELSEWHERE)
                    if not elsewhere and self._is_written(name, ino):
                        return True
                except FileNotFoundError:
                    if known:
                        break
            else:
                return False
            known = False

    def _is_written(self, name: str, ino: int) -> bool:
        """Whether one of them is the file, open for writing."""
        file = os.open(f"/proc/{self._process}/fdinfo/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            told = os.read(file, 512)
        finally:
            os.close(file)
        if b"\nino:\t%d\n" % ino not in told:
            return False
        flags = told.partition(b"flags:")[2].partition(b"\n")[0]
        return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


_processes: OrderedDict[int, _Descriptors] = OrderedDict()


def still_open(process: int, ino: int) -> bool | None:
    """Whether `process` has the file open for writing: then a close was that of a duplicate, by a fork perhaps.

    None where that can't be seen.
    """
    known = _processes.get(process)
    if known is not None:
        try:
            found = known.has(ino)
        except OSError:
            _processes.pop(process).close()
        else:
            _processes.move_to_end(process)
            return found
    try:
        met = _Descriptors(process)
    except OSError:
        return None
    _processes[process] = met
    if len(_processes) > PROCESSES:
        _processes.popitem(last=False)[1].close()
    try:
        return met.has(ino)
    except OSError:
        return None
