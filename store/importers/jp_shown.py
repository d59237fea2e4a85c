"""What of a JP conversation is shown, and how it reads as Markdown. Pure.

Shown are requests, answers, structured answers as JSON, a line for each tool call (`▸ fs_read_file: src/main.rs`), and
the beginning of each response under its call's line. Not shown: reasoning, marks of turns, changes of configuration,
compactions, inquiries, and every type that isn't known.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import orjson

from store.events import is_role
from store.importers.conversation import call_line, fenced, shortened
from store.importers.jp_format import FOREIGN_MESSAGE, decoded

_JSON: Final = re.compile(r"(`{3,})json\n(.*)\n\1", re.DOTALL)


class Shown(NamedTuple):
    """A message; `field` is where in the event its text stands, "" where the event has more than it shows."""

    role: str
    content: str
    field: str = ""


class Talk:
    """Goes through one conversation's events, in order."""

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}
        """The line of each tool call, by its id."""

    def shown(self, event: Any) -> Shown | None:
        """The message that `event` is; None where it shows nothing."""
        if type(event) is not dict:
            return None
        kind = event.get("type")
        if kind == "chat_request":
            return _text("user", event, "content")
        if kind == "chat_response":
            return _text("assistant", event, "message") or _structured(event)
        if kind == "tool_call_request":
            call = call_line({"name": event.get("name"), "input": decoded(event.get("arguments"))})
            if isinstance(event.get("id"), str):
                self._calls[event["id"]] = call
            return Shown("assistant", f"▸ {call}")
        if kind == "tool_call_response":
            return Shown("tool", self._response(event))
        if kind == FOREIGN_MESSAGE and is_role(event.get("role")):
            return _text(str(event["role"]), event, "content")
        return None

    def _response(self, event: dict[str, Any]) -> str:
        identity, output = event.get("id"), decoded(event.get("content"))
        call = self._calls.get(identity, "a tool") if isinstance(identity, str) else "a tool"
        failed = " (failed)" if event.get("is_error") is True else ""
        text = output.strip("\n\r") if isinstance(output, str) else ""
        return f"◂ {call}{failed}\n\n{fenced(text)}" if text.strip() else f"◂ {call}{failed}: no output"


def structured(content: str) -> Any:
    """The value that a structured answer's text says. Raises ValueError where it says none."""
    found = _JSON.fullmatch(content.strip())
    if found is None:
        raise ValueError("no JSON in a fence")
    return orjson.loads(found[2])


def _text(role: str, event: dict[str, Any], field: str) -> Shown | None:
    text = event.get(field)
    if not isinstance(text, str) or not text.strip():
        return None
    short = shortened(text)
    return Shown(role, short, field if short == text else "")


def _structured(event: dict[str, Any]) -> Shown | None:
    if "data" not in event:
        return None
    try:
        text = orjson.dumps(event["data"], option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        return None
    short = shortened(text)
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Shown("assistant", f"{ticks}json\n{short}\n{ticks}", "data" if short == text else "")
