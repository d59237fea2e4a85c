"""The attachments of a chat as its events leave them. Pure; changes in place, one task at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from store import events as ev
from store.errors import InvalidName
from store.model import Attachment, AttachmentId, Digest, Entry, attachment_name

_DIGEST: Final = re.compile(r"sha256(?:-chunks)?:[0-9a-f]{64}")
_MTIME_MAX: Final = (1 << 63) - 1


def _is_name(name: str) -> bool:
    try:
        attachment_name(name)
    except InvalidName:
        return False
    return True


def entry_time_ns(entry: Entry) -> int:
    """A time for what an entry changed, in nanoseconds: its ts, and within one millisecond rising with its seq."""
    return min(entry.ts * 1_000_000 + entry.seq % 1_000_000, _MTIME_MAX)


def _made_ns(entry: Entry) -> int:
    """When what an entry put was made: where it was copied, the origin knows."""
    ts = entry.ts if entry.origin is None else entry.origin.ts
    return min(ts * 1_000_000 + entry.seq % 1_000_000, _MTIME_MAX)


class Attachments:
    """`present` by name, in the order in which the names came.

    `removed` is what was removed, and by which seq, until the name is put again: `chat.restored` brings it back.
    """

    __slots__ = ("present", "removed")

    def __init__(self) -> None:
        self.present: dict[str, Attachment] = {}
        self.removed: dict[str, tuple[int, Attachment]] = {}

    def apply(self, event: ev.Event, entry: Entry) -> tuple[str, ...]:
        """Take in an event; the names that came, went or changed."""
        change = _CHANGES.get(type(event))
        return () if change is None else change(self, event, entry)

    def clear(self) -> tuple[str, ...]:
        """Forget all, removed ones too; the names that were there."""
        names = tuple(self.present)
        self.present.clear()
        self.removed.clear()
        return names

    def _put(self, event: ev.AttachmentPut, entry: Entry) -> tuple[str, ...]:
        if not _is_name(event.name) or _DIGEST.fullmatch(event.digest) is None:
            return ()
        self.removed.pop(event.name, None)
        self.present[event.name] = Attachment(
            AttachmentId(event.id),
            event.name,
            Digest(event.digest),
            event.size,
            event.content_type,
            _made_ns(entry) if event.mtime_ns is None else event.mtime_ns,
            event.mode,
        )
        return (event.name,)

    def _remove(self, event: ev.AttachmentRemoved, entry: Entry) -> tuple[str, ...]:
        found = self.present.pop(event.name, None)
        if found is None:
            return ()
        self.removed[event.name] = (entry.seq, found)
        return (event.name,)

    def _rename(self, event: ev.AttachmentRenamed, _entry: Entry) -> tuple[str, ...]:
        if event.name not in self.present or event.to == event.name or not _is_name(event.to):
            return ()
        found = self.present.pop(event.name)
        self.present.pop(event.to, None)
        self.present[event.to] = replace(found, name=event.to)
        return (event.name, event.to)

    def _change(self, event: ev.AttachmentChanged, _entry: Entry) -> tuple[str, ...]:
        found = self.present.get(event.name)
        if found is None:
            return ()
        changed = replace(
            found,
            mode=found.mode if event.mode is None else event.mode,
            mtime_ns=found.mtime_ns if event.mtime_ns is None else event.mtime_ns,
        )
        self.present[event.name] = changed
        return () if changed == found else (event.name,)

    def _restore(self, event: ev.ChatRestored, _entry: Entry) -> tuple[str, ...]:
        if event.since is None:
            return ()
        back = [name for name, (seq, _) in self.removed.items() if seq >= event.since and name not in self.present]
        for name in back:
            self.present[name] = self.removed.pop(name)[1]
        return tuple(back)


_CHANGES: Final[dict[type[ev.Event], Callable[[Attachments, Any, Entry], tuple[str, ...]]]] = {
    ev.AttachmentPut: Attachments._put,  # noqa: SLF001 - the class's own table
    ev.AttachmentRemoved: Attachments._remove,  # noqa: SLF001
    ev.AttachmentRenamed: Attachments._rename,  # noqa: SLF001
    ev.AttachmentChanged: Attachments._change,  # noqa: SLF001
    ev.ChatRestored: Attachments._restore,  # noqa: SLF001
}
