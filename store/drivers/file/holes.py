"""Bytes of a file, piece by piece, without reading the holes that the file system knows of: they may be terabytes.

Concurrency: pure functions over an open descriptor, whose position they may move.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

_PIECE: Final = 1 << 20


class Span(NamedTuple):
    """Bytes of a file from `begin` to `end`; `data` is empty where the file itself has a hole: they are NUL."""

    begin: int
    end: int
    data: bytes


def spans(fd: int, begin: int, end: int) -> Iterator[Span]:
    """All that stands between two offsets, in pieces."""
    while begin < end:
        there = min(_next_data(fd, begin, end), end)
        if there > begin:
            yield Span(begin, there, b"")
            begin = there
            continue
        data = os.pread(fd, min(_PIECE, end - begin), begin)
        if not data:
            return
        yield Span(begin, begin + len(data), data)
        begin += len(data)


def _next_data(fd: int, begin: int, end: int) -> int:
    try:
        return os.lseek(fd, begin, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else begin


def end_of_data(fd: int, size: int) -> int:
    """The first `size` bytes without the NUL bytes at their end."""
    end = size
    with contextlib.suppress(OSError):  # else: a file system that doesn't know its holes
        at = 0
        while at < size and (begin := _next_data(fd, at, size)) < size:
            at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        end = at
    while end > 0:
        begin = max(0, end - _PIECE)
        data = os.pread(fd, end - begin, begin).rstrip(b"\0")
        if data:
            return begin + len(data)
        end = begin
    return 0
