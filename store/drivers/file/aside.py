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
    path, fd = _fresh(directory, stem, suffix)
    size = 0
    try:
        for piece in pieces:
            durability.write_all("quarantine", fd, piece)
            size += len(piece)
        durability.system.fsync("quarantine", fd)
    except BaseException:
        durability.discard("quarantine", path)
        raise
    finally:
        os.close(fd)
    told = {"from": source, "when": now, **note, "size": size}
    durability.atomic_replace("quarantine", path.with_suffix(".json"), orjson.dumps(told) + b"\n")
    return path.name


def _fresh(directory: Path, stem: str, suffix: str) -> tuple[Path, int]:
    for number in itertools.count():
        path = directory / f"{stem}-{number}.{suffix}"
        try:
            return path, durability.create("quarantine", path)
        except FileExistsError:
            continue
    raise AssertionError
