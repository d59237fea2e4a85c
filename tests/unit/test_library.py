"""Opening a store that isn't whole: what can be read is."""

from __future__ import annotations

from pathlib import Path

import trio

from store.library import open_store


async def test_a_workspace_that_cant_be_read_is_left_out(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with open_store(url) as store:
        broken = await store.create_workspace("broken", "test")
        await store.create_workspace("whole", "test")
        directory = store.driver.local_dir(broken.space.id)
    (directory / "history.base").write_bytes(b"")
    async with open_store(url) as store:
        assert [workspace.state.name for workspace in await store.workspaces()] == ["whole"]
        await store.create_workspace("another", "test")


async def test_one_chat_id_in_two_workspaces_is_two_chats(tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}/store") as store:
        one = await store.create_workspace("one", "test")
        two = await store.create_workspace("two", "test")
        chat = await one.create_chat("trip", "test")
        twin = await two.create_chat("trip", "test", chat=chat.id)
        await chat.append_lines([b"1"], "test")
        assert (await twin.head()).seq == 0


async def test_who_appends_without_a_pause_lets_others_run(tmp_path: Path) -> None:
    ran: list[int] = []

    async def run() -> None:
        for turn in range(3):
            ran.append(turn)
            await trio.lowlevel.checkpoint()

    async with open_store(f"file://{tmp_path}/store") as store:
        chat = await (await store.create_workspace("demo", "test")).create_chat("trip", "test")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for _ in range(2_000):
                await chat.append_lines([b'{"role":"user","content":"more"}'], "test")
                if len(ran) == 3:
                    break
        assert len(ran) == 3
        with trio.move_on_after(0.01) as scope:
            for _ in range(2_000):
                await chat.append_lines([b'{"role":"user","content":"more"}'], "test")
        assert scope.cancelled_caught
