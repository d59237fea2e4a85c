"""What instances say to each other, also where it isn't as it should be."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio

from store import errors, forwarding
from store.chat import Chat
from store.errors import (
    CorruptLog,
    InvalidInput,
    LineTooLong,
    NotHolder,
    QuotaExceeded,
    SeqConflict,
    StoreError,
    StoreFailed,
    StoreFull,
)
from store.library import Store
from store.model import Entry, Epoch, Head, Millis, NewEntry, Seq, SpaceId
from store.peers import PeerCredentials
from tests.support.instances import message, told


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
