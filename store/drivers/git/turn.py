"""Whose turn it is to move a log's ref: compare-and-set that is safe beside git, and beside processes that stand still.

chatfs's processes take turns with a flock of `turn/lock` in the space's local directory. Who has it makes git's lock,
`<ref>.lock`, compares the ref, and *renames a file of its own in `turn/` to the ref*. Git makes no difference between
that and its own way.

A process can be stopped anywhere in there. Whoever has waited for PATIENCE without anything moving renames the
directory `turn` away and makes another: what the stopped one goes on with then fails, since its rename no longer finds
the file. So a ref moves only by who

1. has made its file in `turn/`, and then seen that `turn/lock` is still the file that it holds the flock of, and
2. has then, with git's lock, seen the ref where it should be.

If `turn` is replaced before 1., that shows; if it is replaced later, the file is in the one that was taken away. Who
takes over compares the ref after it has taken the directory away, so it sees what was renamed before.

Git's lock is a hard link of `turn/lock`: it tells a lock that a dead process of chatfs left from one of git's own.
(It is unlinked by name, after a look at what it is: a process that is stopped between the two can unlink somebody
else's. Between processes of chatfs that harms nothing, see above.)

Concurrency: on the trio loop. Between `try_take` and `give_back` there is no await.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final

import trio

from store import durability, locks
from store.drivers.git.refs import LOCK, BrokenRef, Refs
from store.errors import FormatError, SpaceNotFound, StoreFailed
from store.model import SpaceId

PATIENCE: Final = 1.0
"""Seconds after which a turn counts as stuck, and git's lock as left behind."""
_SHORTEST: Final = 0.0002
_LONGEST: Final = 0.02
_TRIES: Final = 20
_MARK: Final = b"chatfs\n"


class Moved(Enum):
    """What became of a ref."""

    DONE = 0
    ELSEWHERE = 1
    """It isn't what was expected, or another has taken over: look again."""
    LOCKED = 2
    """Git is at work on it."""


class Turn:
    """One instance's way to move the ref of `space`; `directory` is the space's local one."""

    def __init__(self, refs: Refs, space: SpaceId, directory: Path) -> None:
        self._refs = refs
        self._space = space
        self._path = refs.path(space)
        self._local = directory
        self._directory = f"{directory}/turn"
        self._lock = f"{self._directory}/lock"
        self._own = f"{self._directory}/{secrets.token_hex(16)}"
        self._fd = -1
        self._inode = 0
        self._tidied = False

    def close(self) -> None:
        """Let go of the lock's file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # As a log that nobody closes.
        self.close()

    # ---- taking turns

    def try_take(self) -> bool:
        """Take the turn, if nobody has it. Raises SpaceNotFound, OSError."""
        while True:
            if self._fd < 0:
                self._open()
            if not locks.try_lock(self._fd):
                if self._is_current():
                    return False
            elif self._is_current():
                if not self._tidied:
                    self._tidy()
                return True
            self.close()

    def give_back(self) -> None:
        """It is somebody else's."""
        if self._fd >= 0:
            locks.unlock(self._fd)

    async def take(self) -> None:
        """Take the turn, when it comes. From who keeps it and doesn't move, it is taken away."""
        pause = _SHORTEST
        seen, since = self._peek(), trio.current_time()
        while not self.try_take():
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST)
            found = self._peek()
            if found != seen:
                seen, since = found, trio.current_time()
            elif trio.current_time() - since > PATIENCE:
                self._take_away()
                since = trio.current_time()

    def _open(self) -> None:
        while True:
            try:
                fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                if self._peek() is None:
                    raise SpaceNotFound(f"there is no log of {self._space}") from None
                self._make()
            else:
                self._fd = fd
                self._inode = os.fstat(fd).st_ino
                self._tidied = False
                return

    def _peek(self) -> str | None:
        """What the ref names; "" where that is nothing."""
        try:
            return self._refs.read(self._space)
        except (BrokenRef, FormatError):
            return ""

    def _make(self) -> None:
        """Make the directory, with the lock in it, unless somebody else does."""
        fresh = self._local / f".turn-{secrets.token_hex(8)}"
        durability.make_dirs("turn.make", fresh, Path("/"))
        try:
            durability.write_new("turn.make", fresh / "lock", _MARK, durable=False)
            durability.system.rename("turn.make", fresh, self._directory)
        except OSError:
            if not os.path.exists(self._lock):
                raise
        finally:
            with contextlib.suppress(OSError):
                durability.remove_tree("turn.make", fresh)

    def _is_current(self) -> bool:
        try:
            return os.stat(self._lock).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _take_away(self) -> None:
        """From now on, nothing that the one can do who has the turn moves the ref."""
        if not self._is_current():
            return
        gone = f"{self._local}/.turn-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            durability.system.rename("turn.away", self._directory, gone)
            durability.remove_tree("turn.away", gone)

    def _tidy(self) -> None:
        """Having the turn: remove what the dead left."""
        for name in os.listdir(self._directory):
            if name != "lock":
                durability.discard("turn.tidy", f"{self._directory}/{name}")
        self.unlock_git(stale=True)
        self._tidied = True

    # ---- moving the ref

    def move(self, label: str, expected: str | None, to: str, before: Callable[[], None] | None = None) -> Moved:
        """Having the turn: let the ref name `to` if it names `expected`. Raises OSError, and what `before` raises.

        `before` is called when nothing but a takeover can come between any more.
        """
        self._write(label, to)
        try:
            if not self._is_current():
                return Moved.ELSEWHERE
            if not self._lock_git():
                return Moved.LOCKED
            try:
                if self._refs.read(self._space) != expected:
                    return Moved.ELSEWHERE
                if before is not None:
                    before()
                try:
                    durability.system.rename(label, self._own, self._path)
                except FileNotFoundError:
                    return Moved.ELSEWHERE
                return Moved.DONE
            finally:
                self.unlock_git()
        except BaseException:
            durability.discard(label, self._own)
            raise

    def put(self, label: str, to: str) -> None:
        """Having the turn: let the ref name `to`, whatever it names; its file is on stable storage. Raises OSError."""
        self._write(label, to, sync=True)
        if not self._lock_git():
            durability.discard(label, self._own)
            raise self.locked_by_git()
        try:
            durability.system.rename(label, self._own, self._path)
        finally:
            self.unlock_git()

    def remove(self) -> bool:
        """Having the turn: remove the ref. False where git is at work on it."""
        if not self._lock_git():
            return False
        try:
            removed = self._refs.remove(self._space, self._make_lock)
        finally:
            self.unlock_git()
        if removed:
            self._refs.remove_directory(self._space)
        return removed

    def _write(self, label: str, value: str, *, sync: bool = False) -> None:
        try:
            fd = durability.system.open(label, self._own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return  # the directory was taken away, which shows next
        try:
            durability.write_all(label, fd, value.encode() + b"\n")
            if sync:
                durability.system.fsync(label, fd)
        finally:
            os.close(fd)

    def _lock_git(self) -> bool:
        """Make `<ref>.lock`. One that a process of chatfs left is nobody's: who has the turn has it."""
        return self._make_lock(self._path + LOCK, alone=True)

    def _make_lock(self, path: str, *, alone: bool = False) -> bool:
        """`alone`: only who has this turn makes such a lock, of chatfs's processes."""
        for _ in range(_TRIES):
            try:
                durability.system.link("turn.lock", self._lock, path)
                return True
            except FileExistsError:
                try:
                    if os.stat(path).st_ino == self._inode:
                        return True
                    if not alone or not _is_marked(path):
                        return False
                except FileNotFoundError:
                    continue
                durability.discard("turn.lock", path)
            except FileNotFoundError:
                if not self._is_current():
                    return False
                self._refs.make_directory("turn.lock", os.path.dirname(path))
        return False

    def unlock_git(self, *, stale: bool = False) -> None:
        """Remove `<ref>.lock` if it is of this turn; with `stale`, also one of a turn that was taken away."""
        path = self._path + LOCK
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == self._inode or (stale and _is_marked(path)):
                durability.discard("turn.lock", path)

    def locked_by_git(self) -> StoreFailed:
        """What is raised where git's lock stays."""
        return StoreFailed(
            f"{self._path}{LOCK} is there: another git process works on the log of {self._space}, or has died: end "
            "it, or remove that file"
        )


def _is_marked(path: str) -> bool:
    """Whether a lock is chatfs's."""
    with open(path, "rb") as file:
        return file.read(len(_MARK) + 1) == _MARK
