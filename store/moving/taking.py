"""Take in a stream of lines that `store.moving.exporting` wrote, with the logs as they are.

What the store has already and is equal is passed over, so a stream that was cut off, or grew, can be given again. Blobs
come before the entries that name them and a workspace's own log last, so what is shown is whole. Every line is checked:
gaps, wrong order, wrong checksums, a cut-off end and entries that differ from those in the store are refused, naming
the line. A chat that comes into a workspace with a quota is charged before it is stored (a workspace brings its own).

Concurrency: trio; in constant memory, but for a workspace's own log and a fold of FOLD_MAX.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import IO, Final

import orjson

from store import intake
from store.absent import say_absent, say_present
from store.beginning import base_of
from store.codec import checks, parse
from store.driver import AppendLog, Driver
from store.drivers.batch import why_not
from store.errors import BlobNotFound, CorruptBlob, Damage, Diverged, InvalidInput, NameTaken, StoreFailed
from store.kinds import WORKSPACE
from store.model import ChatId, Digest, Entry, Head, Seq, WorkspaceId, chat_space, is_uuid, workspace_space
from store.moving.blobs import Named, is_digest
from store.moving.charged import forget_charged
from store.moving.names import check_free, claim, unclaim
from store.moving.report import Moved, Told, silent
from store.moving.spaces import check, fold, workspace_state
from store.moving.stream import VERSION, Control, Lines, log_line
from store.quota import Quota
from store.snapshot import VERSION as FOLD_VERSION
from store.usage import count, named_blob
from store.workspace_state import Place, WorkspaceState

_PIECE: Final = 256 * 1024
_WORKSPACE_MAX: Final = 256 * 1024 * 1024
"""Bytes of a workspace's own log, which is held to be checked as a whole."""


@dataclass(frozen=True, slots=True)
class StreamedChat:
    """The chat of a stream that has only one, as it was called where it comes from."""

    id: ChatId
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Stream:
    """What the first line says: the workspace's id and name, and the chat, if the stream has only that one of it."""

    workspace: WorkspaceId
    name: str
    chat: StreamedChat | None


class _Present:
    """The entries that a log has already, compared with others one by one."""

    def __init__(self, log: AppendLog, since: Seq) -> None:
        self._base = log.base
        self._since = max(since, log.base.seq)
        self._entries = log.read(Seq(self._since))

    async def has(self, entry: Entry) -> bool:
        """Whether it has just that entry, the next one. What was truncated away can't be compared."""
        if entry.seq <= self._since:
            return entry.seq != self._base.seq or entry.crc == self._base.crc
        return (await anext(self._entries)).crc == entry.crc


class Taking:
    """One stream that is taken in: first `begin`, then `take`."""

    def __init__(self, file: IO[bytes], target: Driver, told: Told = silent) -> None:
        self._lines = Lines(file)
        self._target = target
        self._told = told
        self._line: Control | bytes | None = None
        self._workspace = WorkspaceId("")
        self._quota: Quota | None = None
        self._made: ChatId | None = None
        """The chat whose log begins with this."""
        self._missing: set[ChatId] = set()
        self._complete = False
        self._begins: Head | None = None
        """What the log that is being taken begins behind, until it does."""
        self.moved = Moved()

    def _wrong(self, what: str) -> InvalidInput:
        return InvalidInput(f"line {self._lines.number} {what}")

    async def begin(self) -> Stream:
        """Read the first line. Raises InvalidInput."""
        first = await self._lines.next()
        if not isinstance(first, Control) or first.kind != "stream":
            raise InvalidInput("this isn't what chatfs export --jsonl writes: its first line is another")
        if first.number_of("version") != VERSION:
            raise InvalidInput(
                "the stream is of another version: import it with the chatfs that wrote it, or a newer one"
            )
        workspace = WorkspaceId(first.text("workspace"))
        if not is_uuid(workspace):
            raise self._wrong("names no workspace")
        chat = None
        if first.get("chat") is not None:
            place = Place.ARCHIVE if first.get("place") == Place.ARCHIVE else Place.CHATS
            chat = StreamedChat(self._chat_id(first), first.text("chat_name"), place)
        return Stream(workspace, first.text("name"), chat)

    async def take(self, stream: Stream, workspace: WorkspaceId, quota: Quota | None = None) -> Moved:
        """Take in the rest; `workspace` is the stream's own, or the one that its chat is to come into.

        `quota` is that of the workspace that a chat comes into. Raises NameTaken before anything is written;
        InvalidInput, Diverged where the stream can't be taken, QuotaExceeded: then the logs before that line are there,
        and those of a workspace are shown only where they were before.
        """
        self._workspace, self._quota = workspace, quota
        if stream.chat is None:
            await check_free(self._target, workspace, stream.name)
        else:
            await self.check_chat(stream.chat.id, workspace)
        self._line = await self._lines.next()
        while isinstance(self._line, Control) and self._line.kind in {"log", "absent"}:
            if self._complete:
                raise self._wrong("comes behind the log that is the last")
            if self._line.kind == "absent":
                await self._absent(self._line)
            elif self._line.get("chat") is None and stream.chat is None:
                await self._workspace_log(self._line)
            else:
                await self._chat_log(self._line, stream)
        end = self._line
        if end is None:
            raise InvalidInput(f"the stream was cut off after line {self._lines.number}: its end is missing")
        if not isinstance(end, Control) or end.kind != "end":
            raise self._wrong("is none that may stand here")
        if end.number_of("logs") != self.moved.logs or not self._complete:
            raise self._wrong("says that there were other logs")
        if await self._lines.next() is not None:
            raise self._wrong("comes behind the end")
        return self.moved

    async def take_back(self) -> None:
        """Remove the chat that came in and isn't listed: where nobody sees it, it would take room for nothing."""
        if self._made is not None:
            await self._target.delete_space(chat_space(self._workspace, self._made))

    async def check_chat(self, chat: ChatId, workspace: WorkspaceId | None) -> None:
        """Raises NameTaken where another workspace of the store has the chat: ids are unique."""
        own = "" if workspace is None else workspace_space(workspace)
        for space in await self._target.spaces():
            if space != own and f"{space}/chats/{chat}" in await self._target.spaces(space):
                raise NameTaken(f"the store has the chat {chat} already, in {space}: import it into that workspace")

    async def _absent(self, line: Control) -> None:
        chat = self._chat_id(line)
        self._missing.add(chat)
        self.moved.failures.append(f"chat {chat} isn't in the stream: {line.text('why')}")
        self._line = await self._lines.next()

    def _chat_id(self, line: Control) -> ChatId:
        chat = line.text("chat")
        if not is_uuid(chat):
            raise self._wrong("names no chat")
        return ChatId(chat)

    # ---- logs

    async def _chat_log(self, line: Control, stream: Stream) -> None:
        chat = self._chat_id(line)
        if stream.chat is not None and (chat != stream.chat.id or self._complete):
            raise self._wrong("begins another log in a stream of one")
        log = await self._target.open_log(chat_space(self._workspace, chat), create=True)
        if log.head.seq == 0:
            self._made = chat
        named = Named(self._target.blobs)
        try:
            async with aclosing(self._entries(line, log)) as pieces:
                async for entries in pieces:
                    await self._adopt(log, entries, named)
            await log.sync()
            await self._compare(line, log)
        finally:
            await log.aclose()
        self.moved.failures += [f"{line.text('name')}: {what}" for what in named.missing()]
        await say_present(self._target.kv, chat)
        self._complete = stream.chat is not None
        self.moved.logs += 1

    async def _workspace_log(self, line: Control) -> None:
        """All of it at once: of part of it, part of its chats would be shown."""
        space = workspace_space(self._workspace)
        before = await workspace_state(self._target, space)
        # A log that is made only now, behind all checks: an empty one would be a workspace without a name.
        log = await self._target.open_log(space, create=True)
        try:
            held: list[Entry] = []
            size = 0
            async with aclosing(self._entries(line, log)) as pieces:
                async for entries in pieces:
                    held += entries
                    size += sum(len(entry.data) for entry in entries)
                    if size > _WORKSPACE_MAX:
                        raise self._wrong("goes beyond what a workspace's own log can have")
            state: WorkspaceState = await fold(self._target, log, WORKSPACE)
            for entry in held:
                state.apply(entry)
            if state.id != self._workspace:
                raise self._wrong(f"ends the log of workspace {state.id or 'no one'}, not of {self._workspace}")
            await self._check_chats(state)
            if not state.trashed:
                await check_free(self._target, self._workspace, state.name)
                await claim(self._target, self._workspace, state.name)
            await self._adopt(log, held, Named(self._target.blobs))
            await log.sync()
            await self._compare(line, log)
        finally:
            await log.aclose()
        if before is not None:
            await forget_charged(self._target, self._workspace)
        if before is not None and (before.name != state.name or state.trashed):
            await unclaim(self._target, self._workspace, before.name)
        self._complete = True
        self.moved.logs += 1
        self.moved.workspaces += 1

    async def _check_chats(self, state: WorkspaceState) -> None:
        """Every chat that the workspace lists is there, or is said to be missing."""
        there = set(await self._target.spaces(workspace_space(self._workspace)))
        for chat in state.chats:
            if chat_space(self._workspace, chat) in there:
                continue
            if chat not in self._missing:
                raise self._wrong(f"ends a workspace with a chat {chat}, whose log isn't in the stream")
            await say_absent(self._target.kv, chat, "it wasn't in the stream either: export it again when it is mended")

    async def _adopt(self, log: AppendLog, entries: list[Entry], named: Named) -> None:
        digests = await named.of(entries)
        found = await self._sizes(digests, named)
        # A compacted log stands for the state, and for what that names.
        blobs = dict(found) if any(base_of(entry) is not None for entry in entries) else {}
        after, self._begins = self._begins, None
        async with self._charged(entries, blobs):
            try:
                await log.adopt(entries, after=after)
            except InvalidInput as error:
                raise Diverged(f"the store was written to meanwhile: {error}") from error
        self.moved.entries += len(entries)
        # What was there, and nothing had named until now, chatfs gc may just have deleted.
        await self._sizes(found, named)

    async def _sizes(self, digests: Iterable[Digest], named: Named) -> dict[Digest, int]:
        """How long the blobs are; which are lacking is noted."""
        found: dict[Digest, int] = {}
        for digest in digests:
            try:
                found[digest] = (await self._target.blobs.stat(digest)).size
            except (BlobNotFound, CorruptBlob) as error:
                named.lacks(digest, error)
        return found

    @asynccontextmanager
    async def _charged(self, entries: list[Entry], blobs: dict[Digest, int]) -> AsyncIterator[None]:
        """Within the workspace's quota. Raises QuotaExceeded."""
        if self._quota is None or not self._quota.limited:
            yield
            return
        for entry in entries:
            if (named := named_blob(entry.data)) is not None:
                count(blobs, {named.digest: named.size})
        size = sum(len(log_line(entry, 0)) for entry in entries)
        async with self._quota.taking(lambda: size, blobs):
            yield

    async def _compare(self, line: Control, log: AppendLog) -> None:
        wanted = line.fields("head")
        if (log.head.seq, log.head.crc) != (wanted.number_of("seq"), wanted.number_of("crc")):
            return  # it goes on behind that in this store
        if log.base.seq != line.head("base").seq:
            return  # one was compacted: it has forgotten what nobody can get at any more
        expected = line.fields("fold") if line.get("fold") is not None else None
        if expected is None or expected.number_of("version") != FOLD_VERSION:
            return
        self._told(f"comparing {log.space}")
        try:
            found = await check(self._target, log)
        except Damage as error:
            raise InvalidInput(f"{error} (the log that begins with line {line.number})") from error
        if found and found != expected.text("sha256"):
            raise StoreFailed(
                f"the log that begins with line {line.number} says something else here than where it was exported: "
                "please report this"
            )

    # ---- entries and blobs

    async def _entries(self, line: Control, log: AppendLog) -> AsyncGenerator[list[Entry], None]:
        """The entries that `log` doesn't have yet, in whole batches; blobs among them are stored."""
        base, wanted = line.head("base"), line.fields("head")
        last, last_crc = wanted.number_of("seq"), wanted.number_of("crc")
        present = self._present(log, base, last)
        have = int(log.head.seq)
        held: list[Entry] = []
        size = 0
        seq, ts, crc, more = int(base.seq), int(base.ts), base.crc, 0
        while (entry := await self._next_entry(seq, crc)) is not None:
            if wrong := why_not(entry, seq, ts, more):
                raise self._wrong(f"(entry {entry.seq}) {wrong}")
            seq, ts, crc, more = entry.seq, entry.ts, entry.crc, entry.more
            if seq <= have:
                if not await present.has(entry):
                    raise Diverged(
                        f"line {self._lines.number} diverged: the store has another entry {seq} there; import it into "
                        "another store"
                    )
                continue
            held.append(entry)
            size += len(entry.data)
            if size >= _PIECE and not entry.more:
                self._told(f"importing {log.space}: entry {seq} of {last}")
                yield held
                held, size = [], 0
        if (seq, crc) != (last, last_crc) or (held and held[-1].more):
            raise self._wrong(f"comes behind entry {seq} of a log that has {last}: lines are missing")
        if held or self._begins is not None:
            yield held

    async def _next_entry(self, seq: int, crc: int) -> Entry | None:
        """What comes behind the entry with that seq and crc; None where another kind of line does."""
        while True:
            self._line = await self._lines.next()
            if isinstance(self._line, bytes):
                return self._entry(self._line, seq, crc)
            if self._line is None or self._line.kind != "blob":
                return None
            await self._blob(self._line)

    def _present(self, log: AppendLog, base: Head, last: int) -> _Present:
        """What the store has of it. An empty log begins behind `base`, together with its first entries."""
        there = log.head
        self._begins = base if there.seq == 0 and base.seq else None
        apart = there.seq < base.seq or last < log.base.seq or (there.seq == base.seq and there.crc != base.crc)
        if there.seq and apart:
            raise Diverged(
                f"line {self._lines.number} begins a log of entries {base.seq + 1} to {last}: the one in this store "
                f"has {log.base.seq + 1} to {there.seq}, so they can't be compared; import it into another store"
            )
        return _Present(log, base.seq)

    def _entry(self, line: bytes, seq: int, crc: int) -> Entry:
        """What must stand behind the entry with that seq and crc. Raises InvalidInput."""
        entry = parse(line)
        if entry is None:
            raise self._wrong("isn't an entry of a log")
        if entry.seq != seq + 1:
            raise self._wrong(f"has entry {entry.seq}, where {seq + 1} must stand")
        if not checks(line, entry, crc):
            raise self._wrong(f"(entry {entry.seq}) has a wrong checksum: it was changed, or what stood before it")
        try:
            orjson.loads(entry.data)
        except orjson.JSONDecodeError:
            raise self._wrong(f"(entry {entry.seq}) has no JSON value as its data") from None
        if not intake.fits(entry.data):
            raise self._wrong(f"(entry {entry.seq}) is nested too deep")
        return entry

    async def _blob(self, line: Control) -> None:
        digest, size = line.text("digest"), line.number_of("size")
        if not is_digest(digest):
            raise self._wrong("has no digest")
        async with aclosing(self._pieces(size)) as pieces:
            await self._store(Digest(digest), size, pieces)

    async def _store(self, digest: Digest, size: int, pieces: AsyncIterator[bytes]) -> None:
        try:
            there = await self._target.blobs.stat(digest)
        except (BlobNotFound, CorruptBlob):
            if self._quota is not None:
                # Not in flight while it comes: that may take any time. It counts when an entry names it.
                async with self._quota.taking(int, {digest: size}):
                    pass
            ref = await self._target.blobs.put(pieces)
            if ref.digest != digest:
                raise self._wrong(f"ends a blob that isn't what its digest says ({digest})") from None
            self.moved.blobs += 1
            self.moved.blob_bytes += size
            return
        async for _ in pieces:
            pass
        if there.size != size:
            raise self._wrong(f"ends a blob of another size than {digest} has")

    async def _pieces(self, size: int) -> AsyncGenerator[bytes, None]:
        left = size
        while left:
            line = await self._lines.next()
            if not isinstance(line, Control) or line.kind != "bytes":
                raise self._wrong(f"comes where {left} bytes of a blob are missing")
            piece = line.piece()
            left -= len(piece)
            if not piece or left < 0:
                raise self._wrong("has other bytes of a blob than its size says")
            yield piece
