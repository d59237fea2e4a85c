"""Chats that `chatfs gc` deletes while another opened store has them in memory."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest
import trio

from store.chat import Chat
from store.errors import SpaceNotFound, StoreError
from store.gc.collect import collect
from store.library import Store, open_store
from store.workspace import Workspace

ME = "tests"


async def deleted(workspace: Workspace, chats: list[Chat], others: Store) -> None:
    """Have `others` delete the chats, to which something was appended that isn't synced."""
    for chat in chats:
        await workspace.trash_chat(chat.id, ME)
        await chat.append_lines([b"1"], ME)
    assert (await collect(others, ME, retention_days=-1)).chats.count == len(chats)


def descriptors(directory: Path) -> int:
    """How many this process has open in there."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            count += each.readlink().is_relative_to(directory)
    return count


async def test_closing_a_store_needs_no_chats_that_were_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{tmp_path}/store"
    with caplog.at_level(logging.WARNING), contextlib.ExitStack() as held:
        async with open_store(url) as others, open_store(url) as mine:
            workspace = await mine.create_workspace("demo", ME)
            chats = [await workspace.create_chat(f"chat-{number}", ME) for number in range(2)]
            for chat in chats:
                held.enter_context(chat.hold())
            await deleted(workspace, chats, others)
            assert all(chat.space.unsynced for chat in chats)
            await chats[0].sync()
            assert not chats[0].space.unsynced
    assert caplog.records == []


async def test_a_chat_that_was_deleted_is_released(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with open_store(url) as others, open_store(url) as mine:
        workspace = await mine.create_workspace("demo", ME)
        chat = await workspace.create_chat("trip", ME)
        with chat.hold():
            await deleted(workspace, [chat], others)
            assert chat.space.unsynced
        await chat.release()
        assert not chat.space.loaded
        with pytest.raises(SpaceNotFound):
            await chat.append_lines([b"3"], ME)


async def test_chats_that_were_deleted_leave_memory(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    async with open_store(url) as mine:
        workspace = await mine.create_workspace("demo", ME)
        chats = [await workspace.create_chat(f"chat-{number}", ME) for number in range(5)]
        async with open_store(url) as others:
            await deleted(workspace, chats, others)
        with trio.fail_after(10):
            await workspace.load()
            while any(chat.space.loaded for chat in chats):
                await trio.lowlevel.checkpoint()
        assert descriptors(tmp_path / "store" / workspace.space.id / "chats") == 0


async def test_what_cant_be_synced_of_a_chat_that_is_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(f"file://{tmp_path}/store") as store:
        chat = await (await store.create_workspace("demo", ME)).create_chat("trip", ME)
        await chat.append_lines([b"1"], ME)

        async def failing() -> None:
            raise StoreError("the disk is gone")

        with monkeypatch.context() as patched:
            patched.setattr(type(chat.space), "sync", lambda _self: failing())
            with pytest.raises(StoreError, match="the disk is gone"):
                await chat.sync_own()
        assert chat.space.unsynced
