"""What was last found the same on both sides, chat by chat: so that nothing is read that didn't change since.

A cache on this machine, `projection.jsonl` in the workspace's own directory of the store: one JSON line per change, of
which a chat's last one counts; `null` forgets it. The first line names the project's directory; another's manifest
isn't read. Losing it costs time, and what only it knows: that a chat's copy was there before it was deleted, and which
side changed a field when both sides have times only.

Rows are written after what they describe is on the disk. Concurrency: blocking; whoever has `projection.lock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from store import durability
from store.model import ChatId
from store.projection import form
from store.projection.tree import Stamp

NAME: Final = "projection.jsonl"
LOCK: Final = "projection.lock"
_VERSION: Final = 1
_SPARE: Final = 1000
"""How many lines more than rows there may be before the file is written anew."""


@dataclass(frozen=True, slots=True)
class Row:
    """A chat as both copies had it.

    `seq` and `crc` are the durable log's end, `log` how its file looked (None: the driver keeps none); `lines` is how
    many lines its portable log had. `directory` is "" where it isn't projected, and then nothing else counts.
    """

    seq: int
    crc: int
    log: Stamp | None
    directory: str = ""
    lines: int = 0
    files: dict[str, Stamp] = field(default_factory=dict)
    """history.jsonl, history.md, chat.json."""
    metadata: dict[str, Any] = field(default_factory=dict)
    attachments: dict[str, tuple[str, Stamp]] = field(default_factory=dict)
    """Digest and file."""
    attached_ns: int = 0
    """When a name in attachments/ last came or went; 0: there is no such directory."""
    intent: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "seq": self.seq,
            "crc": self.crc,
            "log": None if self.log is None else list(self.log),
            "directory": self.directory,
            "lines": self.lines,
            "files": {name: list(stamp) for name, stamp in self.files.items()},
            "metadata": self.metadata,
            "attachments": {name: [digest, list(stamp)] for name, (digest, stamp) in self.attachments.items()},
            "attached_ns": self.attached_ns,
            "intent": self.intent,
        }

    @classmethod
    def of(cls, value: dict[str, Any]) -> Row:
        """Raises ValueError, KeyError or TypeError for what isn't one."""
        return cls(
            int(value["seq"]),
            int(value["crc"]),
            None if value["log"] is None else Stamp(*value["log"]),
            str(value["directory"]),
            int(value["lines"]),
            {name: Stamp(*stamp) for name, stamp in value["files"].items()},
            dict(value["metadata"]),
            {name: (digest, Stamp(*stamp)) for name, (digest, stamp) in value["attachments"].items()},
            int(value["attached_ns"]),
            str(value["intent"]),
        )

    def moved(self, **changes: Any) -> Row:
        """The same but for that."""
        return replace(self, **changes)

    def unsure(self, before: Row | None) -> Row:
        """The same, where git may have overwritten what was just written: what counts as there is what was before."""
        lines, metadata = (0, {}) if before is None else (before.lines, before.metadata)
        return replace(self, lines=lines, metadata=metadata, files=self.files | {form.HISTORY: Stamp(-1, 0, 0)})


class Manifest:
    """The rows, by chat. `save` writes what changed."""

    def __init__(self, path: Path, directory: str) -> None:
        self._path = path
        self._directory = directory
        self.rows: dict[ChatId, Row] = {}
        self._changed: dict[ChatId, Row | None] = {}
        self._lines = -1
        """Of the file; -1: it is to be written anew."""
        self._read()

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError:
            return
        try:
            head = orjson.loads(lines[0])
            if head != {"projection": _VERSION, "directory": self._directory}:
                return
            for line in lines[1:-1]:
                chat, row = orjson.loads(line)
                if row is None:
                    self.rows.pop(ChatId(chat), None)
                else:
                    self.rows[ChatId(chat)] = Row.of(row)
        except (ValueError, KeyError, TypeError):
            self.rows.clear()
            return
        if not lines[-1]:  # else a crash has cut off the last line: the file is written anew
            self._lines = len(lines) - 2

    def set(self, chat: ChatId, row: Row | None) -> None:
        """Remember a row, or forget it."""
        if self.rows.get(chat) == row:
            return
        if row is None:
            del self.rows[chat]
        else:
            self.rows[chat] = row
        self._changed[chat] = row

    def save(self) -> None:
        """Write what was set since. Raises StoreFull, StoreFailed."""
        if not self._changed:
            return
        with durability.failing(f"writing {self._path}"):
            changed = dict(self._changed)
            if not self._path.exists():
                self._lines = -1
            if self._lines < 0 or self._lines + len(changed) > 2 * len(self.rows) + _SPARE:
                head = orjson.dumps({"projection": _VERSION, "directory": self._directory})
                text = b"%b\n%b" % (head, b"".join(_line(chat, row) for chat, row in self.rows.items()))
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                durability.atomic_replace("projection.manifest", self._path, text, durable=False)
                self._lines = len(self.rows)
            else:
                text = b"".join(_line(chat, row) for chat, row in changed.items())
                flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
                fd = durability.system.open("projection.manifest", self._path, flags)
                try:
                    durability.write_all("projection.manifest", fd, text)
                finally:
                    os.close(fd)
                self._lines += len(changed)
            for chat in changed:
                del self._changed[chat]


def _line(chat: ChatId, row: Row | None) -> bytes:
    return orjson.dumps([chat, None if row is None else row.to_json()], option=orjson.OPT_APPEND_NEWLINE)


_FOLLOWS: Final = b"follows\n"
"""In the lock's file while a process has it that hears of every change."""


def owner(directory: Path) -> int | None:
    """The process that has the lock, as /proc/locks says it: asking for it oneself would be in others' way."""
    try:
        inode = os.stat(directory / LOCK).st_ino
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if "FLOCK" in words and "->" not in words and words[-3].endswith(f":{inode}"):
                    return int(words[-4])
    except (OSError, ValueError, IndexError):
        pass
    return None


def is_locked(directory: Path) -> bool:
    """Whether a process has the lock."""
    try:
        fd = os.open(directory / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Lock:
    """The right to project a workspace: one process at a time has it. Made where it isn't there."""

    def __init__(self, directory: Path, *, follows: bool) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._fd = durability.system.open("projection.lock", directory / LOCK, flags)
        self._follows = follows

    def take(self) -> bool:
        """Whether this process has it now."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._fd, 0)
        if self._follows:
            with contextlib.suppress(OSError):  # on a full disk others wait for a moment, in vain
                os.pwrite(self._fd, _FOLLOWS, 0)
        return True

    def is_followed(self) -> bool:
        """Whether who has it will hear of what others do."""
        return os.pread(self._fd, len(_FOLLOWS), 0) == _FOLLOWS

    def release(self) -> None:
        """Give it back."""
        os.close(self._fd)
