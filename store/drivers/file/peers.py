"""How instances on one machine ask each other: a Unix stream socket for each, `instances/<name>.sock`.

A connection carries one request. The asker sends 4 bytes of length (big-endian) and the request; it gets messages, each
of one byte that says what it is (`s`: said meanwhile, `a`: the answer), 4 bytes of length, and so many bytes. Whoever
is at the other end, at either, must be of this instance's user, the store's owner, or root.

What was said lies in the asker's own buffer, so it arrives even if the other process dies; once the asker has shut its
end down, saying fails. So an asker that gives up knows all that was said, and that nothing more will be.

Concurrency: on the trio loop. Connections are served side by side; one that is slow to send its request is dropped, the
slowest first where there are many.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from store import durability
from store.drivers.file.instances import Instances
from store.errors import Unreachable
from store.peers import REQUEST_MAX, Answer, PeerCredentials, PeerInfo, Say

log = logging.getLogger("chatfs")

CONNECTIONS: Final = 128
"""How many are served at once."""
LARGE: Final = 1024 * 1024
"""Bytes from which on a request has to wait until fewer such are in memory."""
_LARGE_AT_ONCE: Final = 2
_PATIENCE: Final = 10.0
"""Seconds that an asker has to send its request, and one more for each `_PACE` bytes of it."""
_PACE: Final = 4 * 1024 * 1024
_CLOSING: Final = 2.0
"""Seconds that those have to be finished who are being answered when serving ends."""
_AGAIN: Final = 0.01
"""Seconds until a queue that is full is tried again."""
_PATH_MAX: Final = 107
_HEAD: Final = struct.Struct(">I")
_MESSAGE: Final = struct.Struct(">cI")
_PIECE: Final = 1 << 18


class FilePeers:
    """See `store.peers.Peers`."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._instances = Instances(root, read_only=read_only)
        self.name = self._instances.name
        self._root = root
        self._refused: set[int] = set()

    def _may(self, uid: int) -> bool:
        """Whether that user may write the store anyway."""
        with contextlib.suppress(FileNotFoundError):
            return uid in {0, os.geteuid(), os.stat(self._root).st_uid}
        return False

    @property
    def announced(self) -> bool:
        """See Peers."""
        return self._instances.announced

    def announce(self) -> None:
        """See Peers."""
        self._instances.announce()

    def is_dead(self, holder: str) -> bool:
        """See Peers."""
        return self._instances.is_dead(holder)

    async def everyone(self) -> list[PeerInfo]:
        """See Peers."""
        await trio.lowlevel.checkpoint()
        return self._instances.everyone()

    def close(self) -> None:
        """The instance has ended."""
        self._instances.forget()

    # ---- answering

    @asynccontextmanager
    async def serve(self, answer: Answer) -> AsyncIterator[None]:
        """See Peers."""
        self.announce()
        with self._listening() as listener:
            server = _Server(listener, answer, self._may, self._refused)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run, nursery)
                try:
                    yield
                finally:
                    durability.discard("peers", self._instances.path("sock"))
                    server.finish()
                    nursery.cancel_scope.cancel()

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        with contextlib.ExitStack() as held:
            with durability.failing(f"making {self._instances.path('sock')}"), self._address(self.name) as path:
                listener = held.enter_context(contextlib.closing(_socket()))
                listener.bind(path)
                os.chmod(path, durability.FILE_MODE)
                listener.listen(CONNECTIONS)
            yield listener

    @contextmanager
    def _address(self, name: str) -> Iterator[str]:
        """The path of an instance's socket. Of a longer one than an address can hold, by way of /proc."""
        path = self._instances.path("sock", name)
        if len(os.fsencode(path)) <= _PATH_MAX:
            yield path
            return
        directory = os.open(self._instances.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{name}.sock"
        finally:
            os.close(directory)

    # ---- asking

    async def ask(self, holder: str, request: bytes, *, heard: Say | None = None) -> bytes:
        """See Peers."""
        with contextlib.closing(await self._connected(holder)) as connection:
            asking = _Asking(connection, heard)
            try:
                await asking.send(request)
                while asking.answer is None:
                    if not await asking.receive():
                        raise Unreachable(f"instance {holder} of the store didn't answer: it has ended, or refused to")
                return asking.answer
            finally:
                asking.end()

    async def _connected(self, holder: str) -> socket.socket:
        try:
            with contextlib.ExitStack() as held:
                connection = held.enter_context(contextlib.closing(_socket()))
                while True:
                    await trio.lowlevel.checkpoint()
                    try:
                        with self._address(holder) as path:
                            connection.connect(path)
                        _pid, uid = _credentials_of(connection)
                        if not self._may(uid):
                            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                        held.pop_all()
                        return connection
                    except BlockingIOError:
                        await trio.sleep(_AGAIN)  # its queue is full, which nothing tells the end of
        except OSError as error:
            raise Unreachable(
                f"instance {holder} of the store can't be reached: {os.strerror(error.errno or 0)}"
            ) from error


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    made.setblocking(False)
    return made


async def _send_all(connection: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[connection.send(left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(connection)


class _Asking:
    """The asker's end of a connection."""

    def __init__(self, connection: socket.socket, heard: Say | None) -> None:
        self._connection = connection
        self._heard = heard
        self._buffer = bytearray()
        self.answer: bytes | None = None

    async def send(self, request: bytes) -> None:
        """Send it. Where the other end doesn't want it, that is seen when it doesn't answer."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            small = len(request) <= LARGE
            await _send_all(self._connection, _HEAD.pack(len(request)) + (request if small else b""))
            if not small:
                await _send_all(self._connection, request)

    async def receive(self) -> bool:
        """Take in what has come, or comes; False at the end."""
        while True:
            try:
                return self._take()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._connection)

    def _take(self) -> bool:
        try:
            piece = self._connection.recv(_PIECE)
        except ConnectionResetError:
            return False
        buffer = self._buffer
        buffer += piece
        while len(buffer) >= _MESSAGE.size:
            kind, size = _MESSAGE.unpack_from(buffer)
            if size > REQUEST_MAX:
                return False
            if len(buffer) < _MESSAGE.size + size:
                break
            message = bytes(buffer[_MESSAGE.size : _MESSAGE.size + size])
            del buffer[: _MESSAGE.size + size]
            if kind == b"a":
                self.answer = message
            elif self._heard is not None:
                self._heard(message)
        return bool(piece)

    def end(self) -> None:
        """Shut this end down, so that the other one can't say any more, and take in what was said before."""
        if self.answer is None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(BlockingIOError):
                while self._take():
                    pass


class _Server:
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
        """Drop who has been sending longest, where there are too many."""
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
                pid, uid = _credentials_of(connection)
                if self._may(uid):
                    with contextlib.suppress(OSError, Unreachable):
                        await self._answer_one(connection, PeerCredentials(pid, uid), scope)
                elif uid not in self._refused:
                    self._refused.add(uid)
                    log.warning("uid %d asked this process to append for it: refused, the store is another user's", uid)
            finally:
                self._reading.pop(scope, None)

    async def _answer_one(self, connection: socket.socket, peer: PeerCredentials, scope: trio.CancelScope) -> None:
        async with contextlib.AsyncExitStack() as held:
            size = _HEAD.unpack(await _receive(connection, _HEAD.size))[0]
            if size > REQUEST_MAX:
                return
            if size > LARGE:
                await held.enter_async_context(self._large)
                scope.deadline = trio.current_time() + _PATIENCE + size / _PACE
            request = await _receive(connection, size)
            # From here on it is answered, whatever ends.
            self._reading.pop(scope, None)
            scope.deadline = float("inf")
            await self._finish_one(connection, peer, request)

    async def _finish_one(self, connection: socket.socket, peer: PeerCredentials, request: bytes) -> None:
        gone = False

        def say(message: bytes) -> None:
            nonlocal gone
            data = _MESSAGE.pack(b"s", len(message)) + message
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
                    await _send_all(connection, _MESSAGE.pack(b"a", len(told)) + told)
            finally:
                self._answering.discard(scope)
                self._finished.set()


def _credentials_of(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of who connected, as the kernel says."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


async def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises ConnectionResetError where the other end closes before."""
    found = bytearray()
    while len(found) < size:
        try:
            piece = connection.recv(min(_PIECE, size - len(found)))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(connection)
            continue
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the other end was closed")
        found += piece
    return bytes(found)
