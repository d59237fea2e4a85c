"""Stores what an importer hands over: each chat of the source under its own stable id, each record once.

A chat's id is made from the workspace, the source and the source's own id of the chat, so importing again finds the
same chat, whatever it is called by then. Every stored record begins with `"import_key"`, its key; a later import reads
the keys that the log has, and adds only what is new. So it also completes an import that was interrupted. A value that
isn't an object is stored as `{"import_key", "type": "import.record", "source", "record"}`. Doesn't read or understand
sources.

Concurrency: trio; sources are read in threads. Batches are appended with `expected_seq`: of two imports of one chat at
once, each record still comes in once.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import orjson
import trio

from store import events as ev
from store.chat import Chat
from store.drivers.chunks import blob_of
from store.errors import NameTaken, SeqConflict
from store.import_keys import base_keys, key_of
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importers.payloads import sealed
from store.model import ChatId, Millis, NewEntry, Origin, Seq, WorkspaceId, numbered, uuid7
from store.quota import line_bytes
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place, WorkspaceState

BATCH_RECORDS: Final = 500
BATCH_BYTES: Final = 8 * 1024 * 1024
"""A batch ends with the record that reaches either limit."""

_OWN_PART: Final = 14
"""Where in a UUID's text its 48 bits of time have ended."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one chat of the source: `added` records are new, `present` ones were there before.

    `record` is the chat as the workspace knows it; None where the source had nothing, and no chat was made. A chat in
    the trash is left alone.
    """

    record: ChatRecord | None
    added: int = 0
    present: int = 0


async def store_chat(
    workspace: Workspace,
    source: str,
    imported: ImportedChat,
    actor: str,
    *,
    name: str = "",
    place: Place = Place.CHATS,
    told: Callable[[int], None] = lambda _records: None,
    into: ChatRecord | None = None,
) -> Stored:
    """Store `imported`, or what of it isn't stored yet; durable when it returns.

    A new chat is called `name`, or as the source suggests; with ` (2)` where that is taken. It comes into `place`.
    `told` hears how many records have been dealt with. `into` is the chat, if it isn't the source's own.

    Raises QuotaExceeded, CorruptLog, BackendError, and OSError where the source can't be read.
    """
    own = _own_part(workspace.id, source, imported.source_id)
    record = into or _find(await workspace.load(), own)
    if record is None:
        first = await trio.to_thread.run_sync(_first_time, imported)
        if first is None:
            return Stored(None)
        chat = await _create(workspace, _chat_id(first, own), name or imported.suggested_name, place, actor)
    elif record.place is Place.TRASH:
        return Stored(record)
    else:
        chat = workspace.chat_by_id(record.id)
    with chat.hold():
        target = _Target(chat, source, actor)
        await target.catch_up()
        added = present = 0
        records = iter(imported.records)
        while batch := await trio.to_thread.run_sync(_take, records):
            fresh = await target.add(batch)
            added += fresh
            present += len(batch) - fresh
            told(added + present)
        await chat.sync()
    await workspace.space.sync()
    return Stored((await workspace.load()).chats[chat.id], added, present)


# ---- which chat


async def stored_chat(workspace: Workspace, source: str, source_id: str) -> ChatRecord | None:
    """The chat that an earlier import made of this one of the source."""
    return _find(await workspace.load(), _own_part(workspace.id, source, source_id))


def _own_part(workspace: WorkspaceId, source: str, source_id: str) -> str:
    """The part of the chat's UUIDv7 that isn't time: 74 bits of a SHA-256."""
    named = f"{workspace}\0{source}\0{source_id}".encode(errors="surrogatepass")
    value = int.from_bytes(hashlib.sha256(named).digest()[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))[_OWN_PART:]


def _chat_id(first: Millis, own: str) -> ChatId:
    return ChatId(str(uuid.UUID(int=(first & 0xFFFF_FFFF_FFFF) << 80))[:_OWN_PART] + own)


def _find(state: WorkspaceState, own: str) -> ChatRecord | None:
    """The chat by its own part alone: the first time in a source can become known later."""
    return next((record for chat, record in state.chats.items() if chat.endswith(own)), None)


def _first_time(imported: ImportedChat) -> Millis | None:
    """The first time that a record says; 0 where none does, None where there are no records."""
    found = None
    for record in imported.records:
        if record.ts is not None:
            return record.ts
        found = Millis(0)
    return found


async def _create(workspace: Workspace, chat: ChatId, wanted: str, place: Place, actor: str) -> Chat:
    for number in count(1):
        name = wanted if number == 1 else numbered(wanted, f" ({number})")
        state = await workspace.load()
        if chat in state.chats:
            break  # another import of the same source was faster
        if state.find(name) is None:
            with contextlib.suppress(NameTaken):
                return await workspace.create_chat(name, actor, chat=chat, place=place)
    return workspace.chat_by_id(chat)


# ---- what goes into it


def _take(records: Iterator[ImportedRecord]) -> list[ImportedRecord]:
    """The next batch; runs in a thread."""
    found: list[ImportedRecord] = []
    size = 0
    for record in records:
        found.append(record)
        size += len(record.data) + sum(len(item.data) for item in record.attachments)
        if len(found) >= BATCH_RECORDS or size >= BATCH_BYTES:
            break
    return found


class _Target:
    """The chat's log while records go into it: the keys that it has up to `_seq`."""

    def __init__(self, chat: Chat, source: str, actor: str) -> None:
        self._chat = chat
        self._source = source
        self._actor = actor
        self._known: set[str] = set()
        self._seq = Seq(0)

    async def catch_up(self) -> None:
        """Learn the keys that others, or earlier imports, have stored."""
        while True:
            head = await self._chat.head()
            if self._seq < head.first_seq:
                self._known |= await base_keys(self._chat)
                self._seq = Seq(0)
            async for entry in self._chat.log(self._seq):
                self._seq = entry.seq
                key = key_of(entry.data)
                if key is not None:
                    self._known.add(key)
            if (await self._chat.head()).first_seq == head.first_seq:
                self._seq = max(self._seq, head.seq)
                return
            self._seq = Seq(0)  # compacted meanwhile

    async def add(self, records: Sequence[ImportedRecord]) -> int:
        """Append those that are new, as one batch; how many they were."""
        while True:
            fresh = [record for record in records if record.key not in self._known]
            if not fresh:
                return 0
            batch: list[NewEntry] = []
            for record in fresh:
                batch += await self._entries(record)
            try:
                self._seq = await self._append(batch, [item.data for record in fresh for item in record.attachments])
            except SeqConflict:
                await self.catch_up()
                continue
            self._known.update(record.key for record in fresh)
            return len(fresh)

    async def _append(self, batch: Sequence[NewEntry], attached: Sequence[bytes]) -> Seq:
        """Append what names the bytes; those are stored before, where there is room for all of it."""
        workspace = self._chat.workspace
        blobs = {ref.digest: ref.size for ref in map(blob_of, attached)}
        async with workspace.quota.taking(lambda: line_bytes(batch, self._seq), blobs):
            for data in attached:
                await workspace.driver.blobs.put(data)
            return await self._chat.space.append(batch, expected_seq=self._seq)

    async def _entries(self, record: ImportedRecord) -> list[NewEntry]:
        """The record's attachments, then the record: in one batch, so neither is ever there alone."""
        origin = None if record.ts is None else Origin(record.actor or self._source, record.ts)
        events = [event for item in record.attachments for event in await self._put(item)]
        data = keyed(record.key, record.data, self._source)
        return [NewEntry(data, self._actor, origin) for data in (*(event.encode() for event in events), data)]

    async def _put(self, item: ImportedAttachment) -> list[ev.Event]:
        """The events that name it; what somebody else attached under that name makes room."""
        ref = blob_of(item.data)
        put = ev.AttachmentPut(uuid7(), item.name, ref.digest, ref.size, item.content_type)
        there = (await self._chat.load()).attachments
        if item.name not in there or there[item.name].ref == ref:
            return [put]
        stem, dot, extension = item.name.rpartition(".")
        stem, ending = (stem, dot + extension) if stem else (item.name, "")
        free = next(name for n in count(2) if (name := numbered(stem, f" ({n}){ending}")) not in there)
        return [ev.AttachmentRenamed(item.name, free), put]


def keyed(key: str, data: bytes, source: str) -> bytes:
    """`data` (one JSON value) as an object that begins with `import_key`; the rest of an object stays byte for byte."""
    name = orjson.dumps(key)
    inner = data.strip()
    if inner.startswith(b"{"):
        if b'"import_key"' not in inner:
            rest = inner[1:].lstrip()
            return b'{"import_key":%b%b%b' % (name, b"" if rest == b"}" else b",", rest)
        value = orjson.loads(inner)
        if "import_key" not in value:
            return b'{"import_key":%b,%b' % (name, inner[1:])
        # It was imported once before, as in a copied log: only one of two equal keys would be read.
        with contextlib.suppress(orjson.JSONEncodeError):
            return orjson.dumps(
                {"import_key": key} | {field: item for field, item in value.items() if field != "import_key"}
            )
    head = {"import_key": key, "type": "import.record", "source": source}
    return sealed(head, inner) or orjson.dumps(head | {"text": inner.decode()})
