"""Attacks: what somebody could try who gives chatfs files, or may use a mount. Each is a test, with what happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from fusefs.cli.entry import main
from store.driver import Access
from store.library import Store, open_store
from tests.support.mounts import message

T = TypeVar("T")


@dataclass
class Target:
    """A store, and the commands in this process."""

    root: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def url(self) -> str:
        return f"file://{self.store}"

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """One command: exit code, stdout, stderr."""
        self.capfd.readouterr()
        try:
            code = main(["--store", self.url, *map(str, words)])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        sys.stdout.flush()
        return code, *self.capfd.readouterr()

    def ask(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do it with the library."""

        async def opened() -> T:
            async with open_store(self.url, access=Access.MAKE) as store:
                return await work(store)

        return trio.run(opened)

    def chat(self, name: str = "trip", workspace: str = "demo") -> Path:
        """A chat with a bit of everything; its directory in the store."""

        async def make(store: Store) -> Path:
            known = {each.state.name: each for each in await store.workspaces()}
            of = known.get(workspace) or await store.create_workspace(workspace, "uid:0/test")
            chat = await of.create_chat(name, "uid:0/test")
            await chat.append_lines([message(f"message {number}") for number in range(20)], "uid:0/test")
            await chat.attach("small.txt", b"small", "uid:0/test")
            await chat.attach("large.bin", os.urandom(3_000_000), "uid:0/test")
            await chat.text()
            await chat.sync()
            return self.store / "workspace" / of.id / "chats" / chat.id

        return self.ask(make)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Target:
    for kind in ("DATA", "CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("CHATFS_STORE", raising=False)
    return Target(tmp_path, capfd)


def tree(directory: Path) -> dict[str, bytes | str | None]:
    """All names below, with the bytes of files and where links lead."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(directory.rglob("*"))
    }
