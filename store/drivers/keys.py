"""What may name a document and a space: checked once for all drivers, before a backend sees it.

Concurrency: pure.
"""

from __future__ import annotations

import re
from typing import Final

from store.errors import InvalidName
from store.model import SpaceId

_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SEGMENT: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
_SPACE: Final = re.compile(rf"workspace/{_SEGMENT}(?:/chats/{_SEGMENT})?")
_UNDER: Final = re.compile(rf"workspace(?:/{_SEGMENT})?")


def check_key(key: str) -> None:
    """Raises InvalidName unless `key` is segments of printable text joined by `/`."""
    if not all(key.split("/")) or _UNPRINTABLE.search(key):
        raise InvalidName(f"{key!r} can't be a document's key")


def check_space(space: str) -> None:
    """Raises InvalidName unless `space` is a workspace's or a chat's."""
    if _SPACE.fullmatch(space) is None:
        raise InvalidName(f"{space!r} can't be a space")


def spaces_directory(under: str) -> str:
    """Where the spaces in `under` are: "workspace", or a workspace's `chats`. Raises InvalidName."""
    if _UNDER.fullmatch(under) is None:
        raise InvalidName(f"there are no spaces in {under!r}")
    return under if under == "workspace" else f"{under}/chats"


def space_in(directory: str, name: str) -> SpaceId | None:
    """The space of that name in a directory of spaces; None where the name can't be one's."""
    space = f"{directory}/{name}"
    return SpaceId(space) if _SPACE.fullmatch(space) else None
