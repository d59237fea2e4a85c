"""One instance's view of a log's text: which file it is, where it ends, and the entries in it.

It only reads: appending, repairing and truncating are `log`'s. What follows the last whole batch isn't there yet.

`history.base` beside the log says what was truncated away last: {"seq", "ts", "crc"} of the last dropped entry. It is
written before the shortened log takes the old one's place; a log that still has such entries was left so by a crash.
Where it can't be shortened, the text begins behind them. Offsets are those in the file, but for whoever reads `shown`
and `read_text`, to whom the text always begins at 0.

Concurrency: `attach` and `settle` only under the log's lock. `look` at any time: it takes no lock, and where the text
doesn't check without one (a writer may be undoing a failed append just then) it says so instead of judging.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import errno
import os
import stat
from enum import Enum
from pathlib import Path
from typing import Final

import orjson
import trio

from store import codec, locks, regular
from store.drivers.file.tail import LONGEST, ORIGIN, Mark, last_batch, locate, pread_all, seq_of, without_holes
from store.drivers.file.torn import is_torn
from store.errors import CorruptLog, FormatError, SpaceNotFound, StoreFailed, Truncated
from store.model import EMPTY_HEAD, Head, Millis, Seq, SpaceId

LOG_NAME: Final = "history.jsonl"
BASE_NAME: Final = "history.base"
PIECE: Final = 256 * 1024
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Look(Enum):
    """What `Text.look` found: all seen, more to read, another file in its place, or what only the lock can judge."""

    SEEN = 0
    MORE = 1
    REPLACED = 2
    UNSURE = 3


def encode_base(base: Mark) -> bytes:
    """The bytes of `history.base`."""
    return orjson.dumps({"seq": base.seq, "ts": base.ts, "crc": base.crc}) + b"\n"


def read_base(directory: Path) -> Mark:
    """What was truncated away last."""
    try:
        found = orjson.loads(regular.read(directory / BASE_NAME))
        return Mark(int(found["seq"]), int(found["ts"]), int(found["crc"]))
    except FileNotFoundError:
        return ORIGIN
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in regular.REFUSED:
            raise
        raise FormatError(f"{directory / BASE_NAME} can't be read: restore it from a backup") from error


def is_left(fd: int, path: Path) -> bool:
    """Whether the log that `fd` has open was replaced by another, or deleted: what is written to it now is lost.

    One that is taken over is sealed, so mostly one fstat tells (see `takeover`).
    """
    found = os.fstat(fd)
    if found.st_nlink and found.st_mode & stat.S_IWUSR:
        return False
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return True
    return (named.st_ino, named.st_dev) != (found.st_ino, found.st_dev)


class Text:
    """The log file in `directory` and what is known of it."""

    def __init__(self, space: SpaceId, directory: Path, *, read_only: bool = False) -> None:
        self.fd = -1
        self._read_only = read_only
        self.space = space
        self.directory = directory
        self.path = directory / LOG_NAME
        self.base = ORIGIN
        self.head: Head = EMPTY_HEAD
        self.before: Head | None = None
        """Where the head was before it last moved: who follows the log reads on from there."""
        self.damage: CorruptLog | None = None
        self.writable = True
        self.generation = 0
        self.inode = 0
        self._torn: tuple[int, int] | None = None
        """Size and mtime of the file where all behind the head was judged to be a torn tail."""
        self.interrupted = False
        """The file still has entries that `base` says were dropped: the truncation has to be finished, or
        `skip_dropped` called."""

    def attach(self, locked: int = -1) -> bool:
        """Open the file that is there now, and find its end (unless `interrupted`). Under the log's lock.

        False, and nothing is changed, where it isn't the one that `locked` has open.
        """
        fd, writable = self._open()
        if locked >= 0 and os.fstat(fd).st_ino != os.fstat(locked).st_ino:
            os.close(fd)
            return False
        self.close()
        self.fd, self.writable = fd, writable
        self.base = read_base(self.directory)
        self.damage = self._torn = None
        self.generation += 1
        self.inode = os.fstat(self.fd).st_ino
        oldest = seq_of(os.pread(self.fd, 40, 0))
        first = self.base.seq + 1 if oldest is None else oldest
        self.interrupted = first <= self.base.seq
        if not self.interrupted:
            self._find_end()
        return True

    def _open(self) -> tuple[int, bool]:
        try:
            if not self._read_only:
                try:
                    return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW), True
                except OSError as error:
                    if error.errno not in _NOT_WRITABLE:
                        raise
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), False
        except FileNotFoundError as error:
            raise SpaceNotFound(f"there is no log of {self.space}") from error

    def skip_dropped(self) -> None:
        """The text begins behind what `base` says was dropped. Raises StoreFailed where that isn't in the file."""
        base = self.base
        mark = locate(self.fd, os.fstat(self.fd).st_size, Seq(base.seq))
        if mark is None or mark.crc != base.crc:
            raise StoreFailed(f"{self.directory / BASE_NAME} doesn't belong to this log: run chatfs fsck --repair")
        self.base = mark
        self._find_end()

    def _find_end(self) -> None:
        size = os.fstat(self.fd).st_size
        end = last_batch(self.fd, size, self.base)
        whole = without_holes(self.fd, end.end, self.base)
        if whole < end.end:
            end = last_batch(self.fd, whole, self.base)
        self.head = Head(Seq(end.seq), Millis(end.ts), end.crc, Seq(self.base.seq + 1), end.end)
        self.before = None

    def close(self) -> None:
        """Let go of the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def unlock(self) -> None:
        """Give back the flock that was taken on `fd`, unless that was closed or belongs to another file by now."""
        if self.fd >= 0:
            locks.unlock(self.fd)

    def __del__(self) -> None:
        # Who forgets to close a log must not keep its descriptor for the life of the process.
        self.close()

    def check_open(self) -> None:
        """Raises where it was closed."""
        if self.fd < 0:
            raise trio.ClosedResourceError(f"the log of {self.space} was closed")

    def look(self) -> Look:
        """Take in up to PIECE bytes of whole batches behind the head."""
        self.check_open()
        if self.damage is not None:
            return Look.SEEN if os.fstat(self.fd).st_nlink else Look.REPLACED
        found = os.fstat(self.fd)
        if not found.st_nlink:
            return Look.REPLACED
        head = self.head
        if found.st_size == head.size:
            return Look.SEEN
        if self._torn == (found.st_size, found.st_mtime_ns):
            return Look.SEEN
        if found.st_size < head.size:
            return Look.UNSURE
        mark, complete = self._scan(found.st_size)
        if is_left(self.fd, self.path):
            # What its last owner wrote after it was taken over is in no log.
            return Look.REPLACED
        if mark is not None:
            self.advance(Head(Seq(mark.seq), Millis(mark.ts), mark.crc, head.first_seq, mark.end))
            return Look.SEEN if mark.end == found.st_size else Look.MORE
        return Look.SEEN if complete else Look.UNSURE

    def advance(self, head: Head) -> None:
        """The head moves to `head`, by whole batches of the same file."""
        self.before = self.head
        self.head = head

    def _scan(self, size: int) -> tuple[Mark | None, bool]:
        """The last whole batch within a piece behind the head, and whether all whole lines there are good.

        Of a batch that is longer than a piece only the last line is held.
        """
        at = self.head.size
        seq, crc, more = self.head.seq, self.head.crc, 0
        piece = PIECE
        while True:
            rest = pread_all(self.fd, min(piece, size - at), at)
            whole = rest[: rest.rfind(b"\n") + 1]
            mark: Mark | None = None
            entries, damage = codec.decode(whole, after=seq, previous_crc=crc, offset=at)
            good = damage is None
            ends = -1
            for index, (_, _, follow) in enumerate(entries.who):
                if more and follow != more - 1:
                    good = False
                    break
                more = follow
                if not more:
                    ends = index
            if ends >= 0:
                end = at + len(whole) - len(whole.split(b"\n", ends + 1)[-1])
                mark = Mark(entries.first + ends, entries.ts[ends], entries.crc[ends], end)
            if entries:
                seq, crc = entries[-1].seq, entries[-1].crc
            if mark is not None or not good or at + len(rest) >= size:
                return mark, good
            if whole:
                at += len(whole)
            elif len(rest) > LONGEST:
                return None, False
            else:
                piece *= 4

    def settle(self) -> int:
        """Under the lock: take in everything; return how many bytes of a torn tail have to go behind the head.

        Sets `damage` if there is some.
        """
        while (seen := self.look()) is Look.MORE:
            pass
        if self.damage is not None or seen is Look.REPLACED:
            return 0
        found = os.fstat(self.fd)
        head = self.head
        if found.st_size < head.size:
            self.shrank()
        elif found.st_size > head.size:
            if is_torn(self.fd, Mark(head.seq, head.ts, head.crc, head.size), found.st_size):
                self._torn = found.st_size, found.st_mtime_ns
                return found.st_size - head.size
            self._damaged("is damaged")
        return 0

    def _damaged(self, how: str) -> None:
        head = self.head
        self.damage = CorruptLog(
            f"{how} after entry {head.seq}, at byte {head.size}: run chatfs fsck --repair",
            seq=head.seq,
            offset=head.size,
            log=self.space,
        )

    def shrank(self) -> None:
        """Entries that this instance has seen are gone: that is damage, too."""
        self._damaged("is shorter than it was")

    def raise_damage(self) -> None:
        """Raise the damage that was found, if any."""
        if self.damage is not None:
            raise self.damage.again()

    def check_since(self, seq: int) -> None:
        """Raises Truncated where entries behind `seq` were dropped."""
        first = self.head.first_seq
        if seq < first - 1:
            raise Truncated(f"entries of {self.space} before {first} were dropped", first_seq=first)

    def position(self, seq: int) -> Mark | None:
        """Where the entry behind `seq` begins; None where only reading from the start can find it. Raises Truncated."""
        self.check_since(seq)
        head = self.head
        if seq < head.first_seq:
            return self.base
        if seq >= head.seq:
            return Mark(head.seq, head.ts, head.crc, head.size)
        if self.before is not None and self.before.seq == seq:
            before = self.before
            return Mark(before.seq, before.ts, before.crc, before.size)
        return locate(self.fd, head.size, Seq(seq))

    @property
    def shown(self) -> Head:
        """The head, its size that of the text alone."""
        head, start = self.head, self.base.end
        return head._replace(size=head.size - start) if start else head

    def read_text(self, offset: int, size: int) -> bytes:
        """Bytes of the text, within the head."""
        self.check_open()
        offset += self.base.end
        return pread_all(self.fd, max(0, min(size, self.head.size - offset)), offset) if size > 0 else b""
