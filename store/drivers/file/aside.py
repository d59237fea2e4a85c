"""Keep bytes in `quarantine/`: what a repair takes out of its place, with a note that says when, why and where from.

Nothing in there is ever deleted by the store. Torn tails are `repair`'s.

Concurrency: for a thread; names are unique.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from store import durability
from store.model import Millis


def keep(root: Path, source: str, pieces: Iterable[bytes], note: dict[str, Any], now: Millis, *, suffix: str) -> str:
    """Write the bytes and the note; return the name of the bytes' file. Durable.

    `source` says where they stood, as a path in the store; `note` is completed with it, the time and the size.
    """
    directory = root / "quarantine"
    for changed in durability.make_dirs("quarantine", directory, root):
        durability.fsync_dir("quarantine", changed)
    stem = f"{source.replace('/', '-')[-180:]}-{now}"
    path, fd = fresh(directory, stem, suffix)
    try:
        size = copy(fd, pieces)
        durability.system.fsync("quarantine", fd)
    except BaseException:
        durability.discard("quarantine", path)
        raise
    finally:
        os.close(fd)
    told = {"from": source, "when": now, **note, "size": size}
    durability.atomic_replace("quarantine", path.with_suffix(".json"), orjson.dumps(told) + b"\n")
    return path.name


def copy(fd: int, pieces: Iterable[bytes | int]) -> int:
    """Write pieces; a number stands for so many NUL bytes. Pieces that are all NUL take no room. The size of all."""
    end = written = 0
    for piece in pieces:
        if isinstance(piece, int):
            end += piece
            continue
        if piece.strip(b"\0"):
            os.lseek(fd, end, os.SEEK_SET)
            durability.write_all("quarantine", fd, piece)
            written = end + len(piece)
        end += len(piece)
    if written != end:
        durability.system.ftruncate("quarantine", fd, end)
    return end


def fresh(directory: Path, stem: str, suffix: str) -> tuple[Path, int]:
    """A new file under a name of its own: its path, and a descriptor."""
    for number in itertools.count():
        path = directory / f"{stem}-{number}.{suffix}"
        try:
            return path, durability.create("quarantine", path)
        except FileExistsError:
            continue
    raise AssertionError
