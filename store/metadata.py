"""chat.json and workspace.json: what they show, and what an edited one asks for.

Pure. Only the fields in `EDITABLE_*` can be changed through the file; all others are shown, and ignored when saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from store.errors import InvalidInput
from store.events import GONE, INTENTS, PROJECTED, check_metadata
from store.fold import ChatState
from store.model import Head, Millis
from store.workspace_state import ChatRecord, Place, WorkspaceState

EDITABLE_CHAT: Final = ("title", "labels", "projection")
EDITABLE_WORKSPACE: Final = ("title", "labels", "quota_bytes")

_USAGE_WIDTH: Final = 19
"""The usage is padded with blanks to this width, so that the file's size is known before the usage is."""
_USAGE_MARK: Final = b'"usage_bytes": 0'


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a saved file asks for; None: not said."""

    title: str | None = None
    labels: tuple[str, ...] | None = None
    quota_bytes: int | None = None
    projection: str | None = None


def timestamp(ms: Millis | int) -> str:
    """RFC 3339 in UTC, to the millisecond; "" for 0."""
    if ms == 0:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def chat_summary(
    workspace: WorkspaceState, record: ChatRecord, state: ChatState, *, presence: str | None = None
) -> dict[str, Any]:
    """A chat's metadata, in the order in which chat.json has it.

    `presence`: where its copies are (`store.projection.project`); None where the workspace has no project.
    """
    projected = {} if presence is None else {"projection": state.projection or PROJECTED, "presence": presence}
    return {
        "id": record.id,
        "name": record.name,
        "workspace": workspace.name,
        "title": state.title,
        "labels": list(state.labels),
        "lifecycle": {Place.CHATS: "active", Place.ARCHIVE: "archived", Place.TRASH: "trashed"}[record.place],
        **projected,
        "created": timestamp(record.created),
        "updated": timestamp(max(state.ts, record.changed)),
        "messages": state.message_count,
        "attachments": len(state.attachments),
        "last_seq": state.seq,
    }


def workspace_summary(state: WorkspaceState, head: Head) -> dict[str, Any]:
    """A workspace's metadata without its usage, in the order in which workspace.json has it."""
    return {
        "id": state.id,
        "name": state.name,
        "user": state.user,
        "title": state.title,
        "labels": list(state.labels),
        "created": timestamp(state.created),
        "updated": timestamp(state.ts),
        "chats": {place.value: state.count(place) for place in Place},
        "last_seq": head.seq,
        "quota_bytes": state.quota_bytes,
    }


def pretty(value: Any) -> bytes:
    """Indented JSON with a final newline."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def chat_json(workspace: WorkspaceState, record: ChatRecord, state: ChatState, *, presence: str | None = None) -> bytes:
    """The bytes of chat.json."""
    return pretty(chat_summary(workspace, record, state, presence=presence))


def workspace_json(state: WorkspaceState, head: Head, usage: int = 0) -> bytes:
    """The bytes of workspace.json: as many for every `usage`."""
    text = pretty(workspace_summary(state, head) | {"usage_bytes": 0})
    before, mark, after = text.rpartition(_USAGE_MARK)
    assert mark
    return before + b'"usage_bytes": ' + str(usage).rjust(_USAGE_WIDTH).encode() + after


def parse_saved(saved: bytes, editable: tuple[str, ...]) -> Wanted:
    """What a saved file asks for. Raises InvalidInput: not a JSON object, or an editable field of the wrong kind."""
    try:
        value = orjson.loads(saved)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"not JSON: {str(error).split(':', 1)[0]}") from None
    if type(value) is not dict:
        raise InvalidInput("not a JSON object")
    title, labels, quota = value.get("title"), value.get("labels"), value.get("quota_bytes")
    check_metadata(title, labels, quota)
    projection = value.get("projection") if "projection" in editable else None
    if projection == GONE:
        projection = None  # nobody can ask for that: it is what was shown
    if projection is not None and projection not in INTENTS:
        raise InvalidInput(f"projection must be one of {', '.join(INTENTS)}")
    return Wanted(
        title=title if "title" in editable else None,
        labels=tuple(labels) if labels is not None and "labels" in editable else None,
        quota_bytes=quota if "quota_bytes" in editable else None,
        projection=projection,
    )
