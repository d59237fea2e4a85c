"""How instances on one machine ask each other: a Unix stream socket for each, `instances/<name>.sock`.

A connection carries one request after the other. The asker sends 4 bytes of length (big-endian) and the request; it
gets messages, each of one byte that says what it is (`s`: said meanwhile, `a`: the answer), 4 bytes of length, and so
many bytes. After the answer it may ask again, or leave the connection unused; either end may close it then. Whoever is
at the other end, at either, must be of this instance's user, the store's owner, or root.

What was said lies in the asker's own buffer, so it arrives even if the other process dies; once the asker has shut its
end down, saying fails. So an asker that gives up knows all that was said, and that nothing more will be.

Concurrency: on the trio loop. Connections are served side by side; one that is slow to send its request is dropped.
Where there are many, the one that has been sending longest, or hasn't asked for longest, has to go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from store import durability
from store.drivers.file import connection as wire
from store.drivers.file.answering import CONNECTIONS, Server
from store.drivers.file.asking import Asking, Connected, Kept
from store.drivers.file.connection import unconnected
from store.drivers.file.instances import Instances
from store.errors import Unreachable
from store.peers import Answer, PeerInfo, Say, Still

_AGAIN: Final = 0.01
"""Seconds until a queue that is full is tried again."""
_PATH_MAX: Final = 107


class FilePeers:
    """See `store.peers.Peers`."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._instances = Instances(root, read_only=read_only)
        self.name = self._instances.name
        self._root = root
        self._refused: set[int] = set()
        self._kept = Kept()

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
        self._kept.close()
        self._instances.forget()

    # ---- answering

    @asynccontextmanager
    async def serve(self, answer: Answer) -> AsyncIterator[None]:
        """See Peers."""
        self.announce()
        with self._listening() as listener:
            server = Server(listener, answer, self._may, self._refused)
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
                listener = held.enter_context(contextlib.closing(unconnected()))
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

    async def ask(self, holder: str, request: bytes, *, heard: Say | None = None, still: Still | None = None) -> bytes:
        """See Peers."""
        asking = Asking(request, heard, still)
        connected = self._kept.take(holder)
        if connected is not None:
            answer = await self._through(asking, connected)
            # Where the other end closed it before, it hasn't taken the request in, and won't.
            if answer is not None or not asking.untouched:
                return _there(answer, holder)
        connected = Connected(holder, await self._connected(holder, asking), bytearray())
        return _there(await self._through(asking, connected), holder)

    async def _through(self, asking: Asking, connected: Connected) -> bytes | None:
        with contextlib.ExitStack() as held:
            held.callback(connected.socket.close)
            answer = await asking.through(connected)
            if answer is not None and not connected.buffer:
                held.pop_all()
                self._kept.put(connected)
        return answer

    async def _connected(self, holder: str, asking: Asking) -> socket.socket:
        try:
            with contextlib.ExitStack() as held:
                connection = held.enter_context(contextlib.closing(unconnected()))
                while True:
                    await trio.lowlevel.checkpoint()
                    try:
                        with self._address(holder) as path:
                            connection.connect(path)
                        _pid, uid = wire.credentials_of(connection)
                        if not self._may(uid):
                            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                        held.pop_all()
                        return connection
                    except BlockingIOError:
                        await asking.wait(trio.sleep, _AGAIN)  # its queue is full, which nothing tells the end of
        except OSError as error:
            raise Unreachable(
                f"instance {holder} of the store can't be reached: {os.strerror(error.errno or 0)}"
            ) from error


def _there(answer: bytes | None, holder: str) -> bytes:
    if answer is None:
        raise Unreachable(f"instance {holder} of the store didn't answer: it has ended, or refused to")
    return answer
