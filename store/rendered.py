"""history.md as bytes that can be read at any offset: the rendered text, kept in a file instead of in memory.

While a chat is in use the text lives in an unnamed file of this process (the page cache holds it, not our heap), and
follows the fold: appended text is appended, anything else renders it anew at the next read. `publish` leaves a copy as
`history.md` beside the chat's log, for people who look into the store, with `history.md.json` to say what it is:
`{"seq", "size", "sha256"}`. Both can be deleted; nothing reads them as truth.

Concurrency: no awaits; one task at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import orjson

from store import durability
from store.fold import ChatState, Effect
from store.history import render_pieces


class RenderedText:
    """The rendered text of one chat."""

    __slots__ = ("_fd", "_pending", "_pending_size", "_size", "_stale", "_where")

    def __init__(self, directory: Callable[[], Path]) -> None:
        self._where = directory
        self._fd = -1
        self._size = 0
        self._stale = True
        self._pending: list[bytes] = []
        self._pending_size = 0

    @property
    def _directory(self) -> Path:
        return self._where()

    @property
    def used(self) -> bool:
        """Whether anybody has read it."""
        return self._fd >= 0

    def follow(self, effect: Effect | None) -> None:
        """The fold has moved by `effect` (None: somehow)."""
        if effect is None or effect.rewritten:
            self._stale = True
            self._pending.clear()
            self._pending_size = 0
        elif effect.appended and not self._stale:
            self._pending.append(effect.appended)
            self._pending_size += len(effect.appended)

    def read(self, state: ChatState, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset` of what `state` renders."""
        try:
            self._catch_up(state)
        except OSError:
            # A full disk takes no copy, and what is logged must be readable all the same: in memory, then.
            self.close()
            self._fd = os.memfd_create("history.md", os.MFD_CLOEXEC)
            self._render(state)
        return os.pread(self._fd, size, offset)

    def _catch_up(self, state: ChatState) -> None:
        if self._stale or self._size + self._pending_size != state.size:
            self._render(state)
        elif self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()
            self._pending_size = 0

    def _render(self, state: ChatState) -> None:
        if self._fd < 0:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._pending.clear()
        self._pending_size = 0
        batch: list[bytes] = []
        batched = 0
        for piece in render_pieces(state):
            batch.append(piece)
            batched += len(piece)
            if batched >= 1 << 20:
                self._write(b"".join(batch))
                batch, batched = [], 0
        self._write(b"".join(batch))
        self._stale = False

    def _write(self, data: bytes) -> None:
        durability.pwrite_all("rendered.write", self._fd, data, self._size)
        self._size += len(data)

    def publish(self, state: ChatState) -> None:
        """Leave a copy for readers of the store's directory, if it was used and isn't there already."""
        if not self.used:
            return
        text = self.read(state, 0, state.size)
        digest = hashlib.sha256(text).hexdigest()
        note = orjson.dumps({"seq": state.seq, "size": len(text), "sha256": digest}) + b"\n"
        beside = self._directory / "history.md.json"
        if beside.exists() and beside.read_bytes() == note:
            return
        durability.atomic_replace("rendered.publish", self._directory / "history.md", text, durable=False)
        durability.atomic_replace("rendered.publish", beside, note, durable=False)

    def close(self) -> None:
        """Let the unnamed file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._stale = True
