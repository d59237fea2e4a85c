"""What is to be committed next: the text as it will be, with its objects written, as a commit behind what is known.

It counts only when the ref has been moved to it. Where that was done by somebody else first, its objects are garbage.

Concurrency: a building is of one task; `Shortening` may be of a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from store.driver import Clock
from store.drivers.batch import behind, encode, verbatim
from store.drivers.file.tail import Mark
from store.drivers.git import commits, text
from store.drivers.git.commits import Commit
from store.drivers.git.objects import COMMIT
from store.drivers.git.place import Place
from store.drivers.git.readers import Cursor, Shown
from store.drivers.git.text import Texts, View
from store.errors import ReadOnly
from store.model import Entry, Head, NewEntry, Seq

_PIECE: Final = 4 * 1024 * 1024
"""Bytes that are sealed at once when a log is written anew."""


class Building:
    """`objects` are the files that were written for it, `view` the text with its commit, `parent` the commit before."""

    def __init__(self, place: Place, label: str, before: View) -> None:
        self._place = place
        self._label = label
        self._before = before
        self.view = before
        self.objects: list[str] = []

    @property
    def parent(self) -> str:
        """What the ref has to name."""
        return self._before.commit

    def write(self, kind: bytes, data: bytes) -> str:
        """Write an object; its name. Raises ReadOnly, OSError."""
        if self._place.read_only:
            raise ReadOnly(f"the log of {self._place.space} can't be written: the store was opened read-only")
        name, path = self._place.objects.write(self._label, kind, data)
        self.objects.append(path)
        return name

    def append(self, batch: Sequence[NewEntry], clock: Clock) -> list[Entry]:
        """A batch behind it. Raises LineTooLong, ValueError."""
        data, head, entries = encode(batch, self._before.head, clock, self._place.space)
        self._extend(self._before, data, head, entries[-1].actor, "append")
        return entries

    def adopt(self, entries: Sequence[Entry], after: Head | None) -> bool:
        """Another log's entries behind it; whether there is anything to be done. Raises InvalidInput."""
        view = self._before
        if after is not None:
            begin = behind(view.head, after, self._place.space)
            if not entries and begin == view.head:
                return False
            view = text.empty(Mark(after.seq, after.ts, after.crc))
        elif not entries:
            return False
        data, head = verbatim(entries, view.head, self._place.space)
        self._extend(view, data, head, entries[-1].actor if entries else "", "adopt")
        return True

    def _extend(self, view: View, data: bytes, head: Head, who: str, what: str) -> None:
        first = view.head.seq + 1
        subject = f"{what} {first}" if first >= head.seq else f"{what} {first}-{head.seq}"
        self.commit(text.extend(view, data, head, self.write), who, subject)

    def commit(self, view: View, who: str, subject: str) -> None:
        """A commit of that text, whose tree is written."""
        before = self._before.info
        info = Commit(view.info.tree, (self.parent,), max(before.seconds, view.head.ts // 1000), before.epoch)
        name = self.write(COMMIT, commits.encode(info, who, subject))
        self.view = replace(view, commit=name, info=info)


class Shortening:
    """A log without the entries before `seq`. What was built for a log that has grown meanwhile is its beginning."""

    def __init__(self, place: Place, view: View, seq: int) -> None:
        self._place = place
        self._building = Building(place, "log.truncate", view)
        self._texts = Texts(place.objects, place.space)
        mark = self._texts.mark(view, seq - 1)
        self._built = text.empty(Mark(mark.seq, self._ts(view, seq - 1), mark.crc))
        self._begun = False
        self.seq = seq

    def _ts(self, view: View, seq: int) -> int:
        if seq >= view.head.seq:
            return view.head.ts
        cursor = Cursor(Shown(self._place.space, self._texts, lambda: view), seq - 1)
        cursor.fill()
        entry = cursor.ready()
        assert entry is not None
        return entry.ts

    def go_on(self, view: View) -> None:
        """Put what it lacks of `view` behind it."""
        texts, built = self._texts, self._built
        offset, end = texts.mark(view, built.base.seq).end + built.head.size, view.head.size
        while offset < end or not self._begun:
            self._begun = True
            size = min(_PIECE, end - offset)
            piece = texts.read(view, offset, size)
            if offset + size < end:
                piece = piece[: piece.rfind(b"\n") + 1] or texts.read(view, offset, end - offset)
            offset += len(piece)
            # The seq is the one at the end: only there it is looked at.
            head = Head(view.head.seq, view.head.ts, view.head.crc, Seq(self.seq), built.head.size + len(piece))
            built = self._built = text.extend(built, piece, head, self._building.write)

    def commit(self, view: View) -> Building:
        """As a commit behind `view`, which it has all of."""
        found = Building(self._place, "log.truncate", view)
        found.objects += self._building.objects
        found.commit(self._built, "", f"truncate before {self.seq}")
        return found
