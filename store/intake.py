"""One line from outside as an entry to append. Pure.

What may stand on a line: a message (`role` and `content`), a typed event, an entry in envelope form (copied from a log:
its data is kept, its actor and ts become the origin), or any other JSON value. The caller's bytes are kept as they are;
a message without `type` or `id` gets them in front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from store import codec
from store import events as ev
from store.errors import InvalidEvent, LineTooLong
from store.model import LINE_MAX, TS_MAX, Millis, NewEntry, Origin

DEPTH_MAX: Final = 1023
"""orjson reads 1024 levels, and the entry is one."""
_MESSAGE: Final = (None, "message", ev.MessageAppended.TYPE)
_IDENTIFIED: Final = b'{"type":"%b","id":"%%b",%%b' % ev.MessageAppended.TYPE.encode()
_PLACED: Final = frozenset({"after", "lead", "tail", "md", "hidden"})
"""What makes a message stand elsewhere than at the end, or look otherwise than its content says."""
_ENVELOPE: Final = frozenset({"seq", "ts", "actor", "origin", "more", "data", "crc"})


def accept(line: bytes, actor: str, new_id: Callable[[], str], *, number: int = 1) -> NewEntry:
    """The entry for `line` (its newline may be there or not); `number` is for the message of an error.

    Raises InvalidEvent where it isn't one JSON value in UTF-8, LineTooLong beyond 16 MiB.
    """
    raw = line.strip(b" \t\r\n")
    if len(raw) > LINE_MAX:
        raise LineTooLong(f"line {number} has {len(raw)} bytes: at most {LINE_MAX} are allowed")
    if b"\n" in raw:
        raise InvalidEvent(f"line {number} is more than one line: give one JSON value per line", line=number)
    value = _loads(raw, number)
    if type(value) is not dict:
        new = NewEntry(raw, actor)
    elif _is_envelope(value):
        new = _from_envelope(raw, value, actor, new_id, number)
    else:
        new = NewEntry(_with_identity(raw, value, new_id), actor)
    if not fits(new.data):
        raise InvalidEvent(f"line {number} is nested too deep: at most {DEPTH_MAX} levels are allowed", line=number)
    return new


def only_adds(new: NewEntry) -> bool:
    """Whether the entry changes nothing that is there: a message at the end, or what no fold knows.

    Types of chatfs' own families count as known, also those that are still to come.
    """
    value = orjson.loads(new.data)
    if type(value) is not dict:
        return True
    kind = value.get("type")
    if kind in ev.APPENDED:
        return not value.keys() & _PLACED
    return not (isinstance(kind, str) and (kind in ev.KNOWN or kind.partition(".")[0] in ev.FAMILIES))


def fits(data: bytes) -> bool:
    """Whether a JSON value isn't nested too deep to stand in a log's line, and for that to be read as JSON again."""
    if data.count(b"[") + data.count(b"{") <= DEPTH_MAX:
        return True
    try:
        orjson.loads(b"[%b]" % data)
    except orjson.JSONDecodeError:
        return False
    return True


def _loads(raw: bytes, number: int) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        reason = str(error).split(":", 1)[0]
        raise InvalidEvent(f"line {number} is not JSON ({reason}): give one JSON value per line", line=number) from None


def _is_value(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_envelope(value: dict[str, Any]) -> bool:
    return (
        "data" in value
        and type(value.get("seq")) is int
        and _is_time(value.get("ts"))
        and isinstance(value.get("actor"), str)
        and value.keys() <= _ENVELOPE
    )


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value <= TS_MAX


def _from_envelope(raw: bytes, value: dict[str, Any], actor: str, new_id: Callable[[], str], number: int) -> NewEntry:
    entry = codec.parse(raw)
    # Of a key that stands there twice JSON takes the last, and the entry's form spans both.
    if entry is not None and _is_value(entry.data):
        data = entry.data.strip(b" \t\r")
    else:
        try:
            data = orjson.dumps(value["data"])
        except orjson.JSONEncodeError as error:
            raise InvalidEvent(f"line {number} can't be kept: {error}", line=number) from None
    inner = value["data"]
    if type(inner) is dict:
        data = _with_identity(data, inner, new_id)
    source = value.get("origin")
    if type(source) is dict and isinstance(source.get("actor"), str) and _is_time(source.get("ts")):
        origin = Origin(source["actor"], Millis(source["ts"]))
    else:
        origin = Origin(value["actor"], Millis(value["ts"]))
    return NewEntry(data, actor, origin)


def _with_identity(raw: bytes, value: dict[str, Any], new_id: Callable[[], str]) -> bytes:
    kind, role, content = value.get("type"), value.get("role"), value.get("content")
    if kind not in _MESSAGE or (role not in ev.USUAL_ROLES and not ev.is_role(role)):
        return raw
    if not isinstance(content, str | list):
        return raw
    if "type" not in value and "id" not in value:
        # Nearly every message that somebody writes by hand or by program. An id of ours needs no escapes.
        return _IDENTIFIED % (new_id().encode(), raw[1:].lstrip(b" \t\r"))
    missing: dict[str, Any] = {}
    if kind is None:
        missing["type"] = ev.MessageAppended.TYPE
    identity = value.get("id")
    if not (isinstance(identity, str) and 0 < len(identity) <= 256 and identity.isprintable()):
        missing["id"] = new_id()
    if not missing:
        return raw
    if missing.keys() & value.keys():
        # A `type` or `id` that says nothing is there already: the one that counts must be the only one.
        kept = {key: item for key, item in value.items() if key not in missing}
        try:
            return orjson.dumps(missing | kept)
        except orjson.JSONEncodeError:
            return raw
    return orjson.dumps(missing)[:-1] + b"," + raw[1:].lstrip(b" \t\r")
