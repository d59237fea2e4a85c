"""What both ends of a connection between two instances have in common: see `peers`."""

from __future__ import annotations

import socket
import struct
from typing import Final

LARGE: Final = 1024 * 1024
"""Bytes from which on a request has to wait until fewer such are in memory."""
HEAD: Final = struct.Struct(">I")
"""A request's size."""
MESSAGE: Final = struct.Struct(">cI")
"""What a message is, and its size."""
SAID: Final = b"s"
ANSWER: Final = b"a"
PIECE: Final = 1 << 16
"""Bytes that are received at once."""


def unconnected() -> socket.socket:
    """A socket that never blocks."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    made.setblocking(False)
    return made


def credentials_of(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of who connected, as the kernel says."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
