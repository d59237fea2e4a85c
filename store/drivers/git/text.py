"""The text of a log as it is at one commit (`View`), and how one grows out of another.

A view never changes: what an instance shows stays as it is until it looks again, and a reader can finish with the view
that it began with. A view holds the newest lines; sealed segments are read when they are asked for.

Concurrency: views are immutable; `Texts` at any time, from any thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from store import codec
from store.drivers.file.tail import ORIGIN, Mark
from store.drivers.git import commits, trees
from store.drivers.git.commits import Commit
from store.drivers.git.objects import BLOB, COMMIT, TREE, BrokenObject, Objects
from store.drivers.git.trees import FANOUT, Root, Segment
from store.errors import CorruptLog, FormatError
from store.model import EMPTY_HEAD, Entries, Head, Millis, Seq, SpaceId

Write = Callable[[bytes, bytes], str]
"""Writes an object of a kind, and returns its name."""

_DIRECTORIES: Final = 64
_BLOBS: Final = 8
_CRC: Final = slice(-10, -2)
"""Of a line without its newline: what its checksum is in hexadecimal."""


@dataclass(frozen=True, slots=True)
class View:
    """The log at `commit`. `directories` are those of sealed segments, `last` the segments in the last of them."""

    commit: str
    info: Commit
    root: Root
    base: Mark
    directories: tuple[str, ...]
    last: tuple[Segment, ...]
    sealed: Mark
    """The last sealed entry, or the base: its seq, crc, and where it ends. Its ts isn't known."""
    newest: bytes
    head: Head
    damage: CorruptLog | None = None

    @property
    def segments(self) -> int:
        """How many are sealed."""
        return (len(self.directories) - 1) * FANOUT + len(self.last) if self.directories else 0


def empty(base: Mark = ORIGIN) -> View:
    """A log without entries, behind `base`: not yet written."""
    head = Head(Seq(base.seq), Millis(base.ts), base.crc, Seq(base.seq + 1), 0) if base.seq else EMPTY_HEAD
    base = Mark(base.seq, base.ts, base.crc)
    return View("", Commit("", (), 0), Root("", None, None), base, (), (), base, b"", head)


def extend(view: View, data: bytes, head: Head, write: Write) -> View:
    """The same with lines behind it, and their objects written, but no commit."""
    *chunks, newest = trees.seal(view.newest + data)
    sealed, root = view.sealed, view.root
    directories, last = list(view.directories), list(view.last)
    for chunk in chunks:
        if len(last) == FANOUT:
            directories[-1] = write(TREE, trees.encode_segments(last))
            last = []
        if not last:
            directories.append("")
        crc = int(chunk[-1 + _CRC.start : -1 + _CRC.stop], 16)
        sealed = Mark(sealed.seq + chunk.count(b"\n"), 0, crc, sealed.end + len(chunk))
        last.append(Segment(sealed.seq, sealed.end, write(BLOB, chunk)))
    if chunks:
        directories[-1] = write(TREE, trees.encode_segments(last))
        root = root._replace(sealed=write(TREE, trees.encode_directories(directories)))
    if view.base.seq and root.base is None:
        root = root._replace(base=write(BLOB, trees.encode_base(view.base)))
    root = root._replace(newest=write(BLOB, newest))
    info = replace(view.info, tree=write(TREE, trees.encode_root(root)))
    return View("", info, root, view.base, tuple(directories), tuple(last), sealed, newest, head)


class Texts:
    """Reads the views of one space."""

    def __init__(self, objects: Objects, space: SpaceId) -> None:
        self._objects = objects
        self._space = space
        self._directories: OrderedDict[str, tuple[Segment, ...]] = OrderedDict()
        self._blobs: OrderedDict[str, bytes] = OrderedDict()

    # ---- views

    def commit(self, name: str) -> Commit:
        """Raises FormatError where it isn't one of a log, BrokenObject."""
        found = commits.parse(self._objects.read(name, COMMIT))
        if found is None:
            raise self._foreign(name)
        return found

    def load(self, name: str, known: View | None = None) -> View:
        """The log at a commit. Of `known`, what is the same isn't read again. Raises FormatError, BrokenObject."""
        info = self.commit(name)
        if known is not None and known.damage is not None:
            known = None
        if known is not None and known.info.tree == info.tree:
            return replace(known, commit=name, info=info)
        root = trees.parse_root(self._objects.read(info.tree, TREE))
        if root is None:
            raise self._foreign(name)
        newest = self._objects.read(root.newest, BLOB)
        if known is not None and known.root.sealed == root.sealed and known.root.base == root.base:
            view = replace(known, commit=name, info=info, root=root, newest=newest)
            if newest.startswith(known.newest):
                return self._decoded(view, len(known.newest), known.head)
        else:
            base = ORIGIN
            if root.base is not None:
                found = trees.parse_base(self._objects.read(root.base, BLOB))
                if found is None:
                    raise self._foreign(name)
                base = found
            view = replace(empty(base), commit=name, info=info, root=root, newest=newest)
            if root.sealed is not None:
                directories = trees.parse_directories(self._objects.read(root.sealed, TREE))
                if directories is None:
                    raise self._foreign(name)
                view = replace(view, directories=directories, last=self._directory(directories[-1]))
                view = replace(view, sealed=self._end_of(view, view.segments - 1))
        sealed = view.sealed
        begin = Head(Seq(sealed.seq), Millis(sealed.ts), sealed.crc, Seq(view.base.seq + 1), sealed.end)
        return self._decoded(view, 0, begin)

    def _decoded(self, view: View, start: int, before: Head) -> View:
        """With the head: the newest lines from `start` are looked at, which stand behind `before`."""
        text = view.newest[start:]
        entries, damage = codec.decode(text, after=before.seq, previous_crc=before.crc, offset=before.size)
        more = entries.who[-1][2] if entries else 0
        if damage is None and (more or (text and not text.endswith(b"\n"))):
            damage = CorruptLog(
                f"ends within a batch, after entry {before.seq + len(entries)}: fetch its ref from a backup",
                seq=before.seq,
                offset=before.size,
            )
        if damage is not None:
            good = text[: max(0, damage.offset - before.size)]
            return replace(
                view,
                newest=view.newest[: start + len(good)],
                head=_head(before, entries, len(good)) if entries else before,
                damage=damage.again(self._space),
            )
        return replace(view, head=_head(before, entries, len(text)) if entries else before, damage=None)

    def _foreign(self, name: str) -> FormatError:
        return FormatError(
            f"commit {name} isn't one of the log of {self._space} as this chatfs writes it: use a newer chatfs, or "
            "point the log's ref at its own last commit with git update-ref"
        )

    # ---- segments

    def segment(self, view: View, number: int) -> Segment:
        """One of the sealed ones, from 0 on."""
        directory, index = divmod(number, FANOUT)
        found = view.last
        if directory < len(view.directories) - 1:
            found = self._directory(view.directories[directory])
        if index >= len(found):
            raise FormatError(f"the log of {self._space} lacks segment {number}: fetch its ref from a backup")
        return found[index]

    def _directory(self, name: str) -> tuple[Segment, ...]:
        found = self._directories.get(name)
        if found is None:
            parsed = trees.parse_segments(self._objects.read(name, TREE))
            if parsed is None:
                raise BrokenObject(f"git tree {name} has no segments of a log: fetch the log's ref from a backup")
            found = self._directories[name] = parsed
            if len(self._directories) > _DIRECTORIES:
                self._directories.popitem(last=False)
        return found

    def blob(self, name: str) -> bytes:
        """A segment's lines; those read last stay in memory."""
        found = self._blobs.pop(name, None)
        if found is None:
            found = self._objects.read(name, BLOB)
            if len(self._blobs) >= _BLOBS:
                self._blobs.popitem(last=False)
        self._blobs[name] = found
        return found

    def piece(self, view: View, number: int) -> bytes:
        """The lines of a segment; behind the last one, the newest."""
        return view.newest if number >= view.segments else self.blob(self.segment(view, number).blob)

    def start(self, view: View, number: int) -> int:
        """Where a segment begins in the text."""
        return self.segment(view, number - 1).end if number else 0

    def _end_of(self, view: View, number: int) -> Mark:
        """The last entry of a segment."""
        if number < 0:
            return view.base
        segment = self.segment(view, number)
        line = self.blob(segment.blob)
        try:
            return Mark(segment.last, 0, int(line[-1 + _CRC.start : -1 + _CRC.stop], 16), segment.end)
        except ValueError:
            return Mark(segment.last, 0, 0, segment.end)  # what is checked against this doesn't check

    # ---- places

    def number_of(self, view: View, seq: int) -> int:
        """The segment that entry `seq` is in; `view.segments` for the newest lines."""
        if seq > view.sealed.seq:
            return view.segments
        return bisect_left(range(view.segments), seq, key=lambda number: self.segment(view, number).last)

    def number_at(self, view: View, offset: int) -> int:
        """The segment that has the byte at `offset`."""
        if offset >= view.sealed.end:
            return view.segments
        return bisect_left(range(view.segments), offset + 1, key=lambda number: self.segment(view, number).end)

    def before(self, view: View, number: int) -> Mark:
        """The last entry in front of a segment."""
        return view.sealed if number >= view.segments else self._end_of(view, number - 1)

    def mark(self, view: View, seq: int) -> Mark:
        """Entry `seq`, of which neither more nor less is there than between the base and the head."""
        head = view.head
        if seq >= head.seq:
            return Mark(head.seq, head.ts, head.crc, head.size)
        if seq <= view.base.seq:
            return view.base
        number = self.number_of(view, seq)
        before = self.before(view, number)
        piece = self.piece(view, number)
        end = 0
        for _ in range(seq - before.seq):
            end = piece.find(b"\n", end) + 1
        try:
            crc = int(piece[end - 1 + _CRC.start : end - 1 + _CRC.stop], 16)
        except ValueError:
            crc = 0  # as in `_end_of`
        return Mark(seq, 0, crc, before.end + end)

    def read(self, view: View, offset: int, size: int) -> bytes:
        """Bytes of the text."""
        end = min(offset + size, view.head.size)
        found = []
        number = self.number_at(view, offset)
        while offset < end:
            piece, start = self.piece(view, number), self.start(view, number)
            part = piece[offset - start : end - start]
            if not part:
                raise BrokenObject(f"the log of {self._space} lacks text at byte {offset}: fetch its ref from a backup")
            found.append(part)
            offset += len(part)
            number += 1
        return found[0] if len(found) == 1 else b"".join(found)


def _head(before: Head, entries: Entries, size: int) -> Head:
    seq = before.seq + len(entries)
    return Head(Seq(seq), Millis(entries.ts[-1]), entries.crc[-1], before.first_seq, before.size + size)
