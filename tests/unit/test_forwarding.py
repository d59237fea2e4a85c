"""Appends that go through the instance that holds the lease: two opened stores, on memory and on files."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import trio

from store import errors, forwarding, intake
from store.authority import Authorities
from store.chat import Chat
from store.driver import Grant
from store.errors import (
    CorruptLog,
    InvalidInput,
    LineTooLong,
    NotHolder,
    QuotaExceeded,
    SeqConflict,
    StaleEpoch,
    StoreError,
    StoreFailed,
    StoreFull,
    Unreachable,
)
from store.library import Store, open_store
from store.model import LINE_MAX, Entry, Epoch, Head, Millis, NewEntry, Origin, Seq, SpaceId, uuid7
from store.peers import PeerCredentials
from tests.contract.backends import FakeClock

ME = "test"
_names = itertools.count()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory:forwarding-{next(_names)}" if request.param == "memory" else f"file://{tmp_path}/store"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def first(url: str, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(url, clock=clock) as store:
        yield store


@pytest.fixture
async def second(url: str, first: Store, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(url, clock=clock) as store:
        yield store


@pytest.fixture
async def chat(first: Store) -> Chat:
    """In the hands of the first."""
    chat = await (await first.create_workspace("demo", ME)).create_chat("trip", ME)
    await say(chat, "one")
    return chat


@pytest.fixture
async def twin(second: Store, chat: Chat) -> Chat:
    """The same one, in the hands of the second."""
    twin = await (await second.workspace("demo")).chat("trip")
    await twin.load()
    return twin


def parts(store: Store) -> Authorities:
    assert store.authorities is not None
    return store.authorities


def message(text: str) -> NewEntry:
    return intake.accept(b'{"role":"user","content":"%s"}' % text.encode(), ME, uuid7)


async def say(chat: Chat, *texts: str, expected_seq: Seq | None = None) -> Seq:
    return await chat.append([message(text) for text in texts], expected_seq=expected_seq)


async def told(chat: Chat) -> list[str]:
    return [orjson.loads(entry.data)["content"] async for entry in chat.log()]


async def holder(store: Store, chat: Chat) -> str:
    grant = await store.driver.leases.current(chat.space.id)
    assert grant is not None
    return grant.holder


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


async def overtake(second: Store, chat: Chat, clock: FakeClock) -> None:
    """The lease is taken while its holder still believes that it has it."""
    clock.now += 5000
    await second.driver.leases.acquire(chat.space.id, second.driver.peers.name, 5000)
    clock.now -= 5000


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


# ---- what goes wrong on the way


class Wire:
    """Stands between an instance and those that it asks: loses answers."""

    def __init__(self, store: Store) -> None:
        self.peers = store.driver.peers
        self.ask = self.peers.ask
        self.lose_answers = 0
        self.lose_requests = 0
        self.asked: list[bytes] = []
        self.peers.ask = self.on_the_way  # type: ignore[method-assign]

    async def on_the_way(self, name: str, request: bytes, *, heard: object = None, still: object = None) -> bytes:
        self.asked.append(request)
        if self.lose_requests:
            self.lose_requests -= 1
            raise Unreachable("lost")
        found = await self.ask(name, request, heard=heard, still=still)  # type: ignore[arg-type]
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unreachable("lost")
        return found


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


async def test_a_holder_that_hangs_is_replaced_when_its_lease_has_lapsed(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    """As one that was stopped with SIGSTOP: before it has said anything."""
    hanging = trio.Event()

    async def hangs(*_args: object) -> Seq:
        hanging.set()
        await trio.sleep_forever()
        raise AssertionError

    appender = type("Hanging", (), {"append_under": staticmethod(hangs), "hold": chat.space.hold})
    parts(first).held[chat.space.id]._appender = appender  # type: ignore[assignment]
    done: list[Seq] = []

    async def go() -> None:
        done.append(await say(twin, "two"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await hanging.wait()
        # Meanwhile everything can be read.
        assert b"one" in await twin.text()
        assert (await twin.load()).seq == 1
        clock.now += 5000
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert done == [2]
    assert await told(chat) == ["one", "two"]
    assert await holder(first, chat) == second.driver.peers.name


@pytest.mark.parametrize("written", [True, False])
async def test_a_holder_that_hangs_when_it_has_said_what_it_writes(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, *, written: bool
) -> None:
    hanging = trio.Event()
    usual = chat.space.append_under

    async def hangs(batch: object, epoch: Epoch, expected: Seq | None, intent: object) -> Seq:
        if written:
            await usual(batch, epoch, expected, intent)  # type: ignore[arg-type]
        else:
            head = chat.space.head
            intent(Head(Seq(head.seq + 1), head.ts, 12345, head.first_seq, head.size))  # type: ignore[operator]
        hanging.set()
        await trio.sleep_forever()
        raise AssertionError

    appender = type("Hanging", (), {"append_under": staticmethod(hangs), "hold": chat.space.hold})
    parts(first).held[chat.space.id]._appender = appender  # type: ignore[assignment]
    done: list[Seq] = []

    async def go() -> None:
        done.append(await say(twin, "two"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go)
        await hanging.wait()
        clock.now += 5000
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert done == [2]
    assert await told(chat) == ["one", "two"]


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


# ---- the words


@pytest.mark.parametrize(
    "error",
    [
        SeqConflict("no", current=7),
        CorruptLog("has a hole", seq=3, offset=99, log="demo/trip"),
        StoreFull("full"),
        StoreFailed("failed"),
        QuotaExceeded("quota"),
        LineTooLong("long"),
        errors.ReadOnly("ro"),
        errors.Truncated("gone", first_seq=8),
        errors.LeaseHeld("held", holder="x", expires=5),
        errors.InvalidEvent("bad", line=4, accepted=2),
    ],
)
def test_errors_cross(error: StoreError) -> None:
    with pytest.raises(type(error)) as caught:
        forwarding.result(forwarding.failed(error))
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"{}", b'{"seq":null}', b'{"error":"SystemExit","text":"x","fields":{}}',
     b'{"error":"SeqConflict","text":"x","fields":{"other":1}}', b'{"error":1}'],
)  # fmt: skip
def test_answers_that_arent_understood(answer: bytes) -> None:
    with pytest.raises(StoreFailed):
        forwarding.result(answer)


REQUEST = forwarding.Attempt([message("x")], None).request(SpaceId("workspace/w"), Epoch(3), durable=True)
HERE = PeerCredentials(os.getpid(), os.geteuid())


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"{}",
        b"\xff",
        b"[]",
        b'{"v":1,"ask":"remove"}',
        b'{"v":2,"ask":"append"}',
        REQUEST + b"\n{}",
        REQUEST.split(b"\n")[0],
        REQUEST.split(b"\n")[0] + b"\n{",
        REQUEST.replace(b'"test"', b"7"),
        REQUEST.replace(b'"epoch":3', b'"epoch":"x"'),
        REQUEST.replace(b"workspace/w", b"w" * 5000),
    ],
)
def test_requests_that_arent_understood(request_: bytes) -> None:
    with pytest.raises(InvalidInput):
        forwarding.asked(request_, HERE)


async def test_a_bad_request_appends_nothing(first: Store, second: Store, chat: Chat) -> None:
    for bad in (b"", b"{}", REQUEST.replace(b"workspace/w", b"../../x"), REQUEST.replace(b'"user"', b"user")):
        with pytest.raises((InvalidInput, NotHolder)):
            forwarding.result(await second.driver.peers.ask(first.driver.peers.name, bad))
    assert await told(chat) == ["one"]


def test_who_an_actor_can_be() -> None:
    stranger = PeerCredentials(os.getpid(), 4242)
    for peer in (PeerCredentials(1, 0), HERE):
        assert forwarding.actor_of("uid:1/vim", peer) == "uid:1/vim"
    assert forwarding.actor_of("uid:4242/vim", stranger) == "uid:4242/vim"
    assert forwarding.actor_of("import", stranger) == "import"
    assert forwarding.actor_of("uid:1/vim", stranger).startswith("uid:4242/")
    assert forwarding.actor_of("uid:1", PeerCredentials(0, 4242)) == "uid:4242"


def test_an_entry_at_the_place_isnt_taken_for_another() -> None:
    """Same crc by chance, other data; or the same data elsewhere."""

    class Log:
        space = "s"

        async def refresh(self) -> Head:
            return Head(Seq(2), Millis(0), 9, Seq(1), 0)

        async def read(self, since: Seq, limit: int) -> AsyncIterator[Entry]:
            yield Entry(Seq(2), Millis(0), "me", b'"other"', 9)

    async def look() -> None:
        attempt = forwarding.Attempt([NewEntry(b'"mine"', "me")], None, said=(Seq(2), 9))
        assert await attempt.look(Log()) is None  # type: ignore[arg-type]
        attempt = forwarding.Attempt([NewEntry(b'"other"', "me")], None, said=(Seq(2), 8))
        assert await attempt.look(Log()) is None  # type: ignore[arg-type]
        attempt = forwarding.Attempt([NewEntry(b'"other"', "me")], None, said=(Seq(2), 9))
        assert await attempt.look(Log()) == 2  # type: ignore[arg-type]

    trio.run(look)


async def test_what_is_held(first: Store, second: Store, chat: Chat, twin: Chat) -> None:
    await say(twin, "two")
    found = forwarding.spaces(await second.driver.peers.ask(first.driver.peers.name, forwarding.STATUS))
    assert [(one.space, one.epoch, one.seq) for one in found][-1] == (chat.space.id, 1, 2)
