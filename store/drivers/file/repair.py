"""Keep the bytes of a torn tail before they are cut off: `quarantine/`, never deleted by the store.

Doesn't judge what is torn (`torn` does) and doesn't cut (`log` does).

Concurrency: under the log's lock; names are unique, so logs don't disturb each other.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from store import durability
from store.drivers.file import aside
from store.drivers.file.holes import spans
from store.model import Head, Millis, SpaceId


def quarantine(root: Path, space: SpaceId, fd: int, head: Head, size: int, now: Millis) -> Path:
    """Copy the `size` bytes behind the head of the log that `fd` reads; return the copy's path. Durable.

    A JSON file beside it says when, why and where from.
    """
    directory = root / "quarantine"
    durability.make_dirs("quarantine", directory, root)
    durability.fsync_dir("quarantine", root)  # whoever made it may not have
    path, target = aside.fresh(directory, f"{space.replace('/', '-')}-{now}", "torn")
    try:
        aside.copy(target, (span.data or span.end - span.begin for span in spans(fd, head.size, head.size + size)))
        durability.system.fsync("quarantine", target)
    except BaseException:
        durability.discard("quarantine", path)
        raise
    finally:
        os.close(target)
    note = {
        "space": space,
        "when": now,
        "why": "a write was interrupted: these bytes followed the last whole batch",
        "after_seq": head.seq,
        "offset": head.size,
        "size": size,
    }
    durability.atomic_replace("quarantine", path.with_suffix(".json"), orjson.dumps(note) + b"\n")
    return path
