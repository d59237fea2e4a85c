"""Git objects: chatfs's own database within the repository, and reading from all that the repository has.

What chatfs writes goes to `chatfs/odb` in the repository's directory, which `objects/info/alternates` names. Git reads
an alternate as it reads its own objects, and never prunes, repacks or deletes there: so `git gc --prune=now`, which
would delete an object that is newer than its walk over the refs, has no part in it.

Concurrency: `write` and `read` at any time, from any thread; objects are immutable, and appear under their names whole.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import os
import secrets
import zlib
from hashlib import sha1
from itertools import count
from pathlib import Path
from typing import Final

import pygit2

from store import durability
from store.errors import StoreFailed

BLOB: Final = b"blob"
TREE: Final = b"tree"
COMMIT: Final = b"commit"
NAME_SIZE: Final = 40
TEMPORARY: Final = "tmp_"
"""How names begin that git and chatfs give to what they are writing."""
LEVEL: Final = 1
"""Of compression. Most of what is written is written again, with one more line, and packed by and by."""

_TYPES: Final = {1: COMMIT, 2: TREE, 3: BLOB}


class BrokenObject(StoreFailed):
    """An object isn't there, or isn't what its name says."""


def digest(kind: bytes, data: bytes) -> str:
    """The name of an object."""
    return sha1(b"%b %d\0%b" % (kind, len(data), data), usedforsecurity=False).hexdigest()


class Objects:
    """The objects of one repository; `path` is where new ones go."""

    def __init__(self, repository: Path, path: Path) -> None:
        self.path = path
        self.written = 0
        """How many were written and not packed since."""
        self._directory = str(path)
        self._repository_path = str(repository)
        self._repository: pygit2.Repository | None = None
        self._own = secrets.token_hex(8)
        self._turn = count()

    def close(self) -> None:
        """Let go of files."""
        found, self._repository = self._repository, None
        if found is not None:
            found.free()

    def read(self, name: str, kind: bytes) -> bytes:
        """The bytes of an object of that kind. Raises BrokenObject."""
        try:
            try:
                found, data = self._open().read(name)[:2]
            except (KeyError, ValueError, OSError, pygit2.GitError):
                # A pack that was open was replaced by another.
                self.close()
                found, data = self._open().read(name)[:2]
        except (KeyError, ValueError, OSError, pygit2.GitError) as error:
            raise BrokenObject(f"git object {name} can't be read: run git fsck, and fetch it from a backup") from error
        if _TYPES.get(found) != kind:
            raise BrokenObject(f"git object {name} is no {kind.decode()}: fetch the log's ref from a backup")
        return bytes(data)

    def _open(self) -> pygit2.Repository:
        if self._repository is None:
            self._repository = pygit2.Repository(self._repository_path)
        return self._repository

    def write(self, label: str, kind: bytes, data: bytes) -> tuple[str, str]:
        """Write an object; its name, and the path of its file. Raises OSError.

        It is written also where there is one already, since that may not be on stable storage.
        """
        whole = b"%b %d\0%b" % (kind, len(data), data)
        name = sha1(whole, usedforsecurity=False).hexdigest()
        directory = f"{self._directory}/{name[:2]}"
        path = f"{directory}/{name[2:]}"
        beside = f"{self._directory}/{TEMPORARY}obj_{self._own}{next(self._turn)}"
        fd = durability.create(label, beside)
        try:
            try:
                durability.write_all(label, fd, zlib.compress(whole, LEVEL))
            finally:
                os.close(fd)
            try:
                durability.system.rename(label, beside, path)
            except FileNotFoundError:
                durability.make_dirs(label, Path(directory), self.path.parent)
                durability.system.rename(label, beside, path)
        except BaseException:
            durability.discard(label, beside)
            raise
        self.written += 1
        return name, path
