"""A store to be damaged: made once, and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.support.checked import Made, make


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return trio.run(make, tmp_path_factory.mktemp("fsck") / "store")


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    root = tmp_path / "store"
    shutil.copytree(original.root, root, symlinks=True)
    return Made(root, {name: root / path.relative_to(original.root) for name, path in original.chats.items()})
