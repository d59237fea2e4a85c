"""How JP writes conversations: names, times, base64. Pure.

JP (https://github.com/dcdpr/jp) keeps a conversation in `.jp/conversations/<id>[-<slug>]/`, an archived one in
`.jp/conversations/.archive/`:

* `<id>` is the time when it began, in tenths of a second since 1970;
* `metadata.json` has `title`, `last_activated_at`, maybe `pinned_at`, `archived_at`, `expires_at`, `labels`;
* `events.json` is an array of objects with `timestamp` and `type`. Unknown types are kept by JP, too;
* `base_config.json` is the configuration at the beginning. Older conversations have it as their first event instead;
* times are UTC, `YYYY-MM-DD HH:MM:SS.f`, without zeros at the end but the first digit of the fraction;
* strings are base64 in a tool call's `arguments`, as a tool response's `content` and in an event's `metadata`, so that
  searching files doesn't find them. JP takes what isn't base64 of UTF-8 for the text itself;
* whoever writes has an exclusive flock(2) on `locks/jp-c<id>.lock`: see `store.importers.jp_lock`.

From JP's sources as of August 2026 (crates jp_conversation, jp_storage, jp_workspace).
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Any, Final

from store.model import Millis

SOURCE: Final = "jp"
METADATA: Final = "metadata.json"
EVENTS: Final = "events.json"
BASE_CONFIG: Final = "base_config.json"
ARCHIVE: Final = ".archive"
PROJECT: Final = ".jp"
CONVERSATIONS: Final = "conversations"

FOREIGN_MESSAGE: Final = "chatfs_message"
"""The type of an event that chatfs writes for a message whose role JP doesn't have; JP keeps it, and shows nothing."""
CHAT_LABEL: Final = "chatfs"
"""The label of a conversation that chatfs made: its value is the chat's id."""

ID_MAX: Final = 92_233_720_368
"""JP counts nanoseconds in 64 bits."""
_ID: Final = re.compile(r"0*([0-9]{1,11})\Z")
_SLUG_LENGTH: Final = 60
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_TITLE_TOO_LONG: Final = 60


def conversation_id(directory: str) -> int | None:
    """The id in a directory's name; None where it isn't a conversation's."""
    found = _ID.match(directory.partition("-")[0])
    return int(found[1]) if found is not None and int(found[1]) <= ID_MAX else None


def display_id(conversation: int) -> str:
    """As JP shows it."""
    return f"jp-c{conversation}"


def directory_of(conversation: int, title: str) -> str:
    """The name of a conversation's directory. JP finds it by the id in front."""
    words = "".join(char if char.isalnum() else "-" for char in title.strip()[:_SLUG_LENGTH]).rstrip("-").lower()
    if not words:
        return str(conversation)
    name = f"{conversation}-{words}"
    return name.rpartition("-")[0] if len(title.encode()) > _TITLE_TOO_LONG else name


def id_at(ts: Millis) -> int:
    """The id of a conversation that began at `ts`."""
    return min(ts // 100, ID_MAX)


def began(conversation: int) -> Millis:
    """When a conversation of that id began."""
    return Millis(conversation * 100)


def time_text(ts: Millis) -> str:
    """`ts` as JP writes a time."""
    moment = datetime.fromtimestamp(ts // 1000, UTC)
    fraction = f"{ts % 1000:03}".rstrip("0") or "0"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{fraction}".rjust(len("0000-00-00 00:00:00.") + len(fraction), "0")


def encoded(value: Any) -> Any:
    """`value` with every string in base64; keys stay."""
    if isinstance(value, str):
        return base64.b64encode(value.encode()).decode()
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    return value


def decoded(value: Any, depth: int = 8) -> Any:
    """What `encoded` was given; down to `depth` levels, the rest as it is."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True).decode()
        except (binascii.Error, ValueError):
            return value
    if depth and isinstance(value, list):
        return [decoded(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {key: decoded(item, depth - 1) for key, item in value.items()}
    return value


def labels_of(metadata: dict[str, Any]) -> list[str]:
    """The labels of a conversation as a chat has them: `key=value`, or the key alone."""
    found = metadata.get("labels")
    if not isinstance(found, dict):
        return []
    pairs = ((key, value) for key, value in found.items() if isinstance(value, str) and key != CHAT_LABEL)
    return [f"{key}={value}" if value else key for key, value in pairs]


def label_pairs(labels: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """A chat's labels as a conversation has them, and those that JP can't have."""
    found: dict[str, str] = {}
    others: list[str] = []
    for label in labels:
        key, _, value = label.partition("=")
        if _LABEL_KEY.match(key):
            found[key] = value
        else:
            others.append(label)
    return found, others
