"""The files in a copy's attachments/: taken in where somebody put or changed them by hand, and written out.

Concurrency: trio; files are read and written in threads.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator

import trio

from store import events as ev
from store.chat import Chat
from store.driver import Driver
from store.errors import BlobNotFound, CorruptBlob
from store.projection import copies, take_in
from store.projection.copies import Copy
from store.projection.durable import Durable
from store.projection.manifest import Row
from store.projection.tree import Directory, Stamp


async def take(driver: Driver, chat: Chat, directory: Directory, copy: Copy, found: Durable, row: Row | None) -> bool:
    """Attach what somebody has put into attachments/, or changed there, without chatfs; whether there was any."""
    changed = False
    for name, stamp in copy.attachments.items():
        if row is not None and name in row.attachments and row.attachments[name][1] == stamp:
            continue
        ref = await take_in.put_file(chat.workspace, directory, name)
        present = found.attachments.get(name)
        if present is not None:
            if present.ref == ref:
                continue
            unchanged = row is not None and name in row.attachments and row.attachments[name][0] == present.digest
            newer = stamp.mtime_ns > present.mtime_ns
            if await take_in.has(driver, present.digest) and not unchanged and not newer:
                continue
        await chat.put_attachment(name, ref, ev.PROJECTOR, mtime_ns=stamp.mtime_ns)
        changed = True
    return changed


async def write(
    driver: Driver,
    chat: Chat,
    directory: Directory,
    found: Durable,
    there: dict[str, Stamp],
    known: dict[str, tuple[str, Stamp]],
    tell: Callable[[str], None],
) -> dict[str, tuple[str, Stamp]]:
    """Make attachments/ hold what the chat has: bytes that are there already stay; what they are now. Raises Moved."""
    written: dict[str, tuple[str, Stamp]] = {}
    for name, attachment in found.attachments.items():
        stamp = there.get(name)
        if stamp is not None and known.get(name) == (attachment.digest, stamp):
            written[name] = known[name]
            continue
        if stamp is not None and (await take_in.put_file(chat.workspace, directory, name)).digest == attachment.digest:
            written[name] = attachment.digest, stamp
            continue
        try:
            await driver.blobs.stat(attachment.digest)
            stream = _pulled(driver.blobs.get(attachment.digest))
            make = functools.partial(copies.write_attachment, directory, attachment, stream, stamp)
            written[name] = attachment.digest, await trio.to_thread.run_sync(make)
        except (BlobNotFound, CorruptBlob) as error:
            tell(str(chat.unreadable(name, error)))
    for name, (_, stamp) in known.items():
        if name in there and name not in found.attachments:
            await trio.to_thread.run_sync(copies.remove_attachment, directory, name, stamp)
    return written


def _pulled(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """A stream's pieces, for a thread."""

    async def piece() -> bytes:
        return await anext(stream, b"")

    while found := trio.from_thread.run(piece):
        yield found
