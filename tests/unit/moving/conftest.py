"""A store to be moved: made once, and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.support.moved import (
    fill,
)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `filled`."""
    path = tmp_path_factory.mktemp("template")
    trio.run(fill, path)
    return path


@pytest.fixture
def filled(template: Path, tmp_path: Path) -> Path:
    """Store `a`: two workspaces, chats in every place, attachments (long, removed, replaced), one compacted."""
    shutil.copytree(template / "a", tmp_path / "a", ignore=shutil.ignore_patterns("instances"))
    return tmp_path
