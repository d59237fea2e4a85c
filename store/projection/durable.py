"""The durable copy of a chat, as a projection needs it. Reads only.

Concurrency: trio; long work in threads. What is returned was true at one entry; the log may be further by then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import trio

from store import events as ev
from store import history
from store.driver import Driver
from store.fold import ChatState
from store.model import Attachment, ChatId, Entries, Entry, Millis, Origin, Seq, WorkspaceId, workspace_space
from store.projection import portable
from store.projection.tree import Stamp, stamp_of
from store.workspace_state import ChatRecord, Place

if TYPE_CHECKING:
    from store.chat import Chat

_LOG: Final = "history.jsonl"
_CHATS: Final = "chats"
_BACK: Final = 8
"""How many entries are read before those that are new, at first."""


@dataclass(frozen=True, slots=True)
class Durable:
    """A chat at entry `seq`, whose log's file looked like `log` before.

    `lines` is its portable log; `own` are those that the log has itself, where its beginning was compacted away.
    `changed` is when the last of them came here, `metadata_changed` when a name, a title … last changed.
    """

    seq: Seq
    crc: int
    log: Stamp | None
    lines: list[bytes]
    compacted: bool
    text: bytes
    fields: dict[str, Any]
    attachments: dict[str, Attachment]
    intent: str
    changed: Millis
    metadata_changed: Millis


def log_stamp(chat: Chat) -> Stamp | None:
    """How the log's file looks; None where the driver keeps none."""
    try:
        return stamp_of(os.stat(os.path.join(chat.directory, _LOG)))
    except OSError:
        return None


def stamp_in(driver: Driver, workspace: WorkspaceId, chat: ChatId) -> Stamp | None:
    """The same without the chat in hand."""
    try:
        return stamp_of(os.stat(f"{driver.local_dir(workspace_space(workspace))}/{_CHATS}/{chat}/{_LOG}"))
    except OSError:
        return None


def fields_of(record: ChatRecord, state: ChatState) -> dict[str, Any]:
    """What chat.json is made of."""
    place = Place.ARCHIVE if record.place is Place.ARCHIVE else Place.CHATS
    return {"name": record.name, "title": state.title, "labels": list(state.labels), "place": place.value}


async def read(chat: Chat, record: ChatRecord) -> Durable:
    """All of it. Raises CorruptLog where the log is damaged: what is shown then isn't all."""
    with chat.hold():
        while True:
            stamp = log_stamp(chat)
            await chat.whole()
            chat.space.check_sound()
            async with chat.space.frozen() as state:
                head = chat.space.head
                if not state.whole or state.seq != head.seq:
                    continue
                text = await trio.to_thread.run_sync(history.render, state)
                fields, attachments = fields_of(record, state), dict(state.attachments)
                intent, changed_ms = state.projection, max(record.changed, state.metadata_changed)
            columns = await _columns(chat, Seq(0), head.seq)
            if columns and columns[0].first != head.first_seq:
                continue  # compacted meanwhile
            lines, again, changed = await trio.to_thread.run_sync(_stream, columns)
            compacted = head.first_seq > 1 and not again
            return Durable(
                head.seq, head.crc, stamp, lines, compacted, text, fields, attachments, intent, changed, changed_ms
            )


async def _columns(chat: Chat, since: Seq, until: Seq) -> list[Entries]:
    opened = await chat.space.log()
    found: list[Entries] = []
    async with contextlib.aclosing(opened.read_batches(since)) as batches:
        async for entries in batches:
            part = entries.between(since, until)
            if not part:
                break
            found.append(part)
    return found


def _stream(columns: list[Entries]) -> tuple[list[bytes], bool, Millis]:
    """The lines, whether a reset was among the entries, and when the last entry came that has a line."""
    writer = portable.Writer()
    lines: list[bytes] = []
    again = False
    changed = 0
    for entries in columns:
        again = writer.write(entries, lines) or again
        if entries:
            changed = next((entry.ts for entry in reversed(entries) if not portable.is_own(entry)), changed)
    return lines, again, Millis(changed)


async def tail(chat: Chat, after: Seq, crc: int, until: Seq) -> list[bytes] | None:
    """The portable lines behind an entry that has that crc; None where it isn't so simple: then `read` it.

    Raises Truncated.
    """
    if after == until:
        return []
    back = _BACK if after else 0
    while True:
        since = max(0, after - back)
        columns = await _columns(chat, Seq(since), until)
        before = [part for part in (entries.between(since, after) for entries in columns) if part]
        new = [part for part in (entries.between(after, until) for entries in columns) if part]
        if not new or new[0].first != after + 1 or (after and (not before or before[-1].crc[-1] != crc)):
            return None
        # The same line again, in the same millisecond, is another line: those just before are looked at for that.
        if not before or since == 0 or before[0].ts[0] != new[0].ts[0]:
            break
        back *= 8
    writer = portable.Writer()
    lines: list[bytes] = []
    for entries in before:
        writer.write(entries, lines)
    lines.clear()
    for entries in new:
        if writer.write(entries, lines):
            return None
    return lines


async def beginning(chat: Chat) -> list[bytes]:
    """Lines that lead to the state that a compacted log begins with: its events are gone."""
    head = await chat.head()
    state = await chat.state_at(Seq(head.first_seq - 1))
    return await trio.to_thread.run_sync(_lines_for, state)


def _lines_for(state: ChatState) -> list[bytes]:
    events: list[tuple[int, ev.Event]] = []
    preamble = state.document.head
    if state.title or state.labels:
        events.append((state.created, ev.ChatChanged(state.title or None, list(state.labels) or None)))
    if state.preamble_edited:
        tail = None if preamble.tail is None else preamble.tail.decode()
        events.append((state.created, ev.PreambleEdited(bytes(preamble.text).decode(), tail=tail)))
    for item in state.document.messages():
        shown = {
            "md": bytes(item.text).decode(),
            "lead": None if item.lead is None else item.lead.decode(),
            "tail": None if item.tail is None else item.tail.decode(),
            "hidden": True if item.hidden else None,
        }
        events.append((item.ts, ev.MessageAppended(item.id, item.role, "", **shown)))  # type: ignore[arg-type]
    for found in state.attachments.values():
        put = ev.AttachmentPut(
            found.id, found.name, found.digest, found.size, found.content_type, found.mode, found.mtime_ns
        )
        events.append((state.ts, put))
    return portable.stream(
        Entry(Seq(seq), state.ts, ev.PROJECTOR, event.encode(), 0, Origin(ev.PROJECTOR, Millis(ts)))
        for seq, (ts, event) in enumerate(events, 1)
    )


def behind_base(own: Sequence[bytes], project: Sequence[bytes], written: int | None) -> list[bytes]:
    """The portable log of a compacted chat: what the project has before the first line that the log has, then those.

    Where the log has none left, what was written out counts as the beginning.
    """
    mine = set(own)
    at = next((index for index, line in enumerate(project) if line in mine), None)
    if at is None:
        at = len(project) if written is None else min(written, len(project))
    return [*project[:at], *own]


def replaced(found: Durable, lines: list[bytes]) -> Durable:
    """The same with other lines."""
    return replace(found, lines=lines)
