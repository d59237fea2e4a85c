"""Appends that are sent to the instance that holds the lease: what is sent, what is answered, and how it ends.

A request is one line of JSON, for an append followed by a line for each entry's data, byte for byte:

    {"v":1,"ask":"append","id","space","epoch","expected_seq","durable","entries":[[actor, [origin actor, ts]?, ts?]…]}
    {"v":1,"ask":"status"}

Just before it writes, the holder says `{"seq","crc"}`: which entry the last one is going to be. The answer is
`{"seq"}`, `{"spaces":[…]}`, or `{"error","text","fields"}`: an error of `store.errors` by its name.

An append whose answer doesn't come may have been made, if that was said; else it wasn't, and never will be
(`Peers.ask`). Then it is appended anew only at the very place that was said. There it is, once, whoever writes it.

Concurrency: none of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import trio

from store import errors
from store.driver import AppendLog, Grant
from store.errors import CorruptLog, InvalidInput, StoreError, StoreFailed, Truncated
from store.model import Epoch, Head, Millis, NewEntry, Origin, Seq, SpaceId, uuid7
from store.peers import REQUEST_MAX, PeerCredentials, program_of

VERSION: Final = 1
_ODD: Final = (ValueError, KeyError, TypeError)
"""What values raise that aren't as they should be."""
_UID: Final = re.compile(r"uid:([0-9]+)(?:/|\Z)")


# ---- the asker's side


@dataclass(slots=True)
class Attempt:
    """One append on its way, through as many holders as it takes."""

    batch: Sequence[NewEntry]
    wanted: Seq | None
    """The `expected_seq` of who appends."""
    id: str = field(default_factory=uuid7)
    said: tuple[Seq, int] | None = None
    """Seq and crc that the last entry may have by now."""

    @property
    def expected_seq(self) -> Seq | None:
        """Behind which entry it may be appended."""
        return self.wanted if self.said is None else Seq(self.said[0] - len(self.batch))

    def hear(self, message: bytes) -> None:
        """What a holder says."""
        told = orjson.loads(message)
        self.said = Seq(int(told["seq"])), int(told["crc"])

    def request(self, space: SpaceId, epoch: Epoch, *, durable: bool) -> bytes:
        """What is sent to the holder of that epoch. Raises InvalidInput where it is too long."""
        head = {
            "v": VERSION,
            "ask": "append",
            "id": self.id,
            "space": space,
            "epoch": epoch,
            "expected_seq": self.expected_seq,
            "durable": durable,
            "entries": [
                [new.actor, None if new.origin is None else [new.origin.actor, new.origin.ts], new.ts]
                for new in self.batch
            ],
        }
        found = b"\n".join([orjson.dumps(head), *(new.data for new in self.batch)])
        if len(found) > REQUEST_MAX:
            raise InvalidInput(
                f"a batch of {len(found)} bytes can't be sent to the process that appends to the log now: "
                f"use batches of at most {REQUEST_MAX} bytes, or end that process (chatfs status names it)"
            )
        return found

    async def look(self, log: AppendLog) -> Seq | None:
        """The last seq, if what a holder said it was about to write is in the log; None if it isn't, and never will be.

        For when something stands at that place. Raises StoreFailed where that can't be told any more.
        """
        assert self.said is not None
        (seq, crc), self.said = self.said, None
        if (await log.refresh()).seq < seq:
            return None
        try:
            found = [entry async for entry in log.read(Seq(seq - len(self.batch)), len(self.batch))]
        except Truncated:
            raise StoreFailed(
                f"the process that appended to {log.space} ended, and its entries were compacted away meanwhile: "
                "look whether the change is there before doing it again"
            ) from None
        made = found[-1].crc == crc and [entry.data for entry in found] == [new.data for new in self.batch]
        return seq if made else None


REFUSALS: Final = 10
"""So often a holder has to take nothing before it is given up."""


class Silence:
    """How long a holder hasn't renewed its lease while it was asked, by this process's own time.

    Its clock, or this process's, may be far off.
    """

    __slots__ = ("_epoch", "_limit", "_patience", "_refusals", "_seen", "_since", "lapsed")

    def __init__(self, patience: float) -> None:
        self.lapsed: Grant | None = None
        """What stayed the same for so long that it counts as lapsed."""
        self._patience = patience
        self._seen: Grant | None = None
        self._since = 0.0
        self._epoch = Epoch(0)
        self._limit = 0.0
        self._refusals = 0

    def lasts(self, found: Grant) -> bool:
        """The lease is this one now. Whether it counts as lapsed."""
        now = trio.current_time()
        if found != self._seen:
            self._seen, self._since = found, now
        elif now - self._since > self._patience:
            self.lapsed = found
        return self.lapsed == found

    def goes_on(self, found: Grant) -> bool:
        """The holder of this lease takes nothing. Whether that lasts too long, although it may renew its lease.

        It has to happen often, too: this process may have stood still itself.
        """
        now = trio.current_time()
        if found.epoch != self._epoch:
            self._epoch, self._limit, self._refusals = found.epoch, now + 2 * self._patience, 0
        self._refusals += 1
        return now > self._limit and self._refusals >= REFUSALS


STATUS: Final = orjson.dumps({"v": VERSION, "ask": "status"})


def result(answer: bytes) -> Seq:
    """The seq that a holder answers; raises the error that it met."""
    try:
        return Seq(int(_answered(answer)["seq"]))
    except _ODD as error:
        raise _not_understood() from error


def spaces(answer: bytes) -> list[HeldSpace]:
    """What an instance answers to STATUS."""
    try:
        return [
            HeldSpace(
                SpaceId(str(one["space"])), Epoch(int(one["epoch"])), Seq(int(one["seq"])), Millis(int(one["since"]))
            )
            for one in _answered(answer)["spaces"]
        ]
    except _ODD as error:
        raise _not_understood() from error


def _answered(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(answer)
    if "error" in found:
        raise _error(str(found["error"]), str(found["text"]), dict(found["fields"]))
    return found


def _not_understood() -> StoreFailed:
    return StoreFailed("another process answered what isn't understood: use the same version of chatfs everywhere")


def _error(name: str, text: str, fields: dict[str, Any]) -> StoreError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, StoreError):
        try:
            return kind(fields.pop("how"), **fields) if kind is CorruptLog else kind(text, **fields)
        except (TypeError, KeyError):
            pass
    return StoreFailed(text)


# ---- the holder's side


@dataclass(frozen=True, slots=True)
class HeldSpace:
    """A space that an instance may append to, since when, and the last seq that it has seen."""

    space: SpaceId
    epoch: Epoch
    seq: Seq
    since: Millis


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an append, as it arrives."""

    id: str
    space: SpaceId
    epoch: Epoch
    expected_seq: Seq | None
    durable: bool
    batch: list[NewEntry]


def asked(request: bytes, peer: PeerCredentials) -> Asked | None:
    """The append that is asked for; None for STATUS. Raises InvalidInput.

    Nothing is taken for granted: what is wrong with it mustn't come into a log.
    """
    first, _, rest = request.partition(b"\n")
    try:
        head = orjson.loads(first)
        if head["v"] != VERSION:
            raise InvalidInput("another chatfs holds this log: use the same version everywhere")
        if head["ask"] == "status":
            return None
        if head["ask"] != "append":
            raise InvalidInput(f"{head['ask']!r} is nothing that can be asked for")
        lines = rest.split(b"\n") if head["entries"] else []
        batch = [_entry(data, about, peer) for data, about in zip(lines, head["entries"], strict=True)]
        expected = head["expected_seq"]
        return Asked(
            _text(head["id"]),
            SpaceId(_text(head["space"])),
            Epoch(int(head["epoch"])),
            None if expected is None else Seq(int(expected)),
            head["durable"] is not False,
            batch,
        )
    except (*_ODD, AttributeError) as error:
        raise InvalidInput(f"the request isn't understood ({type(error).__name__})") from None


def _entry(data: bytes, about: list[Any], peer: PeerCredentials) -> NewEntry:
    orjson.loads(data)
    actor, origin, ts = about
    return NewEntry(
        data,
        actor_of(_text(actor), peer),
        None if origin is None else Origin(_text(origin[0]), Millis(int(origin[1]))),
        None if ts is None else Millis(int(ts)),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise TypeError
    return value


def actor_of(claimed: str, peer: PeerCredentials) -> str:
    """Whom the log names: another user can't claim to be somebody else.

    Root and this process's own user could write the log's file themselves: they are believed.
    """
    named = _UID.match(claimed)
    if named is None or int(named[1]) == peer.uid or peer.uid in {0, os.geteuid()}:
        return claimed
    program = program_of(peer.pid)
    return f"uid:{peer.uid}/{program}" if program else f"uid:{peer.uid}"


def intent(head: Head) -> bytes:
    """What is said before it is written."""
    return orjson.dumps({"seq": head.seq, "crc": head.crc})


def made(seq: Seq) -> bytes:
    """The answer to an append."""
    return orjson.dumps({"seq": seq})


def holding(found: Sequence[HeldSpace]) -> bytes:
    """The answer to STATUS."""
    return orjson.dumps({"spaces": found})


def failed(error: StoreError) -> bytes:
    """The answer that is an error."""
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int)}
    return orjson.dumps({"error": type(error).__name__, "text": str(error), "fields": fields})
