"""The projection in the background: it follows, coalesces, retries, and never fails what moved the log."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from store import durability
from store.library import open_store
from store.projection import binding as bindings
from store.projection.projector import Projector, projecting
from store.workspace import Workspace
from store.workspace_state import Place
from tests.projection.project import ME, git, say, texts


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[Workspace, Projector]]:
    """A workspace whose project is kept up to date."""
    directory = tmp_path / "project"
    directory.mkdir(exist_ok=True)
    async with open_store(f"file://{tmp_path}/store") as store:
        binding = bindings.find(directory)
        if binding is None:
            binding = bindings.write(directory, (await store.create_workspace("demo", ME)).id)
        workspace = await bindings.workspace_of(store, binding, ME)
        async with projecting(store, workspace, binding) as projector:
            yield workspace, projector


def files(projector: Projector) -> list[Path]:
    return sorted(Path(projector.project.root).glob("[!.]*/history.jsonl"))


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Wait for it, for at most 20 seconds."""
    with trio.fail_after(20):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await trio.sleep(0.01)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n")


async def test_what_moves_follows_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as (workspace, projector):
        chat = await workspace.create_chat("a", ME)
        await say(chat, "one")
        await until(lambda: len(files(projector)) == 1 and count(files(projector)[0]) == 1)
        (path,) = files(projector)
        for number in range(20):
            await say(chat, str(number))
        await until(lambda: count(path) == 21)
        await chat.save_text((await chat.text()).replace(b"one", b"uno"), ME)
        await until(lambda: b"uno" in (path.parent / "history.md").read_bytes())
        await workspace.move_chat(chat.id, Place.CHATS, "b", ME)
        await until(lambda: [found.parent.name[-2:] for found in files(projector)] == ["-b"])


async def test_a_flush_writes_at_once_and_the_end_flushes(tmp_path: Path) -> None:
    async with running(tmp_path) as (workspace, projector):
        chat = await workspace.create_chat("a", ME)
        await say(chat, "one")
        await projector.flush()
        (path,) = files(projector)
        assert count(path) == 1
        await say(chat, "two")
    assert count(path) == 2


async def test_adding_a_message_costs_what_it_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (workspace, projector):
        chat = await workspace.create_chat("a", ME)
        for _ in range(200):
            await say(chat, "x" * 1000)
        await projector.flush()
        written: list[int] = []
        real = durability.system

        class Counting:
            def __getattr__(self, call: str) -> Any:
                made = getattr(real, call)

                def counted(label: str, *arguments: Any) -> Any:
                    if call == "write" and label.startswith("projection."):
                        written.append(len(arguments[1]))
                    return made(label, *arguments)

                return counted

        await say(chat, "y")
        monkeypatch.setattr(durability, "system", Counting())
        report = await projector.flush()
        assert report is not None
        assert report.written == 1
        assert sum(written) < 3000
        (path,) = files(projector)
        assert (path.parent / "history.md").read_bytes() == await chat.text()


async def test_git_is_noticed(tmp_path: Path) -> None:
    async with running(tmp_path) as (workspace, projector):
        directory = tmp_path / "project"
        git(directory, "init", "-q", "-b", "main")
        chat = await workspace.create_chat("a", ME)
        await say(chat, "one")
        await projector.flush()
        (path,) = files(projector)
        git(directory, "add", "-A")
        git(directory, "commit", "-q", "-m", "one")
        git(directory, "checkout", "-q", "-b", "other")
        with path.open("ab") as file:
            file.write(
                b'{"ts":7,"actor":"x","data":{"type":"message.appended","id":"m","role":"user","content":"two"}}\n'
            )
        git(directory, "commit", "-q", "-am", "two")

        async def both() -> bool:
            return await texts(chat) == ["one", "two"]

        await until(both)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
async def test_a_project_that_cant_be_written_fails_no_append_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    caplog.set_level(logging.WARNING, logger="chatfs")
    async with running(tmp_path) as (workspace, projector):
        chat = await workspace.create_chat("a", ME)
        await say(chat, "one")
        await projector.flush()
        real = durability.system

        class Failing:
            def __getattr__(self, call: str) -> Any:
                made = getattr(real, call)

                def failing(label: str, *arguments: Any) -> Any:
                    if label.startswith("projection.") and call in {"open", "write", "mkdir"}:
                        raise OSError(code, os.strerror(code))
                    return made(label, *arguments)

                return failing

        monkeypatch.setattr(durability, "system", Failing())
        await say(chat, "two")
        for _ in range(3):
            await projector.flush()
            await say(chat, "more")
        assert len(await texts(chat)) == 5
        monkeypatch.setattr(durability, "system", real)
        (path,) = files(projector)
        assert count(path) == 1
        await projector.flush()
        assert count(path) == 5
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(said) == 1, said
        assert os.strerror(code) in said[0] or "no space left" in said[0]
