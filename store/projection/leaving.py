"""A chat's directory that is to leave the project: what nobody else has is kept first, and what can't be kept stays.

Concurrency: trio; files are copied in threads.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import trio

from store import durability, unlinked
from store.projection import form
from store.projection.tree import Directory, is_temporary

if TYPE_CHECKING:
    from store.chat import Chat

_LABEL: Final = "projection.scratch"
_BESIDE: Final = re.compile(r"\..+\.[0-9a-f]{16}\.projection\.tmp")
"""What a scratch file is called until it is whole."""


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
    """Files that aren't chatfs's, as scratch files of the chat: what is there already stays, under its name.

    Raises QuotaExceeded; those before the first that doesn't fit are kept.
    """
    scratch = os.path.join(chat.directory, "scratch")
    for name in names:
        if directory.stamp(name) is not None:
            target = await trio.to_thread.run_sync(_place_for, scratch, directory, name)
            if target is not None:
                os.makedirs(scratch, mode=0o700, exist_ok=True)
                await _copy(chat, directory.pieces(name), target)


async def _copy(chat: Chat, pieces: Iterator[bytes], target: str) -> None:
    """Each piece is charged before it is written: somebody may be adding to the file."""
    scratch, name = os.path.split(target)
    _sweep(scratch)
    beside = os.path.join(scratch, f".{name[:100]}.{secrets.token_hex(8)}.projection.tmp")
    fd = durability.create(_LABEL, beside)
    try:
        unlinked.hold(fd)
        while piece := await trio.to_thread.run_sync(next, pieces, b""):
            async with chat.workspace.quota.taking(functools.partial(len, piece)):
                await trio.to_thread.run_sync(durability.write_all, _LABEL, fd, piece)
        durability.system.rename(_LABEL, beside, target)
    except BaseException:
        durability.discard(_LABEL, beside)
        raise
    finally:
        os.close(fd)


def _sweep(scratch: str) -> None:
    """Remove what crashes have left here: nobody has it open."""
    for name in os.listdir(scratch):
        if _BESIDE.fullmatch(name):
            unlinked.remove_closed(_LABEL, os.path.join(scratch, name))


def _place_for(scratch: str, directory: Directory, name: str) -> str | None:
    """Where a file goes; None where its bytes are there already."""
    number, target = 1, os.path.join(scratch, name)
    while os.path.lexists(target):
        if _same(target, directory, name):
            return None
        number += 1
        target = os.path.join(scratch, f"{name[:100]}.{number}")
    return target


def _same(path: str, directory: Directory, name: str) -> bool:
    stamp = directory.stamp(name)
    if os.path.islink(path) or not os.path.isfile(path) or stamp is None or os.path.getsize(path) != stamp.size:
        return False
    with open(path, "rb") as file:
        return all(file.read(len(piece)) == piece for piece in directory.pieces(name)) and not file.read(1)
