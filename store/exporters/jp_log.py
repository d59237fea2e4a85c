"""What a chat's log says of a JP conversation: the events as JP had them last, and what was exported since.

The records are those of `store.importers.jp`, and three more, which show nothing:

* `{"type":"import.record","source":"jp","part":"stream","at":N,"drop":N,"insert":[key,…]}`: JP has rewritten its events
  since the last import. From event `at` on, `drop` of them have given way to those of the keys `insert`;
* a record of metadata or base_config whose key has been there before: JP has gone back to it;
* `{"type":"export.record","target":"jp","conversation","archived","made":[key,…],"omitted":[key,…]}`: an export wrote
  events that chatfs made, and left out those of JP that were edited or removed here. That is nothing new to an import.

Reads the whole log, keeps what JP's events say in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from store.errors import CorruptBlob
from store.events import AttachmentPut
from store.import_keys import key_of
from store.importers.jp import Conversation
from store.importers.jp_format import SOURCE
from store.importers.jp_json import NotJson, compact, members
from store.model import Digest, Seq

if TYPE_CHECKING:
    from store.chat import Chat

EXPORT: Final = "export.record"


@dataclass(frozen=True, slots=True)
class Part:
    """One event of JP. `message` is the id of the message that it is, with role and content as shown; "" for none."""

    key: str
    raw: bytes
    message: str = ""
    role: str = ""
    content: str = ""


@dataclass(slots=True)
class JpLog:
    """The conversation as of the log's entry `seq`. `conversation` is 0 for a chat that JP never had."""

    conversation: int = 0
    archived: bool = False
    imported: bool = False
    """Whether it came from JP."""
    imported_as: int = 0
    """The conversation that it came from last."""
    metadata: bytes | None = None
    base_config: bytes | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    """Every event that JP ever had, by key."""
    stream: list[str] = field(default_factory=list)
    """The keys of those that it has now, in order."""
    made: set[str] = field(default_factory=set)
    """The keys of events that exports wrote."""
    omitted: set[str] = field(default_factory=set)
    """The keys of events that exports left out."""
    blocks: dict[str, list[Any]] = field(default_factory=dict)
    """The content of messages that came as blocks, by id."""
    compacted: bool = False
    """Whether the log has lost its beginning."""
    seq: Seq = Seq(0)

    @property
    def said(self) -> Conversation:
        """What JP's files said at the last import."""
        events = [self.parts[key].raw for key in self.stream]
        return Conversation(self.conversation, self.archived, self.metadata, self.base_config, events)


async def read_jp_log(chat: Chat) -> JpLog:
    """Read a chat's log. Raises CorruptLog, BlobNotFound, CorruptBlob, BackendError."""
    found = JpLog()
    files: dict[str, Digest] = {}
    async for entry in chat.log():
        if found.seq == 0 and entry.seq > 1:
            found.compacted = True
        found.seq = entry.seq
        value = _value(entry.data)
        if type(value) is not dict:
            continue
        kind = value.get("type")
        if kind == AttachmentPut.TYPE and isinstance(value.get("name"), str) and isinstance(value.get("digest"), str):
            files[value["name"]] = Digest(value["digest"])
        elif value.get("source") == SOURCE and isinstance(value.get("part"), str):
            await _take(chat, found, files, entry.data, value)
        elif kind == EXPORT and value.get("target") == SOURCE:
            found.conversation = _number(value.get("conversation")) or found.conversation
            found.archived = value.get("archived") is True
            found.made.update(_texts(value.get("made")))
            found.omitted.update(_texts(value.get("omitted")))
        elif isinstance(value.get("content"), list) and isinstance(value.get("id"), str):
            found.blocks.setdefault(value["id"], value["content"])
    return found


async def _take(chat: Chat, found: JpLog, files: dict[str, Digest], data: bytes, value: dict[str, Any]) -> None:
    part = value["part"]
    if part == "stream":
        at, drop = value.get("at"), value.get("drop")
        if type(at) is int and type(drop) is int and at >= 0 and drop >= 0:
            found.stream[at : at + drop] = [key for key in _texts(value.get("insert")) if key in found.parts]
        return
    raw = await _raw(chat, files, data, value)
    if part == "event":
        key = key_of(data)
        if key is not None and raw is not None and key not in found.parts:
            found.imported = True
            found.parts[key] = _part(key, raw, value)
            found.stream.append(key)
    elif part == "metadata":
        found.imported = True
        found.imported_as = _number(value.get("conversation")) or found.imported_as
        found.conversation = found.imported_as or found.conversation
        found.archived = value.get("archived") is True
        found.metadata = raw
    elif part == "base_config":
        found.base_config = raw


def _part(key: str, raw: bytes, value: dict[str, Any]) -> Part:
    identity, role, content = value.get("id"), value.get("role"), value.get("content")
    if isinstance(identity, str) and isinstance(role, str) and isinstance(content, str):
        return Part(key, raw, identity, role, content)
    return Part(key, raw)


async def _raw(chat: Chat, files: dict[str, Digest], data: bytes, value: dict[str, Any]) -> bytes | None:
    """The source's value; None where the record has none."""
    if "record" in value:
        return _last_member(data, b',"record":') or members(data)["record"]
    if isinstance(value.get("text"), str):
        return _checked(str(value["text"]).encode())
    pointer = value.get("file")
    name = pointer.get("attachment") if type(pointer) is dict else None
    if not isinstance(name, str):
        return None
    if name not in files:
        raise CorruptBlob(f"{chat.called}: the log has lost what {name!r} was, which an event of JP is in")
    return _checked(b"".join([piece async for piece in chat.workspace.driver.blobs.get(files[name])]))


def _last_member(data: bytes, name: bytes) -> bytes | None:
    """The value of an object's last key, where that stands there once; None: it has to be looked for."""
    # A quote that isn't escaped is no part of a text, and a whole value in front of the last brace stands one deep.
    raw = data[data.find(name) + len(name) : -1]
    return raw if name in data and data.endswith(b"}") and _is_value(raw) else None


def _is_value(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def _checked(raw: bytes) -> bytes | None:
    """`raw`, if it is JSON: anybody may append to a log what looks like a record."""
    try:
        return compact(raw)
    except NotJson:
        return None


def _value(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _number(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 11 else 0


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if type(value) is list else []
