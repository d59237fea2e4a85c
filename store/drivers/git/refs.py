"""The refs of a store's logs: `refs/chatfs/<space>/log`, as git keeps them (a file each, or a line of `packed-refs`).

Only reading and removing; a ref is moved by `turn`.

Concurrency: on the trio loop; what git does meanwhile is seen whole or not at all, since it replaces files.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

from store import durability
from store.drivers.keys import check_space
from store.errors import FormatError, InvalidName, StoreFailed
from store.model import SpaceId

ROOT: Final = "refs/chatfs/"
LOG: Final = "log"
LOCK: Final = ".lock"
"""Git's name for the lock of a ref (or of `packed-refs`) is the ref's with this behind it."""
_TRIES: Final = 20
_VALUE: Final = re.compile(rb"([0-9a-f]{40})\n?")
_PACKED: Final = re.compile(rb"^([0-9a-f]{40}) (refs/chatfs/[^\n]+)$", re.MULTILINE)
_UNFIT: Final = re.compile(r"\.\.|\.lock(?:/|\Z)|\.(?:/|\Z)")


class BrokenRef(StoreFailed):
    """The ref's file isn't a commit's name: a power cut can leave it empty."""


def ref_name(space: str) -> str:
    """The ref of a space's log. Raises InvalidName."""
    check_space(space)
    if _UNFIT.search(space):
        raise InvalidName(f"{space!r} can't be a space in a git: store, since no ref may be called so")
    return f"{ROOT}{space}/{LOG}"


def replace_gits(label: str, path: Path, data: bytes, like: Path) -> None:
    """Replace a file of git's own: whoever may read `like`, one that is there, may read it. Raises OSError."""
    mode = stat.S_IMODE(like.stat().st_mode)
    with durability.replacing(label, path) as fd:
        durability.system.fchmod(label, fd, mode)
        durability.write_all(label, fd, data)
    durability.fsync_dir(label, path.parent)


class Refs:
    """The refs in `directory`, which is where a repository has its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = str(directory)
        self._packed_path = f"{directory}/packed-refs"
        self._packed: dict[str, str] = {}
        self._seen: tuple[int, int, int] | None = None

    def path(self, space: SpaceId) -> str:
        """Of the ref's file, which is there unless the ref is packed."""
        return f"{self._path}/{ref_name(space)}"

    def read(self, space: SpaceId) -> str | None:
        """The commit that the ref names; None where there is no ref. Raises BrokenRef, FormatError, OSError."""
        name = ref_name(space)
        try:
            fd = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return self.packed().get(name)
        try:
            data = os.read(fd, 4096)
        finally:
            os.close(fd)
        match = _VALUE.fullmatch(data)
        if match is not None:
            return match[1].decode()
        if data.startswith(b"ref:"):
            raise FormatError(
                f"{name} is a symbolic ref, to {data[4:].decode(errors='replace').strip()!r}: point it at the log's "
                f"last commit with git update-ref --no-deref {name} COMMIT"
            )
        raise BrokenRef(f"{name} names no commit: point it at the log's last one with git update-ref {name} COMMIT")

    def packed(self) -> dict[str, str]:
        """Refs and commits in `packed-refs`."""
        try:
            status = os.stat(self._packed_path)
        except FileNotFoundError:
            return {}
        seen = status.st_ino, status.st_size, status.st_mtime_ns
        if seen != self._seen:
            with open(self._packed_path, "rb") as file:
                data = file.read()
            self._packed = {name.decode(errors="replace"): value.decode() for value, name in _PACKED.findall(data)}
            self._seen = seen
        return self._packed

    def names(self, directory: str) -> list[str]:
        """The names of what has a log directly in `directory` ("workspace", a workspace's `chats`), sorted."""
        prefix = f"{ROOT}{directory}/"
        found = {
            rest.removesuffix(f"/{LOG}")
            for rest in (name.removeprefix(prefix) for name in self.packed() if name.startswith(prefix))
            if rest.endswith(f"/{LOG}") and rest.count("/") == 1
        }
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(f"{self._path}/{ROOT}{directory}"):
                if os.path.lexists(f"{entry.path}/{LOG}"):
                    found.add(entry.name)
        return sorted(found)

    def any(self) -> bool:
        """Whether there is a log."""
        return bool(self.names("workspace")) or any(name.startswith(ROOT) for name in self.packed())

    def remove(self, space: SpaceId, lock: Callable[[str], bool]) -> bool:
        """Remove a ref; False, and nothing is done, where `lock` can't make `packed-refs`' lock. Raises OSError."""
        gone = ref_name(space)
        if gone in self.packed():
            locked = self._packed_path + LOCK
            if not lock(locked):
                return False
            try:
                self._remove_packed(gone)
            finally:
                durability.discard("space.delete", locked)
        with contextlib.suppress(FileNotFoundError):
            durability.system.unlink("space.delete", f"{self._path}/{gone}")
        return True

    def _remove_packed(self, gone: str) -> None:
        with open(self._packed_path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        kept: list[bytes] = []
        dropped = False
        for line in lines:
            # A line with ^ belongs to the one before: what a tag points at.
            if not line.startswith(b"^"):
                dropped = line.rstrip(b"\n").partition(b" ")[2].decode(errors="replace") == gone
            if not dropped:
                kept.append(line)
        path = Path(self._packed_path)
        replace_gits("space.delete", path, b"".join(kept), path)

    def make_directory(self, label: str, path: str) -> None:
        """Make the directory of a ref, with those above it. Git removes such as are empty when it packs refs."""
        for attempt in count(1):
            try:
                durability.make_dirs(label, Path(path), self.directory)
                return
            except FileNotFoundError:
                if attempt == _TRIES:
                    raise

    def remove_directory(self, space: SpaceId) -> None:
        """Remove what is empty of a ref's directory. Whoever watches learns from it that the ref was removed."""
        directory = os.path.dirname(self.path(space))
        # It isn't there where the ref was packed.
        self.make_directory("space.delete", directory)
        for each in (f"{directory}/chats", directory):
            with contextlib.suppress(OSError):
                durability.system.rmdir("space.delete", each)
