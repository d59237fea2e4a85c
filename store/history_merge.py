"""A save of history.md by somebody who had read an older state: their change, carried over to the present one. Pure.

What only one side touched stays as that side made it. Where both changed one message, its lines are merged; where both
changed the same lines, the saved ones stand, and the others are handed back as `conflict`. Nothing that either side
wrote is lost: it is in the result or in `conflict`.

Blank lines between messages, and at the end, only part the texts and are never a conflict: those that the save changed
stand, otherwise those of the present state; the end's go where there is a message behind them now. Blank lines within a
message are lines as others are; of two runs of them, put in at one place, the longer one stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from store import events as ev
from store.alignment import matching_lines
from store.document import Item
from store.fold import ChatState
from store.history_diff import NewId, diff, rewritten
from store.markdown import canonical, escape, first_line, trim


@dataclass(frozen=True, slots=True)
class Merge:
    """The events for the present state, and what of it they overwrite (Markdown; None: nothing)."""

    events: list[ev.Event]
    conflict: bytes | None


def merge(base: ChatState, current: ChatState, saved: bytes, new_id: NewId) -> Merge:
    """What `saved` changes in `base`, as events for `current`, which is `base` and more entries. Raises InvalidText.

    Calls `new_id` as `diff(base, saved, new_id)` does.
    """
    own = diff(base, saved, new_id)
    if _outline(base) == _outline(current):
        return Merge(own, None)
    return _Rebase(base, current).run(own)


def _outline(state: ChatState) -> list[tuple[str, bytes | bytearray, bytes | None, bytes | None]]:
    """All that `diff` looks at. A seq wouldn't do: a base may be a state that is in no log."""
    return [(item.id, item.text, item.lead, item.tail) for item in state.document.items()]


class _Rebase:
    """One merge in progress: `_events` so far, and `_overwritten`, the texts that they drop."""

    def __init__(self, base: ChatState, current: ChatState) -> None:
        self._base = base.document
        self._current = current.document
        self._events: list[ev.Event] = []
        self._overwritten: list[bytes] = []
        self._added: set[str] = set()
        self._gone: set[str] = set()

    def run(self, own: list[ev.Event]) -> Merge:
        for event in own:
            if isinstance(event, ev.MessageRemoved):
                self._remove(event)
            elif isinstance(event, ev.MessageAppended):
                self._append(event)
            elif isinstance(event, ev.MessageEdited):
                self._edit(event)
            elif isinstance(event, ev.PreambleEdited):
                self._preamble(event)
        return Merge(self._events, b"\n".join(self._overwritten) or None)

    def _is_there(self, id_: str) -> bool:
        return id_ in self._added or (self._current.get(id_) is not None and id_ not in self._gone)

    def _place(self, after: str | None) -> str | None:
        """`after`, or where that message is gone, the nearest one before it that isn't."""
        if after is None or self._is_there(after):
            return after
        item = self._base.get(after)
        while item is not None and not self._is_there(item.id):
            item = item.prev
        return "" if item is None else item.id

    def _remove(self, event: ev.MessageRemoved) -> None:
        item, old = self._current.get(event.id), self._base.get(event.id)
        if item is None or old is None:
            return
        if item.text != old.text:
            self._overwritten.append(bytes(item.text) + b"\n")
        self._gone.add(event.id)
        self._events.append(event)

    def _append(self, event: ev.MessageAppended) -> None:
        after = self._place(event.after)
        lead = event.lead if self._separates(event.lead, self._current.last) else None
        self._added.add(event.id)
        self._events.append(replace(event, after=after, lead=lead))

    def _edit(self, event: ev.MessageEdited) -> None:
        item, old = self._current.get(event.id), self._base.get(event.id)
        assert old is not None
        if item is None:
            self._revive(event, old)
            return
        changed = event
        if event.content is not None:
            role, content, md = self._text(event, old, item)
            changed = replace(changed, role=role, content=content, md=md)
        before = item.prev
        while before.hidden:
            before = before.prev
        changed = replace(
            changed,
            after=self._place(event.after),
            lead=event.lead if self._separates(event.lead, before) else None,
            tail=event.tail if item is self._current.last else None,
        )
        if any(getattr(changed, field.name) is not None for field in fields(changed) if field.name != "id"):
            self._events.append(changed)

    def _revive(self, event: ev.MessageEdited, old: Item) -> None:
        """The message was removed meanwhile: an edit brings it back, in its place."""
        if event.content is None:
            return
        after = self._place(old.prev.id if event.after is None else event.after)
        self._added.add(old.id)
        role = event.role or old.role
        md = _saved_text(event, old).decode()
        self._events.append(ev.MessageAppended(old.id, role, event.content, after=after, md=md))

    def _text(self, event: ev.MessageEdited, old: Item, item: Item) -> tuple[str | None, ev.Content | None, str | None]:
        """(role, content, md) of the edit that gives `item` the merged text."""
        if item.text == old.text:
            return event.role, event.content, event.md
        text = self._merged(item, bytes(old.text), bytes(item.text), _saved_text(event, old))
        return (None, None, None) if text == item.text else rewritten(item, text)

    def _preamble(self, event: ev.PreambleEdited) -> None:
        head, old = self._current.head, bytes(self._base.head.text)
        text = event.text
        if text is not None and head.text != old:
            merged = self._merged(head, old, bytes(head.text), text.encode())
            text = None if merged == head.text else merged.decode()
        tail = event.tail if self._current.last is head else None
        if text is not None or tail is not None:
            self._events.append(ev.PreambleEdited(text=text, tail=tail))

    def _merged(self, item: Item, base: bytes, current: bytes, saved: bytes) -> bytes:
        text, lost = merge_lines(base, current, saved)
        if lost:
            name = first_line(current).rstrip(b"\r") if item.id else b"# (the text before the first message)"
            self._overwritten.append(b"%b\n\n%b\n" % (name, lost))
        return text

    @staticmethod
    def _separates(lead: str | None, before: Item) -> bool:
        """Whether `lead` still parts two texts: it was chosen for another neighbour."""
        return lead is not None and ("\n" in lead or not (before.id or before.text))


def _saved_text(event: ev.MessageEdited, old: Item) -> bytes:
    """The text that the edit gives the message as it was."""
    if event.md is not None:
        return event.md.encode()
    assert isinstance(event.content, str)
    return canonical(event.role or old.role, old.ts, escape(trim(event.content.encode())))


# ---- lines


def merge_lines(base: bytes, current: bytes, saved: bytes) -> tuple[bytes, bytes]:
    """The lines of both changes to `base`, and the lines of `current` that gave way to `saved`'s."""
    lines, ours, theirs = base.split(b"\n"), saved.split(b"\n"), current.split(b"\n")
    in_ours, in_theirs = dict(matching_lines(lines, ours)), dict(matching_lines(lines, theirs))
    out: list[bytes] = []
    lost: list[bytes] = []
    at = at_ours = at_theirs = 0
    for index in [*(i for i in range(len(lines)) if i in in_ours and i in in_theirs), len(lines)]:
        stop_ours, stop_theirs = in_ours.get(index, len(ours)), in_theirs.get(index, len(theirs))
        chunk, gave_way = _resolve(lines[at:index], ours[at_ours:stop_ours], theirs[at_theirs:stop_theirs])
        out += chunk
        lost += gave_way
        if index < len(lines):
            out.append(lines[index])
        at, at_ours, at_theirs = index + 1, stop_ours + 1, stop_theirs + 1
    return b"\n".join(out), b"\n".join(lost)


_Lines = Sequence[bytes]


def _resolve(base: _Lines, ours: _Lines, theirs: _Lines) -> tuple[_Lines, _Lines]:
    """What stands in place of `base`, and what of `theirs` doesn't."""
    if ours in (base, theirs):
        return theirs, []
    if theirs == base:
        return ours, []
    if not base:
        return _both(ours, theirs), []
    size = len(base)
    for added, other in ((theirs, ours), (ours, theirs)):
        if added[:size] == base:
            return [*other, *added[size:]], []
        if added[len(added) - size :] == base and len(added) > size:
            return [*added[: len(added) - size], *other], []
    return ours, theirs


def _both(ours: _Lines, theirs: _Lines) -> _Lines:
    """Two insertions at one place: theirs, then ours; once, where one begins with the other."""
    if ours[: len(theirs)] == theirs:
        return ours
    if theirs[: len(ours)] == ours:
        return theirs
    return [*theirs, *ours]
