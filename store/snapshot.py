"""A state as JSON and bytes, and back: what a snapshot of a chat says. Pure: `store.snapshots` writes and reads files.

A workspace's is `store.snapshot_workspace`'s. A dumped chat is a small JSON object, the rendered text, and `items`: the
older messages without their texts (`store.snapshot_items`). `load` takes the object alone, with the last messages in
it; the older ones stay where they are until something needs them. The object::

    version, seq, ts, created, title, labels, text_changed_ns, attachments_changed_ns, preamble_edited
    text_size   bytes of the rendered text
    preamble    [text, tail]
    older       null, or {count, shown, start, end, lead, tail, newest}: `start` and `end` are where the first and the
                last shown text of them begin and end in the rendered text, `newest` is their greatest id that is a UUID
    recent      [[id, role, ts, seq, text, lead, tail, hidden, edited], …]
    present     [[id, name, digest, size, content_type, mtime_ns, mode], …]: attachments
    removed     the same, each with the seq of its removal before it
    metadata_changed, projection    only where they aren't 0 and ""

A `text` is a string, or, where it is long, [offset, size] in the rendered text. Equal states give equal bytes. Whatever
isn't in this form is CorruptSnapshot, never another error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from store.document import Document, Gap, Item, lead_of, tail_of
from store.errors import CorruptSnapshot
from store.fold import ChatState
from store.model import Attachment, AttachmentId, Digest, Millis, Seq, is_uuid
from store.snapshot_items import Placed, StoredItems, decoded, dump_items
from store.snapshot_shapes import encoded, flag, number, rows, shaped, text, texts
from store.snapshot_workspace import dump_workspace, load_workspace

__all__ = ["Dump", "Source", "dump", "dump_workspace", "load", "load_workspace"]

VERSION: Final = 1
RECENT: Final = 64
"""Messages that stand in the object, as long as their texts together have at most RECENT_BYTES."""
RECENT_BYTES: Final = 1 << 20
INLINE: Final = 1 << 16
"""Bytes of a text that stands there as a string; a hidden message's always does: it isn't in the rendered text."""


class Source(Protocol):
    """The longer parts of a dumped chat, read when they are needed.

    Methods raise CorruptSnapshot where they aren't what was dumped.
    """

    def items(self) -> bytes:
        """`Dump.items`."""
        ...

    def text(self, offset: int, size: int) -> bytes:
        """A range of the rendered text."""
        ...


@dataclass(frozen=True, slots=True)
class Dump:
    """A dumped chat. Its text is what `store.history.render_pieces` gave at that moment, `text_size` bytes.

    `items` are the older messages, b"" where all stand in `state`.
    """

    state: dict[str, Any]
    items: bytes
    text_size: int


# ---- dump


def dump(state: ChatState) -> Dump:
    """The whole state; loads what isn't loaded. Costs O(history): some microseconds for each message."""
    state.complete()
    document = state.document
    placed = list(_places(document))
    count = len(placed) - _recent_count(placed)
    older, recent = placed[:count], placed[count:]
    found = {
        "version": VERSION,
        "seq": state.seq,
        "ts": state.ts,
        "created": state.created,
        "title": state.title,
        "labels": list(state.labels),
        "text_changed_ns": state.text_changed_ns,
        "attachments_changed_ns": state.attachments_changed_ns,
        "preamble_edited": state.preamble_edited,
        "text_size": document.size,
        "preamble": [_text(document.head, 0), decoded(document.head.tail)],
        "older": _older(older) if older else None,
        "recent": [_row(place) for place in recent],
        "present": [_attachment(found) for found in state.attachments.values()],
        "removed": [[seq, *_attachment(found)] for seq, found in state.attachment_state.removed.values()],
    }
    # What few chats have isn't there for the others: snapshots without it stay as they were.
    if state.metadata_changed:
        found["metadata_changed"] = state.metadata_changed
    if state.projection:
        found["projection"] = state.projection
    return Dump(found, dump_items(older), document.size)


def _places(document: Document) -> Iterator[Placed]:
    before = document.head
    end = len(before.text)
    for item in document.messages():
        if item.hidden:
            yield Placed(item, end, 0)
        else:
            lead = len(lead_of(item, before))
            yield Placed(item, end + lead, lead)
            end += lead + len(item.text)
            before = item


def _recent_count(placed: list[Placed]) -> int:
    """How many of the last messages stand in the object: at least the last one."""
    size = 0
    for count, place in enumerate(reversed(placed[-RECENT:])):
        size += len(place.item.text)
        if count and size > RECENT_BYTES:
            return count
    return min(len(placed), RECENT)


def _older(places: list[Placed]) -> dict[str, Any]:
    shown = [place for place in places if not place.item.hidden]
    return {
        "count": len(places),
        "shown": len(shown),
        "start": shown[0].start if shown else 0,
        "end": shown[-1].start + len(shown[-1].item.text) if shown else 0,
        "lead": decoded(shown[0].item.lead) if shown else None,
        "tail": decoded(shown[-1].item.tail) if shown else None,
        "newest": max((place.item.id for place in places if is_uuid(place.item.id)), default=""),
    }


def _row(place: Placed) -> list[Any]:
    item = place.item
    lead, tail = decoded(item.lead), decoded(item.tail)
    return [item.id, item.role, item.ts, item.seq, _text(item, place.start), lead, tail, item.hidden, item.edited]


def _text(item: Item, start: int) -> str | list[int]:
    return [start, len(item.text)] if len(item.text) > INLINE and not item.hidden else item.text.decode()


def _attachment(found: Attachment) -> list[Any]:
    return [found.id, found.name, found.digest, found.size, found.content_type, found.mtime_ns, found.mode]


# ---- load


def load(state: dict[str, Any], source: Source) -> ChatState:
    """The state that was dumped: costs O(recent messages + attachments). Raises CorruptSnapshot."""
    with shaped():
        if number(state["version"]) != VERSION:
            raise CorruptSnapshot("a snapshot of another version")
        loaded = ChatState()
        loaded.seq = Seq(number(state["seq"]))
        loaded.ts = Millis(number(state["ts"]))
        loaded.created = Millis(number(state["created"]))
        loaded.title = text(state["title"])
        loaded.labels = tuple(texts(state["labels"]))
        loaded.text_changed_ns = number(state["text_changed_ns"])
        loaded.attachments_changed_ns = number(state["attachments_changed_ns"])
        loaded.preamble_edited = flag(state["preamble_edited"])
        loaded.metadata_changed = Millis(number(state.get("metadata_changed", 0)))
        loaded.projection = text(state.get("projection", ""))
        attachments = loaded.attachment_state
        for row in rows(state["present"], 7):
            attachment = _load_attachment(row)
            attachments.present[attachment.name] = attachment
        for seq, *row in rows(state["removed"], 8):
            attachment = _load_attachment(row)
            attachments.removed[attachment.name] = number(seq), attachment
        _load_document(loaded.document, state, source)
        return loaded


def _load_attachment(row: list[Any]) -> Attachment:
    id_, name, digest, size, content_type, mtime_ns, mode = row
    return Attachment(
        AttachmentId(text(id_)),
        text(name),
        Digest(text(digest)),
        number(size),
        text(content_type),
        number(mtime_ns, negative=True),
        None if mode is None else number(mode),
    )


def _load_document(document: Document, state: dict[str, Any], source: Source) -> None:
    preamble, tail = state["preamble"]
    document.head.text = _load_text(preamble, source)
    document.head.tail = encoded(tail)
    gap, size, shown = None, len(document.head.text), 0
    if state["older"] is not None:
        gap = _load_gap(state["older"], source)
    last = document.head
    if gap is not None and not gap.hidden:
        size += len(lead_of(gap, last)) + gap.size
        shown = number(state["older"]["shown"])
        last = gap
        if size != state["older"]["end"]:
            raise CorruptSnapshot("a snapshot whose older messages have another size")
    items = [_load_item(row, source) for row in rows(state["recent"], 9)]
    for item in items:
        if not item.hidden:
            size += len(lead_of(item, last)) + len(item.text)
            shown += 1
            last = item
    if size + len(tail_of(last)) != number(state["text_size"]):
        raise CorruptSnapshot("a snapshot whose text has another size")
    if len({"", *(item.id for item in items)}) <= len(items):
        raise CorruptSnapshot("a snapshot has one message twice")
    document.restore(gap, items, state["text_size"], shown)


def _load_gap(older: dict[str, Any], source: Source) -> Gap:
    count, shown = number(older["count"]), number(older["shown"])
    start, end = number(older["start"]), number(older["end"])
    if count == 0 or shown > count or start > end:
        raise CorruptSnapshot("a snapshot whose older messages can't be counted")
    stored = StoredItems(source, count, shown, start, end, text(older["newest"]))
    return Gap(stored, end - start, encoded(older["lead"]), encoded(older["tail"]), hidden=not shown)


def _load_item(row: list[Any], source: Source) -> Item:
    id_, role, ts, seq, said, lead, tail, hidden, edited = row
    item = Item(
        text(id_),
        text(role),
        number(ts),
        number(seq),
        _load_text(said, source),
        lead=encoded(lead),
        tail=encoded(tail),
        hidden=flag(hidden),
    )
    item.edited = flag(edited)
    return item


def _load_text(said: object, source: Source) -> bytes:
    if isinstance(said, str):
        return said.encode()
    ((offset, size),) = rows([said], 2)
    found = source.text(number(offset), number(size))
    if len(found) != size:
        raise CorruptSnapshot("a snapshot's text is shorter than it was")
    found.decode()
    return found
