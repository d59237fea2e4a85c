"""The fold of a workspace's log: its metadata, and which chats it has, under which names, where.

Pure: no I/O. A name is unique among the chats in chats/ and archive/ together; a trashed chat keeps its name for show,
with `~N` behind it where several have the same. Events that make no sense (a chat that doesn't exist, a name that is
taken) only move `seq`: the first one in the log wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from store import events as ev
from store.errors import InvalidName
from store.model import ChatId, Entries, Entry, Millis, Seq, WorkspaceId, directory_name, is_uuid


class Place(StrEnum):
    """In which directory of the workspace a chat is shown."""

    CHATS = "chats"
    ARCHIVE = "archive"
    TRASH = "trash"


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """What the workspace knows of a chat.

    `created` is when it began, wherever that was; `changed`, when its name or place last changed here.
    `removed_since` is set in the trash where the chat's own log says from which seq on attachments went with it.
    """

    id: ChatId
    name: str
    place: Place
    created: Millis
    changed: Millis
    removed_since: int | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What entries did to a workspace: the names that mean another chat now (or none), and where.

    `before` says of each which chat it meant before.
    """

    moved: tuple[tuple[Place, str], ...] = ()
    before: tuple[ChatId | None, ...] = ()

    @staticmethod
    def joined(changes: Sequence[Names]) -> Names:
        """What all did, one after the other."""
        return Names(
            tuple([moved for names in changes for moved in names.moved]),
            tuple([before for names in changes for before in names.before]),
        )


class WorkspaceState:
    """The state; `apply` changes it in place."""

    __slots__ = (
        "_before",
        "_moved",
        "_shown",
        "_taken",
        "archived",
        "chats",
        "created",
        "id",
        "labels",
        "name",
        "names",
        "places_changed",
        "quota_bytes",
        "seq",
        "title",
        "trash",
        "trashed",
        "ts",
        "user",
    )

    def __init__(self) -> None:
        self.seq = Seq(0)
        self.ts = Millis(0)
        self.created = Millis(0)
        self.id = WorkspaceId("")
        self.name = ""
        self.user = ""
        self.title = ""
        self.labels: tuple[str, ...] = ()
        self.quota_bytes = 0
        self.trashed = False
        self.chats: dict[ChatId, ChatRecord] = {}
        self.places_changed: dict[Place, int] = dict.fromkeys(Place, 0)
        """When a place last gained or lost a name: nanoseconds, strictly increasing."""
        self.names: dict[str, ChatId] = {}
        """The chats in chats/ and archive/, in the order in which they came there."""
        self.trash: dict[str, ChatId] = {}
        """The trashed ones, by the names under which they are shown."""
        self.archived = 0
        """How many of `names` are in archive/."""
        self._shown: dict[ChatId, str] = {}
        """`trash` the other way round."""
        self._taken: dict[str, int] = {}
        """Up to which N a name's `~N` are all in the trash, as far as that is known."""
        self._moved: list[tuple[Place, str]] = []
        self._before: list[ChatId | None] = []

    def find(self, name: str) -> ChatRecord | None:
        """The chat of that name in chats/ or archive/."""
        found = self.names.get(name)
        return None if found is None else self.chats[found]

    def find_in(self, place: Place, name: str) -> ChatRecord | None:
        """The chat that `place` shows under `name`."""
        found = (self.trash if place is Place.TRASH else self.names).get(name)
        if found is None:
            return None
        record = self.chats[found]
        return record if record.place is place else None

    def in_place(self, place: Place) -> Iterator[tuple[str, ChatRecord]]:
        """What `place` shows, in the order in which it came there."""
        for name, chat in (self.trash if place is Place.TRASH else self.names).items():
            record = self.chats[chat]
            if record.place is place:
                yield name, record

    def shown_name(self, record: ChatRecord) -> str:
        """The name under which its place shows it."""
        return self._shown[record.id] if record.place is Place.TRASH else record.name

    def count(self, place: Place) -> int:
        """How many chats are there."""
        if place is Place.TRASH:
            return len(self.trash)
        return self.archived if place is Place.ARCHIVE else len(self.names) - self.archived

    def fill(self, chats: Iterable[ChatRecord], names: Iterable[ChatRecord], trash: dict[str, ChatId]) -> None:
        """Take over the chats of another state: all, those outside the trash in their order, and the trash."""
        self.chats = {record.id: record for record in chats}
        self.names = {record.name: record.id for record in names}
        self.trash = trash
        self.archived = sum(self.chats[chat].place is Place.ARCHIVE for chat in self.names.values())
        self._shown = {chat: name for name, chat in trash.items()}
        self._taken = {}

    def apply(self, entry: Entry) -> Names:
        """Take in the next entry."""
        self.seq = entry.seq
        self.ts = entry.ts
        self._moved, self._before = [], []
        event = ev.parse(entry.data)
        change = _CHANGES.get(type(event))
        if change is not None:
            change(self, event, entry)
        return Names(tuple(self._moved), tuple(self._before))

    def replay(self, entries: Entries) -> None:
        """`apply` for each of them."""
        for entry in entries:
            self.apply(entry)

    def _begin(self, event: ev.WorkspaceCreated, entry: Entry) -> None:
        if not self.id and is_uuid(event.id):
            # One whose name can't be shown goes by its id, until it is renamed.
            name = event.name if _is_name(event.name) else event.id
            self.id, self.name, self.user = WorkspaceId(event.id), name, event.user or ""
            self.created = entry.ts

    def _end(self, _event: ev.WorkspaceTrashed, _entry: Entry) -> None:
        self.trashed = True

    def _change(self, event: ev.WorkspaceChanged, _entry: Entry) -> None:
        if event.name is not None and _is_name(event.name):
            self.name = event.name
        if event.title is not None:
            self.title = event.title
        if event.labels is not None:
            self.labels = tuple(event.labels)
        if event.quota_bytes is not None:
            self.quota_bytes = event.quota_bytes

    def _create(self, event: ev.ChatCreated, entry: Entry) -> None:
        chat = ChatId(event.chat)
        if chat in self.chats or event.name in self.names or not is_uuid(chat) or not _is_name(event.name):
            return
        began = entry.ts if entry.origin is None else entry.origin.ts
        self.chats[chat] = ChatRecord(chat, event.name, Place.CHATS, began, entry.ts)
        self.names[event.name] = chat
        self._touch(entry, Place.CHATS, event.name)

    def _rename(self, event: ev.ChatRenamed, entry: Entry) -> None:
        record = self.chats.get(ChatId(event.chat))
        if record is None or not _is_name(event.name):
            return
        if record.place is Place.TRASH:
            self.chats[record.id] = replace(record, name=event.name)
            return
        if event.name in self.names:
            return
        del self.names[record.name]
        self.names[event.name] = record.id
        self.chats[record.id] = replace(record, name=event.name, changed=entry.ts)
        self._touch(entry, record.place, record.name, record.id)
        self._touch(entry, record.place, event.name)

    def _archive(self, event: ev.ChatArchived, entry: Entry) -> None:
        self._move(event.chat, Place.CHATS, Place.ARCHIVE, entry)

    def _unarchive(self, event: ev.ChatUnarchived, entry: Entry) -> None:
        self._move(event.chat, Place.ARCHIVE, Place.CHATS, entry)

    def _move(self, chat: str, source: Place, target: Place, entry: Entry) -> None:
        record = self.chats.get(ChatId(chat))
        if record is not None and record.place is source:
            self.chats[record.id] = replace(record, place=target, changed=entry.ts)
            self.archived += 1 if target is Place.ARCHIVE else -1
            self._touch(entry, source, record.name, record.id)
            self._touch(entry, target, record.name)

    def _trash_chat(self, event: ev.ChatTrashed, entry: Entry) -> None:
        record = self.chats.get(ChatId(event.chat))
        if record is None or record.place is Place.TRASH:
            return
        del self.names[record.name]
        self.archived -= record.place is Place.ARCHIVE
        shown = self._free_in_trash(record.name)
        self.trash[shown] = record.id
        self._shown[record.id] = shown
        self.chats[record.id] = replace(record, place=Place.TRASH, changed=entry.ts, removed_since=event.since)
        self._touch(entry, record.place, record.name, record.id)
        self._touch(entry, Place.TRASH, shown)

    def _free_in_trash(self, name: str) -> str:
        number = self._taken.get(name, 0) + 1
        while (shown := name if number == 1 else f"{name}~{number}") in self.trash:
            number += 1
        self._taken[name] = number
        return shown

    def _leave_trash(self, record: ChatRecord) -> str:
        shown = self._shown.pop(record.id)
        del self.trash[shown]
        self._taken.clear()
        return shown

    def _restore(self, event: ev.ChatRestored, entry: Entry) -> None:
        record = self.chats.get(ChatId(event.chat or ""))
        if record is None or record.place is not Place.TRASH or record.name in self.names:
            return
        shown = self._leave_trash(record)
        self.names[record.name] = record.id
        self.chats[record.id] = replace(record, place=Place.CHATS, changed=entry.ts, removed_since=None)
        self._touch(entry, Place.CHATS, record.name)
        self._touch(entry, Place.TRASH, shown, record.id)

    def _delete(self, event: ev.ChatDeleted, entry: Entry) -> None:
        record = self.chats.get(ChatId(event.chat))
        if record is None or record.place is not Place.TRASH:
            return
        shown = self._leave_trash(record)
        del self.chats[record.id]
        self._touch(entry, Place.TRASH, shown, record.id)

    def _touch(self, entry: Entry, place: Place, name: str, before: ChatId | None = None) -> None:
        self.places_changed[place] = entry.ts * 1_000_000 + entry.seq % 1_000_000
        self._moved.append((place, name))
        self._before.append(before)


def _is_name(name: str) -> bool:
    try:
        directory_name(name)
    except InvalidName:
        return False
    return True


_CHANGES: Final[dict[type, Callable[[WorkspaceState, Any, Entry], None]]] = {
    ev.WorkspaceCreated: WorkspaceState._begin,  # noqa: SLF001 - the class's own table
    ev.WorkspaceChanged: WorkspaceState._change,  # noqa: SLF001
    ev.WorkspaceTrashed: WorkspaceState._end,  # noqa: SLF001
    ev.ChatCreated: WorkspaceState._create,  # noqa: SLF001
    ev.ChatRenamed: WorkspaceState._rename,  # noqa: SLF001
    ev.ChatArchived: WorkspaceState._archive,  # noqa: SLF001
    ev.ChatUnarchived: WorkspaceState._unarchive,  # noqa: SLF001
    ev.ChatTrashed: WorkspaceState._trash_chat,  # noqa: SLF001
    ev.ChatRestored: WorkspaceState._restore,  # noqa: SLF001
    ev.ChatDeleted: WorkspaceState._delete,  # noqa: SLF001
}
