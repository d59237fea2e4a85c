"""What a project's copy brings, into the durable one. The log's line is the commit point: bytes come before it.

Concurrency: trio; decisions are appended with `expected_seq`, and `SeqConflict` goes to the caller, who looks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from store import durability
from store import events as ev
from store.driver import Driver
from store.errors import BlobNotFound, NameTaken, SeqConflict
from store.fold import fold
from store.importing import numbered
from store.model import BlobRef, ChatId, NewEntry, Seq
from store.projection import form, portable
from store.projection.tree import Directory
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.chat import Chat
    from store.workspace import Workspace

BATCH: Final = 500
_BATCH_BYTES: Final = 8 * 1024 * 1024
_ACTOR: Final = ev.PROJECTOR

Tell = Callable[[str], None]


async def _pieces(directory: Directory, name: str) -> AsyncIterator[bytes]:
    found = directory.pieces(name)
    try:
        while piece := await trio.to_thread.run_sync(next, found, b""):
            yield piece
    finally:
        found.close()  # type: ignore[attr-defined]


async def put_file(driver: Driver, directory: Directory, name: str) -> BlobRef:
    """A file of attachments/ as a blob. Raises FileNotFoundError, Strange."""
    with directory.sub(form.ATTACHMENTS) as attachments:
        return await driver.blobs.put(_pieces(attachments, name))


async def bring_bytes(driver: Driver, lines: Sequence[bytes], directory: Directory, tell: Tell) -> None:
    """The bytes that the lines' attachments need, where the store hasn't got them."""
    state = await trio.to_thread.run_sync(lambda: fold(portable.entries_of(lines)))
    for found in state.attachments.values():
        try:
            await driver.blobs.stat(found.digest)
        except BlobNotFound:
            where = f"{directory.shown}/{form.ATTACHMENTS}/{found.name}"
            try:
                brought = await put_file(driver, directory, found.name)
            except FileNotFoundError:
                tell(f"{where} is missing: the chat has the attachment without its bytes")
                continue
            if brought.digest != found.digest:
                tell(f"{where} isn't what the chat's log says: it is taken as a newer version")


async def take_lines(chat: Chat, durable: Sequence[bytes], wanted: Sequence[bytes], seq: Seq) -> None:
    """Make the log, which has the lines `durable` and ends at `seq`, say `wanted`. Durable when it returns.

    Lines behind the present ones come in batches, each of which is a step on the way; another order comes in one.
    Raises SeqConflict, QuotaExceeded.
    """
    if list(wanted[: len(durable)]) == list(durable):
        for batch in _batches(wanted[len(durable) :]):
            seq = await chat.append(batch, expected_seq=seq)
    else:
        entries = [NewEntry(ev.LogReset().encode(), _ACTOR), *map(_entry, wanted)]
        await chat.append(entries, expected_seq=seq)
    await chat.sync()


def _entry(line: bytes) -> NewEntry:
    found = portable.decode(line)
    assert found is not None, "these lines were read before"
    return found.new_entry()


def _batches(lines: Sequence[bytes]) -> list[list[NewEntry]]:
    found: list[list[NewEntry]] = []
    size = 0
    for line in lines:
        if not found or len(found[-1]) >= BATCH or size > _BATCH_BYTES:
            found.append([])
            size = 0
        found[-1].append(_entry(line))
        size += len(line)
    return found


async def new_chat(
    workspace: Workspace, chat: ChatId, name: str, lines: Sequence[bytes], *, place: Place = Place.CHATS
) -> Chat:
    """A chat with that id that says `lines`, unless there is one. Where its name is taken, ` (2)` follows it.

    A crash in between leaves a chat that has fewer lines, which the next start compares as any other.
    """
    for number in itertools.count(1):
        state = await workspace.load()
        if chat in state.chats:
            break
        with contextlib.suppress(NameTaken):
            wanted = name if number == 1 else numbered(name, f" ({number})")
            await workspace.create_chat(wanted, _ACTOR, chat=chat, place=place)
    made = workspace.chat_by_id(chat)
    head = await made.head()
    if head.seq == 0:
        with contextlib.suppress(SeqConflict):  # another process does just this
            await take_lines(made, [], lines, Seq(0))
    await made.sync()
    return made


async def say(chat: Chat, fields: Mapping[str, Any]) -> None:
    """Give a chat that was taken in just now the title and the labels of its chat.json, where its log says others."""
    await chat.change(_ACTOR, title=fields.get("title"), labels=fields.get("labels"))
    await chat.sync()


def conflict_id(chat: ChatId, lines: Sequence[bytes]) -> ChatId:
    """The id of the chat that a losing stream becomes: the same for everybody who decides the same."""
    digest = hashlib.sha256(chat.encode() + b"\n" + portable.join(lines)).hexdigest()
    return ChatId(f"{chat[:14]}8{digest[:3]}-8{digest[3:6]}-{digest[6:18]}")


async def keep_unknown(chat: Chat, directory: Directory, names: Sequence[str]) -> None:
    """Files that aren't chatfs's, as scratch files of the chat; what is there already stays."""
    scratch = os.path.join(chat.directory, "scratch")

    def copy(name: str) -> None:
        if directory.stamp(name) is None:
            return
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        target = os.path.join(scratch, name)
        if os.path.lexists(target):
            return
        beside = os.path.join(scratch, f".{name[:100]}.projection.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        fd = durability.create("projection.scratch", beside)
        try:
            for piece in directory.pieces(name):
                durability.write_all("projection.scratch", fd, piece)
            durability.system.rename("projection.scratch", beside, target)
        finally:
            os.close(fd)

    for name in names:
        await trio.to_thread.run_sync(copy, name)
