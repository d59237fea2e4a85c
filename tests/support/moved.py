"""Stores whose workspaces are moved to others, and what takes them there: directly, or as a stream of lines."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from store.compaction import compact
from store.driver import Access, Driver
from store.errors import (
    ChatNotFound,
)
from store.library import open_store
from store.model import (
    ChatId,
    WorkspaceId,
)
from store.moving.exporting import export
from store.moving.migrating import migrate
from store.moving.report import Moved
from store.moving.taking import Taking
from store.registry import open_driver
from store.workspace import Workspace
from store.workspace_state import Place

LONG = bytes(range(256)) * 5000


async def say(workspace: Workspace, name: str, *texts: str) -> ChatId:
    try:
        chat = await workspace.chat(name)
    except ChatNotFound:
        chat = await workspace.create_chat(name, "test")
    await chat.append_events([{"role": "user", "content": text} for text in texts], "uid:7/test")
    await chat.sync()
    return chat.id


@asynccontextmanager
async def moving(path: Path, source: str = "a", target: str = "b") -> AsyncIterator[tuple[Driver, Driver]]:
    """Two stores as `chatfs migrate` opens them."""
    async with AsyncExitStack() as stack:
        drivers = []
        for name, access in ((source, Access.READ), (target, Access.MAKE)):
            driver = await open_driver(str(path / name), access=access)
            stack.push_async_callback(driver.aclose)
            drivers.append(driver)
        yield drivers[0], drivers[1]


async def move(path: Path, source: str = "a", target: str = "b", **options: object) -> Moved:
    async with moving(path, source, target) as (one, other):
        return await migrate(one, other, **options)  # type: ignore[arg-type]


def logs(store: Path) -> dict[str, bytes]:
    """What every log and base of a store says, and the objects."""
    files = [*store.glob("workspace/**/history.jsonl"), *store.glob("workspace/**/history.base")]
    files += store.glob("objects/??/*")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


async def fill(path: Path) -> None:
    async with open_store(str(path / "a")) as store:
        demo = await store.create_workspace("demo", "test")
        for name in ("trip", "old", "gone", "packed"):
            await say(demo, name, "one", "two", "three")
        trip = await demo.chat("trip")
        await trip.attach("long.bin", LONG, "test")
        await trip.attach("small.txt", b"first", "test")
        await trip.attach("small.txt", b"second", "test")
        await trip.remove_attachment("small.txt", "test")
        await trip.append_events([{"type": "of.its.own", "x": 1.50}, {"role": "user", "content": "zwölf"}], "test")
        packed = await demo.chat("packed")
        await packed.attach("kept.bin", LONG[1:], "test")
        await say(demo, "packed", "four")
        await compact(packed, keep=1)
        await demo.move_chat((await demo.chat("old")).id, Place.ARCHIVE, "old", "test")
        await demo.trash_chat((await demo.chat("gone")).id, "test")
        await demo.create_chat("empty", "test")
        await say(await store.create_workspace("second", "test"), "trip", "another")
        (trip.directory / "scratch").mkdir()
        (trip.directory / "scratch" / "history.md.rejected-1").write_bytes(b"\xff")


def spoil(store: Path, chat: ChatId) -> Path:
    (path,) = store.glob(f"workspace/*/chats/{chat}/history.jsonl")
    path.write_bytes(path.read_bytes().replace(b"two", b"TWO", 1))
    return path


async def chat_id(path: Path, name: str = "trip") -> tuple[WorkspaceId, ChatId]:
    async with open_store(str(path)) as store:
        demo = await store.workspace("demo")
        return demo.id, (await demo.chat(name)).id


async def exported(path: Path, workspace: WorkspaceId, chat: ChatId | None = None) -> bytes:
    driver = await open_driver(str(path))
    out = io.BytesIO()
    moved = await export(driver, workspace, chat, out.write)
    await driver.aclose()
    assert moved.failures == []
    return out.getvalue()


async def take(driver: Driver, stream: bytes, workspace: WorkspaceId | None = None) -> Moved:
    taking = Taking(io.BytesIO(stream), driver)
    found = await taking.begin()
    return await taking.take(found, workspace or found.workspace)


async def taken(path: Path, stream: bytes) -> Moved:
    driver = await open_driver(str(path))
    try:
        return await take(driver, stream)
    finally:
        await driver.aclose()


async def demo_stream(path: Path) -> bytes:
    workspace, _ = await chat_id(path / "a")
    return await exported(path / "a", workspace)


def of_workspace(store: Path, workspace: WorkspaceId) -> dict[str, bytes]:
    return {name: data for name, data in logs(store).items() if workspace in name or name.startswith("objects")}
