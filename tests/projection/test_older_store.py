"""A store's directories of the older layout are today's from the first start on, and nothing of them is deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from store import durability
from store.library import Store, open_store
from store.model import uuid7
from store.projection import older_store
from store.workspace_state import Place
from tests.projection.project import ME, Person, say, snapshot, texts
from tests.projection.test_kill import Killing

Work = Callable[[Store], Awaitable[None]]


def within(root: Path, work: Work) -> None:
    """Do something with the store."""

    async def main() -> None:
        async with open_store(f"file://{root}") as store:
            await work(store)

    trio.run(main)


async def begin(store: Store) -> None:
    workspace = await store.create_workspace("demo", ME)
    for name in ("trip", "old", "gone"):
        await say(await workspace.create_chat(name, ME), f"{name} one")
    old, gone = await workspace.chat("old"), await workspace.chat("gone")
    await workspace.move_chat(old.id, Place.ARCHIVE, "old", ME)
    await workspace.trash_chat(gone.id, ME)


async def said(store: Store) -> dict[str, list[str]]:
    """What every chat says, by place and name."""
    (workspace,) = await store.workspaces()
    return {
        f"{record.place}/{record.name}": await texts(workspace.chat_by_id(chat))
        for chat, record in workspace.state.chats.items()
    }


ALL = {"chats/trip": ["trip one"], "archive/old": ["old one"], "trash/gone": ["gone one"]}


@pytest.fixture
def workspaces(tmp_path: Path) -> Path:
    """Of a store with one workspace."""
    within(tmp_path / "store", begin)
    return tmp_path / "store" / "workspace"


def only(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def aside(workspaces: Path) -> list[str]:
    quarantine = workspaces.parent / "quarantine"
    return sorted(os.listdir(quarantine)) if quarantine.exists() else []


def test_a_workspace_gets_its_id_for_a_name(workspaces: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = only(workspaces)
    log = (directory / "history.jsonl").read_bytes()
    directory.rename(directory.with_name(f"My demo-{directory.name}"))

    async def look(store: Store) -> None:
        assert await said(store) == ALL

    for _ in range(2):
        within(workspaces.parent, look)
    assert only(workspaces) == directory
    assert (directory / "history.jsonl").read_bytes() == log
    assert [record.message for record in caplog.records if "older layout" in record.message] == [
        f"{workspaces}/My demo-{directory.name} was of an older layout: it is {directory.name} now"
    ]


def test_a_chat_gets_its_id_for_a_name(workspaces: Path) -> None:
    directory = only(workspaces)
    chats = sorted(path.name for path in (directory / "chats").iterdir())
    for chat in chats:
        (directory / "chats" / chat).rename(directory / "chats" / f"some name-{chat}")
    directory.rename(directory.with_name(f"demo-{directory.name}"))

    async def look(store: Store) -> None:
        assert await said(store) == ALL

    within(workspaces.parent, look)
    assert sorted(path.name for path in (directory / "chats").iterdir()) == chats


async def more(store: Store) -> None:
    (workspace,) = await store.workspaces()
    await say(await workspace.chat("trip"), "trip two")
    await say(await workspace.create_chat("new", ME), "new one")


async def other(store: Store) -> None:
    (workspace,) = await store.workspaces()
    await say(await workspace.chat("trip"), "trip otherwise")


def several(workspaces: Path) -> tuple[str, dict[str, list[str]]]:
    """Three directories of one workspace: today's, one that has gone on, and one that has gone another way since.

    Its id, and what is to be there in the end.
    """
    root, directory = workspaces.parent, only(workspaces)
    identity = directory.name
    kept = root.with_name("first")
    shutil.copytree(directory, kept)
    within(root, more)
    directory.rename(directory.with_name(f"demo-{identity}"))
    for way in (f"fork-{identity}", identity):
        shutil.copytree(kept, workspaces / way)
        if way != identity:
            (workspaces / way).rename(directory)
            (workspaces / f"demo-{identity}").rename(root.with_name("away"))
            within(root, other)
            directory.rename(workspaces / way)
            root.with_name("away").rename(workspaces / f"demo-{identity}")
    return identity, ALL | {"chats/trip": ["trip one", "trip otherwise"], "chats/new": ["new one"]}


def test_several_become_one_and_the_newest_wins(workspaces: Path) -> None:
    identity, expected = several(workspaces)
    before = {data for path in workspaces.iterdir() for _, _, data in snapshot(path).values()}

    async def look(store: Store) -> None:
        assert await said(store) == expected

    within(workspaces.parent, look)
    assert only(workspaces).name == identity
    assert aside(workspaces) == sorted([f"demo-{identity}", f"fork-{identity}"])
    logs = {data for (_, _, data) in snapshot(workspaces.parent).values()}
    assert all(data in logs or any(each.startswith(data) for each in logs) for data in before if b'"seq"' in data)


def test_two_directories_of_one_chat_become_one(workspaces: Path) -> None:
    directory = only(workspaces)
    trip = min((directory / "chats").iterdir(), key=lambda path: path.name)
    kept = workspaces.parent / "kept"
    shutil.copytree(trip, kept)
    within(workspaces.parent, more)
    trip.rename(trip.with_name(f"trip-{trip.name}"))
    kept.rename(trip)
    directory.rename(directory.with_name(f"demo-{directory.name}"))

    async def look(store: Store) -> None:
        assert (await said(store))["chats/trip"] == ["trip one", "trip two"]

    within(workspaces.parent, look)
    assert aside(workspaces) == [f"trip-{trip.name}"]


def test_what_is_nobodys_stays(workspaces: Path) -> None:
    names = [f"empty-{uuid7()}", "notes", f"link-{uuid7()}"]
    for name in names[:2]:
        (workspaces / name).mkdir()
    (workspaces / names[2]).symlink_to(workspaces)

    async def look(store: Store) -> None:
        assert await said(store) == ALL

    within(workspaces.parent, look)
    assert set(names) < set(os.listdir(workspaces))
    assert older_store.find(workspaces) == {}
    assert aside(workspaces) == []


async def test_a_project_that_begins_looks_for_chats_too(me: Person) -> None:
    chat = await me.new("a", "one")
    await chat.release()
    chat.directory.rename(chat.directory.with_name(f"a-{chat.id}"))
    report = await me.reconcile()
    assert "older layout" in report.done[0]
    assert await texts(chat) == ["one"]
    assert len(me.lines(chat)) == 1


@pytest.mark.parametrize("after", [False, True])
def test_the_next_start_finishes_what_a_kill_has_left(workspaces: Path, tmp_path: Path, *, after: bool) -> None:
    identity, expected = several(workspaces)
    root, kept = workspaces.parent, tmp_path / "kept"
    shutil.copytree(root, kept)
    at = 1
    while killed(root, at, after=after):

        async def look(store: Store, at: int = at) -> None:
            assert await said(store) == expected, f"killed at call {at}"

        within(root, look)
        assert [path.name for path in workspaces.iterdir()] == [identity], f"killed at call {at}"
        assert {f"{name}-{identity}" for name in ("demo", "fork")} <= set(aside(workspaces)), f"killed at call {at}"
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        at += 3
    assert at > 20


def killed(root: Path, at: int, *, after: bool) -> bool:
    """Open the store in a child that is killed at its call number `at`; whether it came to that."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0
        return os.WIFSIGNALED(status)
    code = 1
    try:
        durability.system = Killing(durability.system, at, after=after)  # type: ignore[assignment]

        async def nothing(_store: Store) -> None:
            pass

        within(root, nothing)
        code = 0
    finally:
        os._exit(code)
    raise AssertionError
