"""Moving workspaces between stores, with their logs as they are: `store.moving.migrating`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from store.compaction import compact
from store.driver import Driver
from store.errors import Diverged, InvalidInput, NameTaken, ReadOnly, WorkspaceNotFound
from store.library import open_store
from store.model import NewEntry, Seq, WorkspaceId, chat_space, workspace_space
from store.moving import spaces
from store.moving.migrating import migrate
from store.registry import open_driver
from tests.support.moved import (
    LONG,
    chat_id,
    logs,
    move,
    moving,
    say,
)


async def test_all_comes_over_as_it_is(filled: Path) -> None:
    moved = await move(filled)
    assert (moved.failures, moved.notes, moved.workspaces, moved.files) == ([], [], 2, 1)
    assert logs(filled / "a") == logs(filled / "b")
    async with open_store(str(filled / "b")) as store:
        demo = await store.workspace("demo")
        trip = await demo.chat("trip")
        assert b"".join([piece async for piece in trip.read_attachment("long.bin")]) == LONG
        kept = (await demo.chat("packed")).read_attachment("kept.bin")
        assert b"".join([piece async for piece in kept]) == LONG[1:]
        assert (trip.directory / "scratch" / "history.md.rejected-1").read_bytes() == b"\xff"
        assert (await store.driver.kv.get("names/demo")).value == {"id": demo.id}  # type: ignore[union-attr]
        assert await say(demo, "trip", "goes on") == trip.id


async def test_again_there_is_nothing_new(filled: Path) -> None:
    await move(filled)
    before = logs(filled / "b")
    assert (await move(filled)).nothing_new
    assert (await move(filled, verify=True)).nothing_new
    assert logs(filled / "b") == before


@pytest.mark.parametrize("scheme", ["memory", "git"])
async def test_by_way_of_another_driver_and_back(filled: Path, scheme: str) -> None:
    async with moving(filled) as (source, target):
        between = await open_driver("memory:" if scheme == "memory" else f"git://{filled}/repository.git")
        assert (await migrate(source, between)).failures == []
        assert (await migrate(source, between, verify=True)).nothing_new
        assert (await migrate(between, target)).failures == []
        await between.aclose()
    assert logs(filled / "a") == logs(filled / "b")


async def test_the_rest_is_brought(filled: Path) -> None:
    await move(filled)
    async with open_store(str(filled / "a")) as store:
        demo = await store.workspace("demo")
        await say(demo, "trip", "later")
        await say(demo, "new", "fresh")
        await (await demo.chat("trip")).attach("late.txt", b"late", "test")
        await store.rename_workspace(demo, "renamed", "test")
    moved = await move(filled, workspace="renamed")
    assert (moved.failures, moved.blobs, moved.workspaces) == ([], 1, 1)
    assert logs(filled / "a") == logs(filled / "b")
    async with open_store(str(filled / "b")) as store:
        assert [found.state.name for found in await store.workspaces()] == ["renamed", "second"]
        assert await store.driver.kv.get("names/demo") is None
        await store.create_workspace("demo", "test")


async def test_one_workspace_leaves_the_others_alone(filled: Path) -> None:
    async with open_store(str(filled / "b")) as store:
        await say(await store.create_workspace("own", "test"), "mine", "text")
    own = logs(filled / "b")
    moved = await move(filled, workspace="second")
    assert moved.workspaces == 1
    found = logs(filled / "b")
    assert own.items() <= found.items()
    assert len(found) == len(own) + 2
    with pytest.raises(WorkspaceNotFound, match="no workspace 'other'"):
        await move(filled, workspace="other")


async def test_a_name_that_another_workspace_has_is_refused_first(filled: Path) -> None:
    async with open_store(str(filled / "b")) as store:
        await store.create_workspace("second", "test")
    before = logs(filled / "b")
    with pytest.raises(NameTaken, match="another workspace 'second'"):
        await move(filled)
    assert logs(filled / "b") == before
    assert (await move(filled, workspace="demo")).failures == []


async def entry_of(path: Path, store: str, text: str) -> None:
    async with open_store(str(path / store)) as opened:
        await say(await opened.workspace("demo"), "trip", text)


async def test_logs_that_diverged_are_refused_first(filled: Path) -> None:
    await move(filled)
    await entry_of(filled, "a", "one way")
    await entry_of(filled, "b", "the other")
    for _ in range(3):
        await entry_of(filled, "a", "more")
        await entry_of(filled, "b", "more")
    async with open_store(str(filled / "a")) as store:
        await say(await store.workspace("second"), "trip", "would be brought")
        head = (await (await (await store.workspace("demo")).chat("trip")).head()).seq
    before = logs(filled / "b")
    with pytest.raises(Diverged, match=f"diverged at entry {head - 3}:"):
        await move(filled)
    assert logs(filled / "b") == before


async def test_a_copy_that_went_on_keeps_what_it_has(filled: Path) -> None:
    await move(filled)
    await entry_of(filled, "b", "only there")
    before = logs(filled / "b")
    assert (await move(filled, verify=True)).nothing_new
    assert logs(filled / "b") == before


async def test_what_was_compacted_between_two_runs(filled: Path) -> None:
    await move(filled)
    async with open_store(str(filled / "a")) as store:
        demo = await store.workspace("demo")
        await compact(await demo.chat("trip"), keep=1)
    # The entries that are gone in the source stay in the copy, and it means the same.
    assert (await move(filled, verify=True)).failures == []
    async with open_store(str(filled / "a")) as store:
        demo = await store.workspace("demo")
        await say(demo, "trip", *map(str, range(9)))
        await compact(await demo.chat("trip"), keep=1)
    with pytest.raises(Diverged, match="compacted away since"):
        await move(filled)


async def test_nothing_is_shown_before_all_of_it_is_there(filled: Path) -> None:
    """Whatever is looked at while it goes on: a workspace is there with all of its chats, or not at all."""
    workspace, _ = await chat_id(filled / "a")
    seen: list[bool] = []
    async with moving(filled) as (source, target), open_store(str(filled / "b")) as store:

        def look(_text: str) -> None:
            log = filled / "b" / workspace_space(workspace) / "history.jsonl"
            seen.append(log.exists() and log.stat().st_size > 0)
            if seen[-1]:
                assert logs(filled / "a").keys() <= logs(filled / "b").keys() | others

        others = {name for name in logs(filled / "a") if workspace not in name}
        await migrate(source, target, workspace="demo", told=look)
        assert [found.state.name for found in await store.workspaces()] == ["demo"]
    assert False in seen
    assert True in seen


async def test_a_source_that_is_being_written_to(filled: Path) -> None:
    """What comes meanwhile is brought, as far as that ends."""
    async with moving(filled) as (source, target), open_store(str(filled / "a")) as store:
        demo = await store.workspace("demo")
        numbers = iter(range(1000))

        async def write(upto: int) -> None:
            for number in numbers:
                await say(demo, "trip", f"meanwhile {number}")
                await say(demo, f"new {number}", "text")
                if number >= upto:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, 20)
            moved = await migrate(source, target, workspace="demo")
        assert moved.failures == []
        assert (await migrate(source, target, workspace="demo")).failures == []
        theirs = await workspace_names(target, demo.id)
        assert theirs == await workspace_names(source, demo.id)
        assert len(theirs) == 4 + 21


async def workspace_names(driver: Driver, workspace: WorkspaceId) -> set[str]:
    state = await spaces.workspace_state(driver, workspace_space(workspace))
    assert state is not None
    return set(state.names)


async def test_a_source_that_never_rests_is_said_to_be_so(filled: Path) -> None:
    async with moving(filled) as (source, target), open_store(str(filled / "a")) as store:
        log = await store.driver.open_log(chat_space(*await chat_id(filled / "a")))
        count = 0
        event = NewEntry(b'{"type":"tick"}', "test")

        def written(text: str) -> None:
            nonlocal count
            if text.startswith("comparing"):
                count += log.append_now([event]) is not None

        moved = await migrate(source, target, workspace="demo", told=written)
        await log.aclose()
    assert count > 3
    assert (moved.failures, len(moved.notes)) == ([], 1)
    assert "is being written to" in moved.notes[0]


async def test_two_that_move_the_same_at_once(filled: Path) -> None:
    """One of them may give up; neither spoils what the other brings."""
    async with moving(filled) as (source, target), moving(filled) as (again, other), trio.open_nursery() as nursery:
        nursery.start_soon(migrate, source, target)
        nursery.start_soon(migrate, again, other)
    assert (await move(filled)).failures == []
    assert logs(filled / "a") == logs(filled / "b")


async def test_stores_that_cannot_be_moved_to(filled: Path) -> None:
    shutil.copytree(filled / "a", filled / "c")
    async with moving(filled, "c", "a") as (source, target):
        with pytest.raises(ReadOnly):
            await migrate(target, source)
        other = await open_driver(str(filled / "." / "a"))
        with pytest.raises(InvalidInput, match="the same store"):
            await migrate(target, other)
        await other.aclose()


async def test_scratch_files_that_are_newer_stay(filled: Path) -> None:
    await move(filled)
    (there,) = (filled / "b").glob("**/history.md.rejected-1")
    (here,) = (filled / "a").glob("**/history.md.rejected-1")
    there.write_bytes(b"own")
    (here.parent / "link").symlink_to("nowhere")
    (here.parent / "deep").mkdir()
    assert (await move(filled)).files == 1
    assert there.read_bytes() == b"own"
    assert (there.parent / "link").readlink() == Path("nowhere")
    assert {path.name for path in there.parent.iterdir()} == {"history.md.rejected-1", "link"}


async def test_batches_come_over_whole_however_they_are_read(tmp_path: Path) -> None:
    """A batch that is longer than what is read at once."""
    async with open_store(str(tmp_path / "a")) as store:
        demo = await store.create_workspace("demo", "test")
        await say(demo, "trip", *[f"{number} " * 20 for number in range(6000)])
        await say(demo, "trip", *[f"{number} " * 20 for number in range(3000)])
    assert (await move(tmp_path)).failures == []
    assert logs(tmp_path / "a") == logs(tmp_path / "b")
    async with moving(tmp_path) as (source, _target):
        log = await source.open_log(chat_space(*await chat_id(tmp_path / "a")))
        sizes = [len(entries) async for entries in spaces.batches(log)]
        assert [size for size in sizes if size] == [6000, 3000]
        assert [len(entries) async for entries in spaces.batches(log, Seq(6000))] == [3000]
        await log.aclose()


async def test_the_source_is_not_changed(filled: Path) -> None:
    """Not a byte, not a time of it."""
    before = {path: path.lstat().st_mtime_ns for path in (filled / "a").rglob("*")}
    await move(filled)
    assert {path: path.lstat().st_mtime_ns for path in (filled / "a").rglob("*")} == before
