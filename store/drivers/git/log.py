"""Append to a log, truncate it, follow it: each is a commit, and the ref's compare-and-set decides.

What is to be committed is built and written beforehand, for the commit that the instance knows; if another was faster,
it looks and builds anew. Who loses again and again keeps the turn while it builds.

Concurrency: on the trio loop. From when a turn is taken until it is given back there is no await.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Final

import trio

from store import durability
from store.driver import Clock
from store.drivers.git import text
from store.drivers.git.building import Building, Shortening
from store.drivers.git.following import Subscription
from store.drivers.git.objects import BrokenObject
from store.drivers.git.place import Place
from store.drivers.git.readers import Backward, Forward
from store.drivers.git.readers import Shown as Reading
from store.drivers.git.refs import BrokenRef
from store.drivers.git.stable import Shown
from store.drivers.git.text import View
from store.drivers.git.turn import PATIENCE, Moved
from store.drivers.signal import Signal
from store.errors import CorruptLog, SeqConflict, SpaceNotFound, StaleEpoch, StoreError
from store.model import EMPTY_HEAD, Entries, Entry, Epoch, Head, NewEntry, Seq

_OPTIMISTIC: Final = 3
"""So often a batch is built without having the turn."""
_LARGE: Final = 1024 * 1024
"""Bytes of a log from which on it is written anew in a thread."""
_PAUSE: Final = 0.002
"""Seconds until a ref that git has locked is tried again."""

Intent = Callable[[Head], None] | None


class GitLog:
    """An opened log; see `store.driver.AppendLog`."""

    def __init__(self, place: Place, clock: Clock, signal: Signal, follow: Callable[[], Callable[[], None]]) -> None:
        self.space = place.space
        self._place = place
        self._clock = clock
        self.signal = signal
        self._follow = follow
        self._view = text.empty()
        self._damage: CorruptLog | None = None
        self._closed = False
        self._subscriptions: set[Subscription] = set()

    async def open(self) -> None:
        """Look; after a power cut, go back to what is on stable storage."""
        place = self._place
        with durability.failing(f"opening the log of {self.space}"):
            note = place.stable.opened()
            try:
                name = place.refs.read(self.space)
                if name is None:
                    raise SpaceNotFound(f"there is no log of {self.space}")
                self._show(place.texts.load(name))
            except (BrokenRef, BrokenObject):
                if note is None or place.read_only:
                    raise
                await self._go_back(note.commit)
            view = self._view
            if note is not None and not self._has(view, note.seq, note.crc):
                damage = self._rewritten(view, f"entry {note.seq} as it was synced", note.commit)
                self._show(replace(view, damage=damage))

    async def _go_back(self, commit: str) -> None:
        """A power cut took what was appended last, and wasn't synced."""
        place = self._place
        view = place.texts.load(commit)
        await place.stable.put_broken_aside()
        await place.turn.take()
        try:
            place.turn.put("log.repair", commit)
        finally:
            place.turn.give_back()
        self._show(view)

    # ---- looking

    @property
    def view(self) -> View:
        """What this instance shows. Raises ClosedResourceError."""
        self._check_open()
        return self._view

    @property
    def head(self) -> Head:
        """See AppendLog."""
        return self._view.head

    @property
    def base(self) -> Head:
        """See AppendLog."""
        base = self._view.base
        return text.empty(base).head if base.seq else EMPTY_HEAD

    async def refresh(self) -> Head:
        """See AppendLog."""
        with durability.failing(f"reading the log of {self.space}"):
            self._look()
        return self._view.head

    def _look(self) -> None:
        self._check_open()
        place, view = self._place, self._view
        name = place.refs.read(self.space)
        if name is None:
            raise SpaceNotFound(f"there is no log of {self.space}")
        if name == view.commit:
            self._damage = view.damage
            return
        new = place.texts.load(name, view)
        if new.info.epoch < view.info.epoch or not self._has(new, view.head.seq, view.head.crc):
            self._damage = self._rewritten(view, f"entry {view.head.seq} as it was", view.commit)
        else:
            self._show(new)

    def _has(self, view: View, seq: int, crc: int) -> bool:
        """Whether a log of which an entry is known went on to what is in `view`."""
        if seq > view.head.seq:
            return False
        return seq < view.base.seq or self._place.texts.mark(view, seq).crc == crc

    def _rewritten(self, view: View, what: str, commit: str) -> CorruptLog:
        return CorruptLog(
            f"was rewritten or has diverged: {self._place.ref} hasn't {what}; to go back: git update-ref "
            f"{self._place.ref} {commit}",
            seq=view.head.seq,
            offset=view.head.size,
            log=self.space,
        )

    def _show(self, view: View) -> None:
        if len(view.info.parents) > 1:
            view = replace(
                view,
                damage=CorruptLog(
                    f"isn't linear: commit {view.commit} is a merge; to go back: git update-ref {self._place.ref} "
                    f"{view.info.parents[0]}",
                    seq=view.head.seq,
                    offset=view.head.size,
                    log=self.space,
                ),
            )
        self._view = view
        self._damage = view.damage

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"the log of {self.space} was closed")

    # ---- reading

    def reading(self) -> Reading:
        """What readers of this instance read."""
        return Reading(self.space, self._place.texts, lambda: self.view)

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """See AppendLog."""
        return (Backward if reverse else Forward)(self.reading(), since, limit)

    def read_batches(self, since: Seq = Seq(0)) -> AsyncGenerator[Entries, None]:
        """See AppendLog."""
        return Forward(self.reading(), since, None).batches()

    @property
    def text_id(self) -> int:
        """See AppendLog."""
        base = self._view.base
        return hash((base.seq, base.crc))

    def read_text(self, offset: int, size: int) -> bytes:
        """See AppendLog."""
        return self._place.texts.read(self.view, offset, size) if size > 0 else b""

    @asynccontextmanager
    async def subscribe(self, since: Seq | None = None) -> AsyncIterator[AsyncIterator[Entry]]:
        """See AppendLog."""
        self._check_open()
        own = GitLog(self._place.again(), self._clock, self.signal, self._follow)
        unfollow = self._follow()
        try:
            await own.open()
            subscription = Subscription(own, own.reading(), since)
            self._subscriptions.add(subscription)
            try:
                yield subscription
            finally:
                self._subscriptions.discard(subscription)
        finally:
            unfollow()
            await own.aclose()

    # ---- changing

    async def append(
        self,
        batch: Sequence[NewEntry],
        *,
        expected_seq: Seq | None = None,
        epoch: Epoch | None = None,
        intent: Intent = None,
    ) -> Seq:
        """See AppendLog."""

        def build(view: View) -> Building | None:
            head = view.head
            if expected_seq is not None and head.seq != expected_seq:
                raise SeqConflict(f"{self.space} is at entry {head.seq}, not {expected_seq}", current=head.seq)
            self._check_epoch(view, epoch)
            if not batch:
                return None
            building = Building(self._place, "log.append", view)
            building.append(batch, self._clock)
            return building

        return (await self._change("log.append", f"appending to {self.space}", build, intent)).seq

    def append_now(self, batch: Sequence[NewEntry], *, epoch: Epoch | None = None) -> list[Entry] | None:
        """See AppendLog."""
        place, head = self._place, self._view.head
        if self._closed or self._damage is not None or place.read_only or place.stable.failure is not None:
            return None
        with durability.failing(f"appending to {self.space}"):
            self._look()
            view = self._view  # a lease may have been granted
            if self.damage is not None or view.head != head:
                return None
            self._check_epoch(view, epoch)
            if not place.turn.try_take():
                return None
            try:
                building = Building(place, "log.append", view)
                entries = building.append(batch, self._clock)
                if place.turn.move("log.append", building.parent, building.view.commit) is not Moved.DONE:
                    return None
                self._made(building)
            finally:
                place.turn.give_back()
        return entries

    async def adopt(self, entries: Sequence[Entry], *, after: Head | None = None) -> Seq:
        """See AppendLog."""

        def build(view: View) -> Building | None:
            building = Building(self._place, "log.append", view)
            return building if building.adopt(entries, after) else None

        return (await self._change("log.append", f"adopting entries of {self.space}", build)).seq

    async def truncate_before(self, seq: Seq) -> None:
        """See AppendLog."""
        await trio.lowlevel.checkpoint()
        shortening: Shortening | None = None

        def needed(view: View) -> bool:
            if seq > view.head.seq + 1:
                raise ValueError(f"{self.space} ends at entry {view.head.seq}: nothing to truncate before {seq}")
            return seq > view.head.first_seq

        def begin(view: View) -> Shortening:
            found = Shortening(self._place, view, seq)
            found.go_on(view)
            return found

        def build(view: View) -> Building | None:
            nonlocal shortening
            if not needed(view):
                return None
            if shortening is None:
                shortening = begin(view)
            else:
                shortening.go_on(view)
            return shortening.commit(view)

        what = f"truncating the log of {self.space}"
        with durability.failing(what):
            self._look()
            self._check_changeable()
            view = self._view
            if needed(view) and view.head.size > _LARGE:
                shortening = await trio.to_thread.run_sync(begin, view, limiter=self._place.limiter)
        await self._change("log.truncate", what, build)

    async def _change(
        self, label: str, what: str, build: Callable[[View], Building | None], intent: Intent = None
    ) -> Head:
        """Commit what `build` gives, behind what the ref names then; nothing where that is None. The head then."""
        told: list[BaseException] = []

        def before(head: Head) -> None:
            if intent is not None:
                try:
                    intent(head)
                except BaseException as error:
                    told.append(error)
                    raise

        try:
            deadline = math.inf
            for attempt in count():
                moved, head = await self._attempt(label, build, before, alone=attempt >= _OPTIMISTIC)
                if moved is Moved.DONE:
                    return head
                if moved is Moved.LOCKED:
                    now = trio.current_time()
                    deadline = min(deadline, now + PATIENCE)
                    if now > deadline:
                        raise self._place.turn.locked_by_git()
                    await trio.sleep(_PAUSE)
        except OSError as error:
            if error in told:
                raise
            raise durability.store_error(error, what) from error
        raise AssertionError

    async def _attempt(
        self, label: str, build: Callable[[View], Building | None], before: Callable[[Head], None], *, alone: bool
    ) -> tuple[Moved, Head]:
        """`alone`: have the turn while it is built."""
        turn = self._place.turn
        if alone:
            await turn.take()
        held = alone
        try:
            self._look()
            self._check_changeable()
            building = build(self._view)
            if building is None:
                return Moved.DONE, self._view.head
            new = building.view
            if not held:
                held = turn.try_take()
            if not held:
                # What was built stays right if nobody else appends meanwhile, be it another task with this instance.
                await turn.take()
                held = True
            moved = turn.move(label, building.parent, new.commit, lambda: before(new.head))
            if moved is Moved.DONE:
                self._made(building)
            return moved, new.head
        finally:
            if held:
                turn.give_back()

    def _check_changeable(self) -> None:
        if (failure := self._place.stable.failure) is not None:
            raise failure
        if self._damage is not None:
            raise self._damage.again()

    def _check_epoch(self, view: View, epoch: Epoch | None) -> None:
        granted = view.info.epoch
        if epoch is not None and granted > epoch:
            raise StaleEpoch(f"the lease of {self.space} was granted anew: acquire it", current=granted)

    def _made(self, building: Building) -> None:
        """The ref names it."""
        self._place.stable.made(building.view.commit, building.parent, building.objects)
        self._show(building.view)
        self.signal.notify()
        self._place.moved()

    # ---- durability

    async def sync(self) -> None:
        """See AppendLog."""
        with durability.failing(f"syncing the log of {self.space}"):
            if self._place.read_only:
                self._check_open()
                return
            await self._place.stable.sync(self._latest)

    def _latest(self) -> Shown:
        """What the ref names, others' appends, too; what this instance shows stays as it is."""
        self._check_open()
        place, view = self._place, self._view
        name = place.refs.read(self.space)
        if name is None:
            raise SpaceNotFound(f"there is no log of {self.space}")
        if name != view.commit:
            view = place.texts.load(name, view)
        return Shown(name, view.head)

    @property
    def damage(self) -> CorruptLog | None:
        """See AppendLog."""
        return self._damage

    @property
    def failure(self) -> StoreError | None:
        """See AppendLog."""
        return self._place.stable.failure

    async def recover(self) -> None:
        """See AppendLog."""
        place = self._place
        self._check_open()
        if place.stable.failure is None:
            return
        with durability.failing(f"recovering the log of {self.space}"):
            self._look()
            if self._damage is not None:
                raise self._damage.again()
            await place.turn.take()
            try:
                if place.refs.read(self.space) == self._view.commit:
                    place.turn.put("log.recover", self._view.commit)
            finally:
                place.turn.give_back()
            await place.stable.write_again(self._latest())

    async def aclose(self) -> None:
        """See AppendLog."""
        self._closed = True
        self._place.close()
        for subscription in self._subscriptions:
            subscription.end()
        self.signal.notify()
