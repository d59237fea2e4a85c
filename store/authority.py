"""Who may append to a space: this instance, under a lease, or the one to which its appends are sent.

An append needs a grant. Where this instance has one that hasn't lapsed by its clock, that is all; it is renewed beside
the appends, and lapses when there are none, so that the authority goes to who writes. Else the lease is renewed or
acquired, or, while another instance has it, the append is forwarded (`store.forwarding`). An instance serves the
others from its first grant on. Clocks only say when to look: the backend refuses a lower epoch, whatever they say.

Who thought it held the lease and doesn't gets StaleEpoch: nothing was written, and the next append looks anew.

Concurrency: trio. `_lock` is held while a grant is got, renewed or given back; a `Space`'s own lock may be held then,
but no `Space` is waited for. An append that waits for somebody holds no lock.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol
from weakref import WeakValueDictionary

import trio

from store import forwarding
from store.driver import AppendLog, Clock, Driver, Grant
from store.errors import (
    CorruptLog,
    InvalidInput,
    LeaseHeld,
    NotHolder,
    SeqConflict,
    StaleEpoch,
    StoreError,
    StoreFailed,
    StoreFull,
    Unreachable,
)
from store.forwarding import Asked, Attempt, HeldSpace, Silence
from store.model import Epoch, Head, Millis, NewEntry, Seq, SpaceId
from store.peers import PeerCredentials, Say

log = logging.getLogger("chatfs")

LEASE_MS: Final = 5000
"""How long a grant lasts that nobody renews."""
IDS: Final = 512
"""Of how many forwarded appends it is remembered that they were made."""
_AGAIN: Final = (0.002, 0.04)
"""Seconds until a holder that can't be reached is tried again, at first and at most."""


class _Lapsed(Unreachable):
    """A holder didn't answer as long as its grant was valid: it is stopped, or slow."""


class Appender(Protocol):
    """What a holder appends others' entries with: see `store.space.Space`."""

    @property
    def head(self) -> Head: ...
    def hold(self) -> AbstractContextManager[None]: ...
    async def append_under(
        self, batch: Sequence[NewEntry], epoch: Epoch, expected_seq: Seq | None, intent: Callable[[Head], None]
    ) -> Seq: ...
    async def sync(self) -> None: ...


class Authorities:
    """What the spaces of one opened store share: as whom they append, and whom they serve."""

    def __init__(self, driver: Driver, clock: Clock, *, lease_ms: int = LEASE_MS) -> None:
        self.leases = driver.leases
        self.peers = driver.peers
        self.clock = clock
        self.lease_ms = lease_ms
        self.durable = True
        """Whether a forwarded append is to be durable when it is acknowledged."""
        self.held: dict[SpaceId, Authority] = {}
        self._known: WeakValueDictionary[SpaceId, Authority] = WeakValueDictionary()
        self._made: OrderedDict[str, Seq] = OrderedDict()
        self._making: dict[str, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._wanted = trio.Event()
        self._serving = trio.Event()
        self._failure: StoreError | None = None
        self._over = False

    def of(self, space: SpaceId) -> Authority:
        """The space's: one, whoever in this instance has the space in hand."""
        found = self._known.get(space)
        if found is None:
            found = self._known[space] = Authority(self, space)
        return found

    # ---- serving

    async def run(self) -> None:
        """Serve the others, from when that is needed, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                try:
                    async with self.peers.serve(self.answer):
                        await self._serve()
                except StoreError as error:
                    self._failure = error
                    self._serving.set()
        finally:
            self._over = True
            self._serving.set()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._serving.set()
            try:
                await trio.sleep_forever()
            finally:
                if self._nursery is nursery:
                    self._nursery = None

    async def ready(self) -> None:
        """Return when the others can reach this instance. Raises what keeps them from it."""
        if self._nursery is not None and not self.peers.announced:
            # Somebody has removed its files: what it served on is gone with them.
            self._nursery.cancel_scope.cancel()
            self._nursery = None
        while self._nursery is None and not self._over:
            if self._serving.is_set():
                self._serving = trio.Event()
            self._wanted.set()
            await self._serving.wait()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
        if self._over:
            self.peers.announce()

    def soon(self, task: Callable[[], object]) -> None:
        """Start it beside the others, as long as there is where to."""
        if self._nursery is not None:
            self._nursery.start_soon(task)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Give back what is still held."""
        for authority in list(self.held.values()):
            await authority.give_back()

    # ---- answering

    async def answer(self, peer: PeerCredentials, request: bytes, say: Say) -> bytes:
        """What others ask of this instance. Raises Unreachable where an asker has gone before its append was made."""
        try:
            append = forwarding.asked(request, peer)
            if append is None:
                return forwarding.holding([authority.told() for authority in self.held.values()])
            return forwarding.made(await self._append(append, say))
        except Unreachable:
            raise
        except StoreError as error:
            return forwarding.failed(error)
        except Exception as error:
            log.exception("appending for another process failed")
            return forwarding.failed(StoreFailed(f"appending failed in the process that holds the log ({error!r})"))

    async def _append(self, append: Asked, say: Say) -> Seq:
        while (others := self._making.get(append.id)) is not None:
            await others.wait()
        done = self._making[append.id] = trio.Event()
        try:
            authority = self.held.get(append.space)
            if authority is None or authority.epoch != append.epoch:
                raise NotHolder(f"the lease of {append.space} isn't held here under epoch {append.epoch}")
            return await authority.serve(append, self._made, say)
        finally:
            del self._making[append.id]
            done.set()


class Authority:
    """Who may append to one space."""

    __slots__ = (
        "__weakref__",
        "_all",
        "_appender",
        "_grant",
        "_lock",
        "_other",
        "_since",
        "_until",
        "clock",
        "epoch",
        "renew_at",
        "space",
    )

    def __init__(self, everything: Authorities, space: SpaceId) -> None:
        self.space = space
        self.clock = everything.clock
        self.epoch = Epoch(0)
        """Of the grant."""
        self.renew_at = 0
        """Until then, by the clock, an append needs nothing but the epoch; 0 without a grant."""
        self._all = everything
        self._appender: Appender | None = None
        self._grant: Grant | None = None
        self._other: Grant | None = None
        """Under which another instance has appended for this one: it is asked again, without a look at the lease."""
        self._since = Millis(0)
        self._until = 0
        """From then on the lease is renewed before the next append: it is about to lapse."""
        self._lock = trio.Lock()

    def still(self) -> bool:
        """Whether an append may be made under the grant right now, although it is time to renew it: that begins."""
        if self._grant is None or self.clock() >= self._until:
            return False
        self.renew_at = self._until
        self._all.soon(self._renew)
        return True

    # ---- appending

    async def append(
        self, appender: Appender, opened: AppendLog, batch: Sequence[NewEntry], expected_seq: Seq | None
    ) -> tuple[Seq, bool]:
        """`AppendLog.append`, by whoever may; and whether that is durable by now.

        Raises StaleEpoch where this instance thought that it may, besides what `AppendLog.append` raises.
        """
        attempt = Attempt(batch, expected_seq)
        pause = _AGAIN[0]
        silence = Silence(self._all.lease_ms / 1000)
        while True:
            known, said = self.epoch, attempt.said
            grant = self._asked() or await self._get(appender, silence.lapsed, fenced=said is not None)
            try:
                return await self._append_once(grant, attempt, opened, silence)
            except StaleEpoch:
                self.lost()
                if known == grant.epoch and said is None:
                    raise
            except (NotHolder, Unreachable) as error:
                if self._other is grant:
                    self._other = None
                    continue
                # One that is stopped lapses; one that is renewed all the time might never.
                silence.lasts(grant)
                if not isinstance(error, _Lapsed) and silence.goes_on(grant):
                    raise Unreachable(await self._why(grant)) from error
            except StoreError as error:
                # What another holder said before it went may have been written. By now it is, or never will be.
                made = await self._look(attempt, opened) if said is not None and said is attempt.said else None
                if made is not None:
                    return made
                if said is None or not isinstance(error, SeqConflict):
                    raise
                continue
            await trio.sleep(pause)
            pause = min(2 * pause, _AGAIN[1])

    async def _append_once(
        self, grant: Grant, attempt: Attempt, opened: AppendLog, silence: Silence
    ) -> tuple[Seq, bool]:
        everything = self._all
        if grant.holder == everything.peers.name:
            seq = await opened.append(attempt.batch, expected_seq=attempt.expected_seq, epoch=grant.epoch)
            return seq, False
        seq = forwarding.result(await self._forward(grant, attempt, silence))
        self._other = grant
        await opened.refresh()
        return seq, everything.durable

    def _asked(self) -> Grant | None:
        """The grant of who was asked last, unless it may have lapsed since."""
        other = self._other
        return other if other is not None and other.expires > self.clock() else None

    async def _look(self, attempt: Attempt, opened: AppendLog) -> tuple[Seq, bool] | None:
        """What `append` returns, if a holder made it that couldn't say so any more."""
        seq = await attempt.look(opened)
        if seq is None:
            return None
        if self._all.durable:
            await opened.sync()
        return seq, self._all.durable

    async def _why(self, grant: Grant) -> str:
        """What is said where a holder goes on holding the lease, and doesn't answer."""
        who = next((info for info in await self._all.peers.everyone() if info.name == grant.holder), None)
        named = f"process {who.pid} ({who.program}, uid {who.uid})" if who is not None else f"instance {grant.holder}"
        return f"{named} appends to {grant.space} now and takes nothing from others: end it, or do this as its user"

    async def _forward(self, grant: Grant, attempt: Attempt, silence: Silence) -> bytes:
        """What the holder answers. Raises Unreachable where it doesn't; _Lapsed, not before its grant has lapsed."""
        lapsed = False

        async def still() -> bool:
            nonlocal lapsed
            lapsed = not await self._is_valid(grant, silence)
            return not lapsed

        request = attempt.request(self.space, grant.epoch, durable=self._all.durable)
        try:
            return await self._all.peers.ask(grant.holder, request, heard=attempt.hear, still=still)
        except Unreachable as error:
            if lapsed:
                raise _Lapsed(f"the lease of {self.space} lapsed while its holder was asked") from error
            raise

    async def _is_valid(self, grant: Grant, silence: Silence) -> bool:
        """Whether another instance's grant hasn't lapsed, as it stands now."""
        try:
            found = await self._all.leases.current(self.space)
        except StoreError as error:
            log.debug("%s", error)  # who asks next meets it
            return False
        if found is None or found.epoch != grant.epoch or found.expires <= self.clock():
            return False
        return not silence.lasts(found)

    async def serve(self, append: Asked, made: OrderedDict[str, Seq], say: Say) -> Seq:
        """Append for another instance, under the epoch that it has seen; what is in `made` isn't made anew."""
        appender = self._appender
        assert appender is not None
        with appender.hold():
            seq = made.get(append.id)
            if seq is None:
                try:
                    seq = await appender.append_under(
                        append.batch, append.epoch, append.expected_seq, lambda head: say(forwarding.intent(head))
                    )
                except StaleEpoch as error:
                    self.lost()
                    raise NotHolder(str(error)) from error
                except CorruptLog as error:
                    # Of the log as it was when it was opened here: it may have been brought back from a backup since.
                    await self.give_back()
                    raise NotHolder(str(error)) from error
                except ValueError as error:
                    raise InvalidInput(str(error)) from error
                made[append.id] = seq
                if len(made) > IDS:
                    made.popitem(last=False)
            if append.durable:
                await appender.sync()
            return seq

    def told(self) -> HeldSpace:
        """For `chatfs status`."""
        return HeldSpace(
            self.space, self.epoch, self._appender.head.seq if self._appender is not None else Seq(0), self._since
        )

    # ---- the grant

    async def _get(self, appender: Appender, lapsed: Grant | None, *, fenced: bool) -> Grant:
        """The grant under which to append: this instance's, or the one of who has to be asked.

        `lapsed` is one that counts as such. In a store that is too full for a lease's file, it is the last one, unless
        it has to be a new one (`fenced`).
        """
        async with self._lock:
            if self._grant is not None:
                if self.clock() < self._until:
                    self._appender = appender
                    return self._grant
                try:
                    return self._has(await self._all.leases.renew(self._grant, self._all.lease_ms), appender)
                except NotHolder:
                    self.lost()
                except StoreFull:
                    pass  # perhaps there is room for another
            return await self._acquire(appender, lapsed, fenced=fenced)

    async def _acquire(self, appender: Appender, lapsed: Grant | None, *, fenced: bool) -> Grant:
        leases, me = self._all.leases, self._all.peers.name
        found = await leases.current(self.space)
        while True:
            if found is not None and found != lapsed and self._is_anothers(found):
                return found
            try:
                await self._all.ready()
                acquired = await leases.acquire(self.space, me, self._all.lease_ms, lapsed=lapsed)
                return self._has(acquired, appender)
            except StoreFull:
                # What makes room has to be appended, too. Nobody has the lease, and who had it last can't fork the log:
                # the backend lets only one append at a time.
                if fenced:
                    raise
                return Grant(self.space, me, found.epoch if found is not None else Epoch(0), Millis(0))
            except LeaseHeld:
                found = await leases.current(self.space)
                if found is not None and found.holder != me:
                    return found

    def _is_anothers(self, found: Grant) -> bool:
        peers = self._all.peers
        return found.holder != peers.name and found.expires > self.clock() and not peers.is_dead(found.holder)

    def _has(self, grant: Grant, appender: Appender) -> Grant:
        """The grant was got, or renewed."""
        if self._grant is None or self._grant.epoch != grant.epoch:
            self._since = self.clock()
        self._grant, self._other = grant, None
        self._appender = appender
        self.epoch = grant.epoch
        lease_ms = self._all.lease_ms
        self._until = grant.expires - lease_ms // 10
        self.renew_at = grant.expires - lease_ms * 2 // 3
        self._all.held[self.space] = self
        return grant

    async def _renew(self) -> None:
        """Beside the appends."""
        async with self._lock:
            if self._grant is None or self._appender is None:
                return
            try:
                self._has(await self._all.leases.renew(self._grant, self._all.lease_ms), self._appender)
            except NotHolder:
                self.lost()
            except StoreError as error:
                log.debug("the lease of %s isn't renewed: %s", self.space, error)  # the next append tries that

    def lost(self) -> None:
        """Another instance has it, or nobody."""
        self._grant = self._appender = None
        self.epoch = Epoch(0)
        self.renew_at = self._until = 0
        self._all.held.pop(self.space, None)

    async def give_back(self, appender: Appender | None = None) -> None:
        """Let others have it; where `appender` is given, only if it was the last that appended."""
        async with self._lock:
            grant = self._grant
            if grant is None or (appender is not None and appender is not self._appender):
                return
            self.lost()
            try:
                await self._all.leases.release(grant)
            except StoreError as error:
                log.debug("the lease of %s lapses by itself: %s", self.space, error)
