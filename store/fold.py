"""The chat fold: a chat's log -> its state. Pure, deterministic, and total: no entry makes it fail.

`ChatState` holds the rendered text of every message (once, as bytes), the title, labels and attachments. What an event
means for the text is `store.document`'s; how content becomes Markdown is `store.blocks`'. An unknown event, or one that
makes no sense where it stands (an edit of a message that isn't there), moves only `seq` and `ts`.

Concurrency: a state changes in place and belongs to one task at a time; iterators over it end with the next `apply`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from store import events as ev
from store.attachment_fold import Attachments, entry_time_ns
from store.blocks import body
from store.document import NOTHING, Document, Effect, Item
from store.markdown import canonical, content_of, first_line, heading_line, heading_of, is_plain, skip_blanks
from store.model import Attachment, Entries, Entry, Millis, Seq, is_title

__all__ = ["ChatState", "Effect", "Message", "fold"]

_APPENDED: Final = ev.APPENDED
_EDITED: Final = ev.MessageEdited.TYPE
_PLAIN_KEYS: Final = 4
_SPECIAL: Final = frozenset({"after", "md", "lead", "tail", "hidden", "attachments"})
"""What an ordinary message doesn't have beside its type, id, role and content."""
_APPEND_KEYS: Final = 3
_UNDER_HEADING: Final = b"\n\n"

_TITLE: Final = re.compile(rb"#(?:[ \t]+([^\n]*?))?[ \t]*(\r?)")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it stands.

    `ts` is when it was written (its origin's time where it was copied), `seq` the entry that appended it. `content` is
    what its text in history.md says, without heading and escapes: for content that was blocks, their Markdown; the
    blocks are in the log.
    """

    id: str
    role: str
    ts: Millis
    seq: Seq
    content: str
    hidden: bool
    edited: bool


class ChatState:
    """A chat at `seq`. `ts` is that entry's, `created` the first one's (0: the log is empty)."""

    __slots__ = (
        "attachment_state",
        "attachments_changed_ns",
        "created",
        "document",
        "labels",
        "metadata_changed",
        "preamble_edited",
        "projection",
        "seq",
        "text_changed_ns",
        "title",
        "ts",
    )

    def __init__(self) -> None:
        self.seq = Seq(0)
        self.ts = Millis(0)
        self.created = Millis(0)
        self.title = ""
        self.labels: tuple[str, ...] = ()
        self.metadata_changed = Millis(0)
        """When title or labels last changed (its origin's time where that was copied); 0: never."""
        self.projection = ""
        """`events.PROJECTED`, `LOCAL` or `GONE`; "": nobody has said. It is this copy's: entries that were copied from
        another log don't say it, and a reset leaves it."""
        self.document = Document()
        self.text_changed_ns = 0
        """When the rendered text last changed: nanoseconds, rising with every change; 0: never."""
        self.attachments_changed_ns = 0
        """When an attachment last came, went or changed, likewise."""
        self.attachment_state = Attachments()
        self.preamble_edited = False
        """Whether an event set the preamble's text: else it is the title's line."""

    @property
    def attachments(self) -> dict[str, Attachment]:
        """By name, in the order in which the names came."""
        return self.attachment_state.present

    @property
    def message_count(self) -> int:
        """Messages that are shown."""
        return self.document.shown

    @property
    def size(self) -> int:
        """Bytes of the rendered text."""
        return self.document.size

    @property
    def whole(self) -> bool:
        """False while older messages are still where the state was loaded from."""
        return self.document.gap is None

    def complete(self) -> None:
        """Load the older messages; what needs them does so by itself. Raises CorruptSnapshot: then drop the state."""
        self.document.complete()

    @property
    def text_prefix(self) -> int:
        """While it isn't whole: with how many bytes of the text that it was loaded from the rendered text begins."""
        return self.document.same_prefix

    def messages(self) -> Iterator[Message]:
        """All messages in order, hidden ones too."""
        return map(_view, self.document.messages())

    def message(self, id_: str) -> Message | None:
        """The message of that id."""
        item = self.document.get(id_) if id_ else None
        return None if item is None else _view(item)

    def apply(self, entry: Entry) -> Effect:
        """Take in the next entry."""
        if self.seq == 0:
            self.created = entry.ts
        self.seq, self.ts = entry.seq, entry.ts
        try:
            value = orjson.loads(entry.data)
        except ValueError:
            return NOTHING
        if type(value) is dict and value.get("type") in _APPENDED:
            ts = entry.ts if entry.origin is None else entry.origin.ts
            text = _ordinary(value, ts, {})
            if text is not None and self.document.get(value["id"]) is None:
                self.text_changed_ns = entry_time_ns(entry)
                return self.document.insert(Item(value["id"], value["role"], ts, entry.seq, text))
        return self._take(ev.interpret(value), entry)

    def _take(self, event: ev.Event | ev.Unknown, entry: Entry) -> Effect:
        change = _CHANGES.get(type(event))
        if change is not None:
            effect = change(self, event, entry)
            if effect.appended or effect.rewritten:
                self.text_changed_ns = entry_time_ns(entry)
            return effect
        names = self.attachment_state.apply(event, entry) if isinstance(event, ev.Event) else ()
        if not names:
            return NOTHING
        self.attachments_changed_ns = entry_time_ns(entry)
        return Effect(attachments=names)

    def replay(self, entries: Entries) -> None:
        """`apply` for each of `entries`, where nobody asks what it did: several times as fast.

        What nearly all entries are (a message at the end, text added to one, a type that isn't known) is done without
        an event object; all else goes the usual way.
        """
        if not entries:
            return
        if self.seq == 0:
            self.created = Millis(entries.ts[0])
        first, loads = entries.first, orjson.loads
        headings: dict[tuple[str, int], bytes] = {}
        textual = 0
        """The last entry that changed the text, as long as `text_changed_ns` doesn't say so."""
        try:
            for seq, (ts, (_, origin, _), data) in enumerate(
                zip(entries.ts, entries.who, entries.data, strict=True), first
            ):
                try:
                    value = loads(data)
                except ValueError:
                    continue
                if type(value) is not dict:
                    continue
                kind = value.get("type")
                if (
                    self._add(value, seq, ts if origin is None else origin.ts, headings)
                    if kind in _APPENDED
                    else kind == _EDITED and self._grow(value)
                ):
                    textual = seq
                elif isinstance(kind, str) and kind in ev.KNOWN:
                    if textual:
                        self.text_changed_ns = entry_time_ns(entries[textual - first])
                        textual = 0
                    self._take(ev.interpret(value), entries[seq - first])
        finally:
            if textual:
                self.text_changed_ns = entry_time_ns(entries[textual - first])
        last = entries[-1]
        self.seq, self.ts = last.seq, last.ts

    def _add(self, value: dict[str, Any], seq: int, ts: int, headings: dict[tuple[str, int], bytes]) -> bool:
        """`_appended` of an ordinary message at the end; False, and nothing done, where it is another."""
        text = _ordinary(value, ts, headings)
        return text is not None and self.document.add(value["id"], value["role"], ts, seq, text)

    def _grow(self, value: dict[str, Any]) -> bool:
        """`_edited` where it only adds text that is seen; False, and nothing done, where it does something else."""
        id_, addition = value.get("id"), value.get("append")
        if len(value) != _APPEND_KEYS or not ev.is_id(id_) or type(addition) is not str or not addition:
            return False
        item = self.document.get(id_)
        if item is None or item.hidden:
            return False
        item.edited = True
        self.document.grow(item, addition.encode())
        return True

    # ---- messages

    def _place(self, after: str) -> Item:
        """The item to stand behind: the end where nothing that is known is named."""
        return self.document.get(after) or self.document.end

    def _appended(self, event: ev.MessageAppended, entry: Entry) -> Effect:
        id_ = event.id
        while self.document.get(id_) is not None:
            id_ = f"{id_}~{entry.seq}"
        ts = entry.ts if entry.origin is None else entry.origin.ts
        text = _bytes(event.md)
        if text is None:
            text = canonical(event.role, ts, body(event.content, event.attachments))
        item = Item(
            id_,
            event.role,
            ts,
            entry.seq,
            text,
            lead=_bytes(event.lead),
            tail=_bytes(event.tail),
            hidden=event.hidden is True,
        )
        return self.document.insert(item, None if event.after is None else self.document.get(event.after))

    def _edited(self, event: ev.MessageEdited, _entry: Entry) -> Effect:
        item = self.document.get(event.id)
        if item is None or not event.id:
            return NOTHING
        effect = NOTHING
        if event.after is not None:
            effect = self.document.move(item, self._place(event.after))
        role_changed = event.role is not None and event.role != item.role
        item.role = event.role or item.role
        text = _bytes(event.md)
        if text is None and event.content is not None:
            text = canonical(item.role, item.ts, body(event.content))
        elif text is None and role_changed:
            text = _with_heading(item)
        item.edited = item.edited or text is not None or event.append is not None
        lead, tail = _bytes(event.lead), _bytes(event.tail)
        if event.append is None:
            return effect | self.document.replace(item, text=text, lead=lead, tail=tail)
        if text is not None or lead is not None:
            effect |= self.document.replace(item, text=text, lead=lead)
        return effect | self.document.extend(item, event.append.encode(), tail=tail)

    def _removed(self, event: ev.MessageRemoved, _entry: Entry) -> Effect:
        item = self.document.get(event.id)
        return NOTHING if item is None or not event.id else self.document.remove(item)

    # ---- preamble and metadata

    def _preamble(self, event: ev.PreambleEdited, entry: Entry) -> Effect:
        head = self.document.head
        tail = _bytes(event.tail)
        if event.text is None and event.append is None:
            return self.document.replace(head, tail=tail)
        self.preamble_edited = True
        effect = NOTHING
        old = first_line(head.text)
        if event.text is not None:
            effect = self.document.replace(head, text=event.text.encode(), tail=tail if event.append is None else None)
        if event.append is not None:
            effect |= self.document.extend(head, event.append.encode(), tail=tail)
        if self._read_title(old):
            self.metadata_changed = _written(entry)
            effect |= Effect(metadata=True)
        return effect

    def _read_title(self, old: bytes) -> bool:
        """Take the title from the preamble's first line, which was `old`; whether it changed."""
        new = first_line(self.document.head.text)
        title = _title_in(new)
        if title is None and _title_in(old) is not None:
            title = ""
        if title is None or title == self.title:
            return False
        self.title = title
        return True

    def _changed(self, event: ev.ChatChanged, entry: Entry) -> Effect:
        effect = NOTHING
        if event.labels is not None and tuple(event.labels) != self.labels:
            self.labels = tuple(event.labels)
            effect = Effect(metadata=True)
        if event.title is not None and event.title != self.title:
            self.title = event.title
            effect = Effect(metadata=True) | self._show_title()
        if effect is not NOTHING:
            self.metadata_changed = _written(entry)
        wanted = event.projection
        allowed = wanted in ev.INTENTS or (wanted == ev.GONE and entry.actor == ev.PROJECTOR)
        if wanted is not None and allowed and entry.origin is None and wanted != self.projection:
            self.projection = wanted
            effect |= Effect(metadata=True)
        return effect

    def _reset(self, _event: ev.LogReset, entry: Entry) -> Effect:
        if entry.actor != ev.PROJECTOR or entry.origin is not None:
            return NOTHING
        self.document.clear()
        names = self.attachment_state.clear()
        self.title, self.labels, self.preamble_edited = "", (), False
        self.metadata_changed = Millis(0)
        self.attachments_changed_ns = entry_time_ns(entry)
        return Effect(rewritten=True, metadata=True, attachments=names)

    def _show_title(self) -> Effect:
        line = f"# {self.title}".encode() if self.title else b""
        head = self.document.head
        if not self.preamble_edited:
            return self.document.replace(head, text=line)
        old = first_line(head.text)
        match = _TITLE.fullmatch(old)
        if match is None or _title_in(old) is None:
            return NOTHING
        rest = bytes(head.text[len(old) :])
        text = line + match[2] + rest if line else rest[skip_blanks(rest, 0) :]
        return self.document.replace(head, text=text)


def _ordinary(value: dict[str, Any], ts: int, headings: dict[tuple[str, int], bytes]) -> bytes | None:
    """The text of a message of usual form that is to stand at the end; None where it is another.

    `headings` keeps what was made: many messages have one second.
    """
    if len(value) > _PLAIN_KEYS and not _SPECIAL.isdisjoint(value):
        return None
    id_, role, content = value.get("id"), value.get("role"), value.get("content")
    if (
        type(id_) is not str
        or not 0 < len(id_) <= ev.ID_MAX
        or not id_.isprintable()
        or (role not in ev.USUAL_ROLES and not ev.is_role(role))
    ):
        return None
    if type(content) is str:
        text = content.encode() if is_plain(content) else body(content)
    elif type(content) is list:
        text = body(content)
    else:
        return None
    at = role, ts // 1000
    heading = headings.get(at)
    if heading is None:
        heading = headings[at] = canonical(role, ts, b"")
    return heading + _UNDER_HEADING + text if text else heading


def fold(entries: Iterable[Entry]) -> ChatState:
    """The state after all of `entries`."""
    state = ChatState()
    for entry in entries:
        state.apply(entry)
    return state


def _written(entry: Entry) -> Millis:
    return entry.ts if entry.origin is None else entry.origin.ts


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _view(item: Item) -> Message:
    return Message(item.id, item.role, Millis(item.ts), Seq(item.seq), content_of(item.text), item.hidden, item.edited)


def _with_heading(item: Item) -> bytes | None:
    """Its text with the heading line that its role asks for; None where it has no heading."""
    if heading_of(item.text) is None:
        return None
    line = first_line(item.text)
    end = b"\r" if line.endswith(b"\r") else b""
    return heading_line(item.role, item.ts) + end + bytes(item.text[len(line) :])


def _title_in(line: bytes) -> str | None:
    """The title that a first line sets: None where it isn't a title line."""
    match = _TITLE.fullmatch(line)
    if match is None:
        return None
    try:
        title = (match[1] or b"").decode().strip()
    except UnicodeDecodeError:  # the line was cut: too long for a title
        return None
    return title if is_title(title) else None


_CHANGES: Final[dict[type, Callable[[ChatState, Any, Entry], Effect]]] = {
    ev.MessageAppended: ChatState._appended,  # noqa: SLF001 - the class's own table
    ev.MessageEdited: ChatState._edited,  # noqa: SLF001
    ev.MessageRemoved: ChatState._removed,  # noqa: SLF001
    ev.PreambleEdited: ChatState._preamble,  # noqa: SLF001
    ev.ChatChanged: ChatState._changed,  # noqa: SLF001
    ev.LogReset: ChatState._reset,  # noqa: SLF001
}
