"""How many bytes a workspace uses: its logs, its attachments' blobs (each counted once), its chats' scratch files.

Measured from the store, never kept: a chat's share is remembered until its log's size or its scratch directory's mtime
changes, so that measuring again costs a stat or two a chat. For checking a quota, a measurement is good for a second,
with what was let through here since added to it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import trio

from store import codec
from store.beginning import find_base, read_base
from store.driver import AppendLog, Driver
from store.errors import StoreError
from store.kinds import CHAT
from store.model import ChatId, Digest, SpaceId, WorkspaceId, chat_space, workspace_space

FRESH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Share:
    stamp: tuple[int, int, int]
    bytes: int
    blobs: dict[Digest, int]


class Usage:
    """The usage of one workspace."""

    __slots__ = ("_driver", "_let_through", "_lock", "_measured", "_shares", "_workspace")

    def __init__(self, driver: Driver, workspace: WorkspaceId) -> None:
        self._driver = driver
        self._workspace = workspace
        self._shares: dict[ChatId, _Share] = {}
        self._lock = trio.Lock()
        self._measured: tuple[float, int] | None = None
        self._let_through = 0

    async def fits(self, extra: int, quota: int) -> int | None:
        """Whether `extra` bytes more stay within `quota`: None if so (they count from now on), else what is used."""
        if self._measured is None or trio.current_time() - self._measured[0] > FRESH_SECONDS:
            used = await self.measure()
            self._measured = (trio.current_time(), used)
            self._let_through = 0
        used = self._measured[1] + self._let_through
        if used + extra > quota:
            # Something may have gone since: only a measurement of now refuses.
            used = await self.measure()
            self._measured = (trio.current_time(), used)
            self._let_through = 0
            if used + extra > quota:
                return used
        self._let_through += extra
        return None

    async def measure(self) -> int:
        """Bytes."""
        under = workspace_space(self._workspace)
        async with self._lock:
            chats = [ChatId(space.rpartition("/")[2]) for space in await self._driver.spaces(under)]
            total = (await self._log_size(under)) or 0
            blobs: dict[Digest, int] = {}
            shares: dict[ChatId, _Share] = {}
            for chat in chats:
                shares[chat] = share = await self._measure_chat(chat)
                total += share.bytes
                _count(blobs, share.blobs)
            self._shares = shares
        return total + sum(blobs.values())

    async def _log_size(self, space: SpaceId) -> int | None:
        path = self._driver.local_dir(space) / "history.jsonl"
        try:
            return path.stat().st_size
        except OSError:
            return None

    async def _measure_chat(self, chat: ChatId) -> _Share:
        space = chat_space(self._workspace, chat)
        directory = self._driver.local_dir(space)
        size = await self._log_size(space)
        if size is None:
            log = await self._driver.open_log(space)
            size = log.head.size
            await log.aclose()
        scratch, changed = _scratch(directory)
        stamp = (size, scratch, changed)
        known = self._shares.get(chat)
        if known is not None and known.stamp == stamp:
            return known
        if known is not None and known.stamp[0] == size:
            return _Share(stamp, size + scratch, known.blobs)
        blobs = await self._blobs(space)
        return _Share(stamp, size + scratch, blobs)

    async def _blobs(self, space: SpaceId) -> dict[Digest, int]:
        """Every blob that the log names: what was removed still takes room until `chatfs gc`."""
        found: dict[Digest, int] = {}
        log = await self._driver.open_log(space)
        try:
            found.update(await compacted_blobs(self._driver, log))
            offset, rest, size = 0, b"", log.head.size
            while offset < size:
                text = rest + log.read_text(offset, min(1 << 20, size - offset))
                offset += len(text) - len(rest)
                *lines, rest = text.split(b"\n")
                for line in lines:
                    if b'"attachment.put"' in line:
                        entry = codec.parse(line)
                        value = orjson.loads(entry.data) if entry is not None else None
                        if isinstance(value, dict) and type(value.get("size")) is int:
                            _count(found, {Digest(str(value.get("digest"))): value["size"]})
                await trio.lowlevel.checkpoint()
        finally:
            await log.aclose()
        return found


def _count(found: dict[Digest, int], blobs: dict[Digest, int]) -> None:
    """Add blobs. Logs say how long they are, and anybody may write into a log: the longest counts."""
    for digest, size in blobs.items():
        found[digest] = max(found.get(digest, 0), size)


async def compacted_blobs(driver: Driver, log: AppendLog) -> dict[Digest, int]:
    """The blobs that stand for what a log's compaction dropped, by size: the state itself, and its attachments'."""
    base = await find_base(log)
    if base is None:
        return {}
    try:
        found = {base.digest: (await driver.blobs.stat(base.digest)).size}
        state, _ = await read_base(driver, CHAT, base)
    except StoreError:
        # It can't be read: fsck says so.
        return {}
    for attachment in (
        *state.attachments.values(),
        *(removed for _, removed in state.attachment_state.removed.values()),
    ):
        found[attachment.digest] = attachment.size
    return found


def _scratch(directory: Path) -> tuple[int, int]:
    """Bytes in the scratch files, and the newest change of any."""
    total, newest = 0, 0
    for area in ("scratch", "scratch-attachments"):
        try:
            with os.scandir(directory / area) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        total += found.st_size
                    newest = max(newest, found.st_mtime_ns)
        except FileNotFoundError:
            continue
    return total, newest
