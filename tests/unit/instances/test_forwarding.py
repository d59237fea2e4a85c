"""Appends that go through the instance that holds the lease."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from store import forwarding
from store.chat import Chat
from store.driver import Grant
from store.drivers import memory_peers
from store.drivers.file import asking
from store.errors import (
    InvalidInput,
    LineTooLong,
    NotHolder,
    SeqConflict,
    StaleEpoch,
)
from store.library import Store, open_store
from store.model import LINE_MAX, Millis, NewEntry, Origin, Seq, SpaceId
from tests.contract.backends import FakeClock
from tests.support.instances import ME, holder, message, overtake, parts, say, told

# ---- who appends


async def test_the_holder_appends_for_others(first: Store, second: Store, chat: Chat, twin: Chat) -> None:
    assert await holder(second, chat) == first.driver.peers.name
    assert await say(twin, "two") == 2
    assert await say(chat, "three") == 3
    assert await say(twin, "four", "five") == 5
    assert await holder(second, chat) == first.driver.peers.name
    assert await told(chat) == await told(twin) == ["one", "two", "three", "four", "five"]
    assert (await twin.load()).seq == (await chat.load()).seq == 5
    assert b"five" in await chat.text()
    assert await chat.text() == await twin.text()
    assert list(parts(first).held) == [chat.workspace.space.id, chat.space.id]
    assert list(parts(second).held) == []


async def test_an_entry_comes_as_it_was_sent(chat: Chat, twin: Chat) -> None:
    batch = [
        NewEntry(b'{"a": 1,  "b":"\xc3\xa9"}', "me", Origin("them", Millis(5))),
        NewEntry(b"[ ]", "uid:4/x", None, Millis(99)),
        NewEntry(b'"%s"' % (b"x" * (2 * 1024 * 1024)), "me"),
    ]
    assert await twin.append(batch) == 4
    found = [entry async for entry in chat.log(Seq(1))]
    assert [NewEntry(entry.data, entry.actor, entry.origin) for entry in found] == [
        NewEntry(new.data, new.actor, new.origin) for new in batch
    ]
    assert [entry.more for entry in found] == [2, 1, 0]


async def test_a_batch_of_lines_of_16_mib(chat: Chat, twin: Chat) -> None:
    long = NewEntry(b'"%s"' % (b"y" * (LINE_MAX - 2)), ME)
    assert await twin.append([long, long]) == 3
    with pytest.raises(LineTooLong):
        await twin.append([NewEntry(b'"%s"' % (b"y" * (LINE_MAX - 1)), ME)])
    assert (await chat.head()).seq == 3


async def test_a_batch_that_is_too_long_for_a_request(chat: Chat, twin: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "REQUEST_MAX", 1000)
    with pytest.raises(InvalidInput, match="use batches of at most 1000 bytes"):
        await say(twin, "x" * 1000)
    assert await say(twin, "two") == 2


async def test_the_holder_has_what_it_is_sent_in_memory_and_subscribers_hear_it(chat: Chat, twin: Chat) -> None:
    async with chat.space.subscribe() as ones, twin.space.subscribe() as others:
        await say(twin, "two")
        await say(chat, "three")
        for entries in (ones, others):
            with trio.fail_after(5):
                assert [(await anext(entries)).seq for _ in range(2)] == [2, 3]


async def test_many_at_once_from_both(chat: Chat, twin: Chat) -> None:
    async def work(one: Chat, name: str) -> None:
        for number in range(20):
            await say(one, f"{name} {number}")

    async with trio.open_nursery() as nursery:
        for number, one in enumerate([chat, twin, chat, twin]):
            nursery.start_soon(work, one, f"writer {number}")
    found = await told(chat)
    assert len(found) == 81
    for number in range(4):
        assert [text for text in found if text.startswith(f"writer {number}")] == [
            f"writer {number} {turn}" for turn in range(20)
        ]
    assert [entry.seq async for entry in twin.log()] == list(range(1, 82))


async def test_the_expected_seq_is_looked_at_by_the_holder(chat: Chat, twin: Chat) -> None:
    assert await say(twin, "two", expected_seq=Seq(1)) == 2
    with pytest.raises(SeqConflict) as caught:
        await say(twin, "three", expected_seq=Seq(1))
    assert caught.value.current == 2
    assert await told(chat) == ["one", "two"]


async def test_who_was_asked_is_asked_again_without_a_look_at_the_lease(
    second: Store, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    usual = second.driver.leases.current

    async def counted(space: SpaceId) -> Grant | None:
        nonlocal looks
        looks += 1
        return await usual(space)

    monkeypatch.setattr(second.driver.leases, "current", counted)
    for where in (asking, memory_peers):  # nor while an answer is waited for, however long
        monkeypatch.setattr(where, "_LOOK", 60)
    for _ in range(3):
        await say(twin, "more")
    assert looks == 1
    clock.now += 5000  # by then it may have lapsed
    await say(twin, "more")
    assert looks == 2


async def test_nothing_to_append_needs_nobody(second: Store, twin: Chat) -> None:
    assert await twin.append([]) == 1
    assert second.driver.peers.name not in [info.name for info in await second.driver.peers.everyone()]


async def test_who_forwards_makes_itself_known_only_when_it_holds_something(
    first: Store, second: Store, chat: Chat, twin: Chat
) -> None:
    await say(twin, "two")
    assert [info.name for info in await second.driver.peers.everyone()] == [first.driver.peers.name]


# ---- to whom the authority goes


async def test_an_idle_holder_loses_it_to_who_writes(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    clock.now += 4000
    assert await say(twin, "two") == 2
    clock.now += 1000
    assert await say(twin, "three") == 3
    assert await holder(first, chat) == second.driver.peers.name
    # It notices that it has lapsed before it appends: no error.
    assert await say(chat, "four") == 4
    assert await holder(first, chat) == second.driver.peers.name
    assert await told(twin) == ["one", "two", "three", "four"]


async def test_who_writes_keeps_it(first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock) -> None:
    for number in range(10):
        clock.now += 2000
        await say(chat, f"{number}")
        await trio.testing.wait_all_tasks_blocked(0.005)
        await say(twin, f"twin {number}")
        assert await holder(first, chat) == first.driver.peers.name
    grant = await first.driver.leases.current(chat.space.id)
    assert grant is not None
    assert grant.epoch == 1


async def test_nobody_else_took_it(first: Store, chat: Chat, clock: FakeClock) -> None:
    clock.now += 100_000
    await say(chat, "two")
    grant = await first.driver.leases.current(chat.space.id)
    assert grant is not None
    assert (grant.epoch, grant.expires) == (1, clock.now + 5000)


async def test_a_released_space_is_free_at_once(first: Store, second: Store, chat: Chat, twin: Chat) -> None:
    await chat.release()
    assert await say(twin, "two") == 2
    assert await holder(first, chat) == second.driver.peers.name
    assert await say(chat, "three") == 3


async def test_a_closed_store_leaves_nothing(url: str, first: Store, chat: Chat, tmp_path: Path) -> None:
    async with open_store(url) as third:
        workspace = await third.create_workspace("other", ME)
        other = await workspace.create_chat("trip", ME)
        await say(other, "one")
        grant = await third.driver.leases.current(other.space.id)
        assert grant is not None
        assert grant.holder == third.driver.peers.name
    grant = await first.driver.leases.current(other.space.id)
    assert grant is not None
    assert grant.expires == 0
    if url.startswith("file:"):
        assert {path.stem for path in (tmp_path / "store" / "instances").iterdir()} == {first.driver.peers.name}


async def test_a_clock_that_is_behind_waits_for_no_released_lease(url: str, first: Store, chat: Chat) -> None:
    await chat.release()
    async with open_store(url, clock=FakeClock(1_000_000)) as third:
        twin = await (await third.workspace("demo")).chat("trip")
        with trio.fail_after(5):
            assert await say(twin, "two") == 2


async def test_a_clock_that_is_behind_forwards_to_who_lapsed_by_its_own(url: str, chat: Chat, clock: FakeClock) -> None:
    clock.now += 1_000_000
    async with open_store(url, clock=FakeClock(clock.now - 2_000_000)) as third:
        twin = await (await third.workspace("demo")).chat("trip")
        with trio.fail_after(5):
            assert await say(twin, "two") == 2


async def test_two_hands_in_one_instance_share_the_authority(first: Store, chat: Chat) -> None:
    again = Chat(chat.workspace, chat.id, first._hooks)
    for number in range(5):
        await say(chat, f"a {number}")
        await say(again, f"b {number}")
    await again.release()
    await say(chat, "last")
    assert len(await told(chat)) == 12


# ---- who was overtaken


async def test_an_append_of_who_was_overtaken_fails_and_the_next_one_works(
    second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    await overtake(second, chat, clock)
    with pytest.raises(StaleEpoch):
        await say(chat, "lost")
    grant = await second.driver.leases.current(chat.space.id)
    assert grant is not None
    await second.driver.leases.release(grant)
    assert await say(chat, "two") == 2
    assert await told(twin) == ["one", "two"]


async def test_a_decision_of_who_was_overtaken_fails_too(
    second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    await overtake(second, chat, clock)
    with pytest.raises(StaleEpoch):
        await say(chat, "lost", expected_seq=Seq(1))
    assert (await chat.load()).seq == 1


async def test_an_overtaken_holder_serves_nobody(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    """Its append for another is refused by the backend; who asked looks for the new holder."""
    seen = await second.driver.leases.current(chat.space.id)
    assert seen is not None
    await overtake(second, chat, clock)
    attempt = forwarding.Attempt([message("two")], None)
    answer = await second.driver.peers.ask(
        first.driver.peers.name, attempt.request(chat.space.id, seen.epoch, durable=True), heard=attempt.hear
    )
    with pytest.raises(NotHolder):
        forwarding.result(answer)
    assert attempt.said is None
    assert list(parts(first).held) == [chat.workspace.space.id]


# ---- durability


async def test_a_forwarded_append_is_durable_when_it_is_acknowledged(
    second: Store, chat: Chat, twin: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    log = await chat.space.log()
    usual = log.sync

    async def sync() -> None:
        synced.append(log.head.seq)
        await usual()

    monkeypatch.setattr(log, "sync", sync)
    await say(twin, "two")
    assert synced == [2]
    assert not twin.space.unsynced
    parts(second).durable = False
    await say(twin, "three")
    assert synced == [2]
    assert twin.space.unsynced


async def test_what_is_held(first: Store, second: Store, chat: Chat, twin: Chat) -> None:
    await say(twin, "two")
    found = forwarding.spaces(await second.driver.peers.ask(first.driver.peers.name, forwarding.STATUS))
    assert [(one.space, one.epoch, one.seq) for one in found][-1] == (chat.space.id, 1, 2)
