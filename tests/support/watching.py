"""An ordinary inotify watcher, and what it has heard."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final, Self

from tests.support.waiting import wait_for

_NAMES: Final = {
    0x002: "MODIFY",
    0x004: "ATTRIB",
    0x040: "MOVED_FROM",
    0x080: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
    0x400: "DELETE_SELF",
    0x800: "MOVE_SELF",
}
_MASK: Final = sum(_NAMES)
_HEADER: Final = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    """Watches paths; `heard` is what it was told, as `MODIFY history.md`. A context manager."""

    def __init__(self, *paths: Path) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, Path] = {}
        self._heard: list[str] = []
        self.cookies: list[int] = []
        """Of the moves: one number for both halves."""
        for path in paths:
            watch = _libc.inotify_add_watch(self._descriptor, os.fsencode(path), _MASK)
            if watch < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._paths[watch] = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    @property
    def heard(self) -> list[str]:
        """All since the last `clear`, in order."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return self._heard
        offset = 0
        while offset < len(data):
            watch, mask, cookie, size = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size + size
            name = data[offset - size : offset].rstrip(b"\0").decode()
            self._heard += [f"{what} {name or self._paths[watch].name}" for bit, what in _NAMES.items() if mask & bit]
            if cookie:
                self.cookies.append(cookie)
        return self._heard

    def clear(self) -> None:
        """Forget what was heard."""
        del self.heard[:]

    def expect(self, *events: str) -> None:
        """Wait until each of these was heard."""
        try:
            wait_for(lambda: all(event in self.heard for event in events))
        except AssertionError:
            raise AssertionError(f"of {events} only these were heard: {self.heard}") from None
