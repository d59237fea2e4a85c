"""The short way: a chat that only grew since both copies were the same costs what was added.

Concurrency: trio; one task per project.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import trio

from store.chat import Chat
from store.errors import CorruptSnapshot, Truncated
from store.events import GONE, LOCAL
from store.model import ChatId, Seq
from store.projection import copies, durable, form, portable
from store.projection.manifest import Row
from store.projection.repository import Repository
from store.projection.tree import Directory, Moved, Stamp
from store.workspace_state import ChatRecord


def looks_the_same(chats: Directory, row: Row) -> bool:
    """Whether no file of a chat's directory changed. Raises FileNotFoundError, Strange."""
    if any(chats.stamp_in(row.directory, name) != stamp for name, stamp in row.files.items()):
        return False
    if not row.attached_ns:
        return chats.stamp_in(row.directory, form.ATTACHMENTS) is None
    with chats.sub(row.directory) as directory, directory.sub(form.ATTACHMENTS) as attachments:
        return attachments.changed_ns == row.attached_ns and all(
            attachments.stamp(name) == stamp for name, (_, stamp) in row.attachments.items()
        )


Grown = Callable[[ChatId], int | None]
"""How many bytes a chat's text has got at its end since it was asked last; None: it changed otherwise, maybe."""


async def follow(
    chat: Chat, chats: Directory, record: ChatRecord, row: Row, grown: Grown, git: Repository
) -> Row | None:
    """Add to the copy what the log has more; what is to be remembered.

    None where something else happened, too: the copy changed, the log's past did, an attachment came, or its name.
    """
    stamp = durable.log_stamp(chat)
    state = await chat.load()
    # All of the state is taken at once: nothing is awaited until then, and it may move while the log is read.
    added, head = grown(chat.id), chat.space.head
    if state.seq != head.seq or chat.space.damage is not None or state.projection in {LOCAL, GONE}:
        return None
    fields = durable.fields_of(record, state)
    size = state.size
    attached = {name: found.digest for name, found in state.attachments.items()}
    if fields["name"] != row.metadata.get("name") or attached != {n: d for n, (d, _) in row.attachments.items()}:
        return None
    there = row.files[form.TEXT].size
    at = there if added is not None and there and there + added == size else 0
    intent = state.projection
    try:
        text = chat.rendered.read(state, chat.space.source, at, size - at)
        lines = await durable.tail(chat, Seq(row.seq), row.crc, head.seq)
    except (CorruptSnapshot, Truncated):
        return None
    mark = git.mark()
    if lines is None or not await trio.to_thread.run_sync(looks_the_same, chats, row) or git.moved(mark):
        return None
    write = functools.partial(_write, chats, row, lines, at, text, form.chat_json(chat.id, fields))
    try:
        files = await trio.to_thread.run_sync(write)
    except Moved:
        return None
    after = row.moved(
        seq=head.seq,
        crc=head.crc,
        log=stamp,
        lines=row.lines + len(lines),
        files=files,
        metadata=fields,
        intent=intent,
    )
    return after.unsure(row) if git.moved(mark) else after


def _write(chats: Directory, row: Row, lines: list[bytes], at: int, text: bytes, metadata: bytes) -> dict[str, Stamp]:
    with chats.sub(row.directory) as directory:
        files = dict(row.files)
        if lines:
            files[form.HISTORY] = copies.append_history(directory, portable.join(lines), files[form.HISTORY])
        files[form.TEXT] = copies.write_text(directory, at, text, files[form.TEXT])
        files[form.METADATA] = directory.put(form.METADATA, metadata, files[form.METADATA])
        return files
