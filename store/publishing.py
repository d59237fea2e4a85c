"""history.md beside a chat's log, with history.md.json, which says what it is: two files that belong together.

Several processes may leave theirs at once. Each is put there by a rename, first the text and then the note; whoever
finds another's text under its own note does both again. So in the end they are of one process, whoever was stopped
when. No lock is held meanwhile.

Concurrency: for any thread and process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from store import durability

TEXT_NAME: Final = "history.md"
NOTE_NAME: Final = "history.md.json"
_TRIES: Final = 100


def publish(directory: Path, put: Callable[[Path], int], note: bytes) -> None:
    """Leave both. `put` puts the text there and returns its inode; it may be called again. Raises OSError."""
    text, beside = directory / TEXT_NAME, directory / NOTE_NAME
    for _ in range(_TRIES):
        inode = put(text)
        durability.atomic_replace("rendered.publish", beside, note, durable=False)
        if beside.read_bytes() != note or os.lstat(text).st_ino == inode:
            break
