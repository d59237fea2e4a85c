r"""The text of a log as a git tree: a function of the log's entries alone, so that the same entries give the same tree.

::

    base.json                                      what was truncated away last: {"seq","ts","crc"}; else not there
    history.jsonl                                  the newest lines
    history/000000/000000000093-000000016502.jsonl   sealed lines: up to entry 93, where 16502 bytes of text end

Lines are sealed from the text's beginning: a segment ends with the first line by which it has SEAL bytes, as soon as
another line follows. So an append writes a small blob and two small trees, and the end of the text is found in the
names, whatever its length. A directory has FANOUT segments.

Concurrency: pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import orjson

from store.drivers.file.tail import Mark

SEAL: Final = 16 * 1024
FANOUT: Final = 256

BASE: Final = b"base.json"
NEWEST: Final = b"history.jsonl"
SEALED: Final = b"history"
_FILE: Final = b"100644"
_DIRECTORY: Final = b"40000"
_SEGMENT: Final = re.compile(rb"([0-9]{12,18})-([0-9]{12,18})\.jsonl")


class Segment(NamedTuple):
    """Sealed lines: the seq of the last one, where it ends in the text, and the blob."""

    last: int
    end: int
    blob: str


class Root(NamedTuple):
    """The tree of a whole log."""

    newest: str
    sealed: str | None
    base: str | None


def _entry(mode: bytes, name: bytes, object_name: str) -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(object_name)


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes, str]]:
    at = 0
    while at < len(data):
        space = data.index(b" ", at)
        end = data.index(b"\0", space)
        yield data[at:space], data[space + 1 : end], data[end + 1 : end + 21].hex()
        at = end + 21


def encode_root(root: Root) -> bytes:
    """In git's order: a directory's name counts as if it ended with `/`."""
    found = [] if root.base is None else [_entry(_FILE, BASE, root.base)]
    found.append(_entry(_FILE, NEWEST, root.newest))
    if root.sealed is not None:
        found.append(_entry(_DIRECTORY, SEALED, root.sealed))
    return b"".join(found)


def parse_root(data: bytes) -> Root | None:
    """None where it has other files."""
    try:
        found = {(mode, name): object_name for mode, name, object_name in _entries(data)}
        root = Root(found.pop((_FILE, NEWEST)), found.pop((_DIRECTORY, SEALED), None), found.pop((_FILE, BASE), None))
    except (KeyError, ValueError):
        return None
    return None if found else root


def encode_directories(names: Iterable[str]) -> bytes:
    """`history`."""
    return b"".join(_entry(_DIRECTORY, b"%06d" % number, name) for number, name in enumerate(names))


def parse_directories(data: bytes) -> tuple[str, ...] | None:
    """Directories' objects; None where it is no `history`."""
    try:
        found = list(_entries(data))
    except ValueError:
        return None
    names = tuple(object_name for _, _, object_name in found)
    return names if names and encode_directories(names) == data else None


def encode_segments(segments: Iterable[Segment]) -> bytes:
    """A directory in `history`."""
    return b"".join(_entry(_FILE, b"%012d-%012d.jsonl" % segment[:2], segment.blob) for segment in segments)


def parse_segments(data: bytes) -> tuple[Segment, ...] | None:
    """None where it is no directory of segments."""
    found = []
    try:
        for _, name, object_name in _entries(data):
            match = _SEGMENT.fullmatch(name)
            if match is None:
                return None
            found.append(Segment(int(match[1]), int(match[2]), object_name))
    except ValueError:
        return None
    ordered = all(before < after for before, after in pairwise(found))
    return tuple(found) if found and ordered else None


def encode_base(base: Mark) -> bytes:
    """`base.json`."""
    return orjson.dumps({"seq": base.seq, "ts": base.ts, "crc": base.crc}) + b"\n"


def parse_base(data: bytes) -> Mark | None:
    """None where it is none."""
    try:
        found = orjson.loads(data)
        return Mark(int(found["seq"]), int(found["ts"]), int(found["crc"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def seal(text: bytes) -> Iterator[bytes]:
    """The segments that are sealed of a text which begins behind the last sealed one; then the rest of it."""
    start = 0
    while len(text) - start > SEAL:
        end = text.find(b"\n", start + SEAL - 1) + 1
        if end in {0, len(text)}:
            break
        yield text[start:end]
        start = end
    yield text[start:] if start else text
