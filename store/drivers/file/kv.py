"""Documents as files: `kv/<key>.json`, each {"key", "etag", "value"}.

In a file name every byte of the key but letters, digits, `-` and `_` is percent-encoded, and `/` is a comma; a key
that gets too long for a name is called `~` and its SHA-256. So names are safe, never collide, and most can be read.

Concurrency: writers of all processes take turns on `kv/.lock`, in threads. Readers take no lock: a file is replaced
in one step. Watchers are told of names and read the files themselves.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import orjson
import trio

from store import durability, locks, regular
from store.driver import ABSENT, Document, Etag, EtagConflict, KvChange
from store.drivers.file.watch import NAMES, Watches
from store.drivers.keys import check_key
from store.drivers.signal import Signal
from store.errors import FormatError

_SUFFIX: Final = ".json"
_LONGEST: Final = 220
_DOTS: Final = re.compile(r"[.~]")


def file_name(key: str) -> str:
    """The name of a key's file."""
    name = _DOTS.sub(lambda found: f"%{ord(found[0]):02X}", quote(key, safe="/")).replace("/", ",")
    if len(name) > _LONGEST:
        name = "~" + hashlib.sha256(key.encode()).hexdigest()
    return name + _SUFFIX


class FileKv:
    """See `store.driver.JsonKv`."""

    def __init__(self, root: Path, watches: Watches, limiter: trio.CapacityLimiter) -> None:
        self._root = root
        self._directory = root / "kv"
        self._lock = self._directory / ".lock"
        self._watches = watches
        self._limiter = limiter
        self._synced = False
        self._doubtful = False
        """Whether a document was deleted and that couldn't be made durable."""

    async def get(self, key: str) -> Document | None:
        """See JsonKv."""
        check_key(key)
        with durability.failing(f"reading {key!r}"):
            return self._read(self._directory / file_name(key))

    async def put(self, key: str, value: Any, *, if_match: Etag | None = None) -> Document | EtagConflict:
        """See JsonKv."""
        check_key(key)
        etag = Etag(secrets.token_hex(16))
        data = orjson.dumps({"key": key, "etag": etag, "value": value}) + b"\n"
        with durability.failing(f"writing {key!r}"):
            conflict = await trio.to_thread.run_sync(self._put, key, data, if_match, limiter=self._limiter)
        return conflict if conflict is not None else Document(orjson.loads(data)["value"], etag)

    async def delete(self, key: str, *, if_match: Etag | None = None) -> EtagConflict | None:
        """See JsonKv."""
        check_key(key)
        with durability.failing(f"deleting {key!r}"):
            return await trio.to_thread.run_sync(self._delete, key, if_match, limiter=self._limiter)

    async def list(self, prefix: str = "") -> list[str]:
        """See JsonKv."""
        await trio.lowlevel.checkpoint()
        with durability.failing("listing documents"):
            return sorted(key for key in map(self._key_of, self._names()) if key is not None and key.startswith(prefix))

    @asynccontextmanager
    async def watch(self, prefix: str = "") -> AsyncIterator[AsyncIterator[KvChange]]:
        """See JsonKv."""
        with durability.failing("watching documents"):
            await trio.to_thread.run_sync(self._make, limiter=self._limiter)
        changes = _Changes(self, prefix)
        remove = self._watches.add(self._directory, NAMES, changes.told)
        try:
            changes.begin()
            yield changes
        finally:
            remove()

    def _put(self, key: str, data: bytes, if_match: Etag | None) -> EtagConflict | None:
        path = self._directory / file_name(key)
        with locks.blocking_lock(self._lock, self._make_lock):
            conflict = self._conflict(path, if_match)
            if conflict is None:
                durability.atomic_replace("kv.put", path, data)
                if not self._synced:
                    # Whoever made the directory may not have synced its name: once per instance.
                    durability.fsync_dir("kv.put", self._root)
                    self._synced = True
            return conflict

    def _delete(self, key: str, if_match: Etag | None) -> EtagConflict | None:
        path = self._directory / file_name(key)
        if if_match is None and not path.exists() and not self._doubtful:
            return None
        with locks.blocking_lock(self._lock, self._make_lock):
            conflict = self._conflict(path, if_match)
            if conflict is None and path.exists():
                self._doubtful = True
                durability.system.unlink("kv.delete", path)
                durability.fsync_dir("kv.delete", self._directory)
                self._doubtful = False
            elif self._doubtful:
                # One was unlinked, and that may not be durable.
                durability.sync_names_again("kv.delete", self._directory)
                self._doubtful = False
            return conflict

    def _conflict(self, path: Path, if_match: Etag | None) -> EtagConflict | None:
        if if_match is None:
            return None
        found = self._read(path)
        return None if (ABSENT if found is None else found.etag) == if_match else EtagConflict(found)

    def _make(self) -> None:
        for changed in durability.make_dirs("kv.make", self._directory, self._root):
            durability.fsync_dir("kv.make", changed)

    def _make_lock(self) -> int:
        self._make()
        return durability.system.open("kv.lock", self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)

    def _read(self, path: Path) -> Document | None:
        found = self._load(path)
        return None if found is None else Document(found["value"], Etag(found["etag"]))

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            data = regular.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in regular.REFUSED:
                raise FormatError(f"{path} isn't a file of its own: remove it, or restore it from a backup") from error
            raise
        try:
            found = orjson.loads(data)
            if isinstance(found, dict) and {"key", "etag", "value"} <= found.keys():
                return found
        except orjson.JSONDecodeError as error:
            raise FormatError(f"{path} isn't a document: restore it from a backup") from error
        raise FormatError(f"{path} isn't a document: restore it from a backup")

    def _names(self) -> Sequence[str]:
        try:
            return [name for name in os.listdir(self._directory) if name.endswith(_SUFFIX) and name[0] != "."]
        except FileNotFoundError:
            return []

    def _key_of(self, name: str) -> str | None:
        if name[0] != "~":
            return unquote(name.removesuffix(_SUFFIX).replace(",", "/"), errors="strict")
        found = self._load(self._directory / name)
        return None if found is None else str(found["key"])

    def versions(self) -> dict[str, tuple[str, Etag]]:
        """Every document's file name with its key and etag."""
        found = {}
        for name in self._names():
            document = self._load(self._directory / name)
            if document is not None:
                found[name] = (str(document["key"]), Etag(document["etag"]))
        return found

    def load(self, name: str) -> tuple[str, Document] | None:
        """The key and the document in a file."""
        found = self._load(self._directory / name)
        return None if found is None else (str(found["key"]), Document(found["value"], Etag(found["etag"])))


class _Changes:
    """One watcher. It knows each document's etag, so that a change told twice, or only as "something", is found."""

    def __init__(self, kv: FileKv, prefix: str) -> None:
        self._kv = kv
        self._prefix = prefix
        self._known: dict[str, tuple[str, Etag]] = {}
        self._moved: dict[str, None] = {}
        self._everything = False
        self._signal = Signal()

    def begin(self) -> None:
        self._known = self._kv.versions()

    def told(self, _mask: int, name: str) -> None:
        if not name:
            self._everything = True
        elif name.endswith(_SUFFIX) and name[0] != ".":
            self._moved[name] = None
        else:
            return
        self._signal.notify()

    def __aiter__(self) -> _Changes:
        return self

    async def __anext__(self) -> KvChange:
        while True:
            await trio.lowlevel.checkpoint()
            event = self._signal.event()
            if self._everything:
                self._everything = False
                for name in self._kv.versions().keys() | self._known.keys():
                    self._moved[name] = None
            while self._moved:
                name = next(iter(self._moved))
                del self._moved[name]
                with durability.failing("reading a document that changed"):
                    change = self._change(name)
                if change is not None and change.key.startswith(self._prefix):
                    return change
            await event.wait()

    def _change(self, name: str) -> KvChange | None:
        found = self._kv.load(name)
        before = self._known.get(name)
        if found is None:
            if before is None:
                return None
            del self._known[name]
            return KvChange(before[0], None)
        key, document = found
        if before is not None and before[1] == document.etag:
            return None
        self._known[name] = (key, document.etag)
        return KvChange(key, document)
