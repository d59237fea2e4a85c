"""External chats on their way into the store: `store.projection.take_in`, `store.projection.external_chats`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from store.chat import Chat
from store.errors import ReadOnly
from store.events import AttachmentRemoved
from store.intake import accept
from store.model import ChatId, Seq, uuid7
from store.projection import take_in
from store.projection.external_chats import ExternalChats
from store.projection.project import Project
from tests.projection.project import Person, person, say, texts
from tests.projection.test_project import external

SAID = ["one", "two"]


@asynccontextmanager
async def shown(project: Project) -> AsyncIterator[ExternalChats]:
    """What the project has alone, as a mount shows it."""
    await project.look()
    chats = ExternalChats(project, lambda _space, _change: None)
    await chats.settle()
    yield chats
    await chats.aclose()


async def test_a_kill_while_one_is_taken_in_leaves_nothing_that_anybody_could_write_to(
    me: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is written to the part that came would be another stream than the project's."""
    id_ = ChatId(await external(me, tmp_path))
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        take_lines = take_in.take_lines

        async def killed(chat: Chat, durable: list[bytes], wanted: list[bytes], seq: Seq) -> None:
            await take_lines(chat, durable, wanted[:1], seq)
            raise InterruptedError

        monkeypatch.setattr(take_in, "take_lines", killed)
        with pytest.raises(InterruptedError):
            await other.project.import_external(id_)
        monkeypatch.undo()
        assert (await other.workspace.load()).chats == {}
        await other.project.look()
        assert list(other.project.externals) == [id_]
        made = await other.project.import_external(id_)
        await say(made, "mine")
        await other.reconcile()
        assert await texts(made) == [*SAID, "mine"]
        assert len((await other.workspace.load()).chats) == 1


async def test_two_processes_that_take_one_in_at_once_make_one_chat(me: Person, tmp_path: Path) -> None:
    id_ = ChatId(await external(me, tmp_path))
    url = f"file://{tmp_path}/other"
    async with person(url, me.directory) as first, person(url, me.directory) as second:
        made: list[Chat] = []

        async def take(project: Project) -> None:
            made.append(await project.import_external(id_))

        for each in (first, second):
            await each.project.look()
        async with trio.open_nursery() as nursery:
            for each in (first, second):
                nursery.start_soon(take, each.project)
        for chat in made:
            assert await texts(chat) == SAID
        assert len((await first.workspace.load()).chats) == 1


async def test_where_the_lines_are_others_than_those_that_were_read_that_is_known(me: Person, tmp_path: Path) -> None:
    """Whoever read it by its seqs goes on by the states that these meant."""
    id_ = ChatId(await external(me, tmp_path))
    async with person(f"file://{tmp_path}/other", me.directory) as other, shown(other.project) as chats:
        chat = chats.chat(id_)
        await chat.head()
        there = await other.workspace.create_chat("theirs", "x", chat=id_)
        assert not await chats.is_taken_in(chat, there)
        await say(there, "in between")
        await take_in.take_lines(there, [], chat.lines[:2], Seq(1))
        assert (await there.head()).seq == len(chat.lines)
        assert (await chats.is_taken_in(chat, there), chat.is_reset) == (False, False)
        await take_in.take_lines(there, [], chat.lines[2:], Seq(3))
        assert (await chats.is_taken_in(chat, there), chat.is_reset) == (True, True)


async def test_one_that_is_taken_in_began_when_it_did_before(me: Person, tmp_path: Path) -> None:
    id_ = ChatId(await external(me, tmp_path))
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        before = other.project.externals[id_].created
        await other.project.import_external(id_)
        record = (await other.workspace.load()).chats[id_]
        assert (record.created, record.changed > before) == (before, True)


async def test_nothing_is_appended_to_one(me: Person, tmp_path: Path) -> None:
    """But for removals: what else its log in memory took would be lost."""
    id_ = ChatId(await external(me, tmp_path))
    async with person(f"file://{tmp_path}/other", me.directory) as other, shown(other.project) as chats:
        chat = chats.chat(id_)
        with chat.hold():
            await chat.load()
            await chat.append_events([AttachmentRemoved("nothing")], "me")
            before = await chat.head()
            entry = accept(b'{"role":"user","content":"hi"}', "me", uuid7)
            assert not chat.append_now([entry])
            with pytest.raises(ReadOnly):
                await chat.append([entry])
            assert await chat.head() == before
