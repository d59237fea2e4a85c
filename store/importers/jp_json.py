"""JSON text in pieces, without decoding it: numbers, escapes and keys that stand twice stay as they were written. Pure.

Not recursive: how deep a value is nested doesn't matter. What is accepted is RFC 8259 to the letter, in UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

import orjson

_TOKEN: Final = re.compile(
    rb"[ \t\r\n]*(?:"
    rb"(?P<mark>[\[\]{},:])"
    rb'|(?P<text>"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")'
    rb"|(?P<word>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)"
    rb")"
)
_BLANK: Final = re.compile(rb"[ \t\r\n]*")
_INSIDE: Final = {b"[": "in an array", b"{": "in an object"}
_NEXT: Final = {
    **{(state, kind): "done" for state in ("value", "element") for kind in (b'"', b"0")},
    **{(state, b"["): "element" for state in ("value", "element")},
    **{(state, b"{"): "member" for state in ("value", "element")},
    ("element", b"]"): "done",
    ("member", b'"'): "colon",
    ("member", b"}"): "done",
    ("key", b'"'): "colon",
    ("colon", b":"): "value",
    ("in an array", b","): "value",
    ("in an array", b"]"): "done",
    ("in an object", b","): "key",
    ("in an object", b"}"): "done",
}
"""What may come after what; "done": a value has ended."""
_INDENT: Final = b"  "
_INDENTED: Final = 200
"""Deeper than this nothing is indented further: a text nested a million deep must not become terabytes."""


class NotJson(ValueError):
    """The text isn't JSON; the message says in which line."""


def compact(text: bytes) -> bytes:
    """The same value without blanks between its tokens. Raises NotJson."""
    return b"".join(token for token, _ in _tokens(text))


def elements(text: bytes) -> list[bytes]:
    """The values of an array, each compact. Raises NotJson, also where it is no array."""
    kind, found = _pieces(text)
    if kind != b"[":
        raise NotJson("not an array")
    return [piece for _, piece in found]


def members(text: bytes) -> dict[str, bytes]:
    """The values of an object by key, each compact; of a key that stands twice the last one. Raises NotJson."""
    kind, found = _pieces(text)
    if kind != b"{":
        raise NotJson("not an object")
    return {_key(key): piece for key, piece in found}


def object_of(fields: dict[str, bytes]) -> bytes:
    """The object that has these values by key."""
    # json: a key may be half a surrogate pair.
    return b"{%b}" % b",".join(b"%b:%b" % (json.dumps(key).encode(), value) for key, value in fields.items())


def pretty(text: bytes) -> bytes:
    """The same value over lines, indented by two blanks, with a line end. Raises NotJson."""
    out: list[bytes] = []
    depth, opened = 0, False
    for token, _ in _tokens(text):
        if token in (b"]", b"}"):
            depth -= 1
            if not opened:
                out.append(_new_line(depth))
            out.append(token)
            opened = False
            continue
        if opened:
            out.append(_new_line(depth))
        opened = token in (b"[", b"{")
        depth += opened
        if token == b",":
            out.append(b"," + _new_line(depth))
        else:
            out.append(b": " if token == b":" else token)
    return b"".join(out) + b"\n"


def _new_line(depth: int) -> bytes:
    return b"\n" + _INDENT * min(depth, _INDENTED)


def _key(text: bytes) -> str:
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:  # half a surrogate pair
        return str(json.loads(text))


def _pieces(text: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The first token, and what stands one level deep: key (b"" in an array) and value."""
    kind, key = b"", b""
    found: list[tuple[bytes, bytes]] = []
    piece: list[bytes] = []
    for token, depth in _tokens(text):
        if not kind:
            kind = token
        elif depth == 1 and token == b":":
            key, piece = piece[0], []
        elif depth == 1 and token == b",":
            found.append((key, b"".join(piece)))
            piece = []
        elif depth > 0:
            piece.append(token)
    if piece:
        found.append((key, b"".join(piece)))
    return kind, found


def _tokens(text: bytes) -> Iterator[tuple[bytes, int]]:
    """Each token, and how deep it stands: a bracket as deep as what it stands in. Raises NotJson."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"line {_line(text, error.start)}: not UTF-8") from None
    stack: list[bytes] = []
    state: str | None = "value"
    at = 0
    while (found := _TOKEN.match(text, at)) is not None:
        kind = found["mark"] or (b'"' if found["text"] else b"0")
        state = _NEXT.get((state or "", kind))
        if state is None:
            break
        if kind in b"]}":
            stack.pop()
        yield found["mark"] or found["text"] or found["word"], len(stack)
        if kind in b"[{":
            stack.append(kind)
        if state == "done":
            state = _INSIDE[stack[-1]] if stack else "end"
        at = found.end()
    at = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
    if state != "end" or at < len(text):
        raise NotJson(f"line {_line(text, at)}: not JSON" if at < len(text) else "cut off in the middle")


def _line(text: bytes, at: int) -> int:
    return text.count(b"\n", 0, at) + 1
