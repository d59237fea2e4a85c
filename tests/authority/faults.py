"""What is watched in a worker, made to fail at a certain point, or switched off to see that its absence is found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from store import authority, forwarding
from store.driver import AppendLog
from store.drivers.file.fence import EpochRecord
from store.drivers.file.log import FileLog
from store.errors import Unreachable
from store.model import Epoch, Head
from tests.authority.recorded import Recorder

FORWARDED_BEFORE: Final = 5
"""How many forwarded appends go well before a fault at the holder begins."""


@contextmanager
def watching(log: AppendLog, recorder: Recorder) -> Iterator[None]:
    """Note under which epoch entries are appended to this log: by all instances of its class in this process."""
    kind: Any = type(log)
    append, append_now = kind.append, kind.append_now

    def note(opened: Any, last: int, count: int, epoch: int | None) -> None:
        if opened.space == log.space and epoch is not None and count:
            recorder.note("under", first=last - count + 1, last=last, epoch=epoch)

    async def watched(self: Any, batch: Any, *, epoch: int | None = None, **more: Any) -> Any:
        last = await append(self, batch, epoch=epoch, **more)
        note(self, last, len(batch), epoch)
        return last

    def watched_now(self: Any, batch: Any, *, epoch: int | None = None, **more: Any) -> Any:
        entries = append_now(self, batch, epoch=epoch, **more)
        if entries:
            note(self, entries[-1].seq, len(entries), epoch)
        return entries

    kind.append, kind.append_now = watched, watched_now
    try:
        yield
    finally:
        kind.append, kind.append_now = append, append_now


# ---- points at which a holder fails


def _replace_serving(fails: Callable[[], None], *, said: bool = False) -> None:
    """Once for each forwarded append but the first: `fails()` when it is `said` what comes, or at its end."""
    serve = authority.Authority.serve
    seen: set[str] = set()

    async def failing(self: Any, append: Any, made: Any, say: Callable[[bytes], None]) -> Any:
        again = append.id in seen
        seen.add(append.id)
        if again or len(seen) <= FORWARDED_BEFORE:
            return await serve(self, append, made, say)

        def say_and_fail(message: bytes) -> None:
            say(message)
            if said:
                fails()

        seq = await serve(self, append, made, say_and_fail)
        fails()
        return seq

    authority.Authority.serve = failing  # type: ignore[method-assign]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang_up() -> None:
    raise Unreachable("hung up")


def dies_before_it_writes() -> None:
    """A holder is killed when it has said what it will write."""
    _replace_serving(_die, said=True)


def dies_before_it_answers() -> None:
    """A holder is killed when it has written, and not answered yet."""
    _replace_serving(_die)


def hangs_up() -> None:
    """A holder writes, and never answers: the connection ends. It lives on."""
    _replace_serving(_hang_up)


# ---- what is switched off


def no_fence() -> None:
    """An append under an old epoch isn't refused."""
    EpochRecord.current = lambda _self: Epoch(0)  # type: ignore[assignment,method-assign]


def no_intent() -> None:
    """Whoever forwards doesn't hear what the holder is about to write."""
    forwarding.Attempt.hear = lambda _self, _message: None  # type: ignore[assignment,method-assign]


def no_ids() -> None:
    """The holder doesn't know what it has made."""
    serve = authority.Authority.serve

    async def forgetful(self: Any, append: Any, made: Any, say: Any) -> Any:
        made.clear()
        return await serve(self, append, made, say)

    authority.Authority.serve = forgetful  # type: ignore[method-assign]


def old_reads() -> None:
    """Nobody looks whether others have appended."""

    async def refresh(self: FileLog) -> Head:
        return self.head

    FileLog.refresh = refresh  # type: ignore[assignment,method-assign]


FAULTS: Final[dict[str, Callable[[], None]]] = {
    fault.__name__: fault
    for fault in (dies_before_it_writes, dies_before_it_answers, hangs_up, no_fence, no_intent, no_ids, old_reads)
}


def begin(names: str) -> None:
    """What `names` says, separated by commas."""
    for name in filter(None, names.split(",")):
        FAULTS[name]()
