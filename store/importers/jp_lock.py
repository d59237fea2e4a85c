"""JP's locks on its conversations, taken as JP takes them.

Whoever writes a conversation has an exclusive flock(2) on `locks/jp-c<id>.lock`, in the user's storage of the project
(`<data>/jp/workspace/[<name>-]<project-id>/`) where there is one, else in the project's `.jp/`. JP tries once and
doesn't wait; nor does this. The file's text (`{"pid","session","acquired_at"}`) only says who it is; when the lock is
given back the file is removed, so who gets a lock looks whether the file is still the one of that name.

JP takes no lock to read. `readable` takes a shared one where there is a lock file, and makes none.

Concurrency: for a thread; a lock belongs to an open file, not to the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from store.errors import Conflict
from store.importers.jp_format import CONVERSATIONS, PROJECT, display_id

_LOCKS: Final = "locks"
_PROJECT_ID: Final = re.compile(r"[0-9a-z]{1,32}")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES: Final = 100
_INFO_MAX: Final = 4096


@contextlib.contextmanager
def readable(conversations: Path, conversation: int) -> Iterator[None]:
    """While nobody writes the conversation. Raises Conflict where somebody has its lock."""
    with contextlib.ExitStack() as held:
        for directory in _directories(conversations):
            held.enter_context(_shared(directory / _name(conversation)))
        yield


@contextlib.contextmanager
def writable(conversations: Path, conversation: int) -> Iterator[None]:
    """While nobody else reads or writes the conversation. Raises Conflict where somebody has its lock, OSError."""
    found = [directory / _name(conversation) for directory in _directories(conversations)]
    chosen = next((path for path in found if os.path.lexists(path)), found[0])
    with contextlib.ExitStack() as held:
        for path in found:
            if path != chosen:
                held.enter_context(_shared(path, f"{display_id(conversation)} is "))
        directory = held.enter_context(_opened(chosen.parent))
        fd = _take(directory, chosen.name, conversation)
        try:
            _say_who(fd)
            yield
        finally:
            # Removed while it is still locked: so nobody locks a file that has no name any more, and believes it.
            with contextlib.suppress(OSError):
                os.unlink(chosen.name, dir_fd=directory)
            os.close(fd)


def _name(conversation: int) -> str:
    return f"{display_id(conversation)}.lock"


def _directories(conversations: Path) -> list[Path]:
    """Where a lock may stand, the place that JP prefers first."""
    own = user_storage(conversations)
    return [*([own / _LOCKS] if own is not None else []), _root(conversations) / _LOCKS]


def _root(conversations: Path) -> Path:
    return conversations.parent if conversations.name == CONVERSATIONS else conversations


def user_storage(conversations: Path) -> Path | None:
    """The user's storage of the project that has these conversations."""
    root = _root(conversations)
    try:
        with (root / ".id").open("rb") as file:
            lines = file.read(_INFO_MAX).decode(errors="replace").split("\n")
    except OSError:
        return None
    project = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not _PROJECT_ID.fullmatch(project):
        return None
    try:
        found = [
            path
            for path in (_user_data() / "workspace").iterdir()
            if (path.name == project or path.name.endswith(f"-{project}")) and path.is_dir()
        ]
        named = [path for path in found if path.name == f"{root.resolve().parent.name}-{project}"]
        return named[0] if named else max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    except OSError:
        return None


def _user_data() -> Path:
    own, base = os.environ.get("JP_USER_DATA_DIR"), os.environ.get("XDG_DATA_HOME", "")
    if own:
        return Path(own)
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share") / "jp"


@contextlib.contextmanager
def _shared(path: Path, what: str = "") -> Iterator[None]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    try:
        _lock(fd, fcntl.LOCK_SH, what)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor of a directory of locks, made where it isn't there, which no link leads to from JP's own."""
    if directory.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, which isn't followed", str(directory))
    above = directory.parent
    names = [above.name, directory.name] if above.name == PROJECT else [directory.name]
    fd = os.open(above.parent if above.name == PROJECT else above, _DIRECTORY)
    try:
        for name in names:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
            inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _take(directory: int, name: str, conversation: int) -> int:
    for _ in range(_TRIES):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(name, flags, 0o644, dir_fd=directory)
        try:
            _lock(fd, fcntl.LOCK_EX, f"{display_id(conversation)} is ")
            here = os.fstat(fd)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(here, os.stat(name, dir_fd=directory, follow_symlinks=False)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(errno.EBUSY, "its lock changes hands all the time: try again later", name)


def _lock(fd: int, how: int, what: str) -> None:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"{what}in use by {_who(fd)}: try again when that is done") from None


def _who(fd: int) -> str:
    """Who says in the lock file that they have it."""
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        info = orjson.loads(os.pread(fd, _INFO_MAX, 0))
        if isinstance(info, dict) and type(info.get("pid")) is int:
            since = info.get("acquired_at")
            return f"process {info['pid']}" + (f" since {since}" if isinstance(since, str) else "")
    return "another process"


def _say_who(fd: int) -> None:
    info = {"pid": os.getpid(), "session": "chatfs", "acquired_at": datetime.now(UTC).isoformat()}
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, orjson.dumps(info), 0)
