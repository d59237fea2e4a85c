"""Writes chats as conversations of JP: see `store.importers.jp_format` for the files.

A conversation that came from JP is written as JP had it, with what was changed in chatfs since (`jp_stream`); one that
didn't gets an id from the chat's creation, in tenths of a second, the next free one where that is taken, and the label
`chatfs` with the chat's id, by which a later import finds the chat again. So does a copy of a chat, whose log says of
what conversation the first one is: nobody writes over another's. Attachments stay in chatfs.

What is there already is changed only where it says something else: of the metadata just the fields that were changed
here, base_config.json never. Where it has events that the chat doesn't know, nothing is written: they are to be
imported first. A file takes its place in one rename, a new conversation's directory too, and JP's lock is held
meanwhile. What a killed export has left beside them is removed by the next one of that conversation.

An export of what chatfs made or changed is recorded in the chat's log: that JP archives a conversation, or brings it
back, after it was moved, all else before it is written. See `jp_log`, and for how files are written `jp_files`.

Concurrency: files in threads; a chat is read at one moment, the lock kept from looking to writing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from store.chat import Chat
from store.errors import Conflict, ReadOnly, SeqConflict
from store.exporters import jp_files
from store.exporters.jp_log import EXPORT, JpLog, read_jp_log
from store.exporters.jp_stream import Events, events_of
from store.fold import ChatState, Message
from store.importers.jp import (
    Conversation,
    JpChat,
    event_keys,
    find_conversations,
    find_in,
    load_locked,
    value_of,
)
from store.importers.jp_format import (
    ARCHIVE,
    BASE_CONFIG,
    CHAT_LABEL,
    EVENTS,
    ID_MAX,
    METADATA,
    SOURCE,
    began,
    directory_of,
    display_id,
    id_at,
    label_pairs,
    time_text,
)
from store.importers.jp_json import NotJson, members, object_of
from store.importers.jp_lock import writable
from store.importers.source import time_of
from store.importing import stored_chat
from store.model import NewEntry, Seq
from store.projection.tree import Directory
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

_KEYS_IN_RECORD: Final = 50_000
_MODEL: Final = {"provider": "anthropic", "name": "claude-sonnet-4-5"}
_BASE_CONFIG: Final = orjson.dumps(
    {"assistant": {"model": {"id": _MODEL}}, "conversation": {"tools": {"*": {"run": "ask"}}}}
)
"""The least that JP reads a conversation with. Whoever goes on with it says which model, or has it in their project."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of a chat: where its conversation is, of how many events, whether a file was written."""

    conversation: int
    path: Path
    events: int
    written: bool
    notes: list[str] = field(default_factory=list)


async def export_jp(workspace: Workspace, record: ChatRecord, target: Path, actor: str, *, taken: set[int]) -> Exported:
    """Write one chat into `target`: a project, its `.jp`, or the `conversations` in it; made where it isn't there.

    `taken` are the conversations that this export has written, and gets this one. Raises Conflict where JP has the
    conversation's lock, or events that the chat doesn't have; InvalidInput where what is there is damaged; OSError;
    CorruptLog, CorruptBlob, BackendError.
    """
    with await trio.to_thread.run_sync(jp_files.open_root, target) as root:
        chat = workspace.chat_by_id(record.id)
        with chat.hold(), contextlib.ExitStack() as held:
            plan = await _plan(workspace, record, root)
            await trio.to_thread.run_sync(plan.prepare, held, taken)
            taken.add(plan.conversation)
            before = plan.archived if plan.there is None else plan.there.archived
            await _record(chat, plan, actor, archived=before)
            written = await trio.to_thread.run_sync(plan.write)
            if before != plan.archived:
                # Only now: who was killed before has moved nothing.
                await _say(chat, plan, [_export_record(plan, archived=plan.archived)], actor)
    return Exported(plan.conversation, plan.path, len(plan.events.events), written, plan.notes)


async def _plan(workspace: Workspace, record: ChatRecord, root: Directory) -> _Plan:
    chat = workspace.chat_by_id(record.id)
    while True:
        log = await read_jp_log(chat)
        messages = await chat.messages()
        state = await chat.load()
        if state.seq == log.seq:
            break
    events = await trio.to_thread.run_sync(events_of, log, messages)
    if log.compacted and not log.conversation:
        log.conversation = await _found_again(workspace, record, Path(root.shown))
    owner = await stored_chat(workspace, SOURCE, display_id(log.conversation)) if log.conversation else None
    return _Plan(workspace, record, state, messages, log, events, root, owner.id if owner is not None else "")


async def _found_again(workspace: Workspace, record: ChatRecord, root: Path) -> int:
    """Which of the conversations that are there the chat was imported from, where its log doesn't say so any more."""
    for there in await trio.to_thread.run_sync(find_conversations, root):
        found = await stored_chat(workspace, SOURCE, there.source_id)
        if found is not None and found.id == record.id:
            return there.conversation
    return 0


async def _record(chat: Chat, plan: _Plan, actor: str, *, archived: bool) -> None:
    """Say in the log what is about to be written that JP didn't write; `archived`: where the conversation is now."""
    made = sorted(plan.events.made - plan.log.made)
    omitted = sorted(plan.events.omitted - plan.log.omitted)
    if not made and not omitted and (plan.log.conversation, plan.log.archived) == (plan.conversation, archived):
        return
    values = []
    for first in range(0, max(len(made), len(omitted), 1), _KEYS_IN_RECORD):
        last = first + _KEYS_IN_RECORD
        values.append(_export_record(plan, made[first:last], omitted[first:last], archived=archived))
    await _say(chat, plan, values, actor, expected_seq=plan.log.seq)


def _export_record(plan: _Plan, made: Sequence[str] = (), omitted: Sequence[str] = (), *, archived: bool) -> bytes:
    value: dict[str, Any] = {"type": EXPORT, "target": SOURCE, "conversation": str(plan.conversation)}
    return orjson.dumps(value | {"archived": archived, "made": list(made), "omitted": list(omitted)})


async def _say(
    chat: Chat, plan: _Plan, values: Sequence[bytes], actor: str, *, expected_seq: Seq | None = None
) -> None:
    try:
        await chat.append([NewEntry(value, actor) for value in values], expected_seq=expected_seq, tidying=True)
        await chat.sync()
    except ReadOnly:
        note = "the store can't be written: importing the conversation again would bring messages twice"
        plan.notes += [note] if note not in plan.notes else []
    except SeqConflict:
        raise Conflict(f"{chat.called} was changed while it was exported: export it again") from None


@dataclass(slots=True)
class _Plan:
    """One chat on its way into one directory."""

    workspace: Workspace
    record: ChatRecord
    state: ChatState
    messages: list[Message]
    log: JpLog
    events: Events
    directory: Directory
    """The `conversations` directory."""
    owner: str
    """The workspace's chat that the log's conversation was imported as."""
    conversation: int = 0
    there: JpChat | None = None
    """What is there of the conversation."""
    said: Conversation | None = None
    """What that says."""
    notes: list[str] = field(default_factory=list)
    archived: bool = False
    """Whether it is to be in JP's archive."""
    name: str = ""
    """What its directory is to be called."""

    @property
    def root(self) -> Path:
        """The path of `directory`."""
        return Path(self.directory.shown)

    @property
    def path(self) -> Path:
        """Where it is to be."""
        return (self.root / ARCHIVE if self.archived else self.root) / self.name

    def prepare(self, held: contextlib.ExitStack, taken: set[int]) -> None:
        """Choose the conversation, lock it, and look at what is there. Raises as `export_jp` does."""
        others = set(taken)
        if self.owner in {"", self.record.id}:
            self.conversation = self.log.conversation
        while not self._found(held, others):
            others.add(self.conversation)
        if self.there is not None and self.said is not None:
            self._check_known(self.said)
        if self.log.compacted:
            self.notes.append("the chat was compacted: what JP had beside messages is there no more")
        if self.events.kept:
            self.notes.append(f"{self.events.kept} edited tool calls or responses stay as JP has them")
        self._place()

    def _found(self, held: contextlib.ExitStack, others: set[int]) -> bool:
        """Lock the conversation, or a free one, and read what is there; False where that is another chat's."""
        chosen = not self.conversation or self.conversation in others
        if chosen:
            self.conversation = id_at(self.record.created)
            while self.conversation in others or find_in(self.root, self.conversation):
                self.conversation = self.conversation % ID_MAX + 1
        with contextlib.ExitStack() as lock:
            lock.enter_context(writable(self.root, self.conversation))
            with jp_files.naming(self.root):
                jp_files.sweep(self.directory, self.conversation)
            found = find_in(self.root, self.conversation)
            if chosen and found:
                return False  # another export was faster
            if len(found) > 1:
                raise Conflict(
                    f"{display_id(self.conversation)} is there twice: remove {found[1].path} or {found[0].path}"
                )
            if found:
                said = load_locked(found[0])
                if not self.owner and said.chat not in {"", self.record.id, self.log.said.chat}:
                    return False
                self.there, self.said = found[0], said
            held.enter_context(lock.pop_all())
        return True

    def _check_known(self, said: Conversation) -> None:
        known = self.log.parts.keys() | self.log.made | self.events.made
        unknown = [key for key in event_keys(said.events) if key not in known]
        if unknown and self.log.compacted:
            raise Conflict(
                f"{display_id(self.conversation)} has {len(unknown)} events there that the chat, which was compacted, "
                "has no more: export it to another directory"
            )
        if unknown:
            raise Conflict(
                f"{display_id(self.conversation)} has {len(unknown)} events there that the chat doesn't have: "
                f"import it first (chatfs import jp … --workspace {self.workspace.called}), then export"
            )

    # ---- what it is to say

    def _place(self) -> None:
        self.archived = self.record.place is Place.ARCHIVE
        if self.there is not None and self.said is not None:
            # Where it is and how it is called changes only if that changed here.
            if self.archived == self.log.archived:
                self.archived = self.there.archived
            same = self.said.title == self.state.title or self._unchanged_title
            self.name = self.there.path.name if same else directory_of(self.conversation, self.state.title)
        else:
            self.name = directory_of(self.conversation, self._title)

    @property
    def _unchanged_title(self) -> bool:
        return self.log.imported and self.state.title == self.log.said.title

    @property
    def _title(self) -> str:
        """As JP's metadata will have it."""
        title = self.log.said.fields.get("title")
        return title if self._unchanged_title and isinstance(title, str) else self.state.title

    def _metadata(self) -> bytes:
        known = self.log.said
        before = (self.said.metadata if self.said is not None else None) or known.metadata or b"{}"
        fields = members(before)
        if self.state.title != known.title or not self.log.imported:
            _put(fields, "title", self.state.title or None)
        self._put_labels(fields)
        if self.archived and "archived_at" not in fields and not (self.log.imported and self.log.archived):
            _put(fields, "archived_at", time_text(self.record.changed))
        elif not self.archived and (self.there.archived if self.there is not None else self.log.archived):
            fields.pop("archived_at", None)
        last = max((message.ts for message in self.messages), default=began(self.conversation))
        active = time_of(value_of(fields.get("last_activated_at", b"null")))
        lacks = "last_activated_at" not in fields and known.metadata is None
        if lacks or (self.events.made and (active is None or active < last)):
            _put(fields, "last_activated_at", time_text(last))
        return object_of(fields) if fields != members(before) else before

    def _put_labels(self, fields: dict[str, bytes]) -> None:
        known = self.log.said
        # Of what wasn't imported as this conversation, only the label tells whose it is.
        own = self.conversation != self.log.imported_as
        label = self.record.id if own else known.chat
        if list(self.state.labels) != known.labels or not self.log.imported:
            labels, others = label_pairs(self.state.labels)
            if others:
                self.notes.append(f"JP can't have these labels: {', '.join(others)}")
            if label:
                labels[CHAT_LABEL] = label
            _put(fields, "labels", labels or None)
        elif own:
            there: dict[str, bytes] = {}
            with contextlib.suppress(NotJson):
                there = members(fields.get("labels", b""))
            fields["labels"] = object_of(there | {CHAT_LABEL: orjson.dumps(label)})

    def _base_config(self) -> bytes | None:
        if self.log.base_config is not None or self.log.imported:
            return self.log.base_config
        return _BASE_CONFIG

    # ---- writing

    def write(self) -> bool:
        """Put the files there; whether anything had to be changed."""
        said = self.said
        files: dict[str, bytes] = {}
        metadata = self._metadata()
        if said is None or said.metadata is None or members(said.metadata) != members(metadata):
            files[METADATA] = metadata
        config = self._base_config()
        if config is not None and (said is None or said.base_config is None):
            files[BASE_CONFIG] = config
        if said is None or said.events != self.events.events:
            files[EVENTS] = b"[%b]" % b",".join(self.events.events)
        with jp_files.naming(self.path):
            if self.there is None:
                jp_files.make(self.directory, self.name, self.conversation, files, archived=self.archived)
                return True
            moved = self.there.path != self.path
            if moved:
                jp_files.move(self.directory, self.there, self.name, archived=self.archived)
            if files:
                jp_files.update(self.directory, self.name, files, archived=self.archived)
        return moved or bool(files)


def _put(fields: dict[str, bytes], name: str, value: object) -> None:
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = orjson.dumps(value)
