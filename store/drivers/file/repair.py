"""Keep the bytes of a torn tail before they are cut off: `quarantine/`, never deleted by the store.

Doesn't judge what is torn (`tail` does) and doesn't cut (`log` does).

Concurrency: under the log's lock; names are unique, so logs don't disturb each other.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from store import durability
from store.model import Head, Millis, SpaceId


def quarantine(root: Path, space: SpaceId, torn: bytes, head: Head, now: Millis) -> Path:
    """Write the bytes and a JSON file that says when, why and where from; return the bytes' path. Durable."""
    directory = root / "quarantine"
    durability.make_dirs("quarantine", directory, root)
    durability.fsync_dir("quarantine", root)  # whoever made it may not have
    stem = f"{space.replace('/', '-')}-{now}"
    number = 0
    while True:
        path = directory / f"{stem}-{number}.torn"
        try:
            durability.write_new("quarantine", path, torn)
            break
        except FileExistsError:
            number += 1
    note = {
        "space": space,
        "when": now,
        "why": "a write was interrupted: these bytes followed the last whole batch",
        "after_seq": head.seq,
        "offset": head.size,
        "size": len(torn),
    }
    durability.atomic_replace("quarantine", path.with_suffix(".json"), orjson.dumps(note) + b"\n")
    return path
