r"""The projected form: what a chat's directory is called, chat.json, and the files that git is told by. Pure.

chat.json has one key a line, in a fixed order, and ends with a line that never changes. So a merge that takes both
sides' lines is JSON still, with keys that stand there twice, of which the last counts.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from store.errors import InvalidName
from store.events import is_labels
from store.metadata import timestamp
from store.model import ChatId, created_ms, directory_name, is_title, is_uuid

VERSION: Final = 1
"""Of the projected form."""
METADATA_MAX: Final = 1 << 20
"""Up to which size a chat.json is read."""
HISTORY: Final = "history.jsonl"
TEXT: Final = "history.md"
METADATA: Final = "chat.json"
ATTACHMENTS: Final = "attachments"
OWN: Final = frozenset({HISTORY, TEXT, METADATA, ATTACHMENTS})

GIT_ATTRIBUTES: Final = b"""\
# Merges take both sides' lines, and no byte is ever converted.
/chats/*/history.jsonl merge=union -text
/chats/*/history.md merge=union -text
/chats/*/chat.json merge=union -text
/chats/*/attachments/** -merge -text
"""
GIT_IGNORE: Final = b"""\
# Attachments may be called anything; what is being written isn't there yet.
!*
/.*.tmp
/chats/.*.tmp/
/chats/*/.*.tmp
"""

_SLUG_MAX: Final = 60
_END: Final = '  "end": true\n}\n'
_PLACES: Final = ("chats", "archive")


def slug(name: str) -> str:
    """A chat's name in lower-case ASCII letters, digits and hyphens: "chat" where nothing of it is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_MAX].strip("-") or "chat"


def directory(chat: ChatId, name: str) -> str:
    """The name of a chat's directory, unless another chat has it."""
    made = datetime.fromtimestamp(created_ms(chat) / 1000, UTC)
    return f"{made.year:04}{made:%m%dT%H%M%SZ}-{slug(name)}"


def directories(chat: ChatId, name: str) -> tuple[str, str]:
    """The names that a chat's directory may have: the second where another chat has the first."""
    plain = directory(chat, name)
    return plain, f"{plain}-{chat[-6:]}"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What chat.json says, as far as it is valid: `fields` are those of `compare.FIELDS` that it has."""

    id: ChatId
    fields: Mapping[str, Any]


def chat_json(chat: ChatId, fields: Mapping[str, Any]) -> bytes:
    """The bytes of chat.json."""
    rows = {
        "version": VERSION,
        "id": chat,
        "created": timestamp(created_ms(chat)),
        "name": fields["name"],
        "title": fields["title"],
        "labels": list(fields["labels"]),
        "place": fields["place"],
    }
    lines = [f"  {orjson.dumps(key).decode()}: {orjson.dumps(value).decode()},\n" for key, value in rows.items()]
    return ("{\n" + "".join(lines) + _END).encode()


def parse_chat_json(text: bytes) -> Metadata | None:
    """What a chat.json says; None where it isn't one, or is of a form that isn't known yet."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not is_uuid(value["id"]):
        return None
    version = value.get("version")
    if type(version) is not int or version > VERSION:
        return None
    fields: dict[str, Any] = {}
    if isinstance(value.get("name"), str) and _is_name(value["name"]):
        fields["name"] = value["name"]
    if is_title(value.get("title")):
        fields["title"] = value["title"]
    if is_labels(value.get("labels")):
        fields["labels"] = value["labels"]
    if value.get("place") in _PLACES:
        fields["place"] = value["place"]
    return Metadata(ChatId(value["id"]), fields)


def why_unreadable(text: bytes) -> str:
    """Why `parse_chat_json` makes nothing of it, in words that follow the file's name."""
    with contextlib.suppress(orjson.JSONDecodeError):
        value = orjson.loads(text)
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is int and version > VERSION:
            return f"is of version {version}, this chatfs knows {VERSION}: use a newer chatfs"
    return "can't be read: resolve the conflict in it, or restore it from version control"


def _is_name(name: str) -> bool:
    try:
        directory_name(name)
    except InvalidName:
        return False
    return True
