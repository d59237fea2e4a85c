"""Sandbox sessions: one per chat, alive as long as somebody says so, and refusing what would take the chat away."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio

from store import alive, sandboxes
from store.chat import Chat
from store.driver import Document, JsonKv
from store.errors import ChatBusy, ChatNotFound, NotHolder
from store.library import Store, open_store
from store.model import ChatId, Millis, NewEntry, clock_ms, uuid7
from store.sandboxes import LAPSE_MS, SandboxSession, begun
from store.workspace import Workspace
from store.workspace_state import Place
from tests.contract.backends import FakeClock
from tests.support.sandboxed import session_of


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("memory:") as store:
        yield store


@pytest.fixture
async def chat(store: Store) -> Chat:
    return await (await store.create_workspace("w", "test")).create_chat("c", "test")


async def hold(stack: AsyncExitStack, chat: Chat, clock: FakeClock) -> sandboxes.Held:
    workspace = chat.workspace
    return await stack.enter_async_context(
        begun(workspace.driver, workspace.id, chat.id, "none", called="w/c", clock=clock)
    )


async def test_a_chat_has_one_session(chat: Chat):
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        held = await hold(stack, chat, clock)
        with pytest.raises(ChatBusy, match=f"w/c is in use by sandbox session {held.session.id} .* sandbox stop"):
            await hold(stack, chat, clock)
        assert await sandboxes.active_on(chat.workspace.driver, chat.id, clock=clock) == held.session
    assert await sandboxes.sessions(chat.workspace.driver) == []
    async with AsyncExitStack() as stack:
        await hold(stack, chat, clock)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are another machine's."""
    monkeypatch.setattr(sandboxes, "this", lambda: alive.Runner(1, 1, "another machine"))


@pytest.mark.usefixtures("elsewhere")
async def test_a_session_that_nobody_keeps_alive_lapses(chat: Chat):
    clock = FakeClock()
    driver = chat.workspace.driver
    async with AsyncExitStack() as stack:
        first = await hold(stack, chat, clock)
        clock.now += LAPSE_MS - 1
        await first.beat()
        clock.now += LAPSE_MS - 1
        assert await sandboxes.active_on(driver, chat.id, clock=clock) == first.session
        clock.now += 1
        assert await sandboxes.active_on(driver, chat.id, clock=clock) is None
        second = await hold(stack, chat, clock)
        with pytest.raises(NotHolder, match="another may have the chat"):
            await first.beat()
        await first.end()
        assert await sandboxes.active_on(driver, chat.id, clock=clock) == second.session


async def test_a_session_whose_process_was_only_stopped_is_still_its_own(chat: Chat):
    """It goes on later, and so does its command: the chat can't have been given to another meanwhile."""
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        held = await hold(stack, chat, clock)
        clock.now += 100 * LAPSE_MS
        with pytest.raises(ChatBusy):
            await hold(stack, chat, clock)
        await held.beat()


async def test_a_session_whose_process_is_gone_is_over_at_once(chat: Chat):
    ended = await trio.run_process([sys.executable, "-c", "import os; print(os.getpid())"], capture_stdout=True)
    child = int(ended.stdout)
    session = SandboxSession(
        uuid7(), chat.workspace.id, chat.id, "none", child, 1, alive.here(), Millis(0), Millis(0), Millis(1 << 47)
    )
    driver = chat.workspace.driver
    await driver.kv.put(f"sandboxes/{chat.id}", asdict(session))
    assert await sandboxes.active_on(driver, chat.id) is None
    # A process of this number that started at another time is another one; elsewhere nobody can tell.
    mine = replace(session, pid=os.getpid())
    await driver.kv.put(f"sandboxes/{chat.id}", asdict(mine))
    assert await sandboxes.active_on(driver, chat.id) is None
    elsewhere = replace(session, where="another machine")
    await driver.kv.put(f"sandboxes/{chat.id}", asdict(elsewhere))
    assert await sandboxes.active_on(driver, chat.id) == elsewhere
    await sandboxes.forget(driver, mine)
    assert await sandboxes.sessions(driver) == []


async def test_a_chat_in_a_sandbox_is_neither_removed_nor_archived(chat: Chat):
    clock = FakeClock(clock_ms())
    workspace = chat.workspace
    async with AsyncExitStack() as stack:
        held = await hold(stack, chat, clock)
        for place in (Place.TRASH, Place.ARCHIVE):
            with pytest.raises(ChatBusy, match=held.session.id):
                await workspace.move_chat(chat.id, place, "c", "test")
        await workspace.move_chat(chat.id, Place.CHATS, "renamed", "test")
    await workspace.move_chat(chat.id, Place.ARCHIVE, "renamed", "test")


Step = Callable[[], Awaitable[None]]


class Between:
    """A driver's documents, where something happens between a look at a session and what comes of it."""

    def __init__(self, kv: JsonKv, then: Step) -> None:
        self._kv = kv
        self._then: Step | None = then

    async def get(self, key: str) -> Document | None:
        found = await self._kv.get(key)
        then, self._then = self._then, None
        if then is not None:
            await then()
        return found


async def archive(workspace: Workspace, chat: ChatId) -> None:
    await workspace.move_chat(chat, Place.ARCHIVE, "c", "test")


async def trash(workspace: Workspace, chat: ChatId) -> None:
    await workspace.trash_chat(chat, "test")


async def trash_by_hand(workspace: Workspace, chat: ChatId) -> None:
    """With an event in the workspace's own history.jsonl, however it is written."""
    line = b'{"type":"chat\\u002etrashed","chat":"%s"}' % chat.encode()
    await workspace.append_lines([NewEntry(line, "test")])


WAYS = pytest.mark.parametrize("take_away", [archive, trash, trash_by_hand])
TakeAway = Callable[[Workspace, ChatId], Awaitable[None]]


@WAYS
async def test_who_takes_a_chat_away_is_too_late_when_a_sandbox_has_just_begun(
    tmp_path: Path, take_away: TakeAway, monkeypatch: pytest.MonkeyPatch
):
    """Though it had looked for one before there was any. The two are on stores of their own, as two processes are."""
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(open_store(f"file://{tmp_path}/store")) for _ in range(2)]
        chat = await (await one.create_workspace("w", "test")).create_chat("c", "test")

        async def begin() -> None:
            held = await hold(stack, chat, FakeClock(clock_ms()))
            await chat.workspace.give_to_sandbox(chat.id, held.session.id, "test")

        workspace = await other.workspace("w")
        between = Between(other.driver.kv, begin)
        monkeypatch.setattr(other.driver, "kv", between)
        with pytest.raises(ChatBusy):
            await take_away(workspace, chat.id)
        assert (await workspace.load()).chats[chat.id].place is Place.CHATS


@WAYS
async def test_a_sandbox_is_too_late_when_its_chat_has_just_been_taken_away(store: Store, take_away: TakeAway):
    workspace = await store.create_workspace("w", "test")
    chat = await workspace.create_chat("c", "test")
    await take_away(workspace, chat.id)  # after it was looked for, and before there was a session
    async with AsyncExitStack() as stack:
        held = await hold(stack, chat, FakeClock(clock_ms()))
        if take_away is archive:  # where a chat may have a sandbox, too
            await workspace.give_to_sandbox(chat.id, held.session.id, "test")
            return
        with pytest.raises(ChatNotFound, match="w/c was removed just now"):
            await workspace.give_to_sandbox(chat.id, held.session.id, "test")


async def test_a_sandbox_begins_though_the_quota_is_used_up(chat: Chat):
    workspace = chat.workspace
    await workspace.change("test", quota_bytes=1)
    async with AsyncExitStack() as stack:
        held = await hold(stack, chat, FakeClock(clock_ms()))
        await workspace.give_to_sandbox(chat.id, held.session.id, "test")


NO_NUMBER = ({"pid": -1}, {"pid": 0}, {"pid": 1 << 80}, {"pid": True}, {"expires": 1 << 70}, {"started": -1})
NO_ID = ({"id": "--all"}, {"id": "../x"}, {"id": ""}, {"chat": "\x1b[2J"}, {"workspace": 1}, {"more": 1})


@pytest.mark.parametrize("wrong", [*NO_NUMBER, *NO_ID], ids=str)
async def test_a_forged_document_names_no_process_and_nothing_else(chat: Chat, wrong: dict[str, object]):
    assert sandboxes.decode(session_of(chat.workspace.id, chat.id)) is not None
    assert sandboxes.decode(session_of(chat.workspace.id, chat.id) | wrong) is None


@pytest.mark.parametrize("value", [None, [], {}, {"id": 1}, {"id": "s", "expires": 1 << 60}])
async def test_a_document_that_says_no_session_is_none(chat: Chat, value: object):
    driver = chat.workspace.driver
    assert isinstance(await driver.kv.put(f"sandboxes/{chat.id}", value), Document)
    assert await sandboxes.active_on(driver, chat.id) is None
    assert await sandboxes.sessions(driver) == []
    async with AsyncExitStack() as stack:
        await hold(stack, chat, FakeClock())
