"""The file index.db: opened, made, put aside, or done without.

A file that can't be used is no error. One that is damaged, or isn't an index, is renamed to `index.db.bad`; one of
another version is removed; then a new one is made. Where nothing can be written, or somebody keeps the file locked, a
private temporary one takes its place, with as much of the real one as can be copied; it lasts as long as the connection
to it.

Concurrency: blocking; for threads. Whoever opens or replaces the file holds the flock of its directory meanwhile, so
that nobody loses the write-ahead log of a file that has just been made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from store import durability
from store.index import schema

NAME: Final = "index.db"
_BAD: Final = ".bad"
_BESIDE: Final = ("", "-wal", "-shm", "-journal")
BUSY_SECONDS: Final = 5.0
"""How long others may take for a transaction; theirs take a fraction of a second."""
_CACHE_KIB: Final = 16 * 1024
_WAL_BYTES: Final = 32 * 1024 * 1024

Unusable = (sqlite3.DatabaseError, zlib.error, UnicodeError)
"""What reading or writing raises where the file, or what is in it, can't be used."""

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR})
"""Result codes; SQLITE_ERROR is a table that isn't there. Any other says that the place is bad, not the file."""


class Foreign(sqlite3.DatabaseError):
    """The file is something else than an index."""


class Outdated(Foreign):
    """The file is an index of another version."""


def is_damage(error: Exception) -> bool:
    """Whether the file itself is to be replaced."""
    if isinstance(error, OSError):
        return False
    if isinstance(error, Foreign) or not isinstance(error, sqlite3.DatabaseError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in _DAMAGE


def reason(error: Exception) -> str:
    """One line."""
    return str(error) or type(error).__name__


def connect(path: Path) -> sqlite3.Connection:
    """The index at `path`, made if there is none. Raises `Unusable`, OSError."""
    with _directory(path.parent):
        # Nobody else's index must be readable by others for a moment. Only a file that is made here is opened so:
        # closing a descriptor gives up all locks that SQLite holds on the file in this process.
        with contextlib.suppress(FileExistsError):
            os.close(durability.create("index.make", path))
        if path.is_symlink() or not path.is_file():
            raise Foreign(f"{path} is no file")
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            # The logs have all of it anyway.
            connection.execute("PRAGMA secure_delete = OFF")
            schema.create(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raises Foreign."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application, version, tables) == (0, 0, 0):
        return
    if application != schema.APPLICATION:
        raise Foreign(f"{path} is no index of chatfs")
    if version != schema.VERSION:
        raise Outdated(f"{path} has version {version}, not {schema.VERSION}")


def put_aside(path: Path, *, keep: bool) -> None:
    """Take the file away; with `keep`, as `index.db.bad`. Nobody must have it open in this process. Raises OSError."""
    bad = path.with_name(path.name + _BAD)
    with _directory(path.parent):
        if keep:
            _remove(bad)
            with contextlib.suppress(FileNotFoundError):
                durability.system.rename("index.replace", path, bad)
        for suffix in _BESIDE:
            _remove(path.with_name(path.name + suffix))


def _remove(path: Path) -> None:
    try:
        durability.system.unlink("index.replace", path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        durability.system.rmdir("index.replace", path)


def borrowed(path: Path | None) -> sqlite3.Connection:
    """A private index on a temporary file, with what can be read at `path`."""
    connection = _temporary()
    if path is not None:
        try:
            _copy(path, connection)
        except (*Unusable, OSError):
            connection.close()
            connection = _temporary()
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    schema.create(connection)
    return connection


def _temporary() -> sqlite3.Connection:
    """An empty name: a file that SQLite deletes at once, and writes only what its cache can't hold."""
    return sqlite3.connect("", isolation_level=None, check_same_thread=False)


def _copy(path: Path, target: sqlite3.Connection) -> None:
    # A file with a write-ahead log can't be opened in a directory that can't be written, unless it is said to be still.
    for mode in ("mode=ro", "immutable=1"):
        if mode == "immutable=1" and os.access(path.parent, os.W_OK):
            continue
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{quote(os.fsencode(path))}?{mode}", uri=True, timeout=1)
            ) as source:
                _check(source, path)
                source.backup(target)
                return
        except sqlite3.OperationalError:
            continue


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Hold the directory's flock."""
    path.mkdir(mode=durability.DIRECTORY_MODE, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(errno.ETIMEDOUT, "another process keeps it locked", str(path)) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)
