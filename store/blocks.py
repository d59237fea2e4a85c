"""A message's content as the body of its text in history.md, escaped. Pure.

Content that is a string is Markdown already. Blocks render one below the other: text as it is; a tool call as one line,
with its input in a fence where that is long; a tool's result in a fence, clipped; images and attachments as links into
`attachments/`; thinking only where there is nothing else; any other block as JSON in a fence. The log keeps them whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson

from store.events import Content
from store.markdown import escape, is_plain, trim

CLIP: Final = 2000
"""Characters of a tool's input or result that are shown."""
_INLINE: Final = 80
"""Characters of a tool's input that stand in the call's line."""
_DEPTH: Final = 8
"""How deep blocks within blocks are followed."""
_IMAGES: Final = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".avif", ".bmp")
_FENCE_RUN: Final = re.compile(r"`{3,}")
_LINK_TEXT: Final = re.compile(r"([\\\[\]`*_<])")


def body(content: Content, attachments: Sequence[str] | None = None) -> bytes:
    """The escaped body: no blank lines around it, and every fence closed."""
    if isinstance(content, str) and not attachments:
        return _escaped(content)
    pieces = [content] if isinstance(content, str) else list(_pieces(content, _DEPTH)) or list(_thoughts(content))
    if attachments:
        pieces.append("\n".join(link(name) for name in attachments))
    return trim(b"\n\n".join(filter(None, map(_escaped, pieces))))


def _escaped(piece: str) -> bytes:
    return piece.encode() if is_plain(piece) else escape(trim(piece.encode()))


def link(name: str) -> str:
    """A Markdown link to an attachment; an image where the name looks like one."""
    shown = _LINK_TEXT.sub(r"\\\1", " ".join(name.split()))
    return f"{'!' if name.lower().endswith(_IMAGES) else ''}[{shown}](attachments/{quote(name, safe='')})"


def _pieces(blocks: Sequence[Any], depth: int) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, str):
            yield block
        elif not isinstance(block, dict) or depth == 0:
            yield _json(block)
        elif block.get("type") not in ("thinking", "redacted_thinking"):
            yield from _block(block, depth)


def _block(block: dict[str, Any], depth: int) -> Iterator[str]:
    kind = block.get("type")
    name = _attachment(block)
    if name is not None:
        yield link(name)
    elif kind == "text" and isinstance(block.get("text"), str):
        yield block["text"]
    elif kind == "tool_use" and isinstance(block.get("name"), str):
        yield _call(block["name"], block.get("input"))
    elif kind == "tool_result":
        yield from _result(block, depth)
    else:
        yield _json(block)


def _attachment(block: dict[str, Any]) -> str | None:
    """The name that a block has as `attachment`, there or in its `source`; or, in an attachment block, as `name`."""
    source = block.get("source")
    found = block.get("attachment")
    if found is None and isinstance(source, dict):
        found = source.get("attachment")
    if found is None and block.get("type") == "attachment":
        found = block.get("name")
    return found if isinstance(found, str) and found else None


def _call(name: str, given: Any) -> str:
    line = f"**tool** {_code(name)}"
    if given is None or given == {}:
        return line
    text = _dumps(given)
    if len(text) <= _INLINE:
        return f"{line} {_code(text)}"
    return f"{line}\n\n{_fence(_dumps(given, indent=True), 'json')}"


def _result(block: dict[str, Any], depth: int) -> Iterator[str]:
    if block.get("is_error") is True:
        yield "**error**"
    content = block.get("content")
    if isinstance(content, str):
        content = [content]
    elif not isinstance(content, list):
        content = [] if content is None else [_dumps(content)]
    for item in content:
        if isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str):
            yield _fence(item["text"])
        elif isinstance(item, str):
            yield _fence(item)
        else:
            yield from _pieces([item], depth - 1)


def _thoughts(blocks: Sequence[Any]) -> Iterator[str]:
    for block in blocks:
        text = block.get("thinking") if isinstance(block, dict) else None
        if isinstance(text, str) and text.strip():
            yield "\n".join(f"> {line}".rstrip() for line in _clip(text.strip()).split("\n"))


def _json(value: Any) -> str:
    return _fence(_dumps(value, indent=True), "json")


def _dumps(value: Any, *, indent: bool = False) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode()
    except TypeError:  # nested deeper than orjson writes
        return "…"


def _code(text: str) -> str:
    """A code span that holds on one line."""
    text = " ".join(text.split())
    ticks = "`"
    while ticks in text:
        ticks += "`"
    pad = " " if "`" in text or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _fence(text: str, language: str = "") -> str:
    """`text`, clipped, in a fence longer than any run of backticks within."""
    text = _clip(text.strip("\r\n"))
    ticks = "```"
    if ticks in text:
        ticks = "`" * max(len(run) + 1 for run in _FENCE_RUN.findall(text))
    return f"{ticks}{language}\n{text}\n{ticks}" if text else f"{ticks}{language}\n{ticks}"


def _clip(text: str) -> str:
    if len(text) <= CLIP:
        return text
    return f"{text[:CLIP].rstrip()}\n… {len(text) - CLIP} more characters in history.jsonl"
