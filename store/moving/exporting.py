"""Write a workspace or a chat as one stream of lines (`store.moving.stream`).

A log is read through before its first line is written: what is damaged doesn't come into the stream.

Concurrency: trio; one log at a time, in constant memory but for a fold of FOLD_MAX. Others may write meanwhile: what is
there when a log is opened is exported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from store.driver import AppendLog, Driver
from store.errors import BlobNotFound, CorruptBlob, Damage, SpaceNotFound
from store.kinds import WORKSPACE
from store.model import ChatId, Digest, SpaceId, WorkspaceId, chat_space, workspace_space
from store.moving.blobs import Named
from store.moving.names import chat_of
from store.moving.report import Moved, Told, silent
from store.moving.spaces import batches, check, fold
from store.moving.stream import BYTES, VERSION, bytes_line, control, log_line, mark
from store.snapshot import VERSION as FOLD_VERSION
from store.workspace_state import Place, WorkspaceState

Write = Callable[[bytes], object]


async def export(
    source: Driver, workspace: WorkspaceId, chat: ChatId | None, write: Write, *, told: Told = silent
) -> Moved:
    """Write all of a workspace, or of one chat; what can't be read is in the result's `failures`.

    Raises SpaceNotFound, CorruptLog where the workspace's own log can't be read (or the chat's, if that is all).
    """
    return await _Export(source, workspace, write, told).run(chat)


class _Export:
    def __init__(self, source: Driver, workspace: WorkspaceId, write: Write, told: Told) -> None:
        self._source = source
        self._workspace = workspace
        self._write = write
        self._told = told
        self._brought: set[Digest] = set()
        self._moved = Moved()
        self._name = ""

    async def run(self, chat: ChatId | None) -> Moved:
        own = workspace_space(self._workspace)
        log = await self._source.open_log(own)
        try:
            state: WorkspaceState = await fold(self._source, log, WORKSPACE)
            self._name = state.name
            fields = {"workspace": self._workspace, "name": state.name}
            if chat is not None:
                name, place = _shown(state, chat)
                fields |= {"chat": chat, "chat_name": name, "place": place}
            self._write(control("stream", version=VERSION, **fields))
            if chat is not None:
                await self._log(chat_space(self._workspace, chat), chat, state)
            else:
                # Listed after the log was opened: a chat that it names has its own log by then.
                listed = await self._source.spaces(own)
                for space in dict.fromkeys([*listed, *(chat_space(self._workspace, id_) for id_ in state.chats)]):
                    await self._chat(space, state)
                await self._lines(log, None, state.name, await check(self._source, log), state.name)
                self._moved.workspaces = 1
        finally:
            await log.aclose()
        self._write(control("end", logs=self._moved.logs))
        return self._moved

    async def _chat(self, space: SpaceId, state: WorkspaceState) -> None:
        chat = chat_of(space)
        try:
            await self._log(space, chat, state)
        except (Damage, SpaceNotFound) as error:
            if chat not in state.chats:
                return  # it was deleted, or nobody ever listed it
            name = f"{state.name}/{state.chats[chat].name}"
            why = f"the log of {name} is missing" if isinstance(error, SpaceNotFound) else str(error)
            self._moved.failures.append(f"{name}: {why}")
            self._write(control("absent", chat=chat, why=why))

    async def _log(self, space: SpaceId, chat: ChatId, state: WorkspaceState) -> None:
        shown, _ = _shown(state, chat)
        name = f"{state.name}/{shown}"
        log = await self._source.open_log(space)
        try:
            self._told(f"reading {name}")
            await self._lines(log, chat, shown, await check(self._source, log), name)
        finally:
            await log.aclose()

    async def _lines(self, log: AppendLog, chat: ChatId | None, shown: str, digest: str, name: str) -> None:
        """A log that has been read through."""
        head, base = log.head, log.base
        more = {"fold": {"version": FOLD_VERSION, "sha256": digest}} if digest else {}
        end = {"seq": head.seq, "crc": head.crc}
        self._write(control("log", chat=chat, name=shown, base=mark(base), head=end, **more))
        named = Named(self._source.blobs)
        crc = base.crc
        async with aclosing(batches(log)) as pieces:
            async for entries in pieces:
                for blob in await named.of(entries):
                    await self._blob(blob, named)
                for entry in entries:
                    self._write(log_line(entry, crc))
                    crc = entry.crc
                self._moved.entries += len(entries)
                self._told(f"exporting {name}: entry {entries[-1].seq} of {head.seq}")
        self._moved.logs += 1
        self._moved.failures += [f"{name}: {what}" for what in named.missing()]

    async def _blob(self, digest: Digest, named: Named) -> None:
        if digest in self._brought:
            return
        try:
            ref = await self._source.blobs.stat(digest)
            # Read through first: what is damaged doesn't come into the stream.
            async for _ in self._source.blobs.get(digest):
                pass
        except (BlobNotFound, CorruptBlob) as error:
            named.lacks(digest, error)
            return
        self._brought.add(digest)
        self._write(control("blob", digest=digest, size=ref.size))
        async for piece in self._source.blobs.get(digest):
            for at in range(0, len(piece), BYTES):
                self._write(bytes_line(piece[at : at + BYTES]))
        self._moved.blobs += 1
        self._moved.blob_bytes += ref.size


def _shown(state: WorkspaceState, chat: ChatId) -> tuple[str, str]:
    """A chat's name, and where it is."""
    record = state.chats.get(chat)
    return (record.name, record.place.value) if record is not None else (chat, Place.CHATS.value)
