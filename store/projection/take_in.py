"""What a project's copy brings, into the durable one. The log's line is the commit point: bytes come before it.

Concurrency: trio; decisions are appended with `expected_seq`, and `SeqConflict` goes to the caller, who looks again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from store import events as ev
from store.driver import Driver
from store.errors import BlobNotFound, NameTaken, SeqConflict
from store.fold import fold
from store.model import BlobRef, ChatId, Digest, NewEntry, Seq, numbered
from store.projection import copies, form, portable
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


async def put_file(workspace: Workspace, directory: Directory, name: str) -> BlobRef:
    """A file of attachments/ as a blob. Raises FileNotFoundError, Strange, QuotaExceeded before any of it is stored."""
    with directory.sub(form.ATTACHMENTS) as attachments:
        if workspace.quota.limited:
            ref = await trio.to_thread.run_sync(copies.blob_of, attachments, name)
            if await has(workspace.driver, ref.digest):
                return ref
            # Not in flight while it is read: that may take any time. It counts when an entry names it.
            async with workspace.quota.taking(int, {ref.digest: ref.size}):
                pass
        return await workspace.driver.blobs.put(_pieces(attachments, name))


async def has(driver: Driver, digest: Digest) -> bool:
    """Whether the store has a blob."""
    try:
        await driver.blobs.stat(digest)
    except BlobNotFound:
        return False
    return True


async def bring_bytes(
    workspace: Workspace, lines: Sequence[bytes], directory: Directory, tell: Tell, *, room: int = 0
) -> None:
    """The bytes that the lines' attachments need, where the store hasn't got them.

    Raises QuotaExceeded before any are stored, also where `room` bytes more wouldn't fit.
    """
    state = await trio.to_thread.run_sync(lambda: fold(portable.entries_of(lines)))
    missing = [found for found in state.attachments.values() if not await has(workspace.driver, found.digest)]
    sizes = {found.digest: found.size for found in missing}
    if missing or room:
        await workspace.quota.require(room, sizes)
    if missing:
        async with workspace.quota.taking(int, sizes):
            pass
    for found in missing:
        where = f"{directory.shown}/{form.ATTACHMENTS}/{found.name}"
        try:
            brought = await put_file(workspace, directory, found.name)
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
    workspace: Workspace,
    chat: ChatId,
    name: str,
    lines: Sequence[bytes],
    *,
    place: Place = Place.CHATS,
    intent: str = "",
) -> Chat:
    """A chat with that id that says `lines`, unless there is one. Where its name is taken, ` (2)` follows it.

    It says them before it is listed: so nobody writes to a part of it, and a crash leaves nothing to be seen. The next
    one who does this goes on with that.
    """

    async def fill(made: Chat) -> None:
        with made.hold():
            while True:
                seq = (await made.head()).seq
                there = portable.stream([entry async for entry in made.log()])
                if lines and there[: len(lines)] == list(lines):
                    break
                if there and chat in (await workspace.load()).chats:
                    break  # another process has listed it, from another look at the copy: they are compared later
                with contextlib.suppress(SeqConflict):  # another process does just this
                    if intent and seq == 0:  # before anything that isn't for everybody is in it
                        said = NewEntry(ev.ChatChanged(projection=intent).encode(), _ACTOR)
                        seq = await made.append([said], expected_seq=seq)
                    await take_lines(made, there, lines, seq)
                    break
                await trio.lowlevel.checkpoint()
            await made.sync_own()

    for number in itertools.count(1):
        state = await workspace.load()
        if chat in state.chats:
            break
        with contextlib.suppress(NameTaken):
            wanted = name if number == 1 else numbered(name, f" ({number})")
            await workspace.create_chat(wanted, _ACTOR, chat=chat, place=place, fill=fill)
    made = workspace.chat_by_id(chat)
    if (await made.head()).seq == 0:
        await fill(made)
    await made.sync()
    return made


async def say(chat: Chat, fields: Mapping[str, Any]) -> None:
    """Give a chat that was taken in just now the title and the labels of its chat.json, where its log says others."""
    await chat.change(_ACTOR, title=fields.get("title"), labels=fields.get("labels"))
    await chat.sync()
