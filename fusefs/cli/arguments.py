"""What the words of a command may be: names of workspaces and chats, sizes, numbers.

Each is a function for argparse, which raises ArgumentTypeError. Nothing is looked up here (`fusefs.cli.targets` does
that), and hardly anything is imported: help, and words that are wrong, need no more than this.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from typing import Final, NamedTuple

_SIZE: Final = r"([0-9]{1,19})(?:\.([0-9]{1,3}))?\s*([KMGTPE]?)(?:i?B)?"
_OWNER_MAX: Final = (1 << 32) - 2
"""2³² - 1 is nobody's number: chown(2) takes it for "don't change"."""


class ChatPath(NamedTuple):
    """WORKSPACE/CHAT; each a name or an id."""

    workspace: str
    chat: str

    def __str__(self) -> str:
        return f"{self.workspace}/{self.chat}"


def chat_path(text: str) -> ChatPath:
    """An argument that names a chat."""
    workspace, slash, chat = text.rstrip("/").partition("/")
    if not slash or not workspace or not chat:
        raise ArgumentTypeError(f"{text!r} names no chat: write WORKSPACE/CHAT")
    if "/" in chat:
        raise ArgumentTypeError(f"{text!r} has too many parts: write WORKSPACE/CHAT")
    return ChatPath(workspace, chat)


def space_path(text: str) -> ChatPath:
    """An argument that names a chat, or a workspace (then `chat` is empty)."""
    return chat_path(text) if "/" in text.rstrip("/") else ChatPath(workspace_name(text), "")


def workspace_name(text: str) -> str:
    """An argument that names a workspace."""
    name = text.rstrip("/")
    if not name or "/" in name:
        raise ArgumentTypeError(f"{text!r} names no workspace: write WORKSPACE alone")
    return name


def size(text: str) -> int:
    """An argument such as 10G, 1.5M, 1024: bytes, in powers of 1024; `none` is 0."""
    if text.lower() == "none":
        return 0
    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no size: write 10G, 500M, a number of bytes, or none")
    unit = 1 << 10 * " KMGTPE".index(match[3].upper() or " ")
    found = int(match[1]) * unit + (int(match[2]) * unit // 10 ** len(match[2]) if match[2] else 0)
    if found >= 1 << 62:
        raise ArgumentTypeError(f"{text!r} is too large")
    return found


def number(text: str) -> int:
    """An argument that counts: 0 or more."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def owner(text: str) -> int:
    """An argument that is a user's or a group's number. The kernel shows no file of one that there can't be."""
    if (found := number(text)) > _OWNER_MAX:
        raise ArgumentTypeError(f"{text!r} is no user or group: at most {_OWNER_MAX}")
    return found


def umask(text: str) -> int:
    """An argument of permission bits. The owner's own must stay: the kernel would keep even them out."""
    try:
        found = int(text, 8)
    except ValueError:
        found = -1
    if not 0 <= found <= 0o777 or found & 0o700:
        raise ArgumentTypeError(f"{text!r} is no mask for the group and others: write 077, 027, 022 or the like")
    return found
