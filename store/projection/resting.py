"""Chats of which neither copy changed since they were the same: found by names, sizes and times alone.

Concurrency: trio; files are looked at in a thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from store.errors import StoreError
from store.model import ChatId
from store.projection import durable, tail
from store.projection.manifest import Row
from store.projection.tree import Directory
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

_SLICE: Final = 200


async def find(
    workspace: Workspace, chats: Directory, rows: Mapping[ChatId, Row], names: Mapping[ChatId, Sequence[str]]
) -> set[ChatId]:
    """All of them. `rows` is what the manifest has, `names` are the directories that are there."""
    found = await trio.to_thread.run_sync(_with_files, workspace, chats, rows, names)
    for number, (chat, row) in enumerate(list(rows.items())):
        record = workspace.state.chats.get(chat)
        if row.log is None and record is not None and await _rests(workspace, chats, record, row, names.get(chat, [])):
            found.add(chat)
        if number % _SLICE == _SLICE - 1:
            await trio.lowlevel.checkpoint()
    return found


def _with_files(
    workspace: Workspace, chats: Directory, rows: Mapping[ChatId, Row], names: Mapping[ChatId, Sequence[str]]
) -> set[ChatId]:
    """Those whose logs are files."""
    found: set[ChatId] = set()
    state, driver = workspace.state, workspace.driver
    for chat, row in list(rows.items()):
        record = state.chats.get(chat)
        if record is None or row.log is None or not _has_place(record, row, names.get(chat, [])):
            continue
        if durable.stamp_in(driver, workspace.id, chat) != row.log:
            continue
        with contextlib.suppress(OSError, StoreError):
            if not row.directory or tail.looks_the_same(chats, row):
                found.add(chat)
    return found


async def _rests(workspace: Workspace, chats: Directory, record: ChatRecord, row: Row, names: Sequence[str]) -> bool:
    """Whether one does whose log isn't a file."""
    if not _has_place(record, row, names):
        return False
    if not row.directory:
        return True
    head = await workspace.chat_by_id(record.id).head()
    with contextlib.suppress(OSError, StoreError):
        return (head.seq, head.crc) == (row.seq, row.crc) and tail.looks_the_same(chats, row)
    return False


def _has_place(record: ChatRecord, row: Row, names: Sequence[str]) -> bool:
    """Whether name, place and directory are those that both copies had."""
    if record.place is Place.TRASH or list(names) != ([row.directory] if row.directory else []):
        return False
    named = row.metadata.get("name") == record.name and row.metadata.get("place") == record.place.value
    return not row.directory or named
