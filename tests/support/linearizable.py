"""Whether a history of operations on one append-only log is linearizable, given the log as it is at the end.

In general that is NP-complete (Gibbons and Korach, 1997; Porcupine and Knossos search). Here it isn't: every entry has
a word of its own, so the log says in which order the appends took effect, and every answer says how long the log was.
An append that ends at seq n makes state n; a read that returns n entries saw state n, as did an append that was refused
since the log ended at n. In the order of their states, ties broken by when they began, the operations are a legal
sequential history; so the history is linearizable exactly if that order never contradicts real time: where A ended
before B began, A's state comes before B's (or is the same one, if B only looks). `tests/authority/test_linearizable.py`
compares this with the definition.

An operation whose outcome nobody knows (its process was killed, it was cancelled) took effect once or never, at any
time after it began, also after it was given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from zlib import crc32


class Outcome(Enum):
    """How an append ended."""

    DONE = "done"
    """It returned its last seq."""
    REFUSED = "refused"
    """It raised what says that nothing was appended."""
    UNKNOWN = "unknown"
    """It never returned, or was cancelled."""


@dataclass(frozen=True, slots=True)
class Append:
    """One append of a batch. Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share."""

    who: str
    words: tuple[str, ...]
    """What the entries say; no two entries of a history say the same."""
    begun: int
    ended: int
    outcome: Outcome
    last: int = 0
    """DONE: the seq that was returned."""
    expected: int | None = None
    """`expected_seq`."""
    current: int | None = None
    """REFUSED since the log's last seq wasn't `expected`, but this."""


@dataclass(frozen=True, slots=True)
class Read:
    """One read: the log ended at `length`; `digest` is of the words behind `since`, None where only the length was
    asked for.
    """

    who: str
    begun: int
    ended: int
    length: int
    since: int = 0
    digest: int | None = None


@dataclass(frozen=True, slots=True)
class Followed:
    """What a subscription delivered: (when, seq, word)."""

    who: str
    begun: int
    entered: int
    """When it was there."""
    since: int | None
    """Where it began; None: with the first entry after it was entered."""
    delivered: tuple[tuple[int, int, str], ...]
    complete: bool
    """Whether it was read until the log's end; else it was given up somewhere."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry of the log at the end: its word, and how many further entries of its batch follow."""

    word: str
    more: int = 0


Operation = Append | Read | Followed


def digest(words: Iterable[str]) -> int:
    """What a read notes of the words that it saw."""
    return crc32("\n".join(words).encode())


def check(log: Sequence[Logged], history: Iterable[Operation], *, given: int = 0) -> list[str]:
    """What is wrong, one line each; nothing: it is linearizable. The first `given` entries were there before all."""
    found = _Log(log, given)
    looks: list[_Look] = []
    for operation in history:
        match operation:
            case Append():
                looks += found.append(operation)
            case Read():
                looks += found.read(operation)
            case Followed():
                looks += found.followed(operation)
    return [*found.wrong, *found.unclaimed(), *found.out_of_the_future(), *_against_real_time(looks)]


@dataclass(frozen=True, slots=True)
class _Look:
    """That `what` saw the log at state `state`, or made that state."""

    what: Operation
    begun: int
    ended: float
    state: int
    makes: bool


class _Log:
    def __init__(self, log: Sequence[Logged], given: int) -> None:
        self.words = [entry.word for entry in log]
        self.wrong: list[str] = []
        self._more = [entry.more for entry in log]
        self._at = {word: seq for seq, word in enumerate(self.words, 1)}
        self._claimed = bytearray(len(log))
        self._given = given
        self._begun: dict[str, int] = {}
        self._deliveries: list[tuple[int, str, str]] = []
        self._said = Counter(self.words)
        self.wrong += [f"{word} is in the log {count} times" for word, count in self._said.items() if count > 1]

    def append(self, operation: Append) -> list[_Look]:
        for word in operation.words:
            self._begun[word] = operation.begun
        there = [word for word in operation.words if word in self._at]
        if operation.outcome is Outcome.REFUSED:
            return self._refused(operation, there)
        if not operation.words and operation.outcome is Outcome.DONE:
            return self._look(operation, operation.last, operation.ended)
        if not there:
            if operation.outcome is Outcome.DONE:
                self.wrong.append(f"acknowledged, but not in the log: {operation}")
            return []
        return self._appended(operation, self._at[there[0]])

    def _refused(self, operation: Append, there: list[str]) -> list[_Look]:
        if there:
            self.wrong.append(f"refused, but in the log: {operation}")
        if operation.current is None:
            return []
        if operation.current == operation.expected:
            self.wrong.append(f"refused without a reason: {operation}")
        return self._look(operation, operation.current, operation.ended)

    def _appended(self, operation: Append, first: int) -> list[_Look]:
        last = first + len(operation.words) - 1
        if self.words[first - 1 : last] != list(operation.words):
            self.wrong.append(f"not in the log as one batch: {operation}")
            return []
        if self._more[first - 1 : last] != list(range(len(operation.words) - 1, -1, -1)):
            self.wrong.append(f"in the log, but not as one batch of its own: {operation}")
        self._claimed[first - 1 : last] = b"\1" * len(operation.words)
        if operation.expected is not None and operation.expected != first - 1:
            self.wrong.append(f"appended behind {first - 1}, not behind what it expected: {operation}")
        known = operation.outcome is Outcome.DONE
        if known and operation.last != last:
            self.wrong.append(f"acknowledged as {operation.last}, but stands at {last}: {operation}")
        return [_Look(operation, operation.begun, operation.ended if known else float("inf"), last, makes=True)]

    def read(self, operation: Read) -> list[_Look]:
        if operation.digest is not None and operation.digest != digest(self.words[operation.since : operation.length]):
            self.wrong.append(f"read what isn't in the log: {operation}")
        return self._look(operation, operation.length, operation.ended)

    def followed(self, operation: Followed) -> list[_Look]:
        seqs = [seq for _when, seq, _word in operation.delivered]
        began = operation.since if operation.since is not None else seqs[0] - 1 if seqs else None
        short = Followed(operation.who, operation.begun, operation.entered, operation.since, (), operation.complete)
        if began is not None and seqs != list(range(began + 1, began + 1 + len(seqs))):
            odd = next(at for at, seq in enumerate(seqs, began + 1) if seq != at)
            self.wrong.append(f"a subscription delivered {seqs[odd - began - 1]} where {odd} was due: {short}")
        for when, seq, word in operation.delivered:
            if not 0 < seq <= len(self.words) or self.words[seq - 1] != word:
                self.wrong.append(f"a subscription delivered {word} as {seq}, which the log doesn't: {short}")
            self._deliveries.append((when, word, operation.who))
        if operation.complete and began is not None and (seqs[-1] if seqs else began) != len(self.words):
            self.wrong.append(f"a subscription never delivered what follows {seqs[-1] if seqs else began}: {short}")
        if operation.since is not None or (began is None and not operation.complete):
            return []
        # Where it began it has looked, once, while it was entered.
        return self._look(short, len(self.words) if began is None else began, operation.entered)

    def _look(self, operation: Operation, state: int, ended: int) -> list[_Look]:
        if not self._given <= state <= len(self.words):
            self.wrong.append(
                f"saw {state} entries, of {self._given} to {len(self.words)} that there were: {operation}"
            )
            return []
        if state and self._more[state - 1]:
            self.wrong.append(f"saw a part of a batch: {operation}")
        return [_Look(operation, operation.begun, ended, state, makes=False)]

    def unclaimed(self) -> list[str]:
        """Entries that nobody appended."""
        return [
            f"nobody has appended entry {seq}, {self.words[seq - 1]}"
            for seq in range(self._given + 1, len(self.words) + 1)
            if not self._claimed[seq - 1]
        ]

    def out_of_the_future(self) -> list[str]:
        """Entries that were delivered before anybody began to append them."""
        return [
            f"{word} was delivered to {who} before it was appended"
            for when, word, who in self._deliveries
            if when < self._begun.get(word, when)
        ]


def _against_real_time(looks: list[_Look]) -> list[str]:
    """Pairs in which the one that ended before the other began saw, or made, a later state."""
    wrong: list[str] = []
    ends = sorted(looks, key=lambda look: look.ended)
    passed = 0
    latest: _Look | None = None
    for look in sorted(looks, key=lambda look: look.begun):
        while passed < len(ends) and ends[passed].ended < look.begun:
            if latest is None or ends[passed].state > latest.state:
                latest = ends[passed]
            passed += 1
        if latest is not None and (look.state < latest.state or (look.makes and look.state == latest.state)):
            wrong.append(f"at {look.state}, after {latest.state} had been seen: {look.what}, after {latest.what}")
    return wrong
