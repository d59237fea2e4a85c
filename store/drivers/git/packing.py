"""Many loose objects become one pack, and many packs one: so that a long log costs neither inodes nor time.

A pack is in git's own format (gitformat-pack, version 2, with an index of version 2). That of an append differs from
what a packing program does in one thing: it knows what resembles what. Each append wrote the log's newest lines, so a
blob is mostly the beginning of a later one, and is stored as just that: "the first N bytes of that one". No search, and
no chain of deltas.

Packs are joined by copying what is in them: a delta says how far back its base is, which stays the same.

Nothing is removed before what holds it is on stable storage. Which objects are still wanted is not asked: all are kept.

Concurrency: for threads. One at a time packs a database (flock of `pack.lock`); others may write and read meanwhile.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from hashlib import sha1
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from store import durability
from store.drivers.git.objects import BLOB, COMMIT, TEMPORARY, TREE, BrokenObject, digest

_TYPES: Final = {COMMIT: 1, TREE: 2, BLOB: 3}
_OFFSET_DELTA: Final = 6
_HEADER: Final = struct.Struct(">4sII")
_COPY_MAX: Final = 0xFFFFFF
_JOIN: Final = 8
"""As many packs of about one size become one."""
_LARGEST: Final = 1 << 30
"""Bytes up to which packs are joined: an index of 31-bit offsets is enough then."""
_AT_ONCE: Final = 64 << 20
"""Bytes of objects that are held in memory for one pack."""
_LEVEL: Final = 6
_ABANDONED: Final = 3600
"""Seconds after which nobody still writes a temporary file."""
_PIECE: Final = 1 << 20
_FAN: Final = re.compile(r"[0-9a-f]{2}")
_REST: Final = re.compile(r"[0-9a-f]{38}")
_PACK: Final = re.compile(r"pack-[0-9a-f]{40}")


class _Loose(NamedTuple):
    name: str
    kind: bytes
    data: bytes
    path: str


class _Place(NamedTuple):
    name: bytes
    crc: int
    offset: int


def pack(label: str, odb: Path, *, strict: bool = False) -> int:
    """Pack all loose objects; how many those were. 0, too, where another does it. Raises OSError.

    One that isn't what its name says is put aside; with `strict`, BrokenObject is raised, and another that packs
    is waited for.
    """
    lock = durability.system.open(label, odb / "pack.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if strict else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        durability.make_dirs(label, odb / "pack", odb)
        _sweep(label, odb)
        done = 0
        for objects in _loose(label, odb, strict=strict):
            _write(label, odb, _encoded(objects))
            for each in objects:
                durability.discard(label, each.path)
            done += len(objects)
        _join(label, odb / "pack")
        return done
    finally:
        os.close(lock)


def loose(odb: Path) -> int:
    """About how many loose objects there are: of one directory of 256 it is looked at."""
    try:
        return len(os.listdir(odb / "17")) * 256
    except OSError:
        return 0


def _sweep(label: str, odb: Path) -> None:
    """Remove what the dead were writing."""
    for directory in (odb, odb / "pack"):
        for entry in list(os.scandir(directory)):
            if entry.name.startswith(TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > _ABANDONED:
                        durability.discard(label, entry.path)


def put_broken_aside(label: str, odb: Path) -> None:
    """Move loose objects that aren't what their names say to `quarantine`, beside the database. Raises OSError."""
    for path, name in _paths(odb):
        try:
            _read(path, name)
        except BrokenObject:
            _put_aside(label, odb, path, name)


def _put_aside(label: str, odb: Path, path: str, name: str) -> None:
    quarantine = odb.parent / "quarantine"
    durability.make_dirs(label, quarantine, odb.parent)
    durability.system.rename(label, path, quarantine / f"{name}.object")


def _paths(odb: Path) -> Iterator[tuple[str, str]]:
    """The loose objects: path and name."""
    for directory in sorted(name for name in os.listdir(odb) if _FAN.fullmatch(name)):
        for rest in sorted(os.listdir(odb / directory)):
            if _REST.fullmatch(rest) is not None:
                yield f"{odb}/{directory}/{rest}", directory + rest


def _loose(label: str, odb: Path, *, strict: bool) -> Iterator[list[_Loose]]:
    found: list[_Loose] = []
    size = 0
    for path, name in _paths(odb):
        try:
            each = _read(path, name)
        except BrokenObject:
            if strict:
                raise
            _put_aside(label, odb, path, name)
            continue
        found.append(each)
        size += len(each.data)
        if size > _AT_ONCE:
            yield found
            found, size = [], 0
    if found:
        yield found


def _read(path: str, name: str) -> _Loose:
    with open(path, "rb") as file:
        raw = file.read()
    try:
        head, _, data = zlib.decompress(raw).partition(b"\0")
    except zlib.error:
        head = data = b""
    kind = head.partition(b" ")[0]
    if kind not in _TYPES or digest(kind, data) != name:
        raise BrokenObject(f"{path} isn't git object {name}: run git fsck, and fetch it from a backup")
    return _Loose(name, kind, data, path)


# ---- a pack's entries


def _encoded(objects: list[_Loose]) -> Iterator[tuple[bytes, bytes]]:
    """Each object's name and what stands in the pack for it, in the pack's order."""
    for kind in (COMMIT, TREE):
        for each in objects:
            if each.kind == kind:
                yield bytes.fromhex(each.name), _head(_TYPES[kind], len(each.data)) + zlib.compress(each.data, _LEVEL)
    # The longest of those that begin alike comes last in order: its beginnings come right before it.
    blobs = sorted((each for each in objects if each.kind == BLOB), key=lambda each: each.data, reverse=True)
    whole: _Loose | None = None
    back = 0
    for each in blobs:
        if whole is not None and each.data and whole.data.startswith(each.data):
            delta = zlib.compress(_beginning(len(whole.data), len(each.data)), _LEVEL)
            size = len(_beginning(len(whole.data), len(each.data)))
            entry = _head(_OFFSET_DELTA, size) + _distance(back) + delta
        else:
            whole, back = each, 0
            entry = _head(_TYPES[BLOB], len(each.data)) + zlib.compress(each.data, _LEVEL)
        back += len(entry)
        yield bytes.fromhex(each.name), entry


def _head(kind: int, size: int) -> bytes:
    """Four bits of size beside the type, then seven in each byte."""
    byte = kind << 4 | size & 15
    size >>= 4
    found = bytearray()
    while size:
        found.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    found.append(byte)
    return bytes(found)


def _distance(back: int) -> bytes:
    """How far back a delta's base begins: as gitformat-pack says, each byte but the last counts one more."""
    found = [back & 0x7F]
    back >>= 7
    while back:
        back -= 1
        found.append(back & 0x7F | 0x80)
        back >>= 7
    return bytes(reversed(found))


def _beginning(size: int, count: int) -> bytes:
    """A delta: the first `count` bytes of a base of `size`."""
    found = bytearray(_varint(size) + _varint(count))
    offset = 0
    while offset < count:
        part = min(count - offset, _COPY_MAX)
        code, rest = 0x80, bytearray()
        for bit, byte in enumerate(offset.to_bytes(4, "little")):
            if byte:
                code |= 1 << bit
                rest.append(byte)
        for bit, byte in enumerate(part.to_bytes(3, "little")):
            if byte:
                code |= 0x10 << bit
                rest.append(byte)
        found.append(code)
        found += rest
        offset += part
    return bytes(found)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


# ---- files


def _write(label: str, odb: Path, entries: Iterator[tuple[bytes, bytes]]) -> None:
    body = bytearray()
    places: list[_Place] = []
    for name, entry in entries:
        places.append(_Place(name, zlib.crc32(entry), _HEADER.size + len(body)))
        body += entry
    data = _HEADER.pack(b"PACK", 2, len(places)) + body
    total = sha1(data, usedforsecurity=False).digest()
    directory = odb / "pack"
    path = directory / f"pack-{total.hex()}"
    _put(label, path.with_suffix(".pack"), data + total)
    # The index makes it visible.
    _put(label, path.with_suffix(".idx"), _index(places, total))
    durability.fsync_dir(label, directory)
    durability.fsync_dir(label, odb)


def _put(label: str, path: Path, data: bytes) -> None:
    beside = path.with_name(f"{TEMPORARY}{path.suffix[1:]}_{secrets.token_hex(8)}")
    durability.write_new(label, beside, data)
    try:
        durability.system.rename(label, beside, path)
    except BaseException:
        durability.discard(label, beside)
        raise


def _index(places: list[_Place], total: bytes) -> bytes:
    places = sorted(places)
    counts = [0] * 256
    for place in places:
        counts[place.name[0]] += 1
    fan, seen = [], 0
    for found in counts:
        seen += found
        fan.append(seen)
    data = b"".join(
        [
            b"\xfftOc",
            struct.pack(">I256I", 2, *fan),
            *(place.name for place in places),
            struct.pack(f">{len(places)}I", *(place.crc for place in places)),
            struct.pack(f">{len(places)}I", *(place.offset for place in places)),
            total,
        ]
    )
    return data + sha1(data, usedforsecurity=False).digest()


def _read_index(path: Path) -> list[_Place]:
    data = path.read_bytes()
    count = struct.unpack_from(">I", data, 8 + 255 * 4)[0]
    names = 8 + 256 * 4
    crcs = struct.unpack_from(f">{count}I", data, names + 20 * count)
    offsets = struct.unpack_from(f">{count}I", data, names + 24 * count)
    return [
        _Place(data[names + 20 * number : names + 20 * number + 20], crcs[number], offsets[number])
        for number in range(count)
    ]


def _join(label: str, directory: Path) -> None:
    """Where there are many packs of about one size: one of them all."""
    sizes: dict[int, list[tuple[int, Path]]] = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".idx") and _PACK.fullmatch(name[:-4]):
            path = directory / f"{name[:-4]}.pack"
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                if size * _JOIN <= _LARGEST:
                    sizes.setdefault(size.bit_length() // 3, []).append((size, path))
    for packs in sizes.values():
        if len(packs) >= _JOIN:
            # There may be any number of them, after a burst, or where joining failed for a while.
            together = accumulate(size for size, _ in packs)
            fit = sum(size <= _LARGEST for size in together)
            _join_packs(label, directory, [path for _, path in packs[:fit]])


def _join_packs(label: str, directory: Path, packs: list[Path]) -> None:
    places: list[_Place] = []
    indexes = [_read_index(path.with_suffix(".idx")) for path in packs]
    count = sum(map(len, indexes))
    beside = directory / f"{TEMPORARY}pack_{secrets.token_hex(8)}"
    fd = durability.create(label, beside)
    try:
        try:
            at = _HEADER.size
            head = _HEADER.pack(b"PACK", 2, count)
            total = sha1(head, usedforsecurity=False)
            durability.write_all(label, fd, head)
            for path, index in zip(packs, indexes, strict=True):
                shift = at - _HEADER.size
                places += (_Place(place.name, place.crc, place.offset + shift) for place in index)
                for piece in _body(path):
                    total.update(piece)
                    durability.write_all(label, fd, piece)
                    at += len(piece)
            name = total.hexdigest()
            durability.write_all(label, fd, total.digest())
            durability.system.fsync(label, fd)
        finally:
            os.close(fd)
        durability.system.rename(label, beside, directory / f"pack-{name}.pack")
    except BaseException:
        durability.discard(label, beside)
        raise
    _put(label, directory / f"pack-{name}.idx", _index(places, bytes.fromhex(name)))
    durability.fsync_dir(label, directory)
    for path in packs:
        durability.discard(label, path.with_suffix(".idx"))
        durability.discard(label, path)


def _body(path: Path) -> Iterator[bytes]:
    """A pack without its header and its checksum."""
    left = path.stat().st_size - _HEADER.size - 20
    with path.open("rb") as file:
        file.seek(_HEADER.size)
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise BrokenObject(f"{path} is shorter than it was: run git fsck")
            left -= len(piece)
            yield piece
