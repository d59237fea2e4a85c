"""Fixtures for all tests: real mounts."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, Workspace, mounting

_numbers = itertools.count(1)


# Who was started in the background of a script ignores SIGINT, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start chatfs hundreds of times: it is compiled once, even where the environment wants no bytecode kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector needn't go through it every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A fresh mount on a fresh store."""
    with mounting(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for all tests of a module that need no store of their own."""
    with mounting(tmp_path_factory.mktemp("mount")) as found:
        yield found


@pytest.fixture
def workspace(shared_mount: Mounted) -> Workspace:
    """A fresh workspace in the module's mount."""
    return shared_mount.workspace(f"w{next(_numbers)}")


@pytest.fixture
def chat(workspace: Workspace) -> Chat:
    """A fresh chat, with two messages: `hello` by the user, `hi there` by the assistant."""
    found = workspace.chat()
    found.say("hello", "hi there")
    return found
