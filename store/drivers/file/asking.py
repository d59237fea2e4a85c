"""The asker's end of the connections between instances: see `peers`.

Concurrency: on the trio loop. A connection is one request's at a time; requests at the same time use several.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

import trio

from store.drivers.file.connection import ANSWER, HEAD, LARGE, MESSAGE, PIECE
from store.errors import Unreachable
from store.peers import REQUEST_MAX, Say, Still

T = TypeVar("T")

_LOOK: Final = 0.05
"""Seconds between two looks whether an answer is still wanted."""
_KEPT: Final = 4
"""How many connections are kept for the next request."""


class Connected(NamedTuple):
    """A connection to an instance, and what has come through it that nobody has taken yet."""

    holder: str
    socket: socket.socket
    buffer: bytearray


class Kept:
    """The connections of one instance that no request uses."""

    def __init__(self) -> None:
        self._connected: list[Connected] = []

    def take(self, holder: str) -> Connected | None:
        """The other end may have closed it."""
        for place, connected in enumerate(self._connected):
            if connected.holder == holder:
                return self._connected.pop(place)
        return None

    def put(self, connected: Connected) -> None:
        """All that came through it was taken."""
        self._connected.append(connected)
        if len(self._connected) > _KEPT:
            self._connected.pop(0).socket.close()

    def close(self) -> None:
        """Close them all."""
        while self._connected:
            self._connected.pop().socket.close()


class Asking:
    """One request on its way."""

    def __init__(self, request: bytes, heard: Say | None, still: Still | None) -> None:
        self.untouched = True
        """Whether nothing has come back yet."""
        self._answer: bytes | None = None
        self._request = request
        self._heard = heard
        self._still = still
        self._look = trio.current_time() + _LOOK

    async def through(self, connected: Connected) -> bytes | None:
        """The answer; None where the other end has gone. Without an answer nothing more can come through it."""
        try:
            await self._send(connected.socket)
            while self._answer is None and await self._receive(connected):
                pass
            return self._answer
        finally:
            if self._answer is None:
                self._end(connected)

    async def wait(self, ready: Callable[[T], Awaitable[None]], argument: T) -> None:
        """`await ready(argument)`. Raises Unreachable once the answer isn't wanted any more."""
        if self._still is None:
            return await ready(argument)
        while True:
            with trio.CancelScope(deadline=self._look):
                return await ready(argument)
            if not await self._still():
                raise Unreachable("nobody waits for the answer any more")
            self._look = trio.current_time() + _LOOK

    async def _send(self, connection: socket.socket) -> None:
        """Where the other end doesn't want it, that is seen when it doesn't answer."""
        size = HEAD.pack(len(self._request))
        parts = (size + self._request,) if len(self._request) <= LARGE else (size, self._request)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                left = memoryview(part)
                while left:
                    try:
                        left = left[connection.send(left) :]
                    except BlockingIOError:
                        await self.wait(trio.lowlevel.wait_writable, connection)

    async def _receive(self, connected: Connected) -> bool:
        """Take in what has come, or comes; False at the end."""
        while True:
            try:
                return self._take(connected)
            except BlockingIOError:
                await self.wait(trio.lowlevel.wait_readable, connected.socket)

    def _take(self, connected: Connected) -> bool:
        try:
            piece = connected.socket.recv(PIECE)
        except ConnectionResetError:
            return False
        buffer = connected.buffer
        buffer += piece
        while len(buffer) >= MESSAGE.size:
            kind, size = MESSAGE.unpack_from(buffer)
            if size > REQUEST_MAX:
                return False
            if len(buffer) < MESSAGE.size + size:
                break
            message = bytes(buffer[MESSAGE.size : MESSAGE.size + size])
            del buffer[: MESSAGE.size + size]
            self.untouched = False
            if kind == ANSWER:
                self._answer = message
            elif self._heard is not None:
                self._heard(message)
        return bool(piece)

    def _end(self, connected: Connected) -> None:
        """Shut this end down, so that the other one can't say any more, and take in what was said before."""
        with contextlib.suppress(OSError):
            connected.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(BlockingIOError):
            while self._take(connected):
                pass
