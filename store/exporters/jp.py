"""Writes chats as conversations of JP: see `store.importers.jp_format` for the files.

A conversation that came from JP is written as JP had it, with what was changed in chatfs since (`jp_stream`); one that
didn't gets an id from the chat's creation, in tenths of a second, the next free one where that is taken, and the label
`chatfs` with the chat's id, by which a later import finds the chat again. So does a copy of a chat, whose log says of
what conversation the first one is: nobody writes over another's. Attachments stay in chatfs.

What is there already is changed only where it says something else: of the metadata just the fields that were changed
here, base_config.json never. Where it has events that the chat doesn't know, nothing is written: they are to be
imported first. A file takes its place in one rename, a new conversation's directory too, and JP's lock is held
meanwhile. What a killed export has left beside them is removed by the next one of that conversation.

An export of what chatfs made or changed is recorded in the chat's log, before it is written: see `jp_log`.

Concurrency: files in threads; a chat is read at one moment, the lock kept from looking to writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from store import durability
from store.chat import Chat
from store.errors import Conflict, ReadOnly, SeqConflict
from store.exporters.jp_log import EXPORT, JpLog, read_jp_log
from store.exporters.jp_stream import Events, events_of
from store.fold import ChatState, Message
from store.importers.jp import (
    Conversation,
    JpChat,
    conversations_in,
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
    CONVERSATIONS,
    EVENTS,
    ID_MAX,
    METADATA,
    PROJECT,
    SOURCE,
    began,
    directory_of,
    display_id,
    id_at,
    label_pairs,
    time_text,
)
from store.importers.jp_json import NotJson, members, object_of, pretty
from store.importers.jp_lock import writable
from store.importers.source import time_of
from store.importing import stored_chat
from store.model import NewEntry
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

_LABEL: Final = "jp.export"
_KEYS_IN_RECORD: Final = 50_000
_LEFT: Final = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp\Z")
"""What is written beside a name before it gets it (`durability.temporary`)."""
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
    root = await trio.to_thread.run_sync(_root, target)
    chat = workspace.chat_by_id(record.id)
    with chat.hold():
        while True:
            log = await read_jp_log(chat)
            messages = await chat.messages()
            state = await chat.load()
            if state.seq == log.seq:
                break
        events = await trio.to_thread.run_sync(events_of, log, messages)
        if log.compacted and not log.conversation:
            log.conversation = await _found_again(workspace, record, root)
        owner = await stored_chat(workspace, SOURCE, display_id(log.conversation)) if log.conversation else None
        plan = _Plan(workspace, record, state, messages, log, events, root, owner.id if owner is not None else "")
        with contextlib.ExitStack() as held:
            await trio.to_thread.run_sync(plan.prepare, held, taken)
            taken.add(plan.conversation)
            await _record(chat, plan, actor)
            written = await trio.to_thread.run_sync(plan.write)
    return Exported(plan.conversation, plan.path, len(events.events), written, plan.notes)


async def _found_again(workspace: Workspace, record: ChatRecord, root: Path) -> int:
    """Which of the conversations that are there the chat was imported from, where its log doesn't say so any more."""
    for there in await trio.to_thread.run_sync(find_conversations, root):
        found = await stored_chat(workspace, SOURCE, there.source_id)
        if found is not None and found.id == record.id:
            return there.conversation
    return 0


async def _record(chat: Chat, plan: _Plan, actor: str) -> None:
    """Say in the log what is about to be written that JP didn't write."""
    made = sorted(plan.events.made - plan.log.made)
    omitted = sorted(plan.events.omitted - plan.log.omitted)
    archived = plan.path.parent.name == ARCHIVE
    known = (plan.log.conversation, plan.log.archived)
    if not made and not omitted and known == (plan.conversation, archived):
        return
    batch = []
    for first in range(0, max(len(made), len(omitted), 1), _KEYS_IN_RECORD):
        last = first + _KEYS_IN_RECORD
        value: dict[str, Any] = {"type": EXPORT, "target": SOURCE, "conversation": str(plan.conversation)}
        value |= {"archived": archived, "made": made[first:last], "omitted": omitted[first:last]}
        batch.append(NewEntry(orjson.dumps(value), actor))
    try:
        await chat.append(batch, expected_seq=plan.log.seq, tidying=True)
        await chat.sync()
    except ReadOnly:
        plan.notes.append("the store can't be written: importing the conversation again would bring messages twice")
    except SeqConflict:
        raise Conflict(f"{chat.called} was changed while it was exported: export it again") from None


def _root(target: Path) -> Path:
    """The `conversations` directory in `target`, made where it isn't there; its parent must be."""
    if not target.exists():
        target.mkdir()
    elif not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a directory: name a project of JP", str(target))
    elif (found := conversations_in(target)) is not None:
        return found
    root = target / CONVERSATIONS if target.name == PROJECT else target / PROJECT / CONVERSATIONS
    root.mkdir(parents=True, exist_ok=True)
    return root


@dataclass(slots=True)
class _Plan:
    """One chat on its way into one directory."""

    workspace: Workspace
    record: ChatRecord
    state: ChatState
    messages: list[Message]
    log: JpLog
    events: Events
    root: Path
    owner: str
    """The workspace's chat that the log's conversation was imported as."""
    conversation: int = 0
    there: JpChat | None = None
    """What is there of the conversation."""
    said: Conversation | None = None
    """What that says."""
    notes: list[str] = field(default_factory=list)
    path: Path = Path()

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
        self.path = self._place()

    def _found(self, held: contextlib.ExitStack, others: set[int]) -> bool:
        """Lock the conversation, or a free one, and read what is there; False where that is another chat's."""
        chosen = not self.conversation or self.conversation in others
        if chosen:
            self.conversation = id_at(self.record.created)
            while self.conversation in others or find_in(self.root, self.conversation):
                self.conversation = self.conversation % ID_MAX + 1
        with contextlib.ExitStack() as lock:
            lock.enter_context(writable(self.root, self.conversation))
            self._sweep()
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

    def _sweep(self) -> None:
        """Remove what an export of this conversation has left that was killed."""
        for directory in (self.root, self.root / ARCHIVE):
            if directory.is_symlink() or not directory.is_dir():
                continue
            for path in list(directory.iterdir()):
                left = _LEFT.match(path.name)
                if left is not None and left[1] == str(self.conversation) and not path.is_symlink() and path.is_dir():
                    durability.remove_tree(_LABEL, path)
        for there in find_in(self.root, self.conversation):
            for path in [] if there.path.is_symlink() else list(there.path.iterdir()):
                left = _LEFT.match(path.name)
                if left is not None and left[1] in {METADATA, BASE_CONFIG, EVENTS}:
                    durability.system.unlink(_LABEL, path)

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

    def _place(self) -> Path:
        archived = self.record.place is Place.ARCHIVE
        if self.there is not None and self.said is not None:
            # Where it is and how it is called changes only if that changed here.
            if archived == self.log.archived:
                archived = self.there.archived
            same = self.said.title == self.state.title or self._unchanged_title
            name = self.there.path.name if same else directory_of(self.conversation, self.state.title)
        else:
            name = directory_of(self.conversation, self._title)
        return (self.root / ARCHIVE if archived else self.root) / name

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
        archived = self.path.parent.name == ARCHIVE
        if archived and "archived_at" not in fields and not (self.log.imported and self.log.archived):
            _put(fields, "archived_at", time_text(self.record.changed))
        elif not archived and (self.there.archived if self.there is not None else self.log.archived):
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
        if self.there is None:
            self._make(files)
            return True
        moved = self.there.path != self.path
        if moved:
            self._make_parent()
            if os.path.lexists(self.path):
                raise FileExistsError(errno.EEXIST, "in the way: move it elsewhere", str(self.path))
            durability.system.rename(_LABEL, self.there.path, self.path)
            durability.fsync_dir(_LABEL, self.there.path.parent)
        for name, text in files.items():
            _write(self.path / name, text)
        if moved or files:
            durability.fsync_dir(_LABEL, self.path)
            durability.fsync_dir(_LABEL, self.path.parent)
        return moved or bool(files)

    def _make(self, files: dict[str, bytes]) -> None:
        """A new directory, in one rename: JP removes incomplete ones."""
        self._make_parent()
        beside = self.path.with_name(f".{self.conversation}.{secrets.token_hex(8)}.tmp")
        beside.mkdir()
        try:
            for name, text in files.items():
                _write(beside / name, text)
            durability.fsync_dir(_LABEL, beside)
            durability.system.rename(_LABEL, beside, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                durability.remove_tree(_LABEL, beside)
            raise
        durability.fsync_dir(_LABEL, self.path.parent)

    def _make_parent(self) -> None:
        if self.path.parent.is_symlink():
            raise OSError(errno.ELOOP, "a symbolic link, which isn't followed", str(self.path.parent))
        self.path.parent.mkdir(exist_ok=True)


def _put(fields: dict[str, bytes], name: str, value: object) -> None:
    if value is None:
        fields.pop(name, None)
    else:
        fields[name] = orjson.dumps(value)


def _write(path: Path, text: bytes) -> None:
    """In one rename, with the mode that the file has, or that a new one would get."""
    try:
        mode = stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    with durability.replacing(_LABEL, path) as fd:
        os.fchmod(fd, mode)
        durability.write_all(_LABEL, fd, pretty(text))


def _umask() -> int:
    """Without changing it for other threads meanwhile."""
    with Path("/proc/self/status").open() as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask:")), 0o022)
