"""Put what stands behind an entry in the log's place: how its beginning is dropped, and how it is written anew.

The base is written before the shortened log takes the old one's place (see `text`).

Concurrency: under the maintenance lock and the log's; in a thread, or while opening.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import os
from typing import Final

from store import durability
from store.drivers.file.stable import Stable
from store.drivers.file.tail import Mark
from store.drivers.file.text import BASE_NAME, Text, encode_base

_PIECE: Final = 1024 * 1024


def replace(fd: int, text: Text, stable: Stable, base: Mark, record: bool) -> None:  # noqa: FBT001
    """Put what stands behind `base` in `fd` in the log's place. `record`: `history.base` doesn't say so yet."""
    directory = text.directory
    if record:
        with stable.decisive("truncating"):
            durability.system.fdatasync("log.truncate", fd)

    def write_base() -> None:
        if record:
            durability.atomic_replace("log.base", directory / BASE_NAME, encode_base(base))

    with durability.replacing("log.truncate", text.path, before_rename=write_base) as target:
        offset = base.end
        while piece := os.pread(fd, _PIECE, offset):
            durability.write_all("log.truncate", target, piece)
            offset += len(piece)
    with stable.decisive("truncating"):
        durability.fsync_dir("log.truncate", directory)
