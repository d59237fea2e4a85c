"""A saved history.md -> the events that make the state render it. Pure.

What the saved text is cut into (`store.history_window`: leads, texts, a tail) covers it without a gap, and the events
carry whatever of that isn't the default. So they render it byte for byte, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from store import events as ev
from store.document import Item, lead_of, tail_of
from store.errors import InvalidText
from store.fold import ChatState
from store.history_window import Segment, Window, parse
from store.markdown import canonical, content_of, end_of_text, escape, heading_of, headings, trim

NewId = Callable[[], str]


def diff(state: ChatState, saved: bytes, new_id: NewId) -> list[ev.Event]:
    """The events that turn what `state` renders into `saved`; none where it is that. Raises InvalidText.

    `new_id` is called once for each new message, in order.
    """
    old = b"".join(state.document.pieces())
    if old == saved:
        return []
    window = Window(state, old, saved)
    _decode(saved[window.start : window.stop])
    return _emit(window, parse(window), new_id)


def diff_append(state: ChatState, appended: bytes, new_id: NewId) -> list[ev.Event]:
    """`diff` of what `state` renders with `appended` behind it; costs O(appended). Raises InvalidText."""
    if not appended:
        return []
    _decode(appended)
    item = state.document.last
    tail = tail_of(item)
    if _continues_heading(item, tail, appended):
        return diff(state, b"".join([*state.document.pieces(), appended]), new_id)
    rest = tail + appended
    first = 0 if not item.id and not item.text else rest.find(b"\n") + 1 or len(rest)
    marks = [(mark.start + first, mark.heading) for mark in headings(rest[first:]) if mark.heading is not None]
    starts = [start for start, _ in marks]
    end = end_of_text(rest, 0, starts[0] if starts else len(rest))
    addition = rest[:end] or None
    before = Item(item.id, item.role, 0, 0, addition or item.text, tail=item.tail)
    own_tail = None if marks else _unless(rest[end:], tail_of(before))
    events: list[ev.Event] = []
    if addition or own_tail is not None:
        events.append(_extension(item, _text(addition), _text(own_tail)))
    for (start, found), (_, stop) in zip(marks, pairwise([*starts, len(rest)]), strict=True):
        segment = Segment(start, found.role, end=end_of_text(rest, start, stop))
        item = Item(new_id(), found.role, 0, 0, b"new")
        around = _around(item, before, rest[end:start], rest[segment.end :] if stop == len(rest) else None)
        events.append(_append_event(rest, segment, item.id, None, around))
        before = item
        end = segment.end
    return events


def _extension(item: Item, addition: str | None, tail: str | None) -> ev.Event:
    if item.id:
        return ev.MessageEdited(item.id, append=addition, tail=tail)
    return ev.PreambleEdited(append=addition, tail=tail)


def _continues_heading(item: Item, tail: bytes, appended: bytes) -> bool:
    """Whether `appended` lengthens a last line that is a heading, or can become one."""
    if b"\n" in tail or appended.startswith((b"\n", b"\r\n")) or (not item.id and not item.text):
        return False
    start = item.text.rfind(b"\n") + 1
    begins = bytes(item.text[start : start + 3])
    return start == 0 or b"## ".startswith(begins)


def _decode(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidText(f"the text isn't UTF-8 (byte {error.start}): save it as UTF-8") from error


def _unless(value: bytes, expected: bytes | bytearray) -> bytes | None:
    return None if value == expected else value


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


# ---- events


def _emit(window: Window, segments: list[Segment], new_id: NewId) -> list[ev.Event]:
    saved, items = window.saved, window.items
    used = {segment.old for segment in segments}
    events: list[ev.Event] = [
        ev.MessageRemoved(items[index].id) for index in range(max(window.kept, 1), window.rest) if index not in used
    ]
    to_end = window.rest == len(items)
    before = items[window.kept - 1] if window.kept else items[0]
    end = window.start
    if not window.kept:
        following = segments[0].old if segments else window.rest
        end = window.end_of(0, following, 0, segments[0].start if segments else window.stop)
        before = Item("", "", 0, 0, saved[:end], tail=items[0].tail)
    preamble = _text(_unless(saved[:end], items[0].text)) if not window.kept else None
    if to_end and not segments:
        return events + _last_kept(before, preamble, _unless(saved[end:], tail_of(before)))
    if preamble is not None:
        events.append(ev.PreambleEdited(text=preamble))
    at_end = _trailing_new(segments) if to_end else len(segments)
    for index, segment in enumerate(segments):
        lead = saved[end : segment.start]
        tail = saved[segment.end :] if to_end and segment is segments[-1] else None
        item = None if segment.old is None else items[segment.old]
        if item is None:
            item = Item(new_id(), segment.role, 0, 0, b"new")
            around = _around(item, before, lead, tail)
            events.append(_append_event(saved, segment, item.id, before.id if index < at_end else None, around))
        else:
            text = saved[segment.start : segment.end]
            change = _edit_event(item, text, before.id if segment.moved else None, _around(item, before, lead, tail))
            events += [] if change is None else [change]
        before = item
        end = segment.end
    if not to_end:
        item = items[window.rest]
        lead = saved[end : window.stop]
        if lead != lead_of(item, before):
            events.append(ev.MessageEdited(item.id, lead=lead.decode()))
    return events


def _around(item: Item, before: Item, lead: bytes, tail: bytes | None) -> _Around:
    """What must be said of `lead` and `tail` (None: it isn't the last) for `item` to have them behind `before`."""
    return _unless(lead, lead_of(item, before)), None if tail is None else _unless(tail, tail_of(item))


def _last_kept(before: Item, preamble: str | None, tail: bytes | None) -> list[ev.Event]:
    """The events where `before` is the last item that is left, and the window has no message."""
    if not before.id:
        if preamble is None and tail is None:
            return []
        return [ev.PreambleEdited(text=preamble, tail=_text(tail))]
    return [] if tail is None else [ev.MessageEdited(before.id, tail=tail.decode())]


def _trailing_new(segments: list[Segment]) -> int:
    """Where the new messages begin that have only new ones behind them."""
    index = len(segments)
    while index and segments[index - 1].old is None:
        index -= 1
    return index


_Around = tuple[bytes | None, bytes | None]
"""A message's lead and tail, where they aren't what they would be without being said."""


def _append_event(text: bytes, segment: Segment, id_: str, after: str | None, around: _Around) -> ev.MessageAppended:
    """A new message. Its heading's time is known only when it is appended, so its text goes along as it stands."""
    own = text[segment.start : segment.end]
    lead, tail = around
    return ev.MessageAppended(
        id_, segment.role, content_of(own), after=after, md=own.decode(), lead=_text(lead), tail=_text(tail)
    )


def _edit_event(item: Item, text: bytes, after: str | None, around: _Around) -> ev.MessageEdited | None:
    """What changed in a message, or None."""
    lead, tail = _text(around[0]), _text(around[1])
    if text != item.text:
        role, content, md = rewritten(item, text)
        return ev.MessageEdited(item.id, role=role, content=content, after=after, md=md, lead=lead, tail=tail)
    if lead is None and tail is None and after is None:
        return None
    return ev.MessageEdited(item.id, after=after, lead=lead, tail=tail)


def rewritten(item: Item, text: bytes) -> tuple[str | None, str, str | None]:
    """(role, content, md) of an edit that gives `item` this text: role where it changes, md where it must be kept."""
    found = heading_of(text)
    role = found.role if found is not None else item.role
    content = content_of(text)
    plain = canonical(role, item.ts, escape(trim(content.encode())))
    return None if role == item.role else role, content, None if plain == text else text.decode()
