"""history.jsonl: the event log, readable, append-only.

Handles are `direct_io`. Reading ones, because the kernel takes in that a file has grown in two steps, the size and then
the pages: in between, who reads through its cache gets NUL bytes, and a log grows all the time. Writing ones, because
the kernel's offset means nothing: every complete line of a write becomes an entry, all lines of one write one atomic
batch. The tail of a line waits in the handle until its newline, or until close.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.nodes.base import Change, Directory, Handle, Node, refuse
from fusefs.polling import events
from store import events as ev
from store import intake
from store.errors import InvalidEvent, LineTooLong, QuotaExceeded
from store.model import LINE_MAX, Head, NewEntry, Seq, uuid7

if TYPE_CHECKING:
    from pyfuse3 import PollHandle

    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.scratch import ScratchArea
    from store.quota import Quota

log = logging.getLogger(__name__)

HEAD_NS: Final = 1_000_000
UNFINISHED_MAX: Final = 128 << 20
"""Bytes of unfinished lines that a mount keeps, of all open logs together: who opens one often must not fill memory."""


def head_mtime_ns(head: Head) -> int:
    """When a log last moved: its last entry's time, strictly increasing with every entry."""
    return head.ts * HEAD_NS + head.seq % HEAD_NS


class LogOwner(Protocol):
    """What a log file needs of whose log it is."""

    identity: str
    scratch: ScratchArea

    @property
    def quota(self) -> Quota: ...
    @property
    def created_ns(self) -> int: ...
    @property
    def text_id(self) -> int | None: ...
    @property
    def seq(self) -> Seq: ...
    async def head(self) -> Head: ...
    async def read_text(self, offset: int, size: int) -> bytes: ...
    async def append(self, batch: Sequence[NewEntry]) -> Seq: ...
    def append_now(self, batch: Sequence[NewEntry]) -> bool: ...
    async def sync(self) -> None: ...
    def copied_by(self, process: int, names: Iterable[bytes]) -> None: ...
    async def replaceable(self) -> bool: ...
    def held(self, node: Node) -> None: ...
    def dropped(self, node: Node) -> None: ...


class LogFile(Node):
    """The log of a chat or of a workspace."""

    __slots__ = ("_heard", "_own", "_writing", "owner", "pollers", "text_id")

    def __init__(self, mount: Mount, owner: LogOwner, parent: Directory) -> None:
        super().__init__(mount, f"{owner.identity}/history.jsonl", parent, b"history.jsonl")
        self.owner = owner
        self.text_id: int | None = None
        """Which text the kernel may have pages of."""
        self.pollers: set[LogHandle] = set()
        """Handles that somebody waits at for entries."""
        self._heard = 0
        """Up to which seq watchers know that it grew."""
        self._own = 0
        """How many entries after that were written to this file, which the kernel reports by itself."""
        self._writing = 0

    def appeared(self) -> None:
        super().appeared()
        self.owner.held(self)
        self._heard, self._own = self.owner.seq, 0

    def vanished(self) -> None:
        super().vanished()
        self.owner.dropped(self)

    def log_moved(self) -> None:
        """The log moved: mostly it grew, but after a compaction or a repair it is another text."""
        if self._is_another():
            self.mount.notifier.contents(self)
        else:
            self.mount.notifier.attributes(self)
        if self.pollers:
            waiting, self.pollers = self.pollers, set()
            for handle in waiting:
                handle.wake()
        self.mount.announcer.modified(self, heard=self._grew_elsewhere)

    async def append(self, batch: Sequence[NewEntry]) -> None:
        """Append what was written to this file."""
        self._writing += 1
        try:
            await self.owner.append(batch)
            self._own += len(batch)
        finally:
            self._writing -= 1

    def append_now(self, new: NewEntry) -> bool:
        """`append` of one entry, where nothing has to be waited for; False: nothing was done."""
        if not self.owner.append_now((new,)):
            return False
        self._own += 1
        return True

    def _grew_elsewhere(self) -> bool | None:
        """Whether there are entries that weren't written to this file; None while some are being written."""
        if self._writing:
            return None
        moved, own = self.owner.seq - self._heard, self._own
        self._heard, self._own = self.owner.seq, 0
        # A log that isn't in use moves without saying how far.
        return moved != own or moved == 0

    def _is_another(self) -> bool:
        """Whether the text isn't the one of the last call, as far as that can be known."""
        known, self.text_id = self.text_id, self.owner.text_id or self.text_id
        return known is not None and known != self.text_id

    async def attributes(self) -> EntryAttributes:
        head = await self.owner.head()
        if self._is_another():
            self.mount.notifier.contents(self)
        when = head_mtime_ns(head) or self.owner.created_ns
        return attributes(self.mount.options, self.ino, self.mount.options.file_mode, size=head.size, mtime_ns=when)

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        self.check_owner(change)
        if change.size is not None and (await self.owner.head()).size not in {0, change.size}:
            raise refuse(errno.EPERM)

    def may_grow(self, flags: int) -> bool:
        return self.mount.options.append_only and bool(flags & os.O_APPEND) and not flags & os.O_TRUNC

    async def open(self, flags: int, caller: Caller) -> Handle:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        replacing = writing and not flags & os.O_APPEND and await self.owner.replaceable()
        if flags & os.O_TRUNC and not replacing and (await self.owner.head()).size:
            raise refuse(errno.EPERM)
        return LogHandle(self, flags, caller, replacing=replacing)


def attached_names(batch: Sequence[NewEntry]) -> Iterator[bytes]:
    """The names that entries give to attachments: whoever copies a chat will make these files, too."""
    for new in batch:
        event = ev.parse(new.data)
        if isinstance(event, ev.AttachmentPut):
            yield event.name.encode()
        elif isinstance(event, ev.AttachmentRenamed):
            yield event.to.encode()


class LogHandle(Handle):
    """An open log. `replacing`: opened without O_APPEND on a log that a copy is still to fill, from its start."""

    __slots__ = (
        "_pending",
        "actor",
        "additive",
        "expected",
        "file",
        "plain",
        "read_to",
        "refusal",
        "rejected",
        "replacing",
        "unsynced",
        "waiting",
    )

    def __init__(self, file: LogFile, flags: int, caller: Caller, *, replacing: bool) -> None:
        super().__init__(file, flags, caller)
        self.file = file
        self.direct_io = True
        self.replacing = replacing
        self.actor = caller.actor
        self.additive = file.mount.options.append_only
        self.plain = self.appending and not self.additive and not replacing
        """Whether a line only has to be an entry to be taken."""
        self.expected = 0
        self._pending = b""
        self.rejected: str | None = None
        self.refusal: tuple[bytes, int] | None = None
        """The bytes that a line begun by earlier writes was refused with, and the errno."""
        self.unsynced = False
        self.read_to = 0
        """The end of the furthest read that came here."""
        self.waiting: PollHandle | None = None

    @property
    def pending(self) -> bytes:
        """The begin of a line whose rest hasn't come yet."""
        return self._pending

    @pending.setter
    def pending(self, tail: bytes) -> None:
        self.file.mount.unfinished += len(tail) - len(self._pending)
        self._pending = tail

    async def read(self, offset: int, size: int) -> bytes:
        found = await self.file.owner.read_text(offset, size)
        self.read_to = max(self.read_to, offset + len(found))
        return found

    async def poll(self, waiting: PollHandle | None, thread: int) -> int:
        if waiting is not None:
            # Also where there is something now: who waits for edges doesn't ask again before the next.
            self.waiting = waiting
            self.file.pollers.add(self)
        return events(self, (await self.file.owner.head()).size, thread)

    def wake(self) -> None:
        """There is more: have who waits ask again."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.notify()

    async def write(self, offset: int, data: bytes) -> int:
        return len(data) if self._append_line(data) else await self._write(data, offset)

    async def _write(self, data: bytes, offset: int) -> int:
        if not self.appending and (not self.replacing or offset != self.expected):
            raise refuse(errno.EPERM)
        if self.refusal is not None:
            self._refuse_again(data)
        end = data.rfind(b"\n") + 1
        if end == 0:
            self._keep(data)
            self.expected += len(data)
            return len(data)
        # Taken before the append waits: a duplicate may be closed meanwhile, which would take the tail as a line.
        carried, self.pending = self.pending, b""
        *lines, _ = (carried + data[:end]).split(b"\n")
        try:
            accepted = await self._accept(lines)
        except BaseException:
            self.pending = carried
            raise
        if accepted == 0:
            code = self._why_not(lines[0])
            if carried:
                await self._reject(lines[0])
                self.rejected = None
                self.refusal = (data, code)
            raise refuse(code)
        if self.rejected is not None:
            self._forget_rejected()
        taken = len(data)
        if accepted < len(lines):
            taken = sum(map(len, lines[:accepted])) + accepted - len(carried)
        elif end < len(data):
            self._keep(data[end:])
        self.expected += taken
        return taken

    def _append_line(self, data: bytes) -> bool:
        """Append what is one whole line, as most writes are, where nothing has to be waited for; False: nothing was
        done.
        """
        if (
            not self.plain
            or self._pending
            or self.refusal is not None
            or self.rejected is not None
            or data.find(b"\n") != len(data) - 1
        ):
            return False
        try:
            new = intake.accept(data, self.actor, uuid7)
        except (InvalidEvent, LineTooLong):
            return False
        if not self.file.append_now(new):
            return False
        self.unsynced = True
        return True

    def _refuse_again(self, data: bytes) -> None:
        """Where a large write(2) comes in pieces, the kernel makes a short write of an error in a later one, and only
        the program's next write can tell it.
        """
        if self.refusal is not None:
            (refused, code), self.refusal = self.refusal, None
            size = min(len(refused), len(data))
            if refused[:size] == data[:size]:
                raise refuse(code)

    def _keep(self, tail: bytes) -> None:
        if len(self.pending) + len(tail) > LINE_MAX:
            raise refuse(errno.EFBIG)
        if self.file.mount.unfinished + len(tail) > UNFINISHED_MAX:
            raise refuse(errno.ENOMEM)
        self.pending += tail

    async def _accept(self, lines: list[bytes]) -> int:
        """Append the lines up to the first bad one; how many those are."""
        batch: list[NewEntry] = []
        actor = self.actor
        good = 0
        for line in lines:
            if line and not line.isspace():
                try:
                    new = intake.accept(line, actor, uuid7)
                except (InvalidEvent, LineTooLong):
                    break
                if self.additive and not intake.only_adds(new):
                    break
                batch.append(new)
            good += 1
        if batch:
            await self.file.append(batch)
            self.unsynced = True
            if self.replacing:
                self.file.owner.copied_by(self.caller.process, attached_names(batch))
        return good

    def _why_not(self, line: bytes) -> int:
        """The errno for a line that wasn't accepted."""
        if len(line) > LINE_MAX:
            return errno.EFBIG
        try:
            intake.accept(line, self.actor, uuid7)
        except InvalidEvent:
            return errno.EINVAL
        return errno.EPERM

    async def _reject(self, data: bytes) -> None:
        """Keep what can't be an entry: its first bytes were taken by an earlier write."""
        self._forget_rejected()
        async with self.file.owner.quota.taking(lambda: len(data)):
            self.rejected = self.file.owner.scratch.keep("history.jsonl.rejected", data)

    def _forget_rejected(self) -> None:
        """The tail that an earlier close was refused has been finished since."""
        if self.rejected is not None:
            with contextlib.suppress(FileNotFoundError):
                self.file.owner.scratch.unlink(self.rejected.encode())
            self.rejected = None

    async def flush(self) -> None:
        if self.pending:
            tail, self.pending = self.pending, b""
            try:
                accepted = await self._accept([tail])
            except BaseException:
                self.pending = tail + self.pending
                raise
            if accepted == 0:
                # The tail stays in the handle: a duplicate of it may still be open, and bring the rest of the line.
                self.pending = tail + self.pending
                await self._reject(tail)
                raise refuse(self._why_not(tail))
            self._forget_rejected()
        if self.unsynced:
            self.unsynced = False
            await self.file.mount.synced(self.file.owner.sync)

    async def sync(self) -> None:
        self.unsynced = False
        await self.file.owner.sync()

    async def release(self) -> None:
        self.file.pollers.discard(self)
        self.waiting = None
        tail, self.pending = self.pending, b""
        if tail and self.rejected is None:
            try:
                await self._reject(tail)
            except QuotaExceeded as error:
                log.error("a line that wasn't finished isn't kept: %s", error)  # noqa: TRY400 - one line
