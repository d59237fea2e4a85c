"""history.md as bytes that can be read at any offset: the rendered text, kept in files instead of in memory.

While a chat is in use the text lives in an unnamed file of this process (the page cache holds it, not our heap), and
follows the fold: appended text is appended, anything else renders it anew at the next read. Where the fold began at a
snapshot, the snapshot's text is read as it is, and the file holds what came behind it. `publish` leaves a copy as
`history.md` beside the chat's log, for people who look into the store, with `history.md.json` to say what it is:
`{"seq", "crc", "size", "sha256"}`. Both can be deleted; nothing reads them as truth.

Concurrency: no awaits; one task at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from store import durability
from store.fold import ChatState, Effect
from store.history import render_pieces
from store.model import Head
from store.publishing import NOTE_NAME, TEXT_NAME, publish
from store.snapshot import Source
from store.snapshots import note

PUBLISHED_MAX: Final = 16 * 1024 * 1024
"""Longer texts are only published with a snapshot, when they have grown by a good part."""


class RenderedText:
    """The rendered text of one chat."""

    __slots__ = ("_fd", "_pending", "_pending_size", "_prefix", "_size", "_source", "_stale", "_where")

    def __init__(self, directory: Callable[[], Path]) -> None:
        self._where = directory
        self._fd = -1
        self._size = 0
        self._source: Source | None = None
        self._prefix = 0
        """How many bytes of the text stand in the source, before those of the file."""
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

    def read(self, state: ChatState, source: Source | None, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset` of what `state` renders; `source` is what it was loaded from, if it was.

        Raises CorruptSnapshot.
        """
        try:
            self._catch_up(state, source)
        except OSError:
            # A full disk takes no copy, and what is logged must be readable all the same: in memory, then.
            self.close()
            self._fd = os.memfd_create("history.md", os.MFD_CLOEXEC)
            self._render(state, source)
        before = b""
        if offset < self._prefix and self._source is not None:
            before = self._source.text(offset, min(size, self._prefix - offset))
            offset += len(before)
            size -= len(before)
        return before + os.pread(self._fd, size, offset - self._prefix) if size else before

    def _catch_up(self, state: ChatState, source: Source | None) -> None:
        stale = self._stale or (self._prefix > 0 and source is not self._source)
        if stale or self._prefix + self._size + self._pending_size != state.size:
            self._render(state, source)
        elif self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()
            self._pending_size = 0

    def _render(self, state: ChatState, source: Source | None) -> None:
        if self._fd < 0:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._pending.clear()
        self._pending_size = 0
        self._source = source
        self._prefix = state.text_prefix if source is not None else 0
        batch: list[bytes] = []
        batched = 0
        for piece in render_pieces(state, self._prefix):
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

    def publish(self, state: ChatState, source: Source | None, head: Head) -> None:
        """Leave a copy for readers of the store's directory, if it was used and isn't there already."""
        if not self.used or state.size > PUBLISHED_MAX or state.seq != head.seq:
            return
        beside, published = self._directory / NOTE_NAME, self._directory / TEXT_NAME
        text = self.read(state, source, 0, state.size)
        described = note(head.seq, head.crc, len(text), hashlib.sha256(text).hexdigest())
        if _holds(beside, described) and _holds(published, text):
            return

        def put(path: Path) -> int:
            with durability.replacing("rendered.publish", path, durable=False) as fd:
                durability.write_all("rendered.publish", fd, text)
                return os.fstat(fd).st_ino

        publish(self._directory, put, described)

    def close(self) -> None:
        """Let the unnamed file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._source = None
        self._stale = True


def _holds(path: Path, data: bytes) -> bool:
    """Whether the file is there and says just that."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False
