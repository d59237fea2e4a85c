"""How a space in use is appended to: under the authority that this instance has, or by who has it; and made durable.

A part of `store.space.Space`, which opens the log and keeps the fold.

Concurrency: as there. `append` of what nothing has to be waited for yields before it begins, but only now and then: so
that who appends without a pause can be cancelled, and others have their turn.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Final, Generic

import trio

from store.authority import Authority
from store.driver import AppendLog
from store.errors import CorruptLog, CorruptSnapshot, StaleEpoch, StoreError
from store.folded import Change, Moved, S, all_of
from store.model import Epoch, Head, NewEntry, Seq, SpaceId

_TURN: Final = 0.002
"""Seconds for which appends follow each other without a turn for others."""


class Appending(ABC, Generic[S]):
    """The appending side of a space."""

    __slots__ = (
        "_authority",
        "_crc",
        "_head",
        "_lock",
        "_log",
        "_moved",
        "_text_id",
        "damage",
        "id",
        "state",
        "unsynced",
    )

    _turn: ClassVar[float] = 0.0
    """When others get one, by the monotonic clock."""

    id: SpaceId
    state: S | None
    damage: CorruptLog | None
    unsynced: bool
    _authority: Authority | None
    _crc: int
    _head: Head
    _lock: trio.Lock
    _log: AppendLog | None
    _moved: Moved
    _text_id: int | None

    @property
    @abstractmethod
    def name(self) -> str: ...
    @property
    @abstractmethod
    def head(self) -> Head: ...
    @abstractmethod
    def hold(self) -> AbstractContextManager[None]: ...
    @abstractmethod
    async def log(self, *, make: bool = False) -> AppendLog: ...
    @abstractmethod
    async def refresh(self) -> Head: ...
    @abstractmethod
    async def load(self) -> S: ...
    @abstractmethod
    def check_sound(self) -> None: ...
    @abstractmethod
    async def _catch_up(self, *, load: bool = False) -> S: ...
    @abstractmethod
    def _distrust(self, damage: CorruptSnapshot) -> None: ...

    async def append(self, batch: Sequence[NewEntry], *, expected_seq: Seq | None = None) -> Seq:
        """Append one batch; a loaded fold has it when this returns. Errors as `AppendLog.append` has them.

        Raises StaleEpoch where another process has taken the lease: nothing was appended, and the fold has caught up.
        """
        if time.monotonic() >= Appending._turn:
            await trio.lowlevel.checkpoint()
            Appending._turn = time.monotonic() + _TURN
        try:
            if expected_seq is None and batch and (made := self._append_now(batch)) is not None:
                log = self._log
                if log is not None and log.head.seq != made:
                    with self.hold():
                        await self._take_in(log)
                return made
            with self.hold():
                log = await self._log_to_append()
                durable = False
                if self._authority is None or not batch:
                    last = await log.append(batch, expected_seq=expected_seq)
                else:
                    last, durable = await self._authority.append(self, log, batch, expected_seq)
                self.unsynced |= not durable
                await self._take_in(log)
        except CorruptLog as damage:
            raise damage.again(self.name) from damage
        except StaleEpoch:
            if self._authority is not None:
                self._authority.lost()
            with contextlib.suppress(StoreError):
                await self.refresh()
            raise
        return last

    def append_now(self, batch: Sequence[NewEntry]) -> bool:
        """`append` of a batch that isn't empty, where nothing has to be waited for; False: nothing was done.

        Takes no turn for others: for who serves them in turns anyway.
        """
        try:
            made = self._append_now(batch)
        except (CorruptLog, StaleEpoch):
            return False  # the same again, from `append`
        if made is None:
            return False
        if self._log is not None and self._log.head.seq != made:
            self._moved(self.id, None)  # others' entries follow: whoever looks takes them in
        return True

    async def append_under(
        self, batch: Sequence[NewEntry], epoch: Epoch, expected_seq: Seq | None, intent: Callable[[Head], None]
    ) -> Seq:
        """`append` for another process, under a grant of this one. `intent` as `AppendLog.append` has it."""
        with self.hold():
            log = await self._log_to_append()
            last = await log.append(batch, expected_seq=expected_seq, epoch=epoch, intent=intent)
            self.unsynced = True
            await self._take_in(log)
        return last

    async def _log_to_append(self) -> AppendLog:
        """The log, if nothing is in the way of an append. Raises the damage that is."""
        log = await self.log()
        if self.damage is not None:
            await self.load()
            self.check_sound()
        if log.failure is not None:
            await log.recover()
        return log

    async def _take_in(self, log: AppendLog) -> None:
        """Something was appended."""
        if self.state is not None:
            await self._catch_up()
        elif self._head != log.head:
            self._head = log.head
            self._moved(self.id, None)

    def _append_now(self, batch: Sequence[NewEntry]) -> Seq | None:
        """`append`, where nothing has to be waited for and nobody else's entries come between; None: nothing was done.

        Where others have appended behind it before this process saw its end, the fold hasn't it yet.
        """
        log, state, before = self._log, self.state, self._head
        if log is None or self.damage is not None or log.head != before or self._lock.locked():
            return None
        if state is not None and (state.seq != before.seq or log.text_id != self._text_id):
            return None
        epoch = None
        authority = self._authority
        if authority is not None:
            if authority.clock() >= authority.renew_at and not authority.still():
                return None
            epoch = authority.epoch
        entries = log.append_now(batch, epoch=epoch)
        if entries is None:
            return None
        self.unsynced = True
        last = entries[-1].seq
        if log.head.seq != last:
            return last
        effect: Change | None = None
        if state is not None:
            try:
                effect = all_of([state.apply(entry) for entry in entries])
            except CorruptSnapshot as damage:
                self._distrust(damage)
        self._head = log.head
        self._crc = self._head.crc
        self._moved(self.id, effect)
        return last

    async def sync(self) -> None:
        """Return when all that was appended survives a power cut. What was appended here was so before a `release`."""
        if self._log is not None:
            with self.hold():
                await self._sync(self._log)

    async def _sync(self, log: AppendLog) -> None:
        self.unsynced = False
        try:
            if log.failure is not None:
                await log.recover()
            await log.sync()
        except BaseException:
            self.unsynced = True
            raise
