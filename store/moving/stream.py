r"""A workspace or a chat as one stream of JSON lines: what `chatfs export --jsonl` writes and `import --jsonl` reads.

::

    {"chatfs":"stream","version":1,"workspace":ID,"name":NAME}                one chat: "chat", "chat_name", "place"
    {"chatfs":"log","chat":ID,"name":NAME,"base":{"seq","ts","crc"},"head":{"seq","crc"},"fold":{"version","sha256"}}
    {"chatfs":"blob","digest":DIGEST,"size":N}                                     before the entries that name it
    {"chatfs":"bytes","data":BASE64}                                               its bytes, at most 1 MiB a line
    {"seq":1,…}                                                                    the log's lines, as they are
    {"chatfs":"absent","chat":ID,"why":TEXT}                                       a chat that couldn't be read
    {"chatfs":"end","logs":N}

The chats' logs come first, the workspace's own (`"chat":null`) last: it says which chats there are. `base` is the entry
that was truncated away last; `fold` is missing where the log is too long for it (`store.moving.spaces`). A log's line
begins with `{"seq":`, all others with `{"chatfs":`.

Concurrency: `Lines` reads in a thread; the rest is pure.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import IO, Any, Final, NoReturn

import orjson
import trio

from store import codec
from store.errors import InvalidInput
from store.model import LINE_MAX, TS_MAX, Entry, Head, Millis, NewEntry, Seq

VERSION: Final = 1
BYTES: Final = 1 << 20
_SIGN: Final = b'{"chatfs":'
_LONGEST: Final = LINE_MAX + (1 << 20)
_READ: Final = 1 << 20
_CRC_MAX: Final = (1 << 32) - 1
_SEQ_MAX: Final = 10**18


# ---- writing


def control(kind: str, **fields: Any) -> bytes:
    """A line of the stream itself."""
    return orjson.dumps({"chatfs": kind, **fields}) + b"\n"


def log_line(entry: Entry, previous_crc: int) -> bytes:
    """A log's line."""
    new = NewEntry(entry.data, entry.actor, entry.origin)
    return codec.encode(new, entry.seq, entry.ts, previous_crc, entry.more)[0]


def bytes_line(data: bytes) -> bytes:
    """A piece of a blob."""
    return b'{"chatfs":"bytes","data":"%b"}\n' % b64encode(data)


def mark(head: Head) -> dict[str, int]:
    """An entry, as `base` has it."""
    return {"seq": head.seq, "ts": head.ts, "crc": head.crc}


# ---- reading


class Control(dict[str, Any]):
    """A line of the stream itself, its fields taken with their types checked."""

    def __init__(self, fields: Mapping[str, Any], number: int) -> None:
        super().__init__(fields)
        self.number = number

    @property
    def kind(self) -> str:
        """What it is."""
        return self.text("chatfs")

    def text(self, key: str) -> str:
        """A string. Raises InvalidInput."""
        found = self.get(key)
        return found if isinstance(found, str) else self._wrong(key)

    def number_of(self, key: str, most: int = _SEQ_MAX) -> int:
        """A number from 0 on. Raises InvalidInput."""
        found = self.get(key)
        return found if type(found) is int and 0 <= found <= most else self._wrong(key)

    def fields(self, key: str) -> Control:
        """An object. Raises InvalidInput."""
        found = self.get(key)
        return Control(found, self.number) if isinstance(found, dict) else self._wrong(key)

    def head(self, key: str) -> Head:
        """What `mark` made. Raises InvalidInput."""
        found = self.fields(key)
        seq = found.number_of("seq")
        ts = found.number_of("ts", TS_MAX)
        return Head(Seq(seq), Millis(ts), found.number_of("crc", _CRC_MAX), Seq(seq + 1), 0)

    def piece(self) -> bytes:
        """The bytes of a blob's piece. Raises InvalidInput."""
        try:
            return b64decode(self.text("data"), validate=True)
        except (Base64Error, ValueError):
            self._wrong("data")

    def _wrong(self, key: str) -> NoReturn:
        raise InvalidInput(f"line {self.number} has no {key!r}, or another than chatfs export writes")


class Lines:
    """The lines of a stream, one after the other: a `Control`, or the bytes of a log's line without the newline."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ready: list[bytes] = []
        self._rest = bytearray()
        self._ended = False
        self.number = 0
        """Of the line that was given last."""

    async def next(self) -> Control | bytes | None:
        """The next line; None at the end. Raises InvalidInput, OSError."""
        while not self._ready:
            if self._ended:
                return None
            await self._read()
        self.number += 1
        line = self._ready.pop()
        if not line.startswith(_SIGN):
            return line
        try:
            return Control(orjson.loads(line), self.number)
        except orjson.JSONDecodeError:
            raise InvalidInput(f"line {self.number} isn't JSON: it is damaged, or was cut off") from None

    async def _read(self) -> None:
        data = await trio.to_thread.run_sync(self._file.read1, _READ, abandon_on_cancel=True)  # type: ignore[attr-defined]
        if not data:
            self._ended = True
            if self._rest:
                raise InvalidInput(f"line {self.number + 1} was cut off: the end of the stream is missing")
            return
        end = data.rfind(b"\n") + 1
        if end:
            self._ready = (bytes(self._rest) + data[:end]).split(b"\n")[-2::-1]
            self._rest = bytearray(data[end:])
        else:
            self._rest += data
        if len(self._rest) > _LONGEST:
            raise InvalidInput(
                f"line {self.number + len(self._ready) + 1} is longer than any that chatfs export writes"
            )
