"""How a draft becomes an attachment within its workspace's quota.

A draft's bytes are charged as they are written. Room for the line that names them is charged before they become a blob,
and nobody measures until that stands in the log and the draft is gone: so no blob is made that then can't be named, and
what is charged as the draft goes on as the blob.

Concurrency: trio. A commit is in flight (`store.quota`) while the bytes are hashed.
"""

from __future__ import annotations

import functools
import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Final

import trio

from store import events as ev
from store.driver import CHUNK, Staging
from store.drivers.chunks import LONG, SMALL
from store.errors import QuotaExceeded
from store.model import Attachment, AttachmentId, BlobRef, Digest, NewEntry, uuid7
from store.quota import MARGIN, line_bytes

if TYPE_CHECKING:
    from store.chat import Chat

_INT64_MAX: Final = (1 << 63) - 1


async def attach(chat: Chat, name: str, source: AsyncIterator[bytes] | bytes, actor: str) -> Attachment:
    """`Chat.attach`, where there is a quota."""
    staging = chat.stage(name)
    quota = chat.workspace.quota
    try:
        async with aclosing(_pieces(source)) as pieces:
            async for piece in pieces:
                async with quota.taking(functools.partial(len, piece)):
                    staging.write(staging.size, piece)
        return await commit(chat, name, staging, actor)
    finally:
        with trio.CancelScope(shield=True):
            await staging.discard()


async def commit(
    chat: Chat,
    name: str,
    staging: Staging,
    actor: str,
    *,
    mode: int | None = None,
    mtime_ns: int | None = None,
    identity: AttachmentId | None = None,
    durable: bool = True,
    done: Callable[[], Awaitable[None]] | None = None,
) -> Attachment:
    """Make a draft an attachment. `done` drops what its bytes are charged as: the draft, if nothing else is said."""
    done = done or staging.discard
    quota = chat.workspace.quota
    if not quota.limited:
        ref = await staging.commit(durable=durable)
        made = await chat.put_attachment(name, ref, actor, mode=mode, mtime_ns=mtime_ns, identity=identity)
        await done()
        return made
    async with AsyncExitStack() as stack:
        room = await _line(
            chat, name, staging.size, actor, mode=mode, mtime_ns=mtime_ns, identity=identity, stack=stack
        )
        ref = await staging.commit(durable=durable)
        made = await chat.put_attachment(name, ref, actor, mode=mode, mtime_ns=mtime_ns, identity=identity, room=room)
        quota.knows(ref)
        await done()
        return made


async def _line(
    chat: Chat,
    name: str,
    size: int,
    actor: str,
    *,
    mode: int | None,
    mtime_ns: int | None,
    identity: AttachmentId | None,
    stack: AsyncExitStack,
) -> int:
    """Charge the entry that will name the bytes; how long it may be."""
    present = (await chat.load()).attachments.get(name)
    ref = BlobRef(Digest((SMALL if size <= CHUNK else LONG) + "0" * 64), size)
    event = put_event(name, ref, present, mode=mode, mtime_ns=mtime_ns, identity=identity)
    batch = [NewEntry(event.encode(), actor)]
    seq = (await chat.head()).seq
    wide, exact = line_bytes(batch, seq + MARGIN), line_bytes(batch, seq)
    try:
        await stack.enter_async_context(chat.workspace.quota.taking(lambda: wide, patient=wide == exact))
    except QuotaExceeded:
        if wide == exact:
            raise
        await stack.enter_async_context(chat.workspace.quota.taking(lambda: exact))
        return exact
    return wide


def put_event(
    name: str,
    ref: BlobRef,
    present: Attachment | None,
    *,
    mode: int | None = None,
    mtime_ns: int | None = None,
    identity: AttachmentId | None = None,
) -> ev.AttachmentPut:
    """The event that names a blob, where `present` has the name."""
    return ev.AttachmentPut(
        identity or (present.id if present is not None else uuid7()),
        name,
        ref.digest,
        ref.size,
        _content_type(name.partition(".")[2]),
        mode if mode is not None or present is None else present.mode,
        int64(mtime_ns),
    )


@functools.lru_cache(maxsize=256)
def _content_type(suffixes: str) -> str:
    """Of a file whose name ends so, behind its first dot."""
    return mimetypes.guess_type(f"x.{suffixes}")[0] or "application/octet-stream"


def int64(value: int | None) -> int | None:
    """`value`, within what a log keeps of a time in nanoseconds: the years 1677 to 2262."""
    return None if value is None else min(max(value, -_INT64_MAX), _INT64_MAX)


async def _pieces(source: AsyncIterator[bytes] | bytes) -> AsyncGenerator[bytes, None]:
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK):
            yield source[start : start + CHUNK]
        return
    async for piece in source:
        yield piece
