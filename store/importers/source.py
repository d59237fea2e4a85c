"""Lines of a foreign file, as JSON values and stable keys; its times and titles in the store's terms.

Doesn't know any particular source. No line is ever refused: what isn't JSON comes out as `Unparsed`. Reads a stream
forward, one line in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Final

import orjson

from store.model import Millis

LINE_READ_MAX: Final = 64 * 1024 * 1024
"""Bytes of a line that are read at once; a longer line comes as several `Unparsed` pieces."""
NAME_LENGTH_MAX: Final = 80
_NAME_BYTES_MAX: Final = 240
_TITLE_LENGTH_MAX: Final = 200
_TS_MAX: Final = 253_402_300_800_000
"""The end of the year 9999."""

_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[dD][c-fC-F][0-9a-fA-F]{2}|[^u]|u)"
)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_UNSEEN: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Parsed:
    """One JSON value, `raw` its bytes without line end.

    `exact` is False where `raw` has halves of surrogate pairs, which strict JSON readers refuse: in `value` each is
    U+FFFD. `note` says what was unusual about the line.
    """

    number: int
    raw: bytes
    value: Any
    exact: bool = True
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A line, or a piece of an overlong one, that isn't JSON."""

    number: int
    raw: bytes
    note: str


def read(stream: IO[bytes], size: int | None = None) -> Iterator[Parsed | Unparsed]:
    """Every line of `stream` that isn't blank, up to `size` bytes."""
    number, inside = 0, False
    left = size
    while left is None or left > 0:
        line = stream.readline(LINE_READ_MAX if left is None else min(LINE_READ_MAX, left))
        if not line:
            return
        if left is not None:
            left -= len(line)
        ended = line.endswith(b"\n")
        number += not inside
        overlong = inside or (not ended and len(line) == LINE_READ_MAX)
        raw = line.rstrip(b"\n") if overlong else line.strip(b" \t\r\n")
        if number == 1 and not inside:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        inside = overlong and not ended
        if overlong:
            yield Unparsed(number, raw, f"line {number}: longer than {LINE_READ_MAX >> 20} MiB, kept as it is")
        elif raw:
            yield from _parse(number, raw, ended=ended)


def _parse(number: int, raw: bytes, *, ended: bool) -> Iterator[Parsed | Unparsed]:
    try:
        yield Parsed(number, _one_line(raw), orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        reason = str(error).split(":", 1)[0]
    else:
        return
    repaired = _ESCAPE.sub(_whole_escape, raw)
    if repaired != raw:
        try:
            value = orjson.loads(repaired)
        except orjson.JSONDecodeError:
            pass
        else:
            yield Parsed(number, raw, value, exact=False)
            return
    pieces = _glued(raw)
    if pieces:
        note = f"line {number}: {len(pieces)} records without a line end between them, taken apart"
        for index, (piece, value) in enumerate(pieces):
            yield Parsed(number, piece, value, note=None if index else note)
        return
    what = "not JSON" if ended else "not JSON, and the last line has no end: cut off while it was written"
    yield Unparsed(number, raw, f"line {number}: {what} ({reason})")


def _one_line(raw: bytes) -> bytes:
    """Carriage returns can stand between JSON's tokens, where a space says the same."""
    return raw.replace(b"\r", b" ") if b"\r" in raw else raw


def _whole_escape(match: re.Match[bytes]) -> bytes:
    found = match.group()
    if match.group(1) is not None or found[1:2] != b"u" or len(found) < len(rb"\u0000"):
        return found
    return rb"\ufffd"


def _glued(raw: bytes) -> list[tuple[bytes, Any]]:
    """The objects of a line that has several, as two processes leave it that append to one file; else nothing."""
    if not (raw.startswith(b"{") and raw.endswith(b"}")):
        return []
    decoder = json.JSONDecoder()
    found: list[tuple[bytes, Any]] = []
    try:
        text = raw.decode()
        start = 0
        while start < len(text):
            value, end = decoder.raw_decode(text, start)
            if type(value) is not dict:
                return []
            piece = text[start:end].encode()
            found.append((_one_line(piece), orjson.loads(piece)))
            start = end
            while start < len(text) and text[start] in " \t\r":
                start += 1
    except (ValueError, RecursionError):
        return []
    return found


class Keys:
    """Keys that are the same whenever the same lines are read in the same order."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, raw: bytes, uuid: object = None) -> tuple[str, bool]:
        """The key of a record, and whether one of the same `uuid` was there before.

        The key is the UUID, or the SHA-256 of the bytes where there is none; from the second on with its number.
        """
        named = is_uuid(uuid)
        base = uuid.lower() if isinstance(uuid, str) and named else hashlib.sha256(raw).hexdigest()
        self._seen[base] += 1
        count = self._seen[base]
        return (base if count == 1 else f"{base}#{count}"), named and count > 1


def is_uuid(value: object) -> bool:
    """Whether `value` is a UUID in text, of any version and case."""
    return isinstance(value, str) and _UUID.match(value) is not None


def time_of(value: object) -> Millis | None:
    """An ISO 8601 text (UTC where it names no zone), or a number of seconds or milliseconds; None for all else."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            found = (moment - _EPOCH) // timedelta(milliseconds=1)
        except (ValueError, OverflowError):
            return None
    elif type(value) is int or type(value) is float:
        # Seconds of this era have 10 digits, milliseconds 13.
        if not 0 <= value < _TS_MAX:
            return None
        found = int(value * 1000 if value < 100_000_000_000 else value)
    else:
        return None
    return Millis(found) if 0 <= found < _TS_MAX else None


def clip(text: str, length: int) -> str:
    """At most `length` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def one_line(text: str) -> str:
    """Without line ends, control characters and runs of blanks."""
    return _UNSEEN.sub(" ", text).strip()


def title_of(text: str) -> str:
    """`text` as a title (`store.model.is_title`) of at most 200 characters; "" where nothing is left."""
    return clip(one_line(text), _TITLE_LENGTH_MAX)


def name_of(text: str) -> str:
    """`text` as a directory name that needs no quoting in a shell; "" where nothing is left."""
    first = next((line for line in unicodedata.normalize("NFC", text).splitlines() if line.strip()), "")
    first = first[:1000].replace("'", "").replace("\u2019", "")
    kept = (
        char if char.isalnum() or char in "._+@" or unicodedata.category(char).startswith("M") else "-"
        for char in first
    )
    words = re.sub(r"-{2,}", "-", "".join(kept)).strip("-.")
    while len(words) > NAME_LENGTH_MAX or len(words.encode()) > _NAME_BYTES_MAX:
        words = words[: min(len(words) - 1, NAME_LENGTH_MAX)]
        shorter = words.rpartition("-")[0]
        words = shorter if len(shorter) > NAME_LENGTH_MAX // 2 else words
    return words.strip("-.")
