"""The document behind history.md: a preamble and messages in order, and what each change does to the rendered text.

Document = preamble + messages + tail. Every shown item adds `lead + text`: its text, as bytes, begins with its heading
line and ends with its last line that isn't blank, without line end; its lead is everything before that, back to the end
of the text before it (a line end, blank lines). The `tail` is what follows the last text. Lead and tail have defaults,
and an item may override its own, so that any file whatever can be said in these terms:

* the default tail is one line end (nothing after an empty preamble);
* the default lead is the tail of the item before, lengthened until it ends in a blank line: a message that is appended
  only ever adds bytes.

A document that was loaded from a snapshot may have a `Gap` in place of its older messages, until `complete` puts them
there. To its neighbours a gap is like the messages that it stands for, so that most changes don't need these.

Knows neither events nor JSON. Changes in place; one task at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from store.errors import CorruptSnapshot


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change did to the rendered text and to what else is shown.

    `appended` are bytes that were added at the end while nothing else of the text changed; `rewritten`: it changed
    otherwise. `attachments` are the names that came, went or changed.
    """

    appended: bytes = b""
    rewritten: bool = False
    metadata: bool = False
    attachments: tuple[str, ...] = ()

    def __or__(self, other: Effect) -> Effect:
        """The effect of both, one after the other."""
        return Effect.joined((self, other))

    @staticmethod
    def joined(effects: Sequence[Effect]) -> Effect:
        """The effect of all, one after the other."""
        rewritten = any(effect.rewritten for effect in effects)
        return Effect(
            b"" if rewritten else b"".join([effect.appended for effect in effects]),
            rewritten,
            any(effect.metadata for effect in effects),
            tuple([name for effect in effects for name in effect.attachments]),
        )


NOTHING: Final = Effect()
REWRITTEN: Final = Effect(rewritten=True)


class Item:
    """A message, or the preamble (whose id is ""). Links and text are the Document's to change.

    `ts` is the time in the heading, `seq` the entry that appended it. `text` is a bytearray once it has been added to.
    """

    __slots__ = ("edited", "hidden", "id", "lead", "next", "prev", "role", "seq", "tail", "text", "ts")

    def __init__(
        self,
        id_: str,
        role: str,
        ts: int,
        seq: int,
        text: bytes | bytearray,
        lead: bytes | None = None,
        tail: bytes | None = None,
        hidden: bool = False,  # noqa: FBT001, FBT002 - keywords would cost a tenth of making an item
    ) -> None:
        self.id = id_
        self.role = role
        self.ts = ts
        self.seq = seq
        self.text = text
        self.lead = lead
        self.tail = tail
        self.hidden = hidden
        self.edited = False
        self.prev = self
        self.next = self


class Older(Protocol):
    """What a Gap stands for. Methods raise CorruptSnapshot where it can't be read."""

    def may_have(self, id_: str) -> bool:
        """False: no message of it has that id."""
        ...

    def load(self) -> list[Item]:
        """The messages in order, at least one."""
        ...

    def text(self, offset: int) -> Iterator[bytes]:
        """Its part of the rendered text, in pieces, from that byte of it on."""
        ...


class Gap(Item):
    """A stand-in for messages that aren't loaded: no first or last line of it can be looked at.

    `size` is that of what it renders, from the first shown text to the end of the last one; `lead` is the first one's,
    `tail` the last one's. It is hidden if all of them are.
    """

    __slots__ = ("older", "size")

    def __init__(self, older: Older, size: int, lead: bytes | None, tail: bytes | None, *, hidden: bool) -> None:
        super().__init__(_GAP, "", 0, 0, b"", lead=lead, tail=tail, hidden=hidden)
        self.older = older
        self.size = size


_PARTED: Final = 2
"""Bytes between the texts of two ordinary messages; the tail stays as long as it was."""
_GAP: Final = "\x00older"
"""No message has this id: it isn't printable."""


def tail_of(item: Item) -> bytes:
    """What follows its text if it is the last one."""
    if item.tail is not None:
        return item.tail
    return b"\n" if item.text or item.id else b""


def default_lead(before: Item) -> bytes:
    """What stands between the text of `before` and the next item's, if that doesn't say otherwise."""
    tail = before.tail
    if not before.id and not before.text:
        return (tail + b"\n" if not tail.endswith(b"\n") else tail) if tail else b""
    if tail is None:
        return b"\n\n"
    lines = tail.count(b"\n")
    if lines >= 2 and tail.endswith(b"\n"):
        return tail
    end = b"\r\n" if b"\r\n" in tail else b"\n"
    return tail + end if lines else tail + end + end


def lead_of(item: Item, before: Item) -> bytes:
    """What stands before its text, where `before` is the item shown before it."""
    return item.lead if item.lead is not None else default_lead(before)


def _joint(before: Item, behind: Item | None) -> bytes:
    return tail_of(before) if behind is None else lead_of(behind, before)


class Document:
    """The items, and `size`, the bytes of the rendered text; `shown` counts the messages in it."""

    __slots__ = ("_by_id", "_gap", "_last", "_restored", "head", "shown", "size")

    def __init__(self) -> None:
        self.head = Item("", "", 0, 0, b"")
        self._last = self.head
        self._by_id: dict[str, Item] = {"": self.head}
        self._gap: Gap | None = None
        self._restored: tuple[bytes | bytearray, bytes | None] = b"", None
        self.size = 0
        self.shown = 0

    def get(self, id_: str) -> Item | None:
        """The message of that id, or the preamble for ""."""
        found = self._by_id.get(id_)
        if found is None and self._gap is not None and self._gap.older.may_have(id_):
            self.complete()
            found = self._by_id.get(id_)
        return found

    def messages(self) -> Iterator[Item]:
        """All messages in order, hidden ones too."""
        self.complete()
        item = self.head.next
        while item is not self.head:
            yield item
            item = item.next

    def items(self) -> Iterator[Item]:
        """What is rendered: the preamble and the shown messages, in order."""
        yield self.head
        for item in self.messages():
            if not item.hidden:
                yield item

    @property
    def end(self) -> Item:
        """The last item, hidden or not."""
        if self.head.prev is self._gap:
            self.complete()
        return self.head.prev

    @property
    def last(self) -> Item:
        """The last item that is shown."""
        if self._last is self._gap:
            self.complete()
        return self._last

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        """The rendered text, from that byte on. A change while it runs spoils it."""
        before = item = self.head
        while True:
            if not item.hidden:
                if item is not self.head:
                    lead = lead_of(item, before)
                    if offset < len(lead):
                        yield lead[offset:] if offset else lead
                    offset = max(0, offset - len(lead))
                if isinstance(item, Gap):
                    if offset < item.size:
                        yield from item.older.text(offset)
                    offset = max(0, offset - item.size)
                else:
                    text = item.text
                    if offset < len(text):
                        yield bytes(text[offset:] if offset else text)
                    offset = max(0, offset - len(text))
                before = item
            item = item.next
            if item is self.head:
                break
        tail = tail_of(before)
        if offset < len(tail):
            yield tail[offset:]

    # ---- what isn't loaded

    @property
    def gap(self) -> Gap | None:
        """What stands for messages that aren't loaded."""
        return self._gap

    @property
    def same_prefix(self) -> int:
        """With how many bytes the rendered text still begins as it did when the gap was put there."""
        gap, head = self._gap, self.head
        text, tail = self._restored
        if gap is None or gap.hidden or head.next is not gap or head.text is not text or head.tail != tail:
            return 0
        return len(text) + len(lead_of(gap, head)) + gap.size

    def restore(self, gap: Gap | None, items: list[Item], size: int, shown: int) -> None:
        """Put messages behind a preamble, as they were in a document of that `size`."""
        for item in [*items] if gap is None else [gap, *items]:
            self._hang(item)
            self._by_id[item.id] = item
        if gap is not None:
            del self._by_id[gap.id]
        self._gap, self.size, self.shown = gap, size, shown
        self._restored = self.head.text, self.head.tail

    def _hang(self, item: Item) -> None:
        item.prev, item.next = self.head.prev, self.head
        item.prev.next = self.head.prev = item
        if not item.hidden:
            self._last = item

    def complete(self) -> None:
        """Load what isn't. Raises CorruptSnapshot; then the document is as it was."""
        gap = self._gap
        if gap is None:
            return
        items = gap.older.load()
        fresh = {item.id: item for item in items}
        if self._gap is not gap:
            return  # a reader in another thread did it
        if not fresh.keys().isdisjoint(self._by_id):
            raise CorruptSnapshot("a snapshot has one message twice")
        for before, item in pairwise(items):
            before.next, item.prev = item, before
        first, last = items[0], items[-1]
        first.prev, last.next = gap.prev, gap.next
        gap.prev.next, gap.next.prev = first, last
        self._by_id.update(fresh)
        if self._last is gap:
            while last.hidden:
                last = last.prev
            self._last = last
        self._gap = None

    # ---- changes

    def insert(self, item: Item, after: Item | None = None) -> Effect:
        """Put a new item behind `after` (None: at the end)."""
        self._by_id[item.id] = item
        if after is None:
            after = self.head.prev
        if after.next is self.head and not item.hidden:
            return self._append(item)
        return self._link(item, after)

    def add(self, id_: str, role: str, ts: int, seq: int, text: bytes) -> bool:
        """`insert` of an ordinary message at the end, for those who don't ask what it did; False where it is there."""
        known = self._by_id
        if id_ in known or (self._gap is not None and self.get(id_) is not None):
            return False
        head, before = self.head, self._last
        item = known[id_] = Item(id_, role, ts, seq, text)
        end = head.prev
        item.prev, item.next = end, head
        end.next = head.prev = self._last = item
        self.shown += 1
        if before.tail is None and before.id:
            self.size += len(text) + _PARTED
        else:
            self.size += len(default_lead(before)) + len(text) + len(tail_of(item)) - len(tail_of(before))
        return True

    def grow(self, item: Item, addition: bytes) -> None:
        """`extend` of a message, for those who don't ask what it did."""
        text = item.text
        if not isinstance(text, bytearray):
            text = item.text = bytearray(text)
        text += addition
        if not item.hidden:
            self.size += len(addition)

    def remove(self, item: Item) -> Effect:
        """Take a message out."""
        del self._by_id[item.id]
        return self._unlink(item)

    def clear(self) -> None:
        """Take everything out, the preamble too."""
        head = self.head
        head.text, head.tail = b"", None
        head.prev = head.next = self._last = head
        self._by_id = {"": head}
        self._gap, self._restored = None, (b"", None)
        self.size = self.shown = 0

    def move(self, item: Item, after: Item) -> Effect:
        """Put a message behind `after`."""
        if after is item or item.prev is after:
            return NOTHING
        return self._unlink(item) | self._link(item, after)

    def replace(
        self, item: Item, *, text: bytes | None = None, lead: bytes | None = None, tail: bytes | None = None
    ) -> Effect:
        """Set what isn't None."""
        if item.hidden:
            self._set(item, text, lead, tail)
            return NOTHING
        behind = self._behind(item)
        before = None if item is self.head else self._before(item)
        old = self._around(before, item, behind)
        self._set(item, text, lead, tail)
        return self._changed(old, self._around(before, item, behind), behind)

    def extend(self, item: Item, addition: bytes, *, tail: bytes | None = None) -> Effect:
        """Add to the end of its text; costs O(addition), amortised."""
        behind = None if item.hidden else self._behind(item)
        old = b"" if item.hidden else _joint(item, behind)
        if not isinstance(item.text, bytearray):
            item.text = bytearray(item.text)
        item.text += addition
        self._set(item, None, None, tail)
        return NOTHING if item.hidden else self._changed(old, addition + _joint(item, behind), behind)

    @staticmethod
    def _set(item: Item, text: bytes | None, lead: bytes | None, tail: bytes | None) -> None:
        if text is not None:
            item.text = text
        if lead is not None:
            item.lead = lead
        if tail is not None:
            item.tail = tail

    def _append(self, item: Item) -> Effect:
        """`_link` at the end: what nearly every entry of a log does, so it is short."""
        head, before = self.head, self._last
        item.prev, item.next = head.prev, head
        head.prev.next = item
        head.prev = self._last = item
        self.shown += 1
        lead = item.lead if item.lead is not None else default_lead(before)
        return self._changed(tail_of(before), b"".join((lead, item.text, tail_of(item))), None)

    def _link(self, item: Item, after: Item) -> Effect:
        item.prev, item.next = after, after.next
        after.next.prev = item
        after.next = item
        if item.hidden:
            return NOTHING
        before, behind = self._before(item), self._behind(item)
        if behind is None:
            self._last = item
        self.shown += 1
        return self._changed(_joint(before, behind), self._around(before, item, behind), behind)

    def _unlink(self, item: Item) -> Effect:
        effect = NOTHING
        if not item.hidden:
            before, behind = self._before(item), self._behind(item)
            if behind is None:
                self._last = before
            self.shown -= 1
            effect = self._changed(self._around(before, item, behind), _joint(before, behind), behind)
        item.prev.next = item.next
        item.next.prev = item.prev
        return effect

    def _changed(self, old: bytes, new: bytes, behind: Item | None) -> Effect:
        """Account for `old` having become `new`, where `behind` is what is shown next (None: it ends the text)."""
        self.size += len(new) - len(old)
        if old == new:
            return NOTHING
        if behind is None and new.startswith(old):
            return Effect(new[len(old) :])
        return REWRITTEN

    @staticmethod
    def _around(before: Item | None, item: Item, behind: Item | None) -> bytes:
        lead = b"" if before is None else lead_of(item, before)
        return b"".join((lead, item.text, _joint(item, behind)))

    def _before(self, item: Item) -> Item:
        item = item.prev
        while item.hidden:
            item = item.prev
        return item

    def _behind(self, item: Item) -> Item | None:
        item = item.next
        while item.hidden:
            item = item.next
        return None if item is self.head else item
