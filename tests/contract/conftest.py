"""One fixture per driver: a new driver adds its backend here and runs the whole suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.driver import Driver
from tests.contract.backends import Backend, FileBackend, MemoryBackend


@pytest.fixture(params=["memory", "file"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    found: Backend = MemoryBackend() if request.param == "memory" else FileBackend(tmp_path / "store")
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
