"""How the openers of one `memory:` store ask each other: within the process, as if they were processes of their own.

Concurrency: on the trio loop. A request is answered by a task of whom is asked, and goes on when the asker gives up.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from store.errors import Unreachable
from store.model import clock_ms, uuid7
from store.peers import Answer, PeerCredentials, PeerInfo, Say, Still, program_of

_LOOK: Final = 0.05
"""Seconds between two looks whether an answer is still wanted."""
_CLOSING: Final = 2.0
"""Seconds that those have to be finished who are being answered when serving ends."""


class Living:
    """The instances of one store."""

    def __init__(self) -> None:
        self.known: dict[str, PeerInfo] = {}
        self.servers: dict[str, _Server] = {}
        self.dead: set[str] = set()


class _Server:
    def __init__(self, answer: Answer, nursery: trio.Nursery) -> None:
        self.answer = answer
        self.nursery = nursery
        self.open = True
        self.answering: dict[trio.CancelScope, _Asking] = {}


class _Asking:
    """One request; `over` once the asker is gone or the other end has closed."""

    def __init__(self, request: bytes, heard: Say | None) -> None:
        self.request = request
        self.heard = heard
        self.gone = False
        self.answer: bytes | None = None
        self.done = trio.Event()

    def say(self, message: bytes) -> None:
        if self.gone:
            raise Unreachable("whoever asked has gone")
        if self.heard is not None:
            self.heard(message)


class MemoryPeers:
    """See `store.peers.Peers`."""

    def __init__(self, living: Living) -> None:
        self.name = uuid7().replace("-", "")
        self._living = living

    @property
    def announced(self) -> bool:
        """See Peers."""
        return self.name in self._living.known

    def announce(self) -> None:
        """See Peers."""
        if self.name not in self._living.known:
            self._living.known[self.name] = PeerInfo(
                self.name, os.getpid(), os.getuid(), program_of(os.getpid()), clock_ms()
            )

    def is_dead(self, holder: str) -> bool:
        """See Peers."""
        return holder in self._living.dead

    async def everyone(self) -> list[PeerInfo]:
        """See Peers."""
        await trio.lowlevel.checkpoint()
        return sorted(self._living.known.values(), key=lambda info: info.name)

    def close(self) -> None:
        """The instance has ended."""
        if self._living.known.pop(self.name, None) is not None:
            self._living.dead.add(self.name)

    @asynccontextmanager
    async def serve(self, answer: Answer) -> AsyncIterator[None]:
        """See Peers."""
        self.announce()
        async with trio.open_nursery() as nursery:
            server = self._living.servers[self.name] = _Server(answer, nursery)
            try:
                yield
            finally:
                del self._living.servers[self.name]
                server.open = False
                for scope in server.answering:
                    scope.deadline = trio.current_time() + _CLOSING
                nursery.cancel_scope.cancel()

    async def ask(self, holder: str, request: bytes, *, heard: Say | None = None, still: Still | None = None) -> bytes:
        """See Peers."""
        await trio.lowlevel.checkpoint()
        server = self._living.servers.get(holder)
        if server is None:
            raise Unreachable(f"instance {holder} of the store can't be reached: it serves nobody")
        asking = _Asking(request, heard)
        server.nursery.start_soon(_answer, server, asking)
        try:
            await _done(asking, still)
        finally:
            asking.gone = True
        if asking.answer is None:
            raise Unreachable(f"instance {holder} of the store didn't answer: it has ended, or refused to")
        return asking.answer


async def _done(asking: _Asking, still: Still | None) -> None:
    while True:
        with trio.CancelScope(deadline=trio.current_time() + (_LOOK if still is not None else math.inf)):
            await asking.done.wait()
            return
        if still is None or not await still():
            return


async def _answer(server: _Server, asking: _Asking) -> None:
    try:
        if server.open:
            with trio.CancelScope(shield=True) as scope:
                server.answering[scope] = asking
                try:
                    me = PeerCredentials(os.getpid(), os.getuid())
                    asking.answer = await server.answer(me, asking.request, asking.say)
                except Unreachable:
                    pass
                finally:
                    del server.answering[scope]
    finally:
        asking.done.set()
