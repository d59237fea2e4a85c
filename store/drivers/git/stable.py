"""What of a log is on stable storage: group commit, and what happens where a sync fails or a power cut came.

`stable.json` in the space's local directory names the commit that was synced last, with its entry's seq and crc. So a
log whose ref was rewritten is told from one that grew, also by who opens it only now; and after a power cut, which can
take what wasn't synced (the ref's file is empty then, or names a commit that isn't there), the log goes on from there.

A failed fsync leaves pages that count as clean and never reached the disk, so the next one that succeeds proves nothing
(`store.durability`). The log then refuses appends and syncs until all objects that aren't packed have been written once
more. `failed` beside `stable.json` tells other processes, as in `store.drivers.file.stable`.

Concurrency: on the trio loop; `_sync` is for a thread.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import orjson
import trio

from store import durability
from store.drivers.git.packing import pack, put_broken_aside
from store.errors import FormatError, StoreFailed
from store.model import Head, SpaceId

NOTE: Final = "stable.json"
FAILED: Final = "failed"
_FEW: Final = 64
"""Objects up to which each is synced by itself; of more, the whole file system is."""


@dataclass(frozen=True, slots=True)
class Synced:
    """`stable.json`."""

    commit: str
    seq: int
    crc: int


class Shown(NamedTuple):
    """What the ref names."""

    commit: str
    head: Head


class Stable:
    """One instance's knowledge of what is on stable storage."""

    def __init__(
        self, space: SpaceId, local: Path, ref: str, git: Path, odb: Path, limiter: trio.CapacityLimiter
    ) -> None:
        self._space = space
        self._local = local
        self._ref = ref
        self._git = git
        self._odb = odb
        self._limiter = limiter
        self._known = ""
        """The commit that is on stable storage."""
        self._calls = self._covered = 0
        """How many calls of `sync` there were, and how many of them have what they wanted."""
        self._tip = ""
        """All commits between that and this one are this instance's, and have no objects but `_objects`."""
        self._objects: list[str] = []
        self._syncing: trio.Event | None = None
        self._failure: str | None = None

    @property
    def failure(self) -> StoreFailed | None:
        """Why appends and syncs are refused; a new exception each time, so that tracebacks don't pile up."""
        return None if self._failure is None else StoreFailed(self._failure)

    def opened(self) -> Synced | None:
        """What was synced last, as the note says. Somebody may have left word of a failure. Raises FormatError."""
        if os.path.lexists(self._local / FAILED):
            self._failure = f"a sync of the log of {self._space} failed: it has to be recovered"
        note = _read(self._local / NOTE, self._space)
        if note is not None:
            self._known = self._tip = note.commit
        return note

    def made(self, commit: str, parent: str, objects: list[str]) -> None:
        """The ref was moved from one commit to another, by this instance."""
        if parent == self._tip:
            self._tip = commit
            self._objects += objects

    # ---- group commit

    async def sync(self, latest: Callable[[], Shown]) -> None:
        """Return when all that was appended before is on stable storage. Concurrent calls share the work."""
        self._calls += 1
        call = self._calls
        while self._failure is None:
            if self._covered >= call:
                return
            if self._syncing is None:
                await self._sync_now(latest())
            else:
                await self._syncing.wait()
        raise StoreFailed(self._failure)

    async def _sync_now(self, shown: Shown) -> None:
        calls = self._calls
        if shown.commit == self._known:
            self._covered = calls
            return
        done = self._syncing = trio.Event()
        objects = list(self._objects) if self._tip == shown.commit and len(self._objects) <= _FEW else None
        count = len(self._objects)
        note = Synced(shown.commit, shown.head.seq, shown.head.crc)
        try:
            # What was begun is finished: half of it would leave nobody knowing.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._sync, note, objects, limiter=self._limiter)
            self._known, self._covered = shown.commit, calls
            if objects is not None:
                del self._objects[:count]
            else:
                self._tip, self._objects = shown.commit, []
        except OSError as error:
            self.failed("syncing", error)
            raise durability.store_error(error, f"syncing the log of {self._space}") from error
        finally:
            self._syncing = None
            done.set()

    def _sync(self, note: Synced, objects: list[str] | None) -> None:
        label = "log.sync"
        if objects is None:
            fd = os.open(self._odb, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                durability.system.syncfs(label, fd)
            finally:
                os.close(fd)
        else:
            directories = {str(self._odb)}
            for path in objects:
                directories.add(os.path.dirname(path))
                with contextlib.suppress(FileNotFoundError):  # packed by now, and that is synced
                    _fsync(label, path)
            for directory in directories:
                durability.fsync_dir(label, directory)
        self._sync_ref(label)
        self._write_note(label, note)

    def _sync_ref(self, label: str) -> None:
        try:
            _fsync(label, self._ref)
        except FileNotFoundError:
            _fsync(label, str(self._git / "packed-refs"))
            durability.fsync_dir(label, self._git)
            return
        directory = os.path.dirname(self._ref)
        root = str(self._git)
        # Those above may be new; a sync of one that isn't changed costs next to nothing.
        while len(directory) > len(root):
            with contextlib.suppress(FileNotFoundError):  # packed just now
                durability.fsync_dir(label, directory)
            directory = os.path.dirname(directory)

    def _write_note(self, label: str, note: Synced) -> None:
        found = _read(self._local / NOTE, self._space)
        if found is not None and found.seq > note.seq:
            return  # another instance was quicker
        data = orjson.dumps({"commit": note.commit, "seq": note.seq, "crc": note.crc}) + b"\n"
        for changed in durability.make_dirs(label, self._local, self._odb.parent):
            durability.fsync_dir(label, changed)
        durability.atomic_replace(label, self._local / NOTE, data)

    # ---- after a failure

    def failed(self, what: str, error: OSError) -> None:
        """From now on refuse, also in processes that open the log from now on."""
        self._failure = (
            f"{what} the log of {self._space} failed ({error.strerror or error}): nothing is appended until it has "
            "been recovered"
        )
        with contextlib.suppress(OSError):
            os.close(
                durability.system.open("log.failed", self._local / FAILED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
            )

    async def put_broken_aside(self) -> None:
        """What a power cut left of objects goes to `quarantine`. Raises OSError."""
        await trio.to_thread.run_sync(put_broken_aside, "log.repair", self._odb, limiter=self._limiter)

    async def write_again(self, shown: Shown) -> None:
        """Write all objects that aren't packed once more, into a pack; the ref was written again. Raises OSError."""
        note = Synced(shown.commit, shown.head.seq, shown.head.crc)

        def write() -> None:
            pack("log.recover", self._odb, strict=True)
            self._sync_ref("log.recover")
            self._write_note("log.recover", note)

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(write, limiter=self._limiter)
        durability.discard("log.recover", self._local / FAILED)
        self._known = self._tip = shown.commit
        self._objects = []
        self._failure = None


def _fsync(label: str, path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        durability.system.fsync(label, fd)
    finally:
        os.close(fd)


def _read(path: Path, space: SpaceId) -> Synced | None:
    try:
        found = orjson.loads(path.read_bytes())
        return Synced(str(found["commit"]), int(found["seq"]), int(found["crc"]))
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path} can't be read: remove it, if the ref of {space} names the log's last commit"
        ) from error
