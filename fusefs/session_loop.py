"""The session loop's fast path: wait for requests beside trio instead of through it.

pyfuse3 waits for each request with trio's epoll: a lock, an epoll_ctl(2) and a round of the scheduler per request. Here
one worker, the reader, asks the FUSE descriptor itself with poll(2), and where no request is there and nobody else has
anything to do, sleeps in that call, with trio's own epoll descriptor beside. So a request costs one poll or two, and an
idle mount sleeps. Where requests follow each other closely, and there is more than one processor, the reader asks again
for a moment before it sleeps: a program on another processor, which waits for each answer, would otherwise wait for a
wake-up each time.

Fairness: where no request is there, the reader goes through the scheduler as soon as a task is runnable, trio's epoll
has an event or a deadline is due; under a flood of requests after `REQUESTS` or `SECONDS`, whichever comes first. What
becomes ready waits for the rest of one such turn, and perhaps for another whole one that runs before it in its round.

One other worker stays parked in pyfuse3's own wait, with the descriptor in trio's epoll: it takes over where the
reader's handler awaits something, hears of `terminate`, and keeps pyfuse3's count of idle workers.

What this leans on (private names of pyfuse3 and trio) is looked at before: where it isn't as expected, the plain loop
runs, and the log says so in one line.

Concurrency: on trio's loop; nothing here may be called from another thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import pyfuse3
import trio

log = logging.getLogger("chatfs")

PYFUSE3_VERSIONS: Final = frozenset({"3.5.0"})
"""Those whose loop was read: `_session_loop` awaits `_wait_fuse_readable` and reads one request where that is true."""
REQUESTS: Final = 64
SECONDS: Final = 0.002
"""How many requests, and for how long, may be taken in a row while something else may be waiting."""
SPIN_SECONDS: Final = 0.0001
"""How long the reader goes on asking before it sleeps, as long as that was enough the last time. To be woken up by a
program on another processor takes 30 to 80 µs."""
_LONGEST_MS: Final = 86_400_000
_SOON_SECONDS: Final = 0.001

Wait = Callable[[], Awaitable[bool]]


class Unfit(Exception):
    """What is installed isn't what the fast path was written for."""


class _Deadlines(Protocol):
    def next_deadline(self) -> float: ...


class _Clock(Protocol):
    def current_time(self) -> float: ...


class _Scheduler:
    """What the reader has to know of trio's scheduler."""

    __slots__ = ("clock", "deadlines", "epoll", "runnable")

    def __init__(self) -> None:
        """Raises Unfit."""
        try:
            from trio._core._run import GLOBAL_RUN_CONTEXT  # noqa: PLC0415 - looked for, not relied on

            runner = GLOBAL_RUN_CONTEXT.runner
            self.runnable: deque[trio.lowlevel.Task] = runner.runq
            """Tasks for the next round."""
            self.deadlines: _Deadlines = runner.deadlines
            self.clock: _Clock = runner.clock
            self.epoll: int = runner.io_manager._epoll.fileno()  # type: ignore[union-attr, unused-ignore] # noqa: SLF001
            self.seconds()
        except (ImportError, AttributeError, TypeError) as error:
            raise Unfit(f"trio {trio.__version__} ({error})") from error

    def seconds(self) -> float:
        """Until the next deadline; infinite without one, not positive where it has passed."""
        return self.deadlines.next_deadline() - self.clock.current_time()


class FastLoop(trio.abc.Instrument):
    """Waits for requests. Its own instrument: told of each round of the scheduler."""

    def __init__(self, device: int, plain: Wait) -> None:
        """Raises Unfit. `device` is the session's descriptor, `plain` pyfuse3's own wait."""
        self._device = device
        self._plain = plain
        self._scheduler = _Scheduler()
        poll = select.poll()
        poll.register(device, select.POLLIN)
        self._request = poll.poll
        both = select.poll()
        both.register(device, select.POLLIN)
        both.register(self._scheduler.epoll, select.POLLIN)
        self._anything = both.poll
        self._alone = False
        """Whether this round of the scheduler runs a single task."""
        self._parked = 0
        self._reading = False
        self._ended = False
        self._left = 0
        self._until = 0.0
        self._can_spin = len(os.sched_getaffinity(0)) > 1
        self._spins = False
        """Whether requests come so close to each other that waking up for each would take longer."""
        self._busy = True
        """Whether the next request is likely to be there already: then asking for that alone is cheaper."""

    def after_io_wait(self, timeout: float) -> None:
        """A round begins: all that is ready now will run in it."""
        scheduler = self._scheduler
        # A deadline that passes before trio looks at the clock would make another task run.
        self._alone = len(scheduler.runnable) == 1 and scheduler.seconds() > _SOON_SECONDS
        self._begin()

    def _begin(self) -> None:
        """Nothing has been waiting until now."""
        self._left = REQUESTS
        self._until = time.monotonic() + SECONDS
        self._busy = True

    async def wait(self) -> bool:
        """Return True once a request is there to be read, at once and without waiting; False at the session's end."""
        return self._at_hand() or await self._wait()

    def _at_hand(self) -> bool:
        """Whether there is a request that may be taken in this turn; sleeps until then, if nobody minds."""
        if self._left > 0 and time.monotonic() < self._until:
            if self._busy:
                if self._request(0):
                    self._left -= 1
                    return True
                self._busy = False
            if self._reading or not self._nothing_else():
                return False
        elif self._reading or not self._nothing_else() or self._anything(0):
            return False
        else:
            self._begin()
        return self._sleep()

    async def _wait(self) -> bool:
        while not self._ended:
            if self._reading or not self._parked:
                if await self._park():
                    return True
            elif await self._read():
                return True
        return False

    async def _park(self) -> bool:
        """Wait as pyfuse3 does; whether a request is there: the reader may have been faster."""
        self._parked += 1
        try:
            if not await self._plain():
                self._ended = True
                return False
        finally:
            self._parked -= 1
        return bool(self._request(0))

    async def _read(self) -> bool:
        """Be the reader until there is a request (True), or until nobody is parked any more."""
        self._reading = True
        try:
            while self._parked and not self._ended:
                # A new round: the others first.
                await trio.lowlevel.checkpoint()
                if self._nothing_else():
                    if self._sleep():
                        return True
                elif self._request(0):
                    self._left -= 1
                    return True
        finally:
            self._reading = False
        return False

    def _nothing_else(self) -> bool:
        """Whether only a request, an event in trio's epoll or a deadline can make anything happen."""
        return self._alone and not self._scheduler.runnable and self._parked > 0

    def _sleep(self) -> bool:
        """Sleep until something is there or due; whether it is a request.

        With a request, trio's epoll always has an event too, the parked worker's: whether it has others, only a look at
        it without a request tells, in the next sleep or when the turn is over.
        """
        seconds = self._scheduler.seconds()
        if seconds <= 0:
            return False
        begun = time.monotonic()
        if self._spins and self._spin(begun + min(SPIN_SECONDS, seconds)):
            return True
        for descriptor, _ in self._anything(_LONGEST_MS if seconds == math.inf else min(seconds * 1000, _LONGEST_MS)):
            if descriptor == self._device:
                self._left -= 1
                self._spins = self._can_spin and time.monotonic() - begun < SPIN_SECONDS
                return True
        return False

    def _spin(self, until: float) -> bool:
        """Ask again and again; whether a request came. If none did, the next sleep begins at once."""
        request = self._request
        while time.monotonic() < until:
            if request(0):
                self._left -= 1
                return True
        self._spins = False
        return False


@contextlib.contextmanager
def fast_session_loop(*, wanted: bool) -> Iterator[bool]:
    """Within it, `pyfuse3.main` takes the fast path, if that is wanted and possible; says whether."""
    loop = None
    if wanted:
        try:
            loop = _fitting()
        except Unfit as unfit:
            log.warning("requests take pyfuse3's plain session loop, which is slower: %s isn't known to fit", unfit)
    if loop is None:
        yield False
        return
    plain = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined] # noqa: SLF001 - what is replaced
    trio.lowlevel.add_instrument(loop)
    pyfuse3._wait_fuse_readable = loop.wait  # type: ignore[attr-defined] # noqa: SLF001
    try:
        yield True
    finally:
        pyfuse3._wait_fuse_readable = plain  # type: ignore[attr-defined] # noqa: SLF001
        trio.lowlevel.remove_instrument(loop)


def _fitting() -> FastLoop:
    if pyfuse3.__version__ not in PYFUSE3_VERSIONS:
        raise Unfit(f"pyfuse3 {pyfuse3.__version__}")
    plain = getattr(pyfuse3, "_wait_fuse_readable", None)
    if plain is None:
        raise Unfit(f"pyfuse3 {pyfuse3.__version__} without _wait_fuse_readable")
    device = fuse_device()
    if device < 0:
        raise Unfit("a process with more than one FUSE session")
    return FastLoop(device, plain)


def fuse_device() -> int:
    """The descriptor of the session, which pyfuse3 keeps to itself; -1 where it isn't found, or isn't the only one."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
        except OSError:
            continue
    return found[0] if len(found) == 1 else -1
