"""Which chats need a blob: to say so where it is damaged, and to leave it in their logs where it is set aside.

Concurrency: for one thread; other processes may append to the logs meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from store.beginning import COMPACTOR
from store.drivers.file import salvage
from store.drivers.file.text import LOG_NAME, read_base
from store.errors import FormatError, StoreError, StoreFailed
from store.fsck import logs
from store.fsck.context import Context, locked_log, reason
from store.model import Digest, NewEntry, SpaceId

QUARANTINED: Final = "blob.quarantined"
"""The type of the event that says that a blob which the chat refers to was damaged, and where its bytes are now."""


@dataclass(slots=True)
class User:
    """A chat that refers to a blob, and by which names of attachments (none: the log was compacted into it)."""

    space: SpaceId
    where: str
    names: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[str]:
        """As findings say it."""
        if not self.names:
            return [f"the compacted log of {self.where}"]
        return [f"{self.where}/attachments/{name}" for name in self.names]


Users = dict[Digest, list[User]]
Inside = Callable[[Digest], Iterable[tuple[str, Digest, int]]]
"""The attachments that a compacted state has: name, digest, size. Raises where it can't be read."""


def users_of(context: Context, digests: set[Digest], chats: Iterable[tuple[SpaceId, str]], inside: Inside) -> Users:
    """Who refers to these blobs, in the log or in what was compacted, among `chats`: each with how findings name it."""
    found: Users = {}
    wanted = [digest.encode() for digest in digests]
    for space, where in chats:
        through = _compacted_through(context.root / space)
        for line in _lines(context, space):
            if through and b'"log.compacted"' in line:
                for name, digest, _size in _held(line, through, inside):
                    if digest in digests:
                        _note(found, digest, space, where, name)
            if any(each in line for each in wanted):
                telling = logs.telling_of(line)
                value: dict[str, Any] = telling.value if telling is not None else {}
                for key in ("digest", "state"):
                    named = value.get(key)
                    if isinstance(named, str) and named in digests:
                        _note(found, Digest(named), space, where, str(value.get("name")) if key == "digest" else "")
    return found


def _note(found: Users, digest: Digest, space: SpaceId, where: str, name: str) -> None:
    users = found.setdefault(digest, [])
    if not users or users[-1].space != space:
        users.append(User(space, where))
    if name and name not in users[-1].names:
        users[-1].names.append(name)


def _lines(context: Context, space: SpaceId) -> Iterator[bytes]:
    try:
        fd = context.open(context.root / space / LOG_NAME)
    except OSError:
        return
    try:
        yield from logs.lines_between(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _compacted_through(directory: Path) -> int:
    try:
        return read_base(directory).seq
    except (FormatError, OSError):
        return 0


def _held(line: bytes, through: int, inside: Inside) -> Iterable[tuple[str, Digest, int]]:
    telling = logs.telling_of(line)
    if telling is None or telling.actor != COMPACTOR or telling.value.get("through") != through:
        return ()
    try:
        return inside(Digest(str(telling.value.get("state"))))
    except Exception:  # noqa: BLE001 - whatever it is: the state can't be read, which is a finding of its own
        return ()


def record_quarantine(context: Context, digest: Digest, user: User, quarantine: str) -> None:
    """Append to a chat's log that a blob was set aside. Raises StoreFailed where the log can't take it."""
    event = {"type": QUARANTINED, "digest": digest, "attachments": user.names, "quarantine": quarantine}
    directory = context.root / user.space
    try:
        with locked_log(directory / LOG_NAME) as fd:
            salvage.append(directory, fd, NewEntry(orjson.dumps(event), salvage.ACTOR), context.now())
    except (OSError, StoreError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise StoreFailed(f"the log of {user.where} can't take the event that says so: {why}") from error
