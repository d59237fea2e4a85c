"""How many bytes a workspace uses: its logs, its attachments' blobs (each counted once), scratch files and drafts.

Measured from the store, never kept: what a chat's log names is remembered until the log is another, so that measuring
again costs a few stats a chat, and of a log that has grown what is new. A draft counts with the size of the file that
it is a draft of. Drafts are looked at last: one that becomes a blob meanwhile is missed rather than counted twice.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
import trio

from store import codec, unlinked
from store.beginning import find_base, read_base
from store.driver import AppendLog, Driver
from store.errors import StoreError
from store.kinds import CHAT
from store.model import BlobRef, ChatId, Digest, SpaceId, WorkspaceId, chat_space, workspace_space

UNCOUNTED: Final = "uncounted"
"""In a draft's label: its bytes are counted elsewhere, or are too few to matter."""
_PUT: Final = b'"attachment.put"'
LOG_NAME: Final = "history.jsonl"
"""Of a log, where the driver has files."""
_PIECE: Final = 1 << 20
_TURN: Final = 64
"""How many chats are looked at before others get their turn."""


@dataclass(slots=True)
class _Share:
    """What is known of a chat's log: the blobs that its first `size` bytes name. `text` names the file."""

    text: tuple[int, int] = (0, 0)
    size: int = 0
    blobs: dict[Digest, int] = field(default_factory=dict)


class Usage:
    """The usage of one workspace."""

    __slots__ = ("_driver", "_lock", "_shares", "_workspace")

    def __init__(self, driver: Driver, workspace: WorkspaceId) -> None:
        self._driver = driver
        self._workspace = workspace
        self._shares: dict[ChatId, _Share] = {}
        self._lock = trio.Lock()

    async def measure(self, going_on: Callable[[], None] = lambda: None) -> tuple[int, dict[Digest, int]]:
        """Bytes, and the blobs among them. `going_on` is called now and then: it can take long."""
        under = workspace_space(self._workspace)
        async with self._lock:
            total = await self._log_size(under) + _scratch(self._driver.local_dir(under))
            blobs: dict[Digest, int] = {}
            shares: dict[ChatId, _Share] = {}
            for number, space in enumerate(await self._driver.spaces(under), 1):
                chat = ChatId(space.rpartition("/")[2])
                share = self._shares.get(chat) or _Share()
                total += await self._measure_chat(chat, share, going_on)
                shares[chat] = share
                count(blobs, share.blobs)
                if number % _TURN == 0:
                    going_on()
                    await trio.lowlevel.checkpoint()
            self._shares = shares
            total += sum(
                size
                for label, size in self._driver.blobs.drafts()
                if label.get("workspace") == self._workspace and label.get(UNCOUNTED) is not True
            )
        return total + sum(blobs.values()), blobs

    async def _log_size(self, space: SpaceId) -> int:
        found = self._stat(space)
        if found is not None:
            return found.st_size
        log = await self._driver.open_log(space)
        try:
            return log.head.size
        finally:
            await log.aclose()

    def _stat(self, space: SpaceId) -> os.stat_result | None:
        """The log's file, where the driver has files."""
        try:
            return (self._driver.local_dir(space) / LOG_NAME).lstat()
        except OSError:
            return None

    async def _measure_chat(self, chat: ChatId, share: _Share, going_on: Callable[[], None]) -> int:
        """Log and scratch files; `share` has the blobs afterwards, as far as the log can be read: fsck says more."""
        space = chat_space(self._workspace, chat)
        scratch = _scratch(self._driver.local_dir(space))
        found = self._stat(space)
        if found is not None and ((found.st_dev, found.st_ino), found.st_size) == (share.text, share.size):
            return share.size + scratch
        try:
            log = await self._driver.open_log(space)
        except StoreError:
            return (0 if found is None else found.st_size) + scratch
        try:
            size = log.head.size
            text = (0, log.text_id) if found is None else (found.st_dev, found.st_ino)
            if text != share.text or size < share.size:
                share.text, share.size, share.blobs = text, 0, await compacted_blobs(self._driver, log)
            with contextlib.suppress(StoreError):
                await _add_blobs(share, log, size, going_on)
        finally:
            await log.aclose()
        return (size if found is None else found.st_size) + scratch


async def _add_blobs(share: _Share, log: AppendLog, size: int, going_on: Callable[[], None]) -> None:
    """Every blob that the log names behind what is known of it: what was removed takes room until `chatfs gc`."""
    rest = b""
    offset = share.size
    while offset < size:
        piece = log.read_text(offset, min(_PIECE, size - offset))
        if not piece:
            break
        offset += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if may_put(line) and (entry := codec.parse(line)) is not None and (named := named_blob(entry.data)):
                count(share.blobs, {named.digest: named.size})
        going_on()
        await trio.lowlevel.checkpoint()
    share.size = offset - len(rest)


def may_put(text: bytes) -> bool:
    """Whether it is worth a look: JSON may write letters as escapes."""
    return _PUT in text or b"\\u" in text


def named_blob(data: bytes) -> BlobRef | None:
    """What an event names as an attachment."""
    if not may_put(data):
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or value.get("type") != "attachment.put" or type(value.get("size")) is not int:
        return None
    return BlobRef(Digest(str(value.get("digest"))), value["size"])


def count(found: dict[Digest, int], blobs: Mapping[Digest, int]) -> None:
    """Add blobs. Logs say how long they are, and anybody may write into a log: the longest counts."""
    for digest, size in blobs.items():
        found[digest] = max(found.get(digest, 0), size)


async def compacted_blobs(driver: Driver, log: AppendLog) -> dict[Digest, int]:
    """The blobs that stand for what a log's compaction dropped, by size: the state itself, and its attachments'."""
    try:
        base = await find_base(log)
        if base is None:
            return {}
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


def _scratch(directory: Path) -> int:
    """Bytes in the scratch files. Of a symbolic link they are its target's name."""
    total = 0
    for area in ("scratch", "scratch-attachments"):
        try:
            with os.scandir(directory / area) as entries:
                for entry in entries:
                    # What is removed meanwhile must not take the others with it.
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                            total += found.st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total + unlinked.sweep(directory)
