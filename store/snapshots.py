r"""Snapshots on disk: a space's state at a seq, so that opening it costs the tail of its log and not all of it.

::

    snapshots/<seq>.json     {"snapshot":1,"seq","crc","state":{…},"items":{…},"text":{…},"sum":"1f2e3d4c"}\n
    snapshots/<seq>.items    a chat's older messages, where there are many
    snapshots/<seq>.md       a chat's rendered text; history.md is another name of the newest one

`crc` is the log's at `seq`: a snapshot of another log, or of another past, doesn't fit. `sum` is CRC-32 of the bytes
before `,"sum"`; items and text have the SHA-256 of each MiB in `parts`. A snapshot is only ever a cache: one that is
damaged, missing or of another version costs time. The same content in one piece, as a blob, is the base of a compacted
log: the JSON line, then items, then text.

What a state is, `store.snapshot` knows. Concurrency: plain blocking I/O, inline or in a thread.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from zlib import crc32

import orjson

from store import durability
from store.errors import CorruptSnapshot
from store.model import Seq
from store.publishing import publish
from store.snapshot import Dump, Source

VERSION: Final = 1
DIRECTORY: Final = "snapshots"
PART: Final = 1024 * 1024
KEPT: Final = 2
"""How many snapshots of a space stay: the second serves where the newest is damaged."""
_SUM: Final = b',"sum":"'

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Kind(Generic[S]):
    """How a kind of state is made, dumped and loaded (see `store.kinds`).

    `complete` reads what a loaded state has left in its source; `pieces` is its rendered text, where it has one.
    """

    make: Callable[[], S]
    dump: Callable[[S], Dump]
    load: Callable[[dict[str, Any], Source], S]
    complete: Callable[[S], None]
    pieces: Callable[[S], Iterable[bytes]]


# ---- the JSON line


def _encode(head: dict[str, Any]) -> bytes:
    body = orjson.dumps(head)[:-1]
    return b'%b%b%08x"}\n' % (body, _SUM, crc32(body))


def _decode(line: bytes, where: str) -> dict[str, Any]:
    body, found, rest = line.rpartition(_SUM)
    if not found or rest != b'%08x"}\n' % crc32(body):
        raise CorruptSnapshot(f"{where} is damaged")
    try:
        head: dict[str, Any] = orjson.loads(body + b"}")
        shaped = isinstance(head["state"], dict) and _is_part(head["items"]) and _is_part(head["text"])
        version, head["seq"], head["crc"] = head["snapshot"], int(head["seq"]), int(head["crc"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptSnapshot(f"{where} isn't a snapshot") from error
    if version != VERSION:
        raise CorruptSnapshot(f"{where} is of another version")
    if not shaped:
        raise CorruptSnapshot(f"{where} isn't a snapshot")
    return head


def _is_part(part: dict[str, Any]) -> bool:
    size, sums = part["size"], part["parts"]
    return type(size) is int and size >= 0 and len(sums) == -(-size // PART)


def _part(data: bytes) -> dict[str, Any]:
    view = memoryview(data)
    sums = [hashlib.sha256(view[at : at + PART]).hexdigest() for at in range(0, len(data), PART)]
    return {"size": len(data), "parts": sums}


# ---- where a loaded state gets the rest from


class _Checked:
    """Ranges of one part, each piece of it checked once."""

    def __init__(self, part: dict[str, Any], read: Callable[[int, int], bytes], where: str) -> None:
        self.size: int = part["size"]
        self._sums: list[str] = part["parts"]
        self._read = read
        self._where = where
        self._good = bytearray(len(self._sums))

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        for index in range(offset // PART, (end - 1) // PART + 1):
            if not self._good[index]:
                piece = self._read(index * PART, min(PART, self.size - index * PART))
                if hashlib.sha256(piece).hexdigest() != self._sums[index]:
                    raise CorruptSnapshot(f"{self._where} is damaged at byte {index * PART}")
                self._good[index] = True
        data = self._read(offset, end - offset)
        if len(data) != end - offset:
            raise CorruptSnapshot(f"{self._where} is shorter than it was")
        return data


class FileSource:
    """The parts of a snapshot on disk. The files stay open: a newer snapshot may take their names away."""

    def __init__(self, stem: str, head: dict[str, Any]) -> None:
        self._fds: list[int] = []
        self._text = self._open(stem + ".md", head["text"])
        self._items = self._open(stem + ".items", head["items"])

    def _open(self, path: str, part: dict[str, Any]) -> _Checked:
        fd = -1
        if part["size"]:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError as error:
                self.close()
                raise CorruptSnapshot(f"{path} can't be read: {error.strerror}") from error
            self._fds.append(fd)
            if os.fstat(fd).st_size != part["size"]:
                self.close()
                raise CorruptSnapshot(f"{path} has another size than it had")

        def read(offset: int, size: int) -> bytes:
            if fd not in self._fds:
                raise CorruptSnapshot(f"{path} was closed")
            try:
                return os.pread(fd, size, offset)
            except OSError as error:
                raise CorruptSnapshot(f"{path} can't be read: {error.strerror}") from error

        return _Checked(part, read, path)

    def items(self) -> bytes:
        """See Source."""
        return self._items.read(0, self._items.size)

    def text(self, offset: int, size: int) -> bytes:
        """See Source."""
        return self._text.read(offset, size)

    def close(self) -> None:
        """Let go of the files."""
        while self._fds:
            os.close(self._fds.pop())

    __del__ = close


class MemorySource:
    """The parts of a dumped state that is held in memory as a whole."""

    def __init__(self, head: dict[str, Any], data: bytes, at: int, where: str) -> None:
        items: int = head["items"]["size"]
        self._items = _Checked(head["items"], lambda offset, size: data[at + offset :][:size], where)
        start = at + items
        self._text = _Checked(head["text"], lambda offset, size: data[start + offset :][:size], where)
        if len(data) != start + self._text.size:
            raise CorruptSnapshot(f"{where} has another size than it had")

    def items(self) -> bytes:
        """See Source."""
        return self._items.read(0, self._items.size)

    def text(self, offset: int, size: int) -> bytes:
        """See Source."""
        return self._text.read(offset, size)


# ---- in one piece


def pack(kind: Kind[S], state: S, seq: Seq, crc: int, **more: Any) -> bytes:
    """A state in one piece: the base of a compacted log. `more` stands in the JSON line, too."""
    dump = kind.dump(state)
    text = b"".join(kind.pieces(state))
    head = {"snapshot": VERSION, "seq": seq, "crc": crc, **more, "state": dump.state}
    head |= {"items": _part(dump.items), "text": _part(text)}
    return _encode(head) + dump.items + text


def unpack(kind: Kind[S], data: bytes, where: str) -> tuple[S, dict[str, Any]]:
    """The state, and its JSON line. Raises CorruptSnapshot."""
    end = data.find(b"\n") + 1
    head = _decode(data[:end], where)
    return kind.load(head["state"], MemorySource(head, data, end, where)), head


# ---- in a directory


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot of which the JSON line is good."""

    seq: Seq
    crc: int
    stem: str
    head: dict[str, Any]

    def open(self) -> FileSource:
        """Its other parts. Raises CorruptSnapshot."""
        return FileSource(self.stem, self.head)


class Snapshots(Generic[S]):
    """The snapshots of one space. Nothing is changed where it isn't `writable`."""

    __slots__ = ("_distrusted", "_kind", "_parent", "writable")

    def __init__(self, kind: Kind[S], parent: Callable[[], Path], *, writable: bool = True) -> None:
        self.writable = writable
        self._kind = kind
        self._parent = parent
        self._distrusted: set[int] = set()

    @property
    def directory(self) -> Path:
        """Where they are. It may not exist yet."""
        return self._parent() / DIRECTORY

    def seqs(self) -> list[Seq]:
        """Of which seqs there are some, newest first."""
        directory = self.directory
        try:
            names = [] if os.path.islink(directory) else os.listdir(directory)
        except OSError:
            return []
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        found = {int(stem) for stem in stems if stem.isascii() and stem.isdigit()} - self._distrusted
        return [Seq(seq) for seq in sorted(found, reverse=True)]

    def find(self, seq: Seq) -> Found:
        """That one. Raises CorruptSnapshot."""
        stem = f"{self.directory}/{seq}"
        try:
            fd = os.open(stem + ".json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(fd, "rb") as file:
                line = file.read()
        except OSError as error:
            raise CorruptSnapshot(f"{stem}.json can't be read: {error.strerror}") from error
        head = _decode(line, stem + ".json")
        if head["seq"] != seq:
            raise CorruptSnapshot(f"{stem}.json is of entry {head['seq']}")
        return Found(seq, head["crc"], stem, head)

    def write(self, state: S, seq: Seq, crc: int, log_size: int) -> None:
        """Write one; the JSON file, which makes the others count, comes last. Raises OSError.

        `log_size` tells how much of the log, in bytes, stood before it: so when the next one is due.
        """
        directory = self.directory
        parent = directory.parent
        if os.path.islink(directory):
            raise OSError(errno.ELOOP, "a symbolic link stands in the place of a directory", str(directory))
        for changed in durability.make_dirs("snapshot.make", directory, parent):
            durability.fsync_dir("snapshot.make", changed)
        self._distrusted.discard(seq)
        dump = self._kind.dump(state)
        stem = f"{directory}/{seq}"
        text = _write_text(Path(stem + ".md"), self._kind.pieces(state))
        if dump.items:
            durability.atomic_replace("snapshot.items", Path(stem + ".items"), dump.items)
        head = {"snapshot": VERSION, "seq": seq, "crc": crc, "log_size": log_size, "state": dump.state}
        head |= {"items": _part(dump.items), "text": {"size": text.size, "parts": text.parts}}
        durability.atomic_replace("snapshot.write", Path(stem + ".json"), _encode(head))
        if text.size:
            # Other processes may have written newer ones meanwhile, and dropped this one's parts.
            with contextlib.suppress(FileNotFoundError):
                _publish(parent, Path(stem + ".md"), seq, crc, text)
        self._keep_newest()

    def _keep_newest(self) -> None:
        seqs = self.seqs()
        for seq in seqs[KEPT:]:
            self.discard(seq)
        if len(seqs) < KEPT:
            return
        oldest = seqs[KEPT - 1]
        for name in os.listdir(self.directory):
            # What a crash left of one that was being written or dropped. A newer one may be being written just now, by
            # another process; if it gets old meanwhile, that process drops it itself.
            stem, _, suffix = name.partition(".")
            if suffix in {"md", "items"} and stem.isdigit() and int(stem) < oldest:
                with contextlib.suppress(FileNotFoundError):
                    durability.system.unlink("snapshot.drop", self.directory / name)

    def distrust(self, seq: Seq) -> None:
        """Never take that one again, and drop it if that can be done."""
        self._distrusted.add(seq)
        if self.writable:
            with contextlib.suppress(OSError):
                self.discard(seq)

    def discard(self, seq: Seq) -> None:
        """Drop one: the JSON file first."""
        for suffix in (".json", ".items", ".md"):
            with contextlib.suppress(FileNotFoundError):
                durability.system.unlink("snapshot.drop", f"{self.directory}/{seq}{suffix}")


class _Summed:
    """What goes by: its size, the digest of the whole and of each part."""

    def __init__(self) -> None:
        self.size = 0
        self.parts: list[str] = []
        self.whole = hashlib.sha256()

    def parts_of(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        held = bytearray()
        for piece in pieces:
            held += piece
            while len(held) >= PART:
                yield self._take(bytes(held[:PART]))
                del held[:PART]
        if held:
            yield self._take(bytes(held))

    def _take(self, data: bytes) -> bytes:
        self.size += len(data)
        self.parts.append(hashlib.sha256(data).hexdigest())
        self.whole.update(data)
        return data


def _write_text(path: Path, pieces: Iterable[bytes]) -> _Summed:
    """Write a rendered text, durable; no file where it is empty."""
    summed = _Summed()
    parts = summed.parts_of(pieces)
    first = next(parts, None)
    if first is None:
        return summed
    with durability.replacing("snapshot.text", path) as fd:
        durability.write_all("snapshot.text", fd, first)
        for part in parts:
            durability.write_all("snapshot.text", fd, part)
    return summed


def note(seq: Seq, crc: int, size: int, sha256: str) -> bytes:
    """The bytes of history.md.json: what the history.md beside it is."""
    return orjson.dumps({"seq": seq, "crc": crc, "size": size, "sha256": sha256}) + b"\n"


def _publish(directory: Path, text: Path, seq: Seq, crc: int, summed: _Summed) -> None:
    """history.md, for people who look into the store: another name of the snapshot's text."""

    def put(path: Path) -> int:
        inode = os.stat(text).st_ino
        beside = durability.temporary(path)
        durability.system.link("rendered.publish", text, beside)
        durability.system.rename("rendered.publish", beside, path)
        # rename(2) leaves both names where they were one file already.
        with contextlib.suppress(FileNotFoundError):
            durability.system.unlink("rendered.publish", beside)
        return inode

    publish(directory, put, note(seq, crc, summed.size, summed.whole.hexdigest()))
