"""Ids, names and the values that everything else speaks of: frozen, validated, no I/O."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, NewType, overload

from store.errors import InvalidName, NameTooLong

Seq = NewType("Seq", int)
"""An entry's place in its space: starts at 1, gapless, never reused. 0 stands for "before the first"."""
Epoch = NewType("Epoch", int)
"""A fencing token: every grant of a lease has a higher one than all before it."""
Millis = NewType("Millis", int)
"""Milliseconds since the Unix epoch, UTC."""
Digest = NewType("Digest", str)
"""What names a blob: see `store.driver.BlobStore`."""
WorkspaceId = NewType("WorkspaceId", str)
ChatId = NewType("ChatId", str)
AttachmentId = NewType("AttachmentId", str)
SpaceId = NewType("SpaceId", str)
"""`workspace/<workspace-id>` or `workspace/<workspace-id>/chats/<chat-id>`: also the directory in a `file:` store."""

NAME_MAX: Final = 255
"""Bytes of UTF-8 in a name, as in the kernel's NAME_MAX."""
TS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: no time in a log is later."""
LINE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one JSON line given to a log, without its newline."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")

PROJECTED_NAMES: Final = frozenset({"history.md", "history.jsonl", "chat.json", "attachments"})
"""What a chat directory always shows; an attachment can't be called so."""


_IDS: Final = 64
_ID_BYTES: Final = 10
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
_random: list[str] = []
"""What the next ids end with: a system call for each would cost more than all else about it."""
# A child must not use those that its parent will use.
os.register_at_fork(after_in_child=_random.clear)


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits."""
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    try:
        end = _random.pop()  # which no two threads get the same from
    except IndexError:
        end, *more = _ends()
        _random.extend(more)
    time_ms = "%012x" % (ms & 0xFFFF_FFFF_FFFF)
    return f"{time_ms[:8]}-{time_ms[8:]}{end}"


def _ends() -> list[str]:
    """Version 7 and 12 random bits, variant 0b10 and 62 more."""
    random = os.urandom(_IDS * _ID_BYTES).hex()
    parts = [random[at : at + 2 * _ID_BYTES] for at in range(0, len(random), 2 * _ID_BYTES)]
    return [f"-7{part[:3]}-{_VARIANT[part[3]]}{part[4:7]}-{part[7:19]}" for part in parts]


def created_ms(chat: ChatId) -> Millis:
    """When a chat was made: its id says so in every copy. 0 where it doesn't."""
    ms = int(chat[:8] + chat[9:13], 16)
    return Millis(ms if chat[14] in "78" and ms <= TS_MAX else 0)


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in canonical lower-case form."""
    return _UUID.match(text) is not None


def clock_ms() -> Millis:
    """The wall clock."""
    return Millis(time.time_ns() // 1_000_000)


def workspace_space(workspace: WorkspaceId) -> SpaceId:
    """The space of a workspace's own log."""
    return SpaceId(f"workspace/{workspace}")


def chat_space(workspace: WorkspaceId, chat: ChatId) -> SpaceId:
    """The space of a chat's log."""
    return SpaceId(f"workspace/{workspace}/chats/{chat}")


def _checked(name: str, what: str) -> str:
    if _CONTROL.search(name):
        raise InvalidName(f"{what} {name!r} has control characters: use printable ones")
    if not name or "/" in name:  # what begins with a dot is refused before
        raise InvalidName(f"{what} {name!r} {'has a slash' if name else 'is empty'}: choose another")
    size = len(name.encode())
    if size > NAME_MAX:
        raise NameTooLong(f"{what} of {size} bytes: use at most {NAME_MAX}")
    return name


def directory_name(name: str) -> str:
    """`name`, if a workspace or a chat can have it; raises InvalidName or NameTooLong."""
    if name.startswith("."):
        raise InvalidName(f"name {name!r} begins with a dot: choose another")
    return _checked(name, "name")


def numbered(name: str, suffix: str) -> str:
    """`name` with `suffix`, shortened so that both can be a name."""
    while len((name + suffix).encode()) > NAME_MAX:
        name = name[:-1]
    return name + suffix


def attachment_name(name: str) -> str:
    """`name`, if an attachment can have it; raises InvalidName or NameTooLong.

    Names with a leading dot are scratch files, the names of projected files are kept for those.
    """
    if name.startswith("."):
        raise InvalidName(f"attachment {name!r} begins with a dot: such names are for temporary files")
    if name in PROJECTED_NAMES:
        raise InvalidName(f"{name!r} is the chat's own file: give the attachment another name")
    return _checked(name, "attachment")


def is_title(text: object) -> bool:
    """Whether `text` can be a title: one line of at most 1000 characters, no control characters, trimmed."""
    return isinstance(text, str) and len(text) <= 1000 and not _CONTROL.search(text) and text == text.strip()


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote an entry that was copied from another log, and when, as that log says: not verified."""

    actor: str
    ts: Millis


class NewEntry(NamedTuple):
    """What is handed to a log: it gets its seq, crc and (unless given) its ts there.

    `data` is one JSON value, already checked, kept byte for byte; it has no newline.
    """

    data: bytes
    actor: str
    origin: Origin | None = None
    ts: Millis | None = None


class Entry(NamedTuple):
    """One line of a log, decoded. `more` is how many entries of its batch follow it.

    A tuple, since it takes a third of the time to make one: reading a log makes millions.
    """

    seq: Seq
    ts: Millis
    actor: str
    data: bytes
    crc: int
    origin: Origin | None = None
    more: int = 0


Who = tuple[str, Origin | None, int]
"""An entry's actor, its origin, and how many entries of its batch follow it."""


class Entries(Sequence[Entry]):
    """Consecutive entries as columns, from `first` on: what takes all of a log doesn't need an object for each entry.

    Entry `first + i` is `ts[i]`, `who[i]`, `data[i]`, `crc[i]`.
    """

    __slots__ = ("crc", "data", "first", "ts", "who")

    def __init__(self, first: int, ts: list[int], who: list[Who], data: list[bytes], crc: list[int]) -> None:
        self.first = first
        self.ts = ts
        self.who = who
        self.data = data
        self.crc = crc

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """The same entries; their seqs are taken from the first."""
        rows = list(entries)
        return cls(
            rows[0].seq if rows else 0,
            [row.ts for row in rows],
            [(row.actor, row.origin, row.more) for row in rows],
            [row.data for row in rows],
            [row.crc for row in rows],
        )

    def add(self, entry: Entry) -> None:
        """Put the next one behind them."""
        self.ts.append(entry.ts)
        self.who.append((entry.actor, entry.origin, entry.more))
        self.data.append(entry.data)
        self.crc.append(entry.crc)

    def between(self, after: int, until: int) -> Entries:
        """Those behind entry `after`, up to entry `until`."""
        start, stop = max(0, after + 1 - self.first), max(0, until + 1 - self.first)
        if start == 0 and stop >= len(self.data):
            return self
        part = slice(start, stop)
        return Entries(self.first + start, self.ts[part], self.who[part], self.data[part], self.crc[part])

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return list(self)[index]
        actor, origin, more = self.who[index]
        place = index if index >= 0 else len(self.data) + index
        return Entry(
            Seq(self.first + place), Millis(self.ts[index]), actor, self.data[index], self.crc[index], origin, more
        )

    def __iter__(self) -> Iterator[Entry]:
        make = tuple.__new__
        for seq, (ts, (actor, origin, more), data, crc) in enumerate(
            zip(self.ts, self.who, self.data, self.crc, strict=True), self.first
        ):
            yield make(Entry, (seq, ts, actor, data, crc, origin, more))


class Head(NamedTuple):
    """Where a log ends.

    `seq`, `ts` and `crc` are the last entry's (0 where there never was one), `first_seq` is the oldest entry's that
    is still there (`seq + 1` when none is), and `size` is the bytes of the log's text, all whole batches.
    """

    seq: Seq
    ts: Millis
    crc: int
    first_seq: Seq
    size: int


EMPTY_HEAD: Final = Head(Seq(0), Millis(0), 0, Seq(1), 0)


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob's digest and its size in bytes."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """A named blob of a chat. `mode` is the permission bits, or None for the mount's default."""

    id: AttachmentId
    name: str
    digest: Digest
    size: int
    content_type: str
    mtime_ns: int
    mode: int | None = None

    @property
    def ref(self) -> BlobRef:
        """The bytes that it names."""
        return BlobRef(self.digest, self.size)
