"""A store with a bit of everything, to be damaged and checked."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from store import compaction, durability
from store.fsck import Finding, Report, Scope, Severity, check_store
from store.library import open_store
from store.workspace_state import Place

LONG = b"".join(b"%07d\n" % n for n in range(300_000))


@dataclass
class Made:
    """A store with workspace `demo`: `trip` with attachments and a snapshot, `cut` compacted, `old` in the trash."""

    root: Path
    chats: dict[str, Path]

    @property
    def workspace(self) -> Path:
        (found,) = (self.root / "workspace").iterdir()
        return found

    def log(self, chat: str) -> Path:
        return self.chats[chat] / "history.jsonl"

    def object(self, suffix: str = "", content: bytes | None = None) -> Path:
        """An object's file, by how its name ends; a small one by its bytes."""
        for path in sorted((self.root / "objects").glob("??/*")):
            if path.suffix == suffix and (content is None or path.read_bytes() == content):
                return path
        raise AssertionError(suffix)

    def check(self, *, repair: bool = False, full: bool = True, scope: Scope | None = None) -> Report:
        return check_store(self.root, scope, repair=repair, full=full)

    def problems(self, **how: bool) -> list[Finding]:
        return [found for found in self.check(**how).findings if found.severity < Severity.INFO]

    def kinds(self, **how: bool) -> list[str]:
        return [found.kind for found in self.problems(**how)]


async def make(root: Path) -> Made:
    async with open_store(f"file://{root}") as store:
        workspace = await store.create_workspace("demo", "test")
        chats = {}
        for name in ("trip", "cut", "old"):
            chat = await workspace.create_chat(name, "test")
            await chat.append_events([{"role": "user", "content": f"hello {n}"} for n in range(20)], "test")
            chats[name] = chat.directory
        trip = await workspace.chat("trip")
        await trip.attach("small.txt", b"small", "test")
        await trip.attach("long.bin", LONG, "test")
        await trip.space.keep_snapshot()
        await trip.append_events([{"role": "user", "content": "after the snapshot"}], "test")
        cut = await workspace.chat("cut")
        await cut.attach("kept.txt", b"kept by the state", "test")
        await compaction.compact(cut, keep=0)
        await cut.append_events([{"role": "user", "content": "after the compaction"}], "test")
        await workspace.move_chat((await workspace.record("old")).id, Place.TRASH, "old", "test")
        await store.driver.kv.put("sandboxes/x", {"id": "x"})
        for name in ("trip", "cut"):
            await (await workspace.chat(name)).release()
    return Made(root, chats)


async def texts(made: Made) -> dict[str, bytes]:
    async with open_store(f"file://{made.root}") as store:
        workspace = await store.workspace("demo")
        return {name: await (await workspace.chat(name)).text() for name in ("trip", "cut")}


def flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    os.chmod(path, 0o600)
    path.write_bytes(data)


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def events_in(made: Made, chat: str) -> list[dict[str, Any]]:
    return [orjson.loads(line)["data"] for line in made.log(chat).read_bytes().splitlines()]


@contextlib.contextmanager
def fails(label: str) -> Iterator[None]:
    """Writes for `label` do."""

    class Failing(durability.System):
        def write(self, label_: str, fd: int, data: bytes | memoryview) -> int:
            if label_ == label:
                raise OSError(errno.EIO, "broken")
            return super().write(label_, fd, data)

    durability.system = Failing()
    try:
        yield
    finally:
        durability.system = durability.System()
