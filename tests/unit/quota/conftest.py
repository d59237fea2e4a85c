"""A store with one workspace, which has one chat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.library import Store, open_store
from store.workspace import Workspace
from tests.support.quotas import ME


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"file://{tmp_path}/store") as store:
        yield store


@pytest.fixture
async def workspace(store: Store) -> Workspace:
    workspace = await store.create_workspace("demo", ME)
    await (await workspace.create_chat("trip", ME)).append_lines([b'"first"'], ME)
    return workspace
