"""The event vocabulary: what `data` of an entry can say.

A known type is a frozen dataclass; `parse` gives it, or an `Unknown` for everything else that JSON can say, which stays
in the log verbatim and which folds skip. A known type whose fields have the wrong shape is an Unknown, too.

Optional fields that are None aren't written. Every event may carry further keys: they stay in the log.

Some events have no class, since they change no state: `log.compacted` {"through", "state", "size"} (what came before is
a blob now), `log.repaired`, `log.lost` and `blob.quarantined` (`chatfs fsck` found damage), `import.record` and
`import.unparsed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, TypeGuard

import orjson

from store.errors import InvalidInput
from store.model import is_title

LOG_LOST: Final = "log.lost"
"""The type of what a repair puts in the place of an entry that can't be read."""
REPAIRER: Final = "chatfs/fsck"
"""The actor of repairs: no caller of the mount or of a command has this one."""
PROJECTOR: Final = "chatfs/projection"
"""The actor of what a project's copy brings or asks for: nobody else has this one, either."""

PROJECTED: Final = "projected"
LOCAL: Final = "local"
INTENTS: Final = (PROJECTED, LOCAL)
"""Whether a chat is to be copied into the project's directory, where its workspace has one."""
GONE: Final = "gone"
"""Like LOCAL, since the copy was deleted there: only PROJECTOR says so."""

Content = str | list[Any]
"""A message's content: text, or blocks ({"type": "text" | "tool_use" | "tool_result" | "image" | …})."""


@dataclass(frozen=True, slots=True)
class Event:
    """The base: `TYPE` is the JSON `type`."""

    TYPE: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """`type` first, then the fields that aren't None, in the order of declaration."""
        found = {"type": self.TYPE}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                found[field.name] = value
        return found

    def encode(self) -> bytes:
        """The JSON bytes."""
        return orjson.dumps(self.to_json())


@dataclass(frozen=True, slots=True)
class Unknown:
    """Any other JSON value."""

    value: Any


# ---- a chat's log


@dataclass(frozen=True, slots=True)
class MessageAppended(Event):
    """A message.

    `after` is the id of the message that it stands behind, "" for the very first place; at the end if it is None.

    `md`, `lead` and `tail` are set where a person wrote it otherwise than it would be rendered: see `store.history`.
    A `hidden` message is in the log, and not in history.md. `attachments` are names in the chat.
    """

    TYPE: ClassVar[str] = "message.appended"
    id: str
    role: str
    content: Content
    name: str | None = None
    after: str | None = None
    md: str | None = None
    lead: str | None = None
    tail: str | None = None
    hidden: bool | None = None
    attachments: list[str] | None = None


@dataclass(frozen=True, slots=True)
class MessageEdited(Event):
    """What changed in a message; None: as before. `append` is Markdown added at its end (instead of content and md).

    An edit with `content` and without `md` clears an earlier `md`. `after` moves it.
    """

    TYPE: ClassVar[str] = "message.edited"
    id: str
    role: str | None = None
    content: Content | None = None
    after: str | None = None
    md: str | None = None
    append: str | None = None
    lead: str | None = None
    tail: str | None = None


@dataclass(frozen=True, slots=True)
class MessageRemoved(Event):
    """The message is no longer shown."""

    TYPE: ClassVar[str] = "message.removed"
    id: str


@dataclass(frozen=True, slots=True)
class PreambleEdited(Event):
    """The text before the first message, title line included; or, with `append`, what was added to it."""

    TYPE: ClassVar[str] = "preamble.edited"
    text: str | None = None
    append: str | None = None
    tail: str | None = None


@dataclass(frozen=True, slots=True)
class ChatChanged(Event):
    """Metadata. An empty title means none; `labels` replaces all. `projection`: see `store.projection`."""

    TYPE: ClassVar[str] = "chat.changed"
    title: str | None = None
    labels: list[str] | None = None
    projection: str | None = None


@dataclass(frozen=True, slots=True)
class LogReset(Event):
    """The chat begins anew: what follows replaces all that came before. By PROJECTOR alone; else it means nothing."""

    TYPE: ClassVar[str] = "log.reset"


@dataclass(frozen=True, slots=True)
class AttachmentPut(Event):
    """A new attachment, or new bytes for the one of that name (then `id` is its id)."""

    TYPE: ClassVar[str] = "attachment.put"
    id: str
    name: str
    digest: str
    size: int
    content_type: str
    mode: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class AttachmentRemoved(Event):
    """The attachment is gone from the chat; its bytes stay until `chatfs gc`."""

    TYPE: ClassVar[str] = "attachment.removed"
    name: str


@dataclass(frozen=True, slots=True)
class AttachmentRenamed(Event):
    """`to` replaces an attachment that has that name."""

    TYPE: ClassVar[str] = "attachment.renamed"
    name: str
    to: str


@dataclass(frozen=True, slots=True)
class AttachmentChanged(Event):
    """Mode bits or mtime."""

    TYPE: ClassVar[str] = "attachment.changed"
    name: str
    mode: int | None = None
    mtime_ns: int | None = None


# ---- a workspace's log; `chat` is a chat's id. chat.restored stands in a chat's log, too (without `chat`, `name`).


@dataclass(frozen=True, slots=True)
class WorkspaceCreated(Event):
    """The first event of a workspace."""

    TYPE: ClassVar[str] = "workspace.created"
    id: str
    name: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceChanged(Event):
    """Metadata. `quota_bytes` 0 means none."""

    TYPE: ClassVar[str] = "workspace.changed"
    name: str | None = None
    title: str | None = None
    labels: list[str] | None = None
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceTrashed(Event):
    """The workspace is no longer shown, and its name is free."""

    TYPE: ClassVar[str] = "workspace.trashed"


@dataclass(frozen=True, slots=True)
class ChatCreated(Event):
    """A chat begins."""

    TYPE: ClassVar[str] = "chat.created"
    chat: str
    name: str


@dataclass(frozen=True, slots=True)
class ChatRenamed(Event):
    """Another name."""

    TYPE: ClassVar[str] = "chat.renamed"
    chat: str
    name: str


@dataclass(frozen=True, slots=True)
class ChatArchived(Event):
    """To archive/."""

    TYPE: ClassVar[str] = "chat.archived"
    chat: str


@dataclass(frozen=True, slots=True)
class ChatUnarchived(Event):
    """Back to chats/."""

    TYPE: ClassVar[str] = "chat.unarchived"
    chat: str


@dataclass(frozen=True, slots=True)
class ChatTrashed(Event):
    """To trash/. `since` is the seq in the chat's log from which on attachments were removed by the same `rm -r`."""

    TYPE: ClassVar[str] = "chat.trashed"
    chat: str
    since: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRestored(Event):
    """Out of trash/, to chats/. In the chat's own log: attachments removed at or after `since` come back."""

    TYPE: ClassVar[str] = "chat.restored"
    chat: str | None = None
    since: int | None = None


@dataclass(frozen=True, slots=True)
class ChatDeleted(Event):
    """A chat in trash/ is gone for good: its log is about to be deleted, or was."""

    TYPE: ClassVar[str] = "chat.deleted"
    chat: str


def _text(value: object) -> bool:
    return isinstance(value, str)


ID_MAX: Final = 256
"""Characters of an id."""


def is_id(value: object) -> TypeGuard[str]:
    """Whether `value` is one to 256 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= ID_MAX and value.isprintable()


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_labels(value: object) -> bool:
    """Whether `value` is a list of short one-line strings."""
    return isinstance(value, list) and all(is_title(item) and item for item in value)


def check_metadata(title: object, labels: object, quota_bytes: object = None) -> None:
    """Raises InvalidInput where one of them can't be that; None: not said."""
    if title is not None and not is_title(title):
        raise InvalidInput("title must be one trimmed line of at most 1000 characters")
    if labels is not None and not is_labels(labels):
        raise InvalidInput("labels must be a list of one-line strings")
    if quota_bytes is not None and not _whole(quota_bytes):
        raise InvalidInput("quota_bytes must be a number of bytes, 0 for none")


USUAL_ROLES: Final = ("user", "assistant", "system", "tool")
"""Those that nearly every message has: looked for first where many are looked at."""


def is_role(value: object) -> TypeGuard[str]:
    """Whether `value` can stand in a heading: one to 64 printable characters, trimmed, without the middle dot."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 64
        and value.isprintable()
        and value == value.strip()
        and "·" not in value
    )


_SHAPES: Final[dict[str, Callable[[object], bool]]] = {
    "id": is_id,
    "chat": is_id,
    "role": is_role,
    "content": lambda value: isinstance(value, str | list),
    "name": lambda value: isinstance(value, str) and value != "",
    "to": lambda value: isinstance(value, str) and value != "",
    "after": _text,
    "md": _text,
    "lead": _text,
    "tail": _text,
    "append": _text,
    "text": _text,
    "hidden": lambda value: isinstance(value, bool),
    "attachments": _texts,
    "title": is_title,
    "labels": is_labels,
    "digest": _text,
    "size": _whole,
    "content_type": _text,
    "mode": lambda value: type(value) is int and 0 <= value <= 0o7777,
    "mtime_ns": lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63,
    "user": _text,
    "quota_bytes": _whole,
    "since": _whole,
    "projection": _text,
}

CHAT_EVENTS: Final[tuple[type[Event], ...]] = (
    MessageAppended,
    MessageEdited,
    MessageRemoved,
    PreambleEdited,
    ChatChanged,
    AttachmentPut,
    AttachmentRemoved,
    AttachmentRenamed,
    AttachmentChanged,
    ChatRestored,
    LogReset,
)
WORKSPACE_EVENTS: Final[tuple[type[Event], ...]] = (
    WorkspaceCreated,
    WorkspaceChanged,
    WorkspaceTrashed,
    ChatCreated,
    ChatRenamed,
    ChatArchived,
    ChatUnarchived,
    ChatTrashed,
    ChatRestored,
    ChatDeleted,
)
_TYPES: Final[dict[str, type[Event]]] = {kind.TYPE: kind for kind in CHAT_EVENTS + WORKSPACE_EVENTS}
APPENDED: Final = (MessageAppended.TYPE, "message")
"""Both are a MessageAppended."""
KNOWN: Final = frozenset(_TYPES) | frozenset(APPENDED)
FAMILIES: Final = frozenset(
    {"message", "preamble", "attachment", "chat", "workspace", "log", "blob", "sandbox", "projection"}
)
"""What stands before the dot in the types that chatfs itself writes, or will."""
"""The types that have a class."""
_FIELDS: Final = {
    kind: [(field.name, _SHAPES[field.name], field.default is not None) for field in fields(kind)]
    for kind in _TYPES.values()
}


def parse(data: bytes) -> Event | Unknown:
    """What `data` says: nothing, where it isn't a JSON value."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Unknown(None)
    return interpret(value)


def interpret(value: Any) -> Event | Unknown:
    """What a decoded JSON value says. `{"type": "message", "id", "role", "content"}` is a message, too."""
    if type(value) is not dict:
        return Unknown(value)
    name = value.get("type")
    kind = MessageAppended if name in APPENDED else _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        return Unknown(value)
    found: dict[str, Any] = {}
    for field, shape, required in _FIELDS[kind]:
        item = value.get(field)
        if item is None:
            if required:
                return Unknown(value)
        elif shape(item):
            found[field] = item
        elif required or kind is not MessageAppended:
            return Unknown(value)
    return kind(**found)
