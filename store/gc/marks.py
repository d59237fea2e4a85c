r"""Which blobs are in use: every digest that a log, a draft, a compacted state, quarantine or backup names anywhere.

Text is searched for digests, not decoded: what looks like a use keeps its blob, whatever kind of event it stands in,
and however damaged the line is. A letter may be written as `\u00xx`, as JSON allows. What was removed from a chat stays
in use while the log has the event that put it there. Where a compacted log's state can't be read, nobody knows what it
names: such a log is unsound.

Concurrency: for a thread. Logs grow meanwhile: `look` again reads what is new.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from store import codec, regular
from store.beginning import COMPACTED, base_of
from store.digests import DIGEST, unescaped
from store.driver import CHUNK
from store.drivers.chunks import split_digest
from store.drivers.file.objects import Objects, suffix_of
from store.drivers.file.tail import Mark, pread_all
from store.drivers.file.text import LOG_NAME, read_base
from store.drivers.file.torn import is_torn
from store.errors import BlobNotFound, FormatError, StoreError
from store.fsck import logs
from store.fsck.context import locked
from store.model import Digest, SpaceId, is_uuid

_STATE: Final = re.compile(rb'"state":\s*"(sha256(?:-chunks)?:[0-9a-f]{64})"')
_PACKED: Final = b'{"snapshot":'
_PIECE: Final = 1 << 20
_OVERLAP: Final = 1024
"""Longer than any digest with its key, however it is written."""


class Marks:
    """The digests in use in the store at `root`. `without`: spaces that are as good as deleted."""

    def __init__(self, root: Path, objects: Objects, without: frozenset[SpaceId] = frozenset()) -> None:
        self._root = root
        self._objects = objects
        self._without = without
        self._used: set[bytes] = set()
        self._states: set[Digest] = set()
        self._seen: dict[Path, tuple[int, int]] = {}
        self._checked: set[Path] = set()
        self.unsound: list[Path] = []
        """Logs that can't be read to their ends, or whose states can't: what they use isn't known."""

    def __contains__(self, digest: Digest) -> bool:
        is_long, name = split_digest(digest)
        return _key(is_long, name) in self._used

    def long_names(self) -> Iterator[str]:
        """The hex of each long blob's digest that is in use."""
        return (key[:32].hex() for key in self._used if len(key) > 32)

    def look(self) -> None:
        """Read what is new since the last look. Raises OSError: what can't be listed may use anything."""
        for path in self._logs():
            self._look_at(path)
            if path not in self._checked:
                self._checked.add(path)
                if not self._is_sound(path):
                    self._give_up(path)
        for path in self._others():
            self._look_at(path)

    def _give_up(self, path: Path) -> None:
        if path not in self.unsound:
            self.unsound.append(path)

    # ---- where digests are named

    def _logs(self) -> Iterator[Path]:
        for workspace in _directories(self._root / "workspace"):
            if SpaceId(f"workspace/{workspace.name}") in self._without:
                continue
            yield workspace / LOG_NAME
            for chat in _directories(workspace / "chats"):
                if SpaceId(f"workspace/{workspace.name}/chats/{chat.name}") not in self._without:
                    yield chat / LOG_NAME
                    yield from (chat / "snapshots").glob("*.json")

    def _others(self) -> Iterator[Path]:
        yield from (self._root / "drafts").glob("*.json")
        for directory in ("quarantine", "backup"):
            for found, _names, files in os.walk(self._root / directory):
                yield from (Path(found) / name for name in files)

    def _look_at(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(fd)
            inode, size = self._seen.get(path, (0, 0))
            if (inode, size) == (status.st_ino, status.st_size) and path.name == LOG_NAME:
                return
            begin = max(0, size - _OVERLAP) if inode == status.st_ino and path.name == LOG_NAME else 0
            missing = self._search(path, fd, begin, status.st_size)
            self._seen[path] = (status.st_ino, status.st_size)
        finally:
            os.close(fd)
        if missing and path.name == LOG_NAME and _begins_with(path, missing):
            self._give_up(path)

    def _search(self, path: Path, fd: int, begin: int, end: int) -> set[Digest]:
        """Take in a range of a file; return what may be its states and isn't there."""
        missing: set[Digest] = set()
        while begin < end:
            text = pread_all(fd, min(_PIECE, end - begin), begin)
            if not text:
                break
            missing |= self._take(path, text)
            begin += len(text)
            if begin < end:
                begin -= min(_OVERLAP, len(text) - 1)
        return missing

    def _take(self, path: Path, text: bytes) -> set[Digest]:
        missing: set[Digest] = set()
        text = unescaped(text)
        for match in DIGEST.finditer(text):
            self._used.add(_key(match[1] is not None, match[2].decode()))
        for match in _STATE.finditer(text):
            state = Digest(match[1].decode())
            if state in self._states:
                continue
            try:
                self._states.add(state)
                self._open_state(path, state)
            except BlobNotFound:
                # Any text may look like this; and it may be there when it is named again.
                self._states.discard(state)
                missing.add(state)
            except (StoreError, OSError):
                self._give_up(path)
        return missing

    def _open_state(self, path: Path, digest: Digest) -> None:
        """A compacted log's state is a blob that names others. Raises StoreError, OSError."""
        manifest = self._objects.manifest(digest)
        rest = b""
        for index, chunk in enumerate(manifest.chunks):
            text = rest + self._objects.read(chunk + suffix_of(manifest), 0, CHUNK)
            if index == 0 and not text.startswith(_PACKED):
                return
            self._take(path, text)
            rest = text[-_OVERLAP:]

    # ---- whether logs can be believed

    def _is_sound(self, path: Path) -> bool:
        if path.name != LOG_NAME:
            return True
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            if self._checks(fd, path):
                return True
        finally:
            os.close(fd)
        try:
            # Somebody may have been writing, or truncating.
            with locked(path) as fd:
                return self._checks(fd, path)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    @staticmethod
    def _checks(fd: int, path: Path) -> bool:
        try:
            base = read_base(path.parent)
        except (FormatError, OSError):
            return False
        size = os.fstat(fd).st_size
        found = logs.check(fd, size, base, lambda _telling: None)
        if found.complete:
            return True
        return is_torn(fd, Mark(found.seq, 0, found.crc, found.end), size)


def _begins_with(path: Path, missing: set[Digest]) -> bool:
    """Whether the log at `path` begins behind one of these states, or may do so."""
    try:
        through = read_base(path.parent).seq
        if not through:
            return False
        with regular.opened(path) as file:
            for line in file:
                if COMPACTED.encode() in line and _state_of(line, through) in missing:
                    return True
    except FileNotFoundError:
        return False
    except (FormatError, OSError):
        return True
    return False


def _state_of(line: bytes, through: int) -> Digest | None:
    """The state that a line says led through that entry."""
    entry = codec.parse(line.rstrip(b"\n"))
    try:
        base = base_of(entry) if entry is not None else None
    except orjson.JSONDecodeError:
        return None
    return base.digest if base is not None and base.through == through else None


def _key(is_long: bool, name: str) -> bytes:  # noqa: FBT001
    return bytes.fromhex(name) + (b"+" if is_long else b"")


def _directories(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as found:
            return [Path(each.path) for each in found if is_uuid(each.name) and each.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
