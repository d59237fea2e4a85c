"""A workspace's quota: what it may use, and that it never uses more.

Who is about to add bytes charges them first (`Quota.taking`), in all processes to one ledger (`store.quota.ledger`).
What is charged is never less than what is used, so what is used never exceeds the quota. Freed bytes stay charged until
something doesn't fit: only then it is measured what is really used (`store.usage`), and what still doesn't fit is
refused. What only removes or tidies up is counted and never refused.

Whose workspace has no quota pays an attribute test (`Quota.limited`).

Concurrency: trio. A block of `taking` is in flight: it must not enter another one, or wait for who might.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from store import codec
from store import events as ev
from store.errors import QuotaExceeded, SeqConflict, StoreError, StoreFailed
from store.model import BlobRef, Digest, NewEntry, Seq, clock_ms
from store.quota.ledger import Ledger, Record
from store.usage import Usage, count, named_blob

if TYPE_CHECKING:
    from store.space import Space
    from store.workspace import Workspace

Sizes = Mapping[Digest, int]

_NONE: Final[Sizes] = MappingProxyType({})
_OLD_MS: Final = 60_000
"""When a measurement is made anew although everything fits: something may have written that charges nothing."""
_HEARD_MS: Final = 2000
"""The same after the first one: until they hear that there is a quota now, others charge nothing."""
_PATIENCE: Final = 0.5
"""Seconds that a measurement waits for what is in flight, and keeps everybody else waiting."""
_GLANCE: Final = 0.05
"""The same where nothing hangs on it."""
_TRIES: Final = 8
_PAUSE: Final = 0.25
"""How often that is tried, and seconds in between, before something is refused although there may be room."""
TIDYING_MAX: Final = 1 << 20
"""Bytes of lines beyond the quota, of what only renames and the like: who goes on for ever fills the disk with them."""
_REMOVALS: Final = (ev.AttachmentRemoved, ev.MessageRemoved, ev.ChatTrashed, ev.ChatDeleted, ev.WorkspaceTrashed)
_TS: Final = 10**12
"""A time of as many digits as all have from 2001 to 2286."""
MARGIN: Final = 1000
"""Entries that others may append while an append is on its way: one more digit is charged where that could matter."""


class _Kind(NamedTuple):
    """What is added: as `taking` has it."""

    tidying: bool = False
    removing: bool = False


class _Unmeasured(Exception):
    """Nobody can tell yet, since something is in flight. `meant` is what there is to raise if that lasts."""

    def __init__(self, meant: StoreError) -> None:
        super().__init__()
        self.meant = meant


class Quota:
    """The quota of one workspace."""

    __slots__ = ("_known", "_known_since", "_ledger", "_shown", "_watched", "_workspace", "limited", "usage_of")

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.usage_of = Usage(workspace.driver, workspace.id)
        self.limited = not workspace.driver.read_only
        """Whether there is a quota, or nobody knows yet. A store that is only read takes nothing in anyway."""
        self._ledger = Ledger(workspace.driver.local_dir(workspace.space.id))
        self._known: dict[Digest, int] = {}
        """Blobs that are charged already, as far as that is known; valid with the measurement `_known_since`."""
        self._known_since = ""
        self._watched = False
        self._shown: tuple[float, Record | None, int] | None = None
        """When usage was last measured to be shown, what was charged then, and what it was."""

    def moved(self) -> None:
        """The workspace's log moved."""
        state = self._workspace.space.state
        self.limited = (state is None or state.quota_bytes != 0) and not self._workspace.driver.read_only

    # ---- adding

    @asynccontextmanager
    async def taking(
        self,
        size: Callable[[], int],
        blobs: Sizes = _NONE,
        *,
        tidying: bool = False,
        removing: bool = False,
        patient: bool = True,
    ) -> AsyncIterator[None]:
        """Add bytes in the block: `size()` of them (asked as late as can be), and blobs that may be there already.

        What is `tidying` isn't refused, unless there was very much of it that isn't `removing`. Who isn't `patient` is
        refused at once where nobody knows whether there is room. Raises QuotaExceeded.
        """
        if not self.limited:
            yield
            return
        flying = await self._take_off(size, blobs, _Kind(tidying, removing), _TRIES if patient else 1)
        try:
            yield
        finally:
            if flying:
                self._ledger.land()

    async def require(self, size: int, blobs: Sizes = _NONE) -> None:
        """Raises QuotaExceeded where so many bytes more would be too many now. Charges nothing."""
        if self.limited and (quota := await self._quota()):
            await self._in_turn(lambda: self._fitting(quota, lambda: size, blobs, _Kind()), _TRIES)

    async def append(
        self,
        space: Space[Any],
        batch: Sequence[NewEntry],
        *,
        expected_seq: Seq | None = None,
        tidying: bool = False,
    ) -> Seq:
        """`Space.append`, within the quota. What the entries name as attachments counts with them."""
        if not self.limited or not batch:
            return await space.append(batch, expected_seq=expected_seq)
        blobs = _named(batch)
        removing = tidying and all(_is_always_allowed(ev.parse(new.data)) for new in batch)
        while True:
            head = await space.refresh()
            after = head.seq if expected_seq is None else expected_seq
            exact = line_bytes(batch, after)
            if expected_seq is None and not tidying:
                wide = line_bytes(batch, after + MARGIN)
                try:
                    async with self.taking(lambda: wide, blobs, patient=wide == exact):  # noqa: B023 - ends before
                        return await space.append(batch)
                except QuotaExceeded:
                    if wide == exact:
                        raise
                # The very last bytes: nobody's entries must come between.
                with contextlib.suppress(SeqConflict):
                    async with self.taking(lambda: exact, blobs):  # noqa: B023 - as above
                        return await space.append(batch, expected_seq=after)
                continue
            async with self.taking(lambda: exact, blobs, tidying=tidying, removing=removing):  # noqa: B023 - as above
                return await space.append(batch, expected_seq=expected_seq)

    async def append_charged(self, space: Space[Any], entry: NewEntry, room: int) -> Seq:
        """Append an entry for which `room` is charged, within a block of `taking`."""
        while True:
            seq = (await space.refresh()).seq
            needed = line_bytes([entry], seq)
            if needed > room and (quota := await self._quota()):
                raise self._exceeded(quota, quota, needed - room)
            with contextlib.suppress(SeqConflict):
                return await space.append([entry], expected_seq=seq)

    def knows(self, ref: BlobRef) -> None:
        """A blob was made of what is charged, within a block of `taking`."""
        record = self._ledger.peek()
        if record is not None and record.measured == self._known_since:
            count(self._known, {ref.digest: ref.size})

    async def _quota(self) -> int:
        """As it is now; 0: none. From the first look on it is heard of changes."""
        if not self._watched:
            self._watched = True
            self._workspace.driver.watch(self._workspace.space.id)
        quota = (await self._workspace.load()).quota_bytes
        self.limited = quota != 0 and not self._workspace.driver.read_only
        return quota

    async def _take_off(self, size: Callable[[], int], blobs: Sizes, kind: _Kind, tries: int) -> bool:
        """Charge it; whether it is in flight now."""
        quota = await self._quota()
        if not quota:
            return False
        try:
            await self._in_turn(lambda: self._charge(quota, size, blobs, kind), 1 if kind.removing else tries)
        except QuotaExceeded:
            raise
        except StoreError:
            # What tidies up must work whatever the ledger's state: a later measurement finds what it has written.
            if kind.tidying:
                return False
            raise
        return True

    async def _in_turn(self, use: Callable[[], Awaitable[object]], tries: int) -> None:
        """`use` it with the ledger locked: again, while others are in flight, where that keeps it from measuring."""
        while True:
            tries -= 1
            try:
                async with self._ledger.locked():
                    await use()
                    return
            except _Unmeasured as unmeasured:
                if not tries:
                    raise unmeasured.meant from None
            await trio.sleep(_PAUSE)

    async def _charge(self, quota: int, size: Callable[[], int], blobs: Sizes, kind: _Kind) -> None:
        record, needed = await self._fitting(quota, size, blobs, kind)
        self._ledger.take_off()
        try:
            over = record.over + (0 if kind.removing else _beyond(record, needed, quota))
            self._ledger.write(record._replace(charged=record.charged + max(0, needed), over=over))
        except BaseException:
            self._ledger.land()
            raise
        if self._known_since == record.measured:
            count(self._known, blobs)

    async def _fitting(self, quota: int, size: Callable[[], int], blobs: Sizes, kind: _Kind) -> tuple[Record, int]:
        """What is charged, and what that would add to it. Raises QuotaExceeded, _Unmeasured."""
        found = self._ledger.read()
        record = await self._kept_up(found, quota)
        fresh = found is None or record.measured != found.measured
        needed = self._needed(size, blobs, record)
        if self._fits(needed, record, quota, kind):
            return record, needed
        before = record
        if not fresh and (kind.tidying or self._least(needed, blobs) <= quota):  # else no measurement can help
            record = await self._measure(record, quota)
            needed = self._needed(size, blobs, record)
            if self._fits(needed, record, quota, kind):
                return record, needed
        exceeded = self._exceeded(record.charged, quota, needed)
        if not fresh and record is before and self._least(needed, blobs) <= quota:
            raise _Unmeasured(QuotaExceeded(f"{exceeded}; what was freed lately isn't known while others write"))
        raise exceeded

    async def _kept_up(self, record: Record | None, quota: int) -> Record:
        """What the ledger says, or what is found anew where that is old."""
        if record is None:
            return await self._measure(None, quota)
        if 0 <= clock_ms() - record.at <= _OLD_MS:
            return record
        measured = await self._measure(record, quota, _GLANCE)
        # While others are in flight, they aren't kept waiting each time.
        return record._replace(at=clock_ms() - _OLD_MS + _HEARD_MS) if measured is record else measured

    @staticmethod
    def _fits(needed: int, record: Record, quota: int, kind: _Kind) -> bool:
        if kind.tidying:
            return (
                kind.removing or not (beyond := _beyond(record, needed, quota)) or record.over + beyond <= TIDYING_MAX
            )
        return needed <= 0 or record.charged + needed <= quota

    @staticmethod
    def _least(needed: int, blobs: Sizes) -> int:
        """What of it is needed even if all blobs are there."""
        return needed - sum(blobs.values())

    def _needed(self, size: Callable[[], int], blobs: Sizes, record: Record) -> int:
        known = self._known if self._known_since == record.measured else _NONE
        return size() + sum(max(0, found - known.get(digest, 0)) for digest, found in blobs.items())

    def _exceeded(self, used: int, quota: int, needed: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"workspace {self._workspace.called!r} uses {used} of {quota} bytes: {needed} more don't fit (make room, "
            f"or allow more with chatfs workspace quota {self._workspace.called} SIZE)"
        )

    # ---- measuring

    async def _measure(self, record: Record | None, quota: int, patience: float = _PATIENCE) -> Record:
        """What is used, from now on charged; `record` where what is in flight doesn't land in time.

        Raises _Unmeasured where that isn't known either.
        """
        async with self._ledger.alone(patience) as alone:
            if alone:
                used, blobs = await self.usage_of.measure(self._ledger.touch)
                if record is None:
                    record = self._ledger.measured(used, age=_OLD_MS - _HEARD_MS)
                else:
                    record = self._ledger.measured(used, record.over if used > quota else 0)
                self._known, self._known_since = blobs, record.measured
        if record is None:
            raise _Unmeasured(
                StoreFailed(
                    f"what workspace {self._workspace.called!r} uses can't be measured while others write: try again"
                )
            )
        return record

    async def usage(self, *, patience: float = 0.0) -> int:
        """Bytes that are used. With `patience`, where nothing was charged since, as they were so many seconds ago."""
        record = self._charged()
        now = trio.current_time()
        if self._shown is not None and record is not None and now - self._shown[0] < patience:
            _when, charged, used = self._shown
            if charged == record:
                return used
        used = await self._usage()
        self._shown = (now, self._charged(), used)
        return used

    def _charged(self) -> Record | None:
        """What the ledger says, where there is a quota: also of a store that is only read."""
        state = self._workspace.space.state
        return self._ledger.peek() if state is None or state.quota_bytes else None

    async def _usage(self) -> int:
        used, _blobs = await self.usage_of.measure()
        record = self._charged()
        if record is None or used <= record.charged:
            return used
        # Something was counted at two places on its way from one to the other; or it was never charged.
        if self._workspace.driver.read_only:
            return record.charged
        with contextlib.suppress(StoreError, _Unmeasured):
            if quota := await self._quota():
                async with self._ledger.locked():
                    return (await self._measure(self._ledger.read(), quota)).charged
        return used

    async def begin_anew(self) -> None:
        """There is to be a quota where there was none: nothing was charged meanwhile."""
        async with self._ledger.locked():
            self._ledger.void()

    def close(self) -> None:
        """Let go of what is open."""
        self._ledger.close()


def _is_always_allowed(event: ev.Event | ev.Unknown) -> bool:
    """Whether it takes something away, or sets the quota: there are only so many things, and the quota's owner may."""
    return isinstance(event, _REMOVALS) or (isinstance(event, ev.WorkspaceChanged) and event.quota_bytes is not None)


def _beyond(record: Record, needed: int, quota: int) -> int:
    """How many of those bytes go beyond the quota."""
    return max(0, min(needed, record.charged + needed - quota))


def line_bytes(batch: Sequence[NewEntry], after: int) -> int:
    """Bytes that the batch has in a log, behind that entry."""
    return len(codec.encode_batch(batch, Seq(after), [_TS] * len(batch), 0)[0])


def _named(batch: Sequence[NewEntry]) -> dict[Digest, int]:
    """The blobs that the entries name as attachments."""
    found: dict[Digest, int] = {}
    for new in batch:
        if (named := named_blob(new.data)) is not None:
            count(found, {named.digest: named.size})
    return found
