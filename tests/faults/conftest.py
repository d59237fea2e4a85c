"""Sessions write a lot and sync nothing: where the machine has a file system in memory, they run there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory if possible."""
    if not os.access(_MEMORY, os.W_OK | os.X_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="chatfs-faults-", dir=_MEMORY) as found:
        yield Path(found)
