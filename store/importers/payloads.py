"""Large data of an imported record, moved out of the log: pictures and documents in base64, and overlong records.

Names count from 1 in the order of the source, and equal bytes get one name, so that reading the source again, or a
longer version of it, gives the same names for the same bytes. No I/O; one instance serves one pass over one chat.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import Counter
from typing import Any, Final

import orjson

from store.importers.imported import ImportedAttachment
from store.importers.source import Unparsed

RECORD_MAX: Final = 15 * 1024 * 1024
"""Bytes of a record's data in the log: below `store.model.LINE_MAX`, so that the entry around it has room."""
_PAYLOAD_MIN: Final = 32
"""Characters: shorter texts aren't a file, and could stand elsewhere in the record by chance."""
_NESTING_SAFE: Final = 1000
"""orjson refuses to read what is nested deeper than 1024."""

_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,100}\Z")
_SUFFIXES: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "application/pdf": "pdf",
    "text/plain": "txt",
}


class Payloads:
    """The attachments of one chat."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        """By the hex SHA-256 of the bytes."""

    def name_in(self, source: dict[str, Any]) -> str | None:
        """The name of the file that `extract` took out of `source`."""
        name, digest = source.get("attachment"), source.get("sha256")
        return name if isinstance(digest, str) and name is not None and self._names.get(digest) == name else None

    def extract(self, raw: bytes, value: Any) -> tuple[bytes, list[ImportedAttachment]]:
        """`raw` with null for each base64 payload, `"attachment"` and `"sha256"` beside it; and the new attachments.

        `value` is `raw` decoded, and is changed in place likewise. Only what decoding and encoding would give back to
        the letter is replaced: so the record, with its attachments, still has everything.
        """
        if b"base64" not in raw:
            return raw, []
        new: list[ImportedAttachment] = []
        done: dict[str, dict[str, str]] = {}
        for holder, field, media in _payloads(value):
            text = holder[field]
            if text not in done:
                data = _decoded(text)
                quoted = b'"%b"' % text.encode()
                if data is None or not _is_member(raw, quoted):
                    continue
                done[text], attachment = self._attach(data, media, _stem(media))
                if attachment is not None:
                    new.append(attachment)
                raw = raw.replace(quoted, b"null," + orjson.dumps(done[text])[1:-1])
            holder[field] = None
            holder.update(done[text])
        return raw, new

    def attach(self, data: bytes, content_type: str, stem: str) -> tuple[dict[str, Any], list[ImportedAttachment]]:
        """A pointer for the log to `data` as a file, and that file unless the chat has it already."""
        pointer, attachment = self._attach(data, content_type, stem)
        return {**pointer, "size": len(data)}, [] if attachment is None else [attachment]

    def unparsed(self, source: str, line: Unparsed) -> tuple[bytes, list[ImportedAttachment]]:
        """A line that isn't JSON, as the event that keeps it, and what it needs as a file."""
        head = {"type": "import.unparsed", "source": source, "line": line.number, "why": line.note}
        try:
            data = orjson.dumps(head | {"text": line.raw.decode()})
        except UnicodeDecodeError:
            data = orjson.dumps(head | {"base64": base64.b64encode(line.raw).decode()})
        if len(data) <= RECORD_MAX:
            return data, []
        pointer, new = self.attach(line.raw, "application/octet-stream", "line")
        return orjson.dumps(head | {"text": pointer}), new

    def _attach(self, data: bytes, media: str, stem: str) -> tuple[dict[str, str], ImportedAttachment | None]:
        digest = hashlib.sha256(data).hexdigest()
        name = self._names.get(digest)
        attachment = None
        if name is None:
            self._counts[stem] += 1
            name = self._names[digest] = f"{stem}-{self._counts[stem]}.{_suffix(media)}"
            attachment = ImportedAttachment(name, data, media)
        return {"attachment": name, "sha256": digest}, attachment


def _payloads(value: Any) -> list[tuple[dict[str, Any], str, str]]:
    """Where base64 stands, in document order: the object, its key, the media type.

    Either `{"type": "base64", "media_type", "data"}`, as in messages, or `{"base64", "type"}`, as in results of tools.
    """
    found: list[tuple[dict[str, Any], str, str]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is list:
            stack.extend(reversed(item))
        elif type(item) is dict:
            for field, media in (("data", "media_type"), ("base64", "type")):
                text = item.get(field)
                if field == "data" and item.get("type") != "base64":
                    continue
                if isinstance(text, str) and len(text) >= _PAYLOAD_MIN:
                    found.append((item, field, _media_type(item.get(media))))
            stack.extend(reversed(item.values()))
    return found


def _is_member(raw: bytes, quoted: bytes) -> bool:
    """Whether `quoted` is in `raw`, and everywhere it is the whole value of a key."""
    start = raw.find(quoted)
    if start < 0:
        return False
    while start >= 0:
        if not raw[max(0, start - 64) : start].rstrip(b" \t").endswith(b":"):
            return False
        start = raw.find(quoted, start + len(quoted))
    return True


def _media_type(value: object) -> str:
    return value if isinstance(value, str) and _MEDIA_TYPE.match(value) else "application/octet-stream"


def _stem(media: str) -> str:
    if media.startswith("image/"):
        return "image"
    return "document" if media in _SUFFIXES else "file"


def _suffix(media: str) -> str:
    return "json" if media == "application/json" else _SUFFIXES.get(media, "bin")


def _decoded(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data) == text.encode() else None


def sealed(head: dict[str, Any], raw: bytes) -> bytes | None:
    """`head` with `raw`, byte for byte, as its last key "record"; None where a log's line with it couldn't be read."""
    data = b'%b,"record":%b}' % (orjson.dumps(head)[:-1], raw)
    if raw.count(b"[") + raw.count(b"{") < _NESTING_SAFE:
        return data
    try:
        orjson.loads(b"[%b]" % data)
    except orjson.JSONDecodeError:
        return None
    return data
