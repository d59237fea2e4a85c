"""Commands, as in tests/cli, and a root directory for containers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli, demo

__all__ = ["Cli", "cli", "demo"]

NAMES = (
    "cat",
    "df",
    "echo",
    "find",
    "head",
    "id",
    "kill",
    "ls",
    "ln",
    "mkdir",
    "mknod",
    "mount",
    "ps",
    "pwd",
    "rm",
    "sh",
)
MORE = ("sleep", "sort", "stty", "touch", "true", "tty", "umount", "wc")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """With a static busybox under the names that the scripts use."""
    root = tmp_path / "rootfs"
    for name in ("bin", "chat", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox isn't installed: scripts/test does that"
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in (*NAMES, *MORE):
        (root / "bin" / name).symlink_to("busybox")
    return root
