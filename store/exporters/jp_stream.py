"""A chat as the events of a JP conversation. Pure.

Events of JP's own stand to the letter as JP wrote them, in its order, unless their message was changed, moved or
removed in chatfs: then the changed text takes the place of the old one, and what shows nothing goes with the message
that it stands before. A message of chatfs stands where the chat has it, behind what JP wrote before its time. It
becomes a request (after the mark of a turn) or an answer; tool calls, results and thinking that came as blocks become
JP's events for them; one of any other role becomes a `chatfs_message`, which JP keeps and doesn't show. Hidden messages
stay in chatfs.

What has no place in JP: an edited tool call or response stays as JP has it. How many of these there are is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from store.blocks import body
from store.exporters.jp_log import JpLog, Part
from store.fold import Message
from store.importers.jp import event_keys, value_of
from store.importers.jp_format import FOREIGN_MESSAGE, encoded, time_text
from store.importers.jp_json import members, object_of
from store.importers.jp_shown import Talk, structured
from store.importers.source import time_of
from store.markdown import canonical, content_of


@dataclass(slots=True)
class Events:
    """The events; `made`: the keys of those that JP didn't write; `omitted`: of those of JP that aren't among them."""

    events: list[bytes] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    omitted: set[str] = field(default_factory=set)
    kept: int = 0
    """How many edits couldn't be said in JP's terms."""


def events_of(log: JpLog, messages: Sequence[Message]) -> Events:
    """The chat's conversation, as of now."""
    found = Events()
    own: set[int] = set()
    """Which of the events chatfs makes."""
    groups, tail = _groups(log, {message.id for message in messages}, found.omitted)
    following = [message.id for message in reversed(messages) if message.id in groups]
    waiting = list(groups[following[-1]][:-1] if following else tail)
    """What shows nothing and stands before JP's next message, or at the end."""
    for message in messages:
        if message.id in groups:
            found.events += [part.raw for part in waiting]
            part = groups[message.id][-1]
            raw = _as_it_stands(part, message)
            found.kept += raw is None
            if raw is not None and raw != part.raw:
                own.add(len(found.events))
                found.omitted.add(part.key)
            found.events.append(raw or part.raw)
            following.pop()
            waiting = list(groups[following[-1]][:-1] if following else tail)
        elif not message.hidden:
            while waiting and _time(waiting[0]) <= message.ts:
                found.events.append(waiting.pop(0).raw)
            for event in own_events(message, log.blocks.get(message.id)):
                own.add(len(found.events))
                found.events.append(event)
    found.events += [part.raw for part in waiting]
    keys = event_keys(found.events)
    found.made = {keys[number] for number in own}
    return found


def _groups(log: JpLog, present: set[str], omitted: set[str]) -> tuple[dict[str, list[Part]], list[Part]]:
    """For each message of JP that is there, its event behind those that show nothing; and what follows the last."""
    groups: dict[str, list[Part]] = {}
    waiting: list[Part] = []
    for key in log.stream:
        part = log.parts[key]
        if not part.message:
            waiting.append(part)
        elif part.message not in present:
            omitted.add(key)
        else:
            groups[part.message] = [*waiting, part]
            waiting = []
    return groups, waiting


def _time(part: Part) -> int:
    """When JP wrote an event; 0 where it doesn't say."""
    event = value_of(part.raw)
    return (time_of(event.get("timestamp")) if type(event) is dict else None) or 0


def _as_it_stands(part: Part, message: Message) -> bytes | None:
    """JP's event with what the message says now; None where an event can't say that."""
    if message.role == part.role and message.content == shown_as(part.role, part.content):
        return part.raw
    event = value_of(part.raw)
    shown = Talk().shown(event)
    if shown is None or not shown.field:
        return None
    fields = members(part.raw)
    if message.role != part.role:
        (last,) = list(own_events(message, None))[-1:]
        made = members(last)
        return object_of(made | {"timestamp": fields.get("timestamp", made["timestamp"])})
    if shown.field == "data":
        try:
            return object_of(fields | {"data": orjson.dumps(structured(message.content))})
        except ValueError:
            del fields["data"]
            return object_of(fields | {"message": orjson.dumps(message.content)})
    return object_of(fields | {shown.field: orjson.dumps(message.content)})


def shown_as(role: str, content: str) -> str:
    """What `Message.content` is for a message that was appended with this content."""
    return content_of(canonical(role, 0, body(content)))


def own_events(message: Message, blocks: list[Any] | None) -> Iterator[bytes]:
    """The events of a message that isn't JP's; `blocks` is its content where it came as blocks."""
    timestamp = time_text(message.ts)
    made = [_spoken(message.role, message.content)]
    if blocks is not None and message.content == content_of(canonical(message.role, message.ts, body(blocks))):
        with contextlib.suppress(RecursionError, orjson.JSONEncodeError):  # nested too deep: as text
            made = list(_from_blocks(message.role, blocks))
            orjson.dumps(made)
    for event in made:
        if event["type"] == "chat_request":
            yield orjson.dumps({"timestamp": timestamp, "type": "turn_start"})
        yield orjson.dumps({"timestamp": timestamp} | event)


def _spoken(role: str, text: str) -> dict[str, Any]:
    if role == "user":
        return {"type": "chat_request", "content": text}
    if role == "assistant":
        return {"type": "chat_response", "message": text}
    return {"type": FOREIGN_MESSAGE, "role": role, "content": text}


def _from_blocks(role: str, blocks: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and _are_texts(block, "id", "name") and isinstance(block.get("input", {}), dict):
            arguments = encoded(block.get("input", {}))
            yield {"type": "tool_call_request", "id": block["id"], "name": block["name"], "arguments": arguments}
        elif kind == "tool_result" and _are_texts(block, "tool_use_id"):
            yield {
                "type": "tool_call_response",
                "id": block["tool_use_id"],
                "content": encoded(_result(block.get("content"))),
                "is_error": block.get("is_error") is True,
            }
        elif kind == "thinking" and _are_texts(block, "thinking"):
            yield {"type": "chat_response", "reasoning": block["thinking"]}
        else:
            text = content_of(canonical(role, 0, body([block])))
            if text.strip():
                yield _spoken(role, text)


def _result(content: Any) -> str:
    """The text of a tool's result."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [
            item["text"] if isinstance(item, dict) and _are_texts(item, "text") else body([item]).decode()
            for item in content
        ]
        return "\n".join(texts)
    return "" if content is None else body([content]).decode()


def _are_texts(block: dict[str, Any], *names: str) -> bool:
    return all(isinstance(block.get(name), str) for name in names)
