"""`store.json`: which format a directory has as a store, or why it is none.

`{"format": N, "id": UUID}`; other keys are kept. What the numbers mean is in FORMAT.md, "Versions". A directory that
isn't a store is told apart from a store whose description is missing or damaged, and is never written to.

Concurrency: none of its own; of several processes that make a store at once, one's description stays.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from store import durability, locks
from store.errors import FormatError, StoreFailed, StoreNotFound

FORMAT: Final = 2
"""What is written here; FORMAT.md, "Versions"."""
DESCRIPTION: Final = "store.json"
BACKUP: Final = "backup"
"""Where migrations leave what they change."""
KNOWN: Final = frozenset({DESCRIPTION, BACKUP, "workspace", "objects", "kv", "drafts", "quarantine", "instances"})
"""What stands in a store's directory, besides the index and names that begin with a dot."""

_BEFORE: Final = (f".{DESCRIPTION}.", "lost+found")
"""How names begin that may stand in a directory that becomes a store."""
_SIZE_MAX: Final = 1 << 20
_WANTING: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})
"""What is raised by a file system that can't do something."""
_FOREIGN: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class Description:
    """`store.json`."""

    format: int
    fields: dict[str, Any]
    """All of it."""

    def with_format(self, number: int) -> bytes:
        """The bytes of the same store's description in another format."""
        return orjson.dumps(self.fields | {"format": number}) + b"\n"


def read(root: Path) -> Description | None:
    """What the store at `root` says of itself; None where nothing is there, so that a store may be made.

    Raises FormatError where something else is there, StoreFailed where it can't be read.
    """
    while (data := _read(root)) is None:
        if _is_free(root):
            return None
    path = root / DESCRIPTION
    try:
        found = orjson.loads(data)
        number = found["format"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if type(number) is not int or number < 1:
        raise _damaged(path)
    if number > FORMAT:
        raise FormatError(f"the store at {root} has format {number}, this chatfs knows {FORMAT}: use a newer chatfs")
    return Description(number, found)


def refuse_links(root: Path) -> None:
    """Raises FormatError where a link stands in the place of one of the store's directories: it leads elsewhere."""
    for name in sorted(KNOWN):
        if os.path.islink(root / name):
            raise FormatError(
                f"{root / name} is a symbolic link, which isn't followed: put the store's own directory there"
            )


def _damaged(path: Path) -> FormatError:
    return FormatError(f"{path} doesn't describe a chatfs store: restore it from a backup, or see FORMAT.md, Versions")


def _read(root: Path) -> bytes | None:
    """The bytes of `store.json`; None where there is none."""
    path = root / DESCRIPTION
    try:
        # A symbolic link isn't followed, and a FIFO isn't waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.ENXIO, "it is no file")
            return os.read(fd, _SIZE_MAX)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        there = next(each for each in (root, *root.parents) if os.path.lexists(each))
        raise FormatError(f"{there} is no directory, so no chatfs store is there: name a directory") from error
    except OSError as error:
        if error.errno in _FOREIGN and os.path.lexists(path):
            raise FormatError(f"{path} is not an ordinary file: put the store's own back") from error
        raise _unreadable(root, error) from error


def _unreadable(root: Path, error: OSError) -> StoreFailed:
    reason = os.strerror(error.errno or errno.EIO)
    return StoreFailed(f"the store at {root} can't be read: {reason}: see who may, or name another with --store")


def _is_free(root: Path) -> bool:
    """Whether a store can be made at `root`, which has no description; False where it has one by now."""
    for each in (root, *root.parents):
        if os.path.islink(each) and not os.path.exists(each):
            raise FormatError(
                f"{each} is a symbolic link to {os.readlink(each)}, which isn't there: make that directory, or "
                "name another"
            )
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _unreadable(root, error) from error
    strangers = [name for name in names if not name.startswith(_BEFORE)]
    if not strangers:
        return True
    if os.path.lexists(root / DESCRIPTION):
        return False
    if "workspace" in strangers:
        raise FormatError(
            f"{root / DESCRIPTION} is missing, but chats are there: restore it from a backup, or see FORMAT.md, "
            "Versions"
        )
    raise FormatError(f"{root} isn't empty and isn't a chatfs store: choose another directory")


def make(root: Path) -> bool:
    """Make a store where `read` found nothing; whether nobody else has meanwhile."""
    missing = root
    while not missing.exists():
        missing = missing.parent
    changed = durability.make_dirs("store.make", root, missing)
    described = root / DESCRIPTION
    beside = durability.temporary(described)
    durability.write_new("store.make", beside, orjson.dumps({"format": FORMAT, "id": str(uuid.uuid4())}) + b"\n")
    first = True
    try:
        with _wanting(root, "file locks (flock)"):
            _check_locks(beside)
        with _wanting(root, "hard links"):
            durability.system.link("store.make", beside, described)
    except FileExistsError:
        first = False
    finally:
        durability.discard("store.make", beside)
    for directory in {root, *changed}:
        durability.fsync_dir("store.make", directory)
    return first


@contextlib.contextmanager
def _wanting(root: Path, what: str) -> Iterator[None]:
    """Raises StoreFailed where the block finds that the file system has no such thing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WANTING:
            raise
        raise StoreFailed(
            f"no store can be at {root}: the file system there has no {what} ({os.strerror(error.errno)}): "
            "choose a directory on another one"
        ) from error


def _check_locks(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        locks.try_lock(fd)
    finally:
        os.close(fd)


def require(root: Path) -> Description:
    """As `read`. Raises StoreNotFound where nothing is there."""
    found = read(root)
    if found is None:
        raise StoreNotFound(f"there is no store at {root}: chatfs workspace create NAME makes it")
    return found


def why_read_only(root: Path) -> str:
    """Why this process can't write the store; "" where it can."""
    for directory in (root, root / "workspace"):
        try:
            # In this order: what another process makes between the two is no directory that can't be written.
            if os.path.lexists(directory) and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
                read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
                return os.strerror(errno.EROFS if read_only else errno.EACCES)
        except OSError as error:
            raise _unreadable(root, error) from error
    return ""
