"""One fixture per driver: a new driver adds its backend here and runs the whole suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.driver import Driver
from tests.contract.backends import Backend, FileBackend, GitBackend, MemoryBackend


@pytest.fixture(params=["memory", "file", "git"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    found: Backend = {
        "memory": MemoryBackend,
        "file": lambda: FileBackend(tmp_path / "store"),
        "git": lambda: GitBackend(tmp_path / "store"),
    }[request.param]()
    yield found
    await found.aclose()


@pytest.fixture
async def driver(backend: Backend) -> Driver:
    return await backend.open()


@pytest.fixture
async def file_backend(tmp_path: Path) -> AsyncIterator[FileBackend]:
    found = FileBackend(tmp_path / "store")
    yield found
    await found.aclose()


@pytest.fixture
async def git_backend(tmp_path: Path) -> AsyncIterator[GitBackend]:
    found = GitBackend(tmp_path / "store")
    yield found
    await found.aclose()
