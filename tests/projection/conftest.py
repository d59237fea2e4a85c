"""Somebody with a store and a project."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.projection.project import Person, git, person

_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """An empty directory, in memory if possible: people sync a lot."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="chatfs-projection-", dir=place) as found:
        yield Path(found)


@pytest.fixture
async def me(tmp_path: Path) -> AsyncIterator[Person]:
    """With a store on disk and a project in a git repository."""
    directory = tmp_path / "project"
    directory.mkdir()
    git(directory, "init", "-q", "-b", "main")
    async with person(f"file://{tmp_path}/store", directory) as found:
        yield found
