"""What of a log is on stable storage: group commit, and what happens where a sync fails.

A failed fdatasync leaves pages that count as clean and never reached the disk, so the next one that succeeds proves
nothing (`store.durability`). The log then refuses appends and syncs until `write_again` has written all that isn't
known to be stable once more. `history.failed` beside the log tells other processes, which may open it only now: it is
in the same page cache as what didn't reach the disk, so it needn't be durable itself. After a power cut the disk has
what it has; a note that is left then costs one `write_again`.

A disk that syncs in less time than a thread takes to wake up is waited for on the spot (`Pace`).

Concurrency: on the trio loop, but for `write_again`, which is for a thread, under the log's lock.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from store import codec, durability
from store.drivers.file.tail import ORIGIN, UNSYNCED, Mark, pread_all
from store.drivers.file.text import PIECE, Text
from store.errors import CorruptLog, StoreFailed
from store.model import Seq

NOTE_NAME: Final = "history.failed"

_QUICK: Final = 0.0005
"""Seconds that syncs may take on average to be done on the loop."""
_WEIGHT: Final = 1 / 8
"""Of the newest sync in that average."""
_LONELY: Final = 4
"""Of so many syncs that nobody joins in, one gives other tasks a turn first."""
_LITTLE: Final = 64 * 1024
"""Bytes that may be synced on the loop."""


class Pace:
    """How fast the disk syncs, and how many syncs go on: one for all logs of a driver."""

    def __init__(self) -> None:
        self.going = 0
        self._average = 2 * _QUICK

    def may_stay(self) -> bool:
        """Whether the next sync may be done on the loop: the last ones were quick, and no other goes on."""
        return self._average <= _QUICK and self.going == 1

    def took(self, seconds: float) -> None:
        """A sync was done."""
        self._average += (seconds - self._average) * _WEIGHT


@dataclass(frozen=True, slots=True)
class _Known:
    """The text's generation and size that are on stable storage, and the last whole batch within that size."""

    generation: int
    size: int
    mark: Mark


_NOTHING: Final = _Known(-1, 0, ORIGIN)


class Stable:
    """One instance's knowledge of what is on stable storage."""

    def __init__(self, text: Text, root: Path, pace: Pace, limiter: trio.CapacityLimiter) -> None:
        self._text = text
        self._root = root
        self._pace = pace
        self._limiter = limiter
        self._note = f"{text.directory}/{NOTE_NAME}"
        self._known = _NOTHING
        self._syncing: trio.Event | None = None
        self._crowded = True
        """Whether anybody waited for the last sync."""
        self._turn = 0
        self.due = 0
        """The size of the text from which on it should be synced without anybody asking: see `tail`."""
        self._failure: str | None = None

    @property
    def failure(self) -> StoreFailed | None:
        """Why appends and syncs are refused; a new exception each time, so that tracebacks don't pile up."""
        return None if self._failure is None else StoreFailed(self._failure)

    def failed(self, what: str, error: OSError) -> None:
        """From now on, refuse."""
        self._failure = f"{what} ({error.strerror or error}): nothing is appended until it has been recovered"

    @contextmanager
    def decisive(self, what: str) -> Iterator[None]:
        """An fsync: where it fails, refuse, also in processes that open the log from now on."""
        try:
            yield
        except OSError as error:
            self._sync_failed(what, error)
            raise

    def _sync_failed(self, what: str, error: OSError) -> None:
        self.failed(f"{what} the log of {self._text.space} failed", error)
        with contextlib.suppress(OSError):
            os.close(durability.system.open("log.failed", self._note, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))

    def opened(self) -> None:
        """The text was opened: somebody may have left a note."""
        if self._failure is None and os.path.lexists(self._note):
            self._failure = f"a sync of the log of {self._text.space} failed: it has to be recovered"

    # ---- group commit

    async def sync(self) -> None:
        """Return when the text, as long as it is now, is on stable storage. Concurrent calls share the work."""
        text = self._text
        text.check_open()
        generation, size = text.generation, os.fstat(text.fd).st_size
        while self._failure is None:
            known = self._known
            if known.generation > generation or (known.generation == generation and known.size >= size):
                return
            if self._syncing is None:
                await self._sync_now()
            else:
                self._crowded = True
                await self._syncing.wait()
        raise StoreFailed(self._failure)

    async def _sync_now(self) -> None:
        text = self._text
        done = self._syncing = trio.Event()
        self._pace.going += 1
        try:
            self._turn += 1
            if self._crowded or self._turn % _LONELY == 0:
                # Whoever is about to append or to sync joins in.
                self._crowded = False
                await trio.lowlevel.checkpoint()
                text.check_open()
            try:
                await self._sync_text()
            except OSError as error:
                self._sync_failed("syncing", error)
                raise durability.store_error(error, f"syncing the log of {text.space}") from error
        finally:
            self._pace.going -= 1
            self._syncing = None
            done.set()

    async def _sync_text(self) -> None:
        text = self._text
        head = text.head
        size = os.fstat(text.fd).st_size
        known = self._known
        covers = _Known(text.generation, size, Mark(head.seq, head.ts, head.crc, head.size))
        # Whoever made the file, or put it in another's place, may not have synced its name.
        names = known.generation != text.generation
        if not names and size - known.size <= _LITTLE and self._pace.may_stay():
            seconds = self._sync_file(text.fd, names)
        else:
            # Of its own, since the text may be attached to another file meanwhile.
            with durability.failing(f"syncing the log of {text.space}"):
                fd = os.dup(text.fd)
            try:
                seconds = await trio.to_thread.run_sync(self._sync_file, fd, names, limiter=self._limiter)
            finally:
                os.close(fd)
        self._pace.took(seconds)
        if covers.generation >= self._known.generation:
            self._known = covers
            self.due = size + UNSYNCED

    def _sync_file(self, fd: int, names: bool) -> float:  # noqa: FBT001
        """Returns how long the fdatasync took, in seconds."""
        start = time.perf_counter()
        durability.system.fdatasync("log.sync", fd)
        seconds = time.perf_counter() - start
        if names:
            for directory in self._directories():
                durability.fsync_dir("log.sync", directory)
        return seconds

    def _directories(self) -> Iterator[Path]:
        """The log's directory and those above it, up to the root."""
        directory = self._text.directory
        yield directory
        while directory != self._root:
            directory = directory.parent
            yield directory

    # ---- recovery

    def stable_mark(self) -> Mark | None:
        """Up to where the text is known to be stable; None where that isn't known of the file that is there now."""
        known = self._known
        return known.mark if known.generation == self._text.generation else None

    def rewrite(self, since: Mark) -> None:
        """Write what stands behind `since` once more, in place. In a thread; raises OSError, CorruptLog.

        The bytes are those that the page cache has; they are checked first.
        """
        text = self._text
        fd = durability.system.open("log.recover", text.path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            for offset, piece in checked(text, fd, since):
                durability.pwrite_all("log.recover", fd, piece, offset)
            durability.system.fdatasync("log.recover", fd)
        finally:
            os.close(fd)

    def rewritten(self) -> None:
        """All of the text is on stable storage again: sync the names, too, and accept appends. In a thread."""
        text = self._text
        head = text.head
        for directory in self._directories():
            durability.sync_names_again("log.recover", directory)
        durability.discard("log.recover", self._note)
        self._known = _Known(text.generation, head.size, Mark(head.seq, head.ts, head.crc, head.size))
        self.due = head.size + UNSYNCED
        self._failure = None


def checked(text: Text, fd: int, since: Mark) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of what stands behind `since`, in pieces of whole lines that check. Raises CorruptLog.

    `fd` is the thread's own, of the file that `text` is attached to: on the loop, the text may be closed meanwhile.
    """
    at = since
    end = text.head.size
    size = PIECE
    while at.end < end:
        piece = pread_all(fd, min(size, end - at.end), at.end)
        whole = piece[: piece.rfind(b"\n") + 1]
        if not whole:
            if len(piece) < size:
                raise CorruptLog("ends within a line", seq=at.seq, offset=at.end, log=text.space)
            size *= 4
            continue
        offset = at.end
        for entry, stop in codec.decode_lines(whole, after=Seq(at.seq), previous_crc=at.crc, offset=offset):
            at = Mark(entry.seq, entry.ts, entry.crc, stop)
        yield offset, whole
        size = PIECE
