"""Brings a conversation of JP into a workspace, or what has become of it since: see `store.importers.jp`.

Beside what every import does (`store.importing`), the chat follows what JP has rewritten: events that JP took back are
removed from sight, and stay in the log; ones that it put between others get their place; a conversation that JP has
archived, or brought back, is moved. What was changed in chatfs stays: a message that was edited here isn't removed, and
title and labels follow JP only where JP has changed them. Events that an export wrote are nothing new.

Concurrency: as `store.importing`; what is decided on a log's state is appended with `expected_seq`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import trio

from store import events as ev
from store.chat import Chat
from store.errors import SeqConflict
from store.exporters.jp_log import JpLog, read_jp_log
from store.exporters.jp_stream import shown_as
from store.fold import Message
from store.importers.imported import ImportedChat, ImportedRecord
from store.importers.jp import (
    Conversation,
    JpChat,
    base_config_record,
    event_keys,
    load,
    metadata_record,
    records,
)
from store.importers.jp_format import SOURCE
from store.importers.source import name_of
from store.importing import Stored, store_chat, stored_chat
from store.model import ChatId, NewEntry
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

_KEYS_IN_RECORD: Final = 50_000
"""Of the stream, in one record: below the limit of a line."""


async def store_jp(
    workspace: Workspace,
    imported: JpChat,
    actor: str,
    *,
    name: str = "",
    told: Callable[[int], None] = lambda _records: None,
) -> Stored:
    """Store a conversation, or what of it isn't stored yet; durable when it returns.

    Raises InvalidInput where it is damaged, Conflict while JP writes it, and as `store_chat` does.
    """
    conversation = await trio.to_thread.run_sync(load, imported)
    record, before = await _present(workspace, imported, conversation)
    if record is not None and record.place is Place.TRASH:
        return Stored(record)
    place = Place.ARCHIVE if conversation.archived else Place.CHATS
    if record is not None and record.place is not place and _has_moved(before, conversation):
        # Before the chat's log says so: what is interrupted in between is done again.
        await workspace.move_chat(record.id, place, record.name, actor)
    title, labels = _said(before, conversation)
    source = ImportedChat(
        imported.source_id,
        name_of(conversation.title) or imported.suggested_name,
        conversation.title,
        _Records(conversation, title, labels, before.made if before is not None else ()),
        imported.problems,
    )
    stored = await store_chat(workspace, SOURCE, source, actor, name=name, place=place, told=told, into=record)
    assert stored.record is not None
    chat = workspace.chat_by_id(stored.record.id)
    with chat.hold():
        gone = await _settle(chat, conversation, actor, before if stored.added == 0 else None)
        await chat.sync()
    if gone:
        imported.problems.append(f"JP has taken back {gone} events: their messages are removed, and stay in the log")
    return Stored((await workspace.load()).chats[chat.id], stored.added, stored.present)


@dataclass(frozen=True, slots=True)
class _Records:
    """`records` for who takes them in batches: a whole conversation isn't in memory twice."""

    conversation: Conversation
    title: str
    labels: Sequence[str]
    leave_out: Collection[str]

    def __iter__(self) -> Iterator[ImportedRecord]:
        return records(self.conversation, title=self.title, labels=self.labels, leave_out=self.leave_out)


async def _present(
    workspace: Workspace, imported: JpChat, conversation: Conversation
) -> tuple[ChatRecord | None, JpLog | None]:
    """The chat of that conversation, and what its log says: one that was imported before, or exported."""
    record = await stored_chat(workspace, SOURCE, imported.source_id)
    if record is not None:
        log = None if record.place is Place.TRASH else await read_jp_log(workspace.chat_by_id(record.id))
        return record, log
    record = (await workspace.load()).chats.get(ChatId(conversation.chat))
    if record is not None and record.place is not Place.TRASH:
        # What a file says isn't enough: the chat must say it, too.
        log = await read_jp_log(workspace.chat_by_id(record.id))
        if log.conversation == conversation.id:
            return record, log
    return None, None


def _said(log: JpLog | None, conversation: Conversation) -> tuple[str, list[str]]:
    """Title and labels as JP had them before; as it has them now where a compacted log doesn't say it any more."""
    if log is None:
        return "", []
    said = conversation if log.compacted and log.metadata is None else log.said
    return said.title, said.labels


def _has_moved(log: JpLog | None, conversation: Conversation) -> bool:
    """Whether JP has put it into its archive, or taken it out, since the log knows of it."""
    if log is None or (not log.conversation and not log.compacted):
        return True
    return log.archived != conversation.archived


# ---- what JP has rewritten


async def _settle(chat: Chat, conversation: Conversation, actor: str, known: JpLog | None) -> int:
    """Make the chat's log say what JP's files say; how many events JP has taken back. `known`: what it says now."""
    while True:
        log = known or await read_jp_log(chat)
        known = None
        changes = _Changes(log, conversation)
        if not log.compacted:
            changes.find({message.id: message for message in await chat.messages()})
        changes.find_files()
        if not changes.data:
            return 0
        try:
            await chat.append([NewEntry(data, actor) for data in changes.data], expected_seq=log.seq)
        except SeqConflict:
            await trio.lowlevel.checkpoint()
            continue
        return changes.gone


@dataclass(slots=True)
class _Changes:
    """What must be appended to a log for it to say what JP's files say."""

    log: JpLog
    conversation: Conversation
    data: list[bytes] = field(default_factory=list)
    gone: int = 0

    def find_files(self) -> None:
        """metadata.json and base_config.json, where JP has gone back to what was there before."""
        said, new = self.log.said, self.conversation
        if said.metadata_key != new.metadata_key:
            title, labels = _said(self.log, new)
            self.data.append(metadata_record(new, title=title, labels=labels).data)
        if said.base_config_key != new.base_config_key:
            self.data.append(base_config_record(new).data)

    def find(self, present: dict[str, Message]) -> None:
        """The events; `present` are the chat's messages in order."""
        log = self.log
        keys = [key for key in event_keys(self.conversation.events) if key in log.parts]
        wanted = _with_omitted(log, keys)
        if wanted == log.stream:
            return
        staying = set(wanted)
        dropped = [key for key in log.stream if key not in staying]
        self.gone = len(dropped)
        self._say_stream(wanted)
        shown = [part for key in wanted if (part := log.parts[key]).message]
        known = {part.message for part in shown}
        for key in dropped:
            part = log.parts[key]
            message = present.get(part.message)
            if (
                message is not None
                and part.message not in known
                and message.content == shown_as(part.role, part.content)
            ):
                self._add(ev.MessageRemoved(message.id))
        back = set(wanted).difference(log.stream)
        order = [identity for identity in present if identity in known]
        for part in shown:
            if part.message not in present and part.key in back:
                self._add(ev.MessageAppended(part.message, part.role, part.content))
                order.append(part.message)
        there = set(order)
        for identity, after in _moves(order, [part.message for part in shown if part.message in there]):
            self._add(ev.MessageEdited(identity, after=after))

    def _add(self, event: ev.Event) -> None:
        self.data.append(event.encode())

    def _say_stream(self, wanted: Sequence[str]) -> None:
        old = self.log.stream
        start, end = _same_ends(old, wanted)
        insert = wanted[start : len(wanted) - end]
        drop = len(old) - end - start
        for first in range(0, max(len(insert), 1), _KEYS_IN_RECORD):
            some = insert[first : first + _KEYS_IN_RECORD]
            record: dict[str, Any] = {"type": "import.record", "source": SOURCE, "part": "stream"}
            self.data.append(orjson.dumps(record | {"at": start + first, "drop": drop, "insert": some}))
            drop = 0


def _with_omitted(log: JpLog, keys: Sequence[str]) -> list[str]:
    """`keys`, and behind the same ones as now those that an export left out: JP doesn't have them because of that."""
    staying = set(keys)
    behind: dict[str, list[str]] = {}
    last = ""
    for key in log.stream:
        if key in staying:
            last = key
        elif key in log.omitted:
            behind.setdefault(last, []).append(key)
    found = behind.get("", [])
    for key in keys:
        found.append(key)
        found += behind.get(key, [])
    return found


def _same_ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """How many are the same at the beginning, and of the others at the end."""
    least = min(len(old), len(new))
    start = 0
    while start < least and old[start] == new[start]:
        start += 1
    end = 0
    while end < least - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return start, end


def _moves(order: Sequence[str], wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Which messages to move, each with the one that it is to stand behind ("": none), one after the other."""
    follower = dict(zip(("", *order), (*order, ""), strict=True))
    leader = {second: first for first, second in follower.items()}
    found: list[tuple[str, str]] = []
    last = ""
    for identity in wanted:
        if leader[identity] != last:
            found.append((identity, last))
            before, behind = leader[identity], follower[identity]
            follower[before], leader[behind] = behind, before
            follower[identity], leader[identity] = follower[last], last
            leader[follower[last]], follower[last] = identity, identity
        last = identity
    return found
