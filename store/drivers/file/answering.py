"""The end of the connections between instances that answers: see `peers`.

Concurrency: on the trio loop. Connections are served side by side, each one request after the other.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from collections.abc import Callable
from typing import Final

import trio

from store.drivers.file import connection as wire
from store.drivers.file.connection import ANSWER, HEAD, LARGE, MESSAGE, PIECE, SAID
from store.errors import Unreachable
from store.peers import REQUEST_MAX, Answer, PeerCredentials

log = logging.getLogger("chatfs")

CONNECTIONS: Final = 128
"""How many are served at once."""
_LARGE_AT_ONCE: Final = 2
_PATIENCE: Final = 10.0
"""Seconds that an asker has to send a request, and one more for each `_PACE` bytes of it."""
_PACE: Final = 4 * 1024 * 1024
_CLOSING: Final = 2.0
"""Seconds that those have to be finished who are being answered when serving ends."""


class Server:
    """Accepts connections and answers."""

    def __init__(self, listener: socket.socket, answer: Answer, may: Callable[[int], bool], refused: set[int]) -> None:
        self._listener = listener
        self._answer = answer
        self._may = may
        self._refused = refused
        self._reading: dict[trio.CancelScope, None] = {}
        self._answering: set[trio.CancelScope] = set()
        self._finished = trio.Event()
        self._large = trio.CapacityLimiter(_LARGE_AT_ONCE)

    async def run(self, nursery: trio.Nursery) -> None:
        """Accept, for ever."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._listener)
                continue
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}:
                    log.error("nobody can be answered: %s", error.strerror)  # noqa: TRY400 - one line
                    await trio.sleep(1)
                continue
            connection.setblocking(False)
            await self._make_room()
            scope = trio.CancelScope(deadline=trio.current_time() + _PATIENCE)
            self._reading[scope] = None
            nursery.start_soon(self._serve, connection, scope)
            await trio.lowlevel.checkpoint()

    async def _make_room(self) -> None:
        """Drop who has been sending longest, or hasn't asked for longest, where there are too many."""
        while len(self._reading) + len(self._answering) >= CONNECTIONS:
            if self._reading:
                oldest = next(iter(self._reading))
                del self._reading[oldest]
                oldest.cancel()
            else:
                self._finished = trio.Event()
                await self._finished.wait()

    def finish(self) -> None:
        """Who is being answered has a moment left."""
        for scope in self._answering:
            scope.deadline = trio.current_time() + _CLOSING

    async def _serve(self, connection: socket.socket, scope: trio.CancelScope) -> None:
        with contextlib.closing(connection), scope:
            try:
                pid, uid = wire.credentials_of(connection)
                if self._may(uid):
                    with contextlib.suppress(OSError, Unreachable):
                        await self._serve_all(connection, PeerCredentials(pid, uid), scope)
                elif uid not in self._refused:
                    self._refused.add(uid)
                    log.warning("uid %d asked this process to append for it: refused, the store is another user's", uid)
            finally:
                self._reading.pop(scope, None)

    async def _serve_all(self, connection: socket.socket, peer: PeerCredentials, scope: trio.CancelScope) -> None:
        """Raises OSError or Unreachable at the end, or where one isn't as it should be."""
        buffer = bytearray()
        while True:
            await self._serve_one(connection, peer, scope, buffer)
            # Whoever connects must ask soon; who has asked may take its time until it does so again.
            scope.deadline = math.inf
            self._reading[scope] = None
            await trio.lowlevel.checkpoint()

    async def _serve_one(
        self, connection: socket.socket, peer: PeerCredentials, scope: trio.CancelScope, buffer: bytearray
    ) -> None:
        async with contextlib.AsyncExitStack() as held:
            size = HEAD.unpack(await _receive(connection, HEAD.size, buffer))[0]
            if size > REQUEST_MAX:
                raise _reset("the request is too long")
            if size > len(buffer):
                scope.deadline = trio.current_time() + _PATIENCE
                if size > LARGE:
                    await held.enter_async_context(self._large)
                    scope.deadline = trio.current_time() + _PATIENCE + size / _PACE
            request = await _receive(connection, size, buffer)
            if buffer:
                raise _reset("the next request came before the answer")
            # From here on it is answered, whatever ends.
            self._reading.pop(scope, None)
            scope.deadline = math.inf
            await self._finish_one(connection, peer, request)

    async def _finish_one(self, connection: socket.socket, peer: PeerCredentials, request: bytes) -> None:
        gone = False

        def say(message: bytes) -> None:
            nonlocal gone
            data = MESSAGE.pack(SAID, len(message)) + message
            try:
                gone = gone or connection.send(data) != len(data)
            except OSError:
                gone = True
            if gone:
                raise Unreachable("whoever asked has gone")

        with trio.CancelScope(shield=True) as scope:
            self._answering.add(scope)
            try:
                told = await self._answer(peer, request, say)
                scope.deadline = min(scope.deadline, trio.current_time() + _PATIENCE)
                if not gone:
                    await _send(connection, MESSAGE.pack(ANSWER, len(told)) + told)
            finally:
                self._answering.discard(scope)
                self._finished.set()
        if gone or scope.cancelled_caught:
            raise _reset("whoever asked has gone, or takes no answer")


def _reset(why: str) -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, why)


async def _send(connection: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[connection.send(left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(connection)


async def _receive(connection: socket.socket, size: int, buffer: bytearray) -> bytes:
    """The next `size` bytes. Raises ConnectionResetError where the other end closes before."""
    while len(buffer) < size:
        try:
            piece = connection.recv(PIECE)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(connection)
            continue
        if not piece:
            raise _reset("the other end was closed")
        buffer += piece
    found = bytes(memoryview(buffer)[:size])
    del buffer[:size]
    return found
