"""Delete blobs that nothing names, and files that crashes and editors left.

A blob that was added lately stays, named or not: whoever added it may be about to name it. Blobs are deleted with the
objects' lock held alone, after one more look at what the logs say by then; long blobs' chunks in a second step, when no
list of chunks that is left has them. While a list is damaged or missing, no chunk goes: it may be one of that list's.

Concurrency: for a thread; other processes use the store meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from store import durability, regular
from store.drivers.chunks import LONG, SMALL, sha256
from store.drivers.file.objects import CHUNK_SUFFIX, MANIFEST_SUFFIX, Objects
from store.fsck.context import CRASH_SECONDS
from store.gc.marks import Marks
from store.model import Digest

GRACE_SECONDS: Final = 3600
"""How long a blob that nothing names yet is safe."""
_BATCH: Final = 1000
"""How many are deleted under one lock: who adds a blob waits for so long."""
_OBJECT: Final = re.compile(r"[0-9a-f]{64}(\.chunks?)?")
_TEMPORARY: Final = re.compile(r"\..*\.tmp|\.put-.*|.*\.[0-9]+\.[0-9]+\.tmp")
_AT_FDCWD: Final = -100
"""Stands for the present directory, in which an absolute path is opened (openat(2))."""
_NEW_SPACE: Final = re.compile(r"\.new-[0-9a-f]{16}")
_DRAFT_CHUNK: Final = re.compile(r"([0-9a-f-]{36})\.[0-9]+\.[0-9]+")

_KEPT: Final = re.compile(r".*\.(?:rejected|conflict|recovered)-[0-9]+")
"""Bytes of the user's own, put beside a file for them to look at: never removed."""
_EDITORS: Final = re.compile(
    r"\..*\.sw[a-z]|\..*\.sw[a-z]x"  # vim's swap files
    r"|.*~|4913|5036|5159|5282|5405"  # backups; vim's tests for a writable directory
    r"|#.*#|\.#.*"  # emacs' auto-save files and locks
    r"|sed(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{6}"  # not sedentary, not sed202401
    r"|\.goutputstream-[A-Z0-9]{6}"  # GLib
    r"|.*\.kate-swp|\..*\.sb-[0-9a-f]{8}-[A-Za-z0-9]{6}"  # KDE, macOS
    r"|.*___jb_(?:tmp|old)___"  # JetBrains
    # rsync's, where they look random: not .notes.202401, .notes.README, .notes.Draft2. Others of its names stay.
    r"|\..*\.(?=[A-Za-z]*[0-9])(?=[A-Za-z0-9]*[a-z0-9][A-Z])[A-Za-z0-9]{6}"
    r"|\.nfs[0-9a-f]+"
)


@dataclass(slots=True)
class Swept:
    """How many were deleted, or would be, and how many bytes that frees."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """One more."""
        self.count += 1
        self.bytes += size


Read = Callable[[str], None]


class BlobSweep:
    """Deletes the blobs that aren't in `marks`."""

    def __init__(self, objects: Objects, marks: Marks, *, dry_run: bool, grace: float = GRACE_SECONDS) -> None:
        self._objects = objects
        self._marks = marks
        self._dry_run = dry_run
        self._before = time.time() - grace
        self.blobs = Swept()
        self.notes: list[str] = []

    def run(self) -> Swept:
        """All of them. Raises OSError, StoreError."""
        doomed: set[str] = set()
        batch: list[str] = []
        for name in self._candidates():
            batch.append(name)
            if len(batch) >= _BATCH:
                doomed |= self._delete(batch)
                batch = []
        doomed |= self._delete(batch)
        self._sweep_chunks(doomed)
        return self.blobs

    def _candidates(self) -> Iterator[str]:
        """Objects that stand for blobs, are old, and aren't in use as far as is known."""
        for group in self._objects.groups():
            for name in self._objects.names_in(group):
                if not _OBJECT.fullmatch(name) or name.endswith(CHUNK_SUFFIX) or self._age(name) is None:
                    continue
                if _digest(name) not in self._marks:
                    yield name

    def _age(self, name: str) -> os.stat_result | None:
        """What lstat(2) says of an object, if it is old enough to go."""
        try:
            status = os.lstat(self._objects.path(name))
        except FileNotFoundError:
            return None
        return status if stat.S_ISREG(status.st_mode) and status.st_mtime < self._before else None

    def _delete(self, names: list[str]) -> set[str]:
        if not names:
            return set()
        with self._objects.held(alone=True) if not self._dry_run else contextlib.nullcontext():
            self._marks.look()
            doomed: set[str] = set()
            if self._marks.unsound:
                return doomed
            for name in names:
                status = self._age(name)
                if status is None or _digest(name) in self._marks:
                    continue
                doomed.add(name)
                self.blobs.add(self._size(name, status))
                if not self._dry_run:
                    self._objects.drop(name)
            if not self._dry_run:
                # Lists first, for good: one that came back after a power cut without its chunks would look damaged.
                for group in {name[:2] for name in doomed if name.endswith(MANIFEST_SUFFIX)}:
                    durability.fsync_dir("blob.delete", self._objects.directory / group)
            return doomed

    def _size(self, name: str, status: os.stat_result) -> int:
        """What is freed at once: of a long blob, its list; a small blob's bytes may be a long one's, too."""
        return status.st_size if status.st_nlink == 1 else 0

    def _sweep_chunks(self, doomed: set[str]) -> None:
        """Chunks that no list has which is left, or would be."""
        with self._objects.held(alone=True) if not self._dry_run else contextlib.nullcontext():
            chunks = None if self._marks.unsound else self._listed(doomed)
            if chunks is None:
                return
            for name in self._objects.names(CHUNK_SUFFIX):
                if name[:64].encode() not in chunks and (status := self._age(name)) is not None:
                    self.blobs.bytes += status.st_size
                    if not self._dry_run:
                        self._objects.drop(name)

    def _listed(self, doomed: set[str]) -> set[bytes] | None:
        """The chunks that long blobs have; None, and a note, where that can't be known."""
        chunks: set[bytes] = set()
        intact: set[str] = set()
        for name in self._objects.names(MANIFEST_SUFFIX):
            if name in doomed:
                continue
            try:
                text = regular.read(self._objects.path(name))
            except FileNotFoundError:
                continue
            except OSError:
                self._keep_chunks(name[:64], "can't be read")
                return None
            if sha256(text) != name[:64]:
                self._keep_chunks(name[:64], "is damaged")
                return None
            intact.add(name[:64])
            chunks.update(text.split(b"\n")[1:])
        for name in self._marks.long_names():
            if name not in intact:
                self._keep_chunks(name, "is missing")
                return None
        return chunks

    def _keep_chunks(self, name: str, how: str) -> None:
        self.notes.append(
            f"parts of large attachments are left alone: the list of {LONG}{name} {how}: run chatfs fsck --repair"
        )


def _digest(name: str) -> Digest:
    return Digest((LONG if name.endswith(MANIFEST_SUFFIX) else SMALL) + name[:64])


# ---- files that were left


class FileSweep:
    """Deletes files that crashes left and editors forgot."""

    def __init__(self, root: Path, retention: float, *, dry_run: bool) -> None:
        self._root = root
        self._crashed = time.time() - CRASH_SECONDS
        self._stale = time.time() - retention
        self._dry_run = dry_run
        self.scratch = Swept()
        self.leftovers = Swept()

    def run(self) -> None:
        """All of them. What can't be listed is left alone, and so is what a symbolic link leads to."""
        with _opened(str(self._root), _Opened(_AT_FDCWD, "")) as root:
            self._sweep_temporary(root)
            for name in ("kv", "objects"):
                with _opened(name, root) as directory:
                    self._sweep_temporary(directory)
                    for group in self._entries(directory) if name == "objects" else ():
                        if len(group.name) == 2:
                            with _opened(group.name, directory) as inside:
                                self._sweep_temporary(inside)
            with _opened("drafts", root) as directory:
                self._sweep_temporary(directory)
                self._sweep_drafts(directory)
            with _opened("workspace", root) as directory:
                for workspace in self._entries(directory):
                    with _opened(workspace.name, directory) as inside:
                        self._sweep_space(inside)
                        with _opened("chats", inside) as chats:
                            for chat in self._entries(chats):
                                with _opened(chat.name, chats) as space:
                                    self._sweep_space(space)

    def _sweep_space(self, directory: _Opened | None) -> None:
        if directory is None:
            return
        if _NEW_SPACE.fullmatch(directory.name):
            self._sweep_new_space(directory)
            return
        self._sweep_temporary(directory)
        with _opened("snapshots", directory) as snapshots:
            self._sweep_temporary(snapshots)
        for name in ("scratch", "scratch-attachments"):
            with _opened(name, directory) as area:
                for entry in self._entries(area):
                    if _EDITORS.fullmatch(entry.name) and not _KEPT.fullmatch(entry.name):
                        self._remove(area, entry, self._stale, self.scratch)

    def _sweep_new_space(self, directory: _Opened) -> None:
        if os.fstat(directory.fd).st_mtime < self._crashed:
            self.leftovers.add(0)
            if not self._dry_run:
                durability.remove_tree("gc.leftover", directory.path)

    def _sweep_temporary(self, directory: _Opened | None) -> None:
        for entry in self._entries(directory):
            if _TEMPORARY.fullmatch(entry.name):
                self._remove(directory, entry, self._crashed, self.leftovers)

    def _sweep_drafts(self, directory: _Opened | None) -> None:
        """Chunks whose label is gone. Drafts with a label come back at the next mount."""
        for entry in self._entries(directory):
            match = _DRAFT_CHUNK.fullmatch(entry.name)
            if match and not _is_in(directory, f"{match[1]}.json"):
                self._remove(directory, entry, self._crashed, self.leftovers)

    def _remove(self, directory: _Opened | None, entry: os.DirEntry[str], before: float, swept: Swept) -> None:
        assert directory is not None
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(entry.name, dir_fd=directory.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or status.st_mtime >= before:
                return
            if not self._dry_run:
                durability.system.unlink_in("gc.leftover", directory.fd, f"{directory.path}/{entry.name}")
            swept.add(status.st_size if status.st_nlink == 1 else 0)

    def _entries(self, directory: _Opened | None) -> list[os.DirEntry[str]]:
        if directory is None:
            return []
        with os.scandir(directory.fd) as found:
            return list(found)


class _Opened(NamedTuple):
    """An open directory, and what it was called."""

    fd: int
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@contextlib.contextmanager
def _opened(name: str, beneath: _Opened | None) -> Iterator[_Opened | None]:
    """The directory of that name; None where there is none that can be read, or a symbolic link."""
    if beneath is None:
        yield None
        return
    try:
        fd = durability.open_directory(name, beneath.fd)
    except OSError:
        yield None
        return
    try:
        yield _Opened(fd, f"{beneath.path}/{name}" if beneath.path else name)
    finally:
        os.close(fd)


def _is_in(directory: _Opened | None, name: str) -> bool:
    assert directory is not None
    try:
        os.lstat(name, dir_fd=directory.fd)
    except FileNotFoundError:
        return False
    return True
