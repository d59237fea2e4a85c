"""Two opened stores that speak with each other: what is said in them, and what stands between them."""

from __future__ import annotations

import orjson

from store import intake
from store.authority import Authorities
from store.chat import Chat
from store.errors import (
    Unreachable,
)
from store.library import Store
from store.model import NewEntry, Seq, uuid7
from tests.contract.backends import FakeClock

ME = "test"


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


async def overtake(second: Store, chat: Chat, clock: FakeClock) -> None:
    """The lease is taken while its holder still believes that it has it."""
    clock.now += 5000
    await second.driver.leases.acquire(chat.space.id, second.driver.peers.name, 5000)
    clock.now -= 5000


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
