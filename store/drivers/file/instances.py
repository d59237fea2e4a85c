"""The files by which instances know of each other: `instances/<name>.lock`, locked as long as their process lives.

    instances/<name>.lock   {"pid", "uid", "program", "since"}; flocked by its instance
    instances/<name>.sock   where it answers, see `peers`
    instances/.new-<name>   a lock file that is being made

The kernel gives a flock back when its process ends, however it ends, and shows it through every pid namespace. A name
is never used twice, and its lock file is there before the instance holds anything: so one that is missing, or isn't
locked, is a dead one's. Nothing here needs to survive a power cut, which ends every instance.

Concurrency: nothing waits; several processes may announce and sweep at once.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from store import durability, locks
from store.errors import ReadOnly
from store.model import Millis, clock_ms, uuid7
from store.peers import PeerInfo, program_of

DIRECTORY: Final = "instances"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_MODE: Final = 0o644
"""Others may look whether it is locked: where root has the store open, its owner must see that."""
_INFO_MAX: Final = 4096
_TRIES: Final = 100


class Instances:
    """The lock file of this instance, and the others'."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.name = uuid7().replace("-", "")
        self.directory = root / DIRECTORY
        self._root = root
        self._read_only = read_only
        self._fd = -1
        self._process = 0

    @property
    def announced(self) -> bool:
        """Whether the others can see that this instance lives."""
        return self._fd >= 0 and self._process == os.getpid() and os.fstat(self._fd).st_nlink > 0

    def announce(self) -> None:
        """See `store.peers.Peers`. Removes what the dead have left."""
        if self.announced:
            return
        if self._read_only:
            raise ReadOnly("the store was opened read-only: nobody holds a lease through it")
        self.forget()
        with durability.failing(f"making {self.directory / self.name}.lock"):
            self._make_directory()
            self._fd = self._make_lock()
            self._process = os.getpid()
            self._sweep()

    def _make_directory(self) -> None:
        if not durability.make_dirs("peers", self.directory, self._root) or os.geteuid() != 0:
            return
        # Made by root in somebody's store: it is theirs.
        owner = os.stat(self._root)
        os.chown(self.directory, owner.st_uid, owner.st_gid)

    def _make_lock(self) -> int:
        """Under its name it is locked from the beginning on."""
        beside, path = f"{self.directory}/.new-{self.name}", self.path("lock")
        for _ in range(_TRIES):
            fd = durability.create("peers", beside)
            try:
                if locks.try_lock(fd):
                    os.fchmod(fd, _MODE)
                    durability.write_all("peers", fd, orjson.dumps(_described()) + b"\n")
                    durability.system.rename("peers", beside, path)
                    return fd
            except FileNotFoundError:
                pass  # swept away before it was locked
            except BaseException:
                os.close(fd)
                durability.discard("peers", beside)
                raise
            os.close(fd)
            durability.discard("peers", beside)
        raise BlockingIOError(f"{beside} is locked by others all the time")

    def _sweep(self) -> None:
        """Remove the files of the dead."""
        for name in self._names(".lock", ".new-"):
            with contextlib.suppress(OSError):
                fd = os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if locks.try_lock(fd):
                        durability.system.unlink("peers", f"{self.directory}/{name}")
                finally:
                    os.close(fd)
        for name in self._names(".sock"):
            if not os.path.lexists(self.path("lock", name[: -len(".sock")])):
                durability.discard("peers", f"{self.directory}/{name}")

    def _names(self, *marks: str) -> Iterator[str]:
        with contextlib.suppress(OSError):
            yield from [name for name in os.listdir(self.directory) if name.startswith(marks) or name.endswith(marks)]

    def is_dead(self, holder: str) -> bool:
        """See Peers. A holder that no instance can be called is none of ours: nothing is known of it."""
        if holder == self.name or not _NAME.fullmatch(holder):
            return False
        try:
            fd = os.open(self.path("lock", holder), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            return not _is_locked(fd)
        finally:
            os.close(fd)

    def everyone(self) -> list[PeerInfo]:
        """See Peers."""
        found = [self._look(name[: -len(".lock")]) for name in sorted(self._names(".lock"))]
        return [info for info in found if info is not None]

    def _look(self, name: str) -> PeerInfo | None:
        try:
            fd = os.open(self.path("lock", name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not _is_locked(fd):
                return None
            told = orjson.loads(os.pread(fd, _INFO_MAX, 0))
            return PeerInfo(name, int(told["pid"]), int(told["uid"]), str(told["program"]), Millis(int(told["since"])))
        except (OSError, ValueError, KeyError, TypeError):
            return PeerInfo(name, 0, 0, "", Millis(0))
        finally:
            os.close(fd)

    def path(self, kind: str, name: str = "") -> str:
        """Where an instance's `lock` or `sock` is; this one's, if none is named."""
        return f"{self.directory}/{name or self.name}.{kind}"

    def forget(self) -> None:
        """Remove the files: the instance has ended."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._process == os.getpid():
            durability.discard("peers", self.path("sock"))
            durability.discard("peers", self.path("lock"))
        os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _described() -> dict[str, object]:
    return {"pid": os.getpid(), "uid": os.getuid(), "program": program_of(os.getpid()), "since": clock_ms()}
