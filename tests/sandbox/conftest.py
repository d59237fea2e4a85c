"""Commands in sandboxes on one store; what surrounds them is made and looked at by the library, in this process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
import trio

from fusefs.unmount import lazy_unmount, mounts
from store import sandboxes
from store.driver import Access
from store.errors import WorkspaceNotFound
from store.library import Store, open_store
from store.model import clock_ms
from tests.cli.conftest import Cli
from tests.support.mounts import message, read_log

T = TypeVar("T")

NAMES = (
    *(
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
    ),
    *("sleep", "sort", "stty", "touch", "tr", "true", "tty", "umount", "unshare", "wc"),
)
_numbers = count(1)


@dataclass
class Chat:
    """One chat, as it stands in the store."""

    cli: Sandboxed
    name: str
    id: str
    log_file: Path

    @property
    def path(self) -> str:
        return f"demo/{self.name}"

    def events(self, kind: str = "") -> list[Any]:
        """What its log says of a kind: `sandbox.exited`; all of it."""
        found = [orjson.loads(entry.data) for entry in read_log(self.log_file)]
        return [event for event in found if not kind or event.get("type") == kind]

    def text(self) -> str:
        async def read(store: Store) -> bytes:
            return await (await (await store.workspace("demo")).chat(self.name)).text()

        return self.cli.ask(read).decode()

    def says(self, *contents: str) -> list[bool]:
        """Which of them are messages."""
        said = [event["content"] for event in self.events("message.appended")]
        return [content in said for content in contents]

    def sandbox(self, *words: str | Path, given: bytes = b"") -> tuple[int, str, str]:
        """Run one to its end."""
        return self.cli.attempt("sandbox", "run", self.path, *words, given=given)

    def session(self) -> sandboxes.SandboxSession | None:
        """The session on it, if one is written down."""
        return next((each for each in self.cli.sessions() if each.chat == self.id), None)


class Sandboxed(Cli):
    """With a workspace `demo`."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "XDG_RUNTIME_DIR"}

    def ask(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do it with the store."""

        async def opened() -> T:
            async with open_store(f"file://{self.store}", access=Access.MAKE) as store:
                return await work(store)

        return trio.run(opened)

    def chat(self, *more: str) -> Chat:
        """A fresh chat of the messages `hello`, `hi there` and others."""
        name = f"trip{next(_numbers)}"
        texts = ("hello", "hi there", *more)

        async def make(store: Store) -> tuple[str, Path]:
            try:
                workspace = await store.workspace("demo")
            except WorkspaceNotFound:
                workspace = await store.create_workspace("demo", "uid:0/test")
            chat = await workspace.create_chat(name, "uid:0/test")
            await chat.append_lines([message(text) for text in texts], "uid:0/test")
            await chat.sync()
            return chat.id, self.store / "workspace" / workspace.id / "chats" / chat.id / "history.jsonl"

        return Chat(self, name, *self.ask(make))

    def sessions(self) -> list[sandboxes.SandboxSession]:
        async def look(store: Store) -> list[sandboxes.SandboxSession]:
            return await sandboxes.sessions(store.driver)

        return self.ask(look)

    def active(self) -> list[str]:
        """The chats that sandboxes have now."""
        return [each.chat for each in self.sessions() if each.active(clock_ms())]

    def mounted(self) -> list[Path]:
        return [each.mountpoint for each in mounts() if each.mountpoint.is_relative_to(self.root)]

    def left_over(self) -> list[Path]:
        """Mounts and directories of sandboxes."""
        base = self.root / "state/chatfs/sandboxes"
        return [*(base.iterdir() if base.exists() else []), *self.mounted()]


def begun(
    demo: Sandboxed, chat: Chat, *words: str, script: str = "sleep 600", given: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A sandbox whose command has started."""
    process = demo.begin("sandbox", "run", chat.path, *words, "--", "sh", "-c", f"echo ready; {script}", stdin=given)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    """One store for a module."""
    found = Sandboxed(tmp_path_factory.mktemp("sandbox"))
    yield found
    found.close()
    for path in found.mounted():
        lazy_unmount(path)


@pytest.fixture
def demo(stored: Sandboxed) -> Iterator[Sandboxed]:
    """The same; no test leaves a process to the next."""
    yield stored
    stored.close()
    stored.running.clear()


@pytest.fixture
def chat(demo: Sandboxed) -> Chat:
    return demo.chat()


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with a static busybox under the names that the scripts use."""
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "chat", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox isn't installed: scripts/test does that"
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in NAMES:
        (root / "bin" / name).symlink_to("busybox")
    return root
