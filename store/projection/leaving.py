"""A chat's directory that is to leave the project: what nobody else has is kept first, and what can't be kept stays.

Concurrency: trio; files are copied in threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from store import durability
from store.projection import form
from store.projection.tree import Directory, is_temporary

if TYPE_CHECKING:
    from store.chat import Chat

_LABEL = "projection.scratch"


async def leave(chat: Chat, chats: Directory, name: str, others: Sequence[str], tell: Callable[[str], None]) -> None:
    """Remove the directory `name` of a chat whose lines and attachments are in the store; `others` aren't chatfs's."""
    with chats.sub(name) as directory:
        await keep_unknown(chat, directory, others)
        left = await trio.to_thread.run_sync(strays, directory)
        if left:
            await trio.to_thread.run_sync(_remove_own, directory)
            tell(f"{directory.shown} has {', '.join(left)}, which isn't a file that chatfs keeps: move it elsewhere")
            return
    await trio.to_thread.run_sync(chats.remove_tree, name)


def strays(directory: Directory) -> list[str]:
    """What `keep_unknown` can't keep: directories, links and the like, and what can't be an attachment."""
    found = [
        name
        for name in directory.names()
        if name not in form.OWN and not is_temporary(name) and directory.stamp(name) is None
    ]
    if directory.is_directory(form.ATTACHMENTS):
        with directory.sub(form.ATTACHMENTS) as attachments:
            found += [
                f"{form.ATTACHMENTS}/{name}"
                for name in attachments.names()
                if not is_temporary(name) and (name.startswith(".") or attachments.stamp(name) is None)
            ]
    return sorted(found)


def _remove_own(directory: Directory) -> None:
    for name in (form.METADATA, form.HISTORY, form.TEXT):
        if directory.stamp(name) is not None:
            directory.unlink(name)
    if directory.is_directory(form.ATTACHMENTS):
        with directory.sub(form.ATTACHMENTS) as attachments:
            for name in attachments.names():
                if not name.startswith(".") and attachments.stamp(name) is not None:
                    attachments.unlink(name)


async def keep_unknown(chat: Chat, directory: Directory, names: Sequence[str]) -> None:
    """Files that aren't chatfs's, as scratch files of the chat: what is there already stays, under its name."""
    scratch = os.path.join(chat.directory, "scratch")

    def copy(name: str) -> None:
        if directory.stamp(name) is None:
            return
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        beside = os.path.join(scratch, f".{name[:100]}.projection.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        fd = durability.create(_LABEL, beside)
        try:
            for piece in directory.pieces(name):
                durability.write_all(_LABEL, fd, piece)
        finally:
            os.close(fd)
        target = _place_for(scratch, name, beside)
        if target is None:
            os.unlink(beside)
        else:
            durability.system.rename(_LABEL, beside, target)

    for name in names:
        await trio.to_thread.run_sync(copy, name)


def _place_for(scratch: str, name: str, beside: str) -> str | None:
    """Where a file of those bytes goes; None where it is there already."""
    number, target = 1, os.path.join(scratch, name)
    while os.path.lexists(target):
        if _same(target, beside):
            return None
        number += 1
        target = os.path.join(scratch, f"{name[:100]}.{number}")
    return target


def _same(one: str, other: str) -> bool:
    if os.path.islink(one) or not os.path.isfile(one) or os.path.getsize(one) != os.path.getsize(other):
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(1 << 20):
            if second.read(1 << 20) != piece:
                return False
    return True
