"""Appends that go through another instance: answers and requests that are lost, holders that hang."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest
import trio
import trio.testing

from store import forwarding
from store.chat import Chat
from store.driver import Grant
from store.errors import NotHolder, Unreachable
from store.library import Store
from store.model import Epoch, Head, Millis, Seq, SpaceId
from store.peers import Say, Still
from tests.contract.backends import FakeClock
from tests.support.instances import Wire, holder, message, parts, say, told


async def test_an_append_whose_answer_is_lost_is_made_once(second: Store, chat: Chat, twin: Chat) -> None:
    wire = Wire(second)
    wire.lose_answers = 2
    assert await say(twin, "two") == 2
    assert len(wire.asked) == 3
    assert len({orjson.loads(request.split(b"\n")[0])["id"] for request in wire.asked}) == 1
    assert await told(chat) == ["one", "two"]


async def test_a_lost_answer_and_a_holder_that_has_forgotten(
    first: Store, second: Store, chat: Chat, twin: Chat
) -> None:
    """Without the table of ids: what the holder said it would write is found in the log."""
    wire = Wire(second)
    wire.lose_answers = 1
    parts(first)._made = Forgetful()
    assert await say(twin, "two") == 2
    assert len(wire.asked) == 2
    assert await told(chat) == ["one", "two"]


class Forgetful(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: object, value: object) -> None:
        pass


async def test_a_lost_answer_and_entries_of_others_behind_it(
    first: Store, second: Store, chat: Chat, twin: Chat
) -> None:
    wire = Wire(second)
    wire.lose_answers = 1
    parts(first)._made = Forgetful()
    usual = wire.on_the_way

    async def and_then(name: str, request: bytes, *, heard: object = None, still: object = None) -> bytes:
        try:
            return await usual(name, request, heard=heard, still=still)
        except Unreachable:
            await say(chat, "between")
            raise

    wire.peers.ask = and_then  # type: ignore[method-assign]
    assert await say(twin, "two", "three") == 3
    assert await told(chat) == ["one", "two", "three", "between"]


async def test_a_request_that_never_arrived_is_made_once(second: Store, chat: Chat, twin: Chat) -> None:
    wire = Wire(second)
    wire.lose_requests = 3
    assert await say(twin, "two") == 2
    assert await told(chat) == ["one", "two"]


async def test_a_holder_that_answers_nobody_and_goes_on_holding_is_named(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(second)
    wire.lose_requests = 1_000_000
    monkeypatch.setattr(parts(second), "lease_ms", 100)
    usual = second.driver.leases.current

    async def current(space: SpaceId) -> Grant | None:
        # As if it appended all the time.
        grant = parts(first).held[chat.space.id]._grant
        assert grant is not None
        clock.now += 1
        await first.driver.leases.renew(grant, 5000)
        return await usual(space)

    monkeypatch.setattr(second.driver.leases, "current", current)
    with pytest.raises(Unreachable, match=rf"process {os.getpid()} .*end it"):
        await say(twin, "two")
    assert await told(chat) == ["one"]


async def test_a_holder_that_is_slow_and_renews_now_and_then_isnt_given_up(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked until its lease has lapsed; by the next look it has been renewed."""
    wire = Wire(second)
    usual, asked = wire.ask, 0

    async def slow(name: str, request: bytes, *, heard: Say, still: Still) -> bytes:
        nonlocal asked
        asked += 1
        if asked > 3 * forwarding.REFUSALS:
            return await usual(name, request, heard=heard, still=still)
        clock.now += 5000
        assert not await still()
        grant = parts(first).held[chat.space.id]._grant
        assert grant is not None
        await first.driver.leases.renew(grant, 5000)
        raise Unreachable("given up")

    wire.peers.ask = slow  # type: ignore[method-assign]
    monkeypatch.setattr(parts(second), "lease_ms", 10)
    assert await say(twin, "two") == 2
    assert asked > 3 * forwarding.REFUSALS
    assert await told(chat) == ["one", "two"]
    assert await holder(second, chat) == first.driver.peers.name


def test_who_stood_still_itself_gives_nobody_up() -> None:
    mock_clock = trio.testing.MockClock()
    found = Grant(SpaceId("workspace/w"), "other", Epoch(1), Millis(1))

    async def refused() -> None:
        silence = forwarding.Silence(5.0)
        assert not silence.goes_on(found)
        mock_clock.jump(100)
        assert [silence.goes_on(found) for _ in range(forwarding.REFUSALS)] == [False] * 8 + [True] * 2

    trio.run(refused, clock=mock_clock)


async def test_a_lease_of_a_clock_that_is_hours_ahead_lapses_when_its_holder_is_silent(
    second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock was put back by hours since it was acquired."""
    clock.now -= 36_000_000
    Wire(second).lose_requests = 1_000_000
    monkeypatch.setattr(parts(second), "lease_ms", 100)
    assert await say(twin, "two") == 2
    assert await holder(second, chat) == second.driver.peers.name
    assert await told(twin) == ["one", "two"]


async def test_a_holder_that_is_busy_for_long_and_renews_isnt_taken_for_silent(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = chat.space.append_under
    looks = 0
    enough = trio.Event()

    async def slow(*args: object) -> Seq:
        await enough.wait()
        return await usual(*args)  # type: ignore[arg-type]

    current = second.driver.leases.current

    async def renewing(space: SpaceId) -> Grant | None:
        nonlocal looks
        looks += 1
        if looks == 6:  # 300 ms
            enough.set()
        clock.now += 1
        grant = parts(first).held[chat.space.id]._grant
        assert grant is not None
        await first.driver.leases.renew(grant, 5000)
        return await current(space)

    monkeypatch.setattr(parts(second), "lease_ms", 100)
    monkeypatch.setattr(second.driver.leases, "current", renewing)
    appender = type("Slow", (), {"append_under": staticmethod(slow), "hold": chat.space.hold, "sync": chat.space.sync})
    parts(first).held[chat.space.id]._appender = appender  # type: ignore[assignment]
    assert await say(twin, "two") == 2
    assert await holder(first, chat) == first.driver.peers.name


@asynccontextmanager
async def asked_of(first: Store, chat: Chat, twin: Chat, append_under: object) -> AsyncIterator[None]:
    """While the first, which appends so, is asked for the second append; that is made soon after the block."""
    appender = type("Hanging", (), {"append_under": staticmethod(append_under), "hold": chat.space.hold})
    parts(first).held[chat.space.id]._appender = appender  # type: ignore[assignment]
    done: list[Seq] = []

    async def go() -> None:
        done.append(await say(twin, "two"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        yield
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert done == [2]


async def test_a_holder_that_hangs_is_replaced_when_its_lease_has_lapsed(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    """As one that was stopped with SIGSTOP: before it has said anything."""
    hanging, over = trio.Event(), trio.Event()

    async def hangs(*_args: object) -> Seq:
        hanging.set()
        await over.wait()
        raise Unreachable("it never answers")

    async with asked_of(first, chat, twin, hangs):
        await hanging.wait()
        # Meanwhile everything can be read.
        assert b"one" in await twin.text()
        assert (await twin.load()).seq == 1
        clock.now += 5000
    assert await told(chat) == ["one", "two"]
    assert await holder(first, chat) == second.driver.peers.name
    over.set()


@pytest.mark.parametrize("written", [True, False])
async def test_a_holder_that_hangs_when_it_has_said_what_it_writes(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, *, written: bool
) -> None:
    hanging, over = trio.Event(), trio.Event()
    usual = chat.space.append_under

    async def hangs(batch: object, epoch: Epoch, expected: Seq | None, intent: object) -> Seq:
        if written:
            await usual(batch, epoch, expected, intent)  # type: ignore[arg-type]
        else:
            head = chat.space.head
            intent(Head(Seq(head.seq + 1), head.ts, 12345, head.first_seq, head.size))  # type: ignore[operator]
        hanging.set()
        await over.wait()
        raise Unreachable("it never answers")

    async with asked_of(first, chat, twin, hangs):
        await hanging.wait()
        clock.now += 5000
    assert await told(chat) == ["one", "two"]
    over.set()


async def test_waiting_can_be_given_up(second: Store, chat: Chat, twin: Chat) -> None:
    Wire(second).lose_requests = 1_000_000
    with trio.move_on_after(0.1) as scope:
        await say(twin, "two")
    assert scope.cancelled_caught
    assert await told(chat) == ["one"]


async def test_who_gave_up_before_it_was_written_isnt_appended_for(first: Store, chat: Chat, twin: Chat) -> None:
    usual, asked, go_on = chat.space.append_under, trio.Event(), trio.Event()

    async def slow(*args: object) -> Seq:
        asked.set()
        await go_on.wait()
        return await usual(*args)  # type: ignore[arg-type]

    appender = type("Slow", (), {"append_under": staticmethod(slow), "hold": chat.space.hold, "sync": chat.space.sync})
    parts(first).held[chat.space.id]._appender = appender  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, twin, "two")
        await asked.wait()
        nursery.cancel_scope.cancel()
    go_on.set()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert await told(chat) == ["one"]


async def test_the_same_request_again_gets_the_same_answer(first: Store, second: Store, chat: Chat, twin: Chat) -> None:
    request = forwarding.Attempt([message("two")], None).request(chat.space.id, Epoch(1), durable=True)
    for _ in range(3):
        assert forwarding.result(await second.driver.peers.ask(first.driver.peers.name, request)) == 2
    assert await told(chat) == ["one", "two"]


@pytest.mark.parametrize("epoch", [0, 2])
async def test_a_request_under_another_epoch_is_refused(
    first: Store, second: Store, chat: Chat, twin: Chat, epoch: int
) -> None:
    request = forwarding.Attempt([message("two")], None).request(chat.space.id, Epoch(epoch), durable=True)
    with pytest.raises(NotHolder):
        forwarding.result(await second.driver.peers.ask(first.driver.peers.name, request))
    assert await told(chat) == ["one"]
