"""A workspace's state as JSON, and back. Pure.

::

    version, seq, ts, created, id, name, user, title, labels, quota_bytes, trashed
    places   {"chats": ns, …}: when a place last changed
    chats    [[id, name, place, created, changed, removed_since], …]
    names    the chats in chats/ and archive/, as indices into `chats`, in the order in which they came there
    trash    [[shown name, index], …]
"""

from __future__ import annotations

from typing import Any, Final

from store.errors import CorruptSnapshot
from store.model import ChatId, Millis, Seq, WorkspaceId
from store.snapshot_shapes import flag, number, numbers, rows, shaped, text, texts
from store.workspace_state import ChatRecord, Place, WorkspaceState

VERSION: Final = 1


def dump_workspace(state: WorkspaceState) -> dict[str, Any]:
    """The whole state. Equal states give equal JSON."""
    places = {chat: index for index, chat in enumerate(state.chats)}
    return {
        "version": VERSION,
        "seq": state.seq,
        "ts": state.ts,
        "created": state.created,
        "id": state.id,
        "name": state.name,
        "user": state.user,
        "title": state.title,
        "labels": list(state.labels),
        "quota_bytes": state.quota_bytes,
        "trashed": state.trashed,
        "places": {place.value: state.places_changed[place] for place in Place},
        "chats": [
            [record.id, record.name, record.place.value, record.created, record.changed, record.removed_since]
            for record in state.chats.values()
        ],
        "names": [places[chat] for chat in state.names.values()],
        "trash": [[shown, places[chat]] for shown, chat in state.trash.items()],
    }


def load_workspace(value: dict[str, Any]) -> WorkspaceState:
    """The state that was dumped. Raises CorruptSnapshot."""
    with shaped():
        if number(value["version"]) != VERSION:
            raise CorruptSnapshot("a snapshot of another version")
        state = WorkspaceState()
        state.seq = Seq(number(value["seq"]))
        state.ts = Millis(number(value["ts"]))
        state.created = Millis(number(value["created"]))
        state.id = WorkspaceId(text(value["id"]))
        state.name = text(value["name"])
        state.user = text(value["user"])
        state.title = text(value["title"])
        state.labels = tuple(texts(value["labels"]))
        state.quota_bytes = number(value["quota_bytes"])
        state.trashed = flag(value["trashed"])
        state.places_changed = {place: number(value["places"][place.value]) for place in Place}
        _load_chats(state, value)
        return state


def _load_chats(state: WorkspaceState, value: dict[str, Any]) -> None:
    found = rows(value["chats"], 6)
    if not found:
        columns: list[list[Any]] = [[]] * 6
    else:
        columns = [list(column) for column in zip(*found, strict=True)]
    ids, names, places, created, changed, since = columns
    kinds = {place.value: place for place in Place}
    records = [
        ChatRecord(ChatId(id_), name, kinds[place], Millis(began), Millis(at), removed)
        for id_, name, place, began, at, removed in zip(
            texts(ids), texts(names), texts(places), numbers(created), numbers(changed), since, strict=True
        )
    ]
    numbers([removed for removed in since if removed is not None])
    shown = [records[index] for index in numbers(value["names"])]
    trash = [(text(name), records[number(index)]) for name, index in rows(value["trash"], 2)]
    state.fill(records, shown, {name: record.id for name, record in trash})
    trashed = {record.id for _, record in trash}
    if (
        len(state.chats) != len(records)
        or len(state.names) + len(state.trash) != len(records)
        or len(shown) + len(trash) != len(records)
        or any((record.place is Place.TRASH) != (record.id in trashed) for record in records)
    ):
        raise CorruptSnapshot("a snapshot whose chats aren't each in one place")
