"""What a worker did, as it happened: JSON lines, written before an operation and after it, that outlive a SIGKILL.

A line is in the page cache before the next system call is made. An append that was begun and never ended has an unknown
outcome. `Recorder` writes; `operations` reads it back for `tests.support.linearizable`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from tests.support.linearizable import Append, Followed, Operation, Outcome, Read


class Recorder:
    """Writes one worker's history."""

    def __init__(self, path: Path, name: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._name = name
        self._ids = itertools.count(1)

    def note(self, kind: str, **what: Any) -> int:
        """One line, said now; its time in nanoseconds."""
        now = time.monotonic_ns()
        os.write(self._fd, orjson.dumps({"kind": kind, "at": now, **what}) + b"\n")
        return now

    def begin(self, who: str, words: Sequence[str], expected: int | None) -> str:
        """An append begins; its id."""
        identity = f"{self._name}/{next(self._ids)}"
        self.note("begin", id=identity, who=f"{self._name}.{who}", words=words, expected=expected)
        return identity

    def end(self, identity: str, outcome: Outcome, **answer: Any) -> None:
        self.note("end", id=identity, outcome=outcome.value, **answer)

    def follow(self, who: str, since: int | None) -> str:
        """A subscription is about to begin; its id."""
        identity = f"{self._name}/{next(self._ids)}"
        self.note("follow", id=identity, who=f"{self._name}.{who}", since=since)
        return identity

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Recorded:
    """What all workers of a run did."""

    operations: list[Operation] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Errors that nothing that was done to the workers explains."""
    epochs: dict[int, set[int]] = field(default_factory=dict)
    """By entry: the epochs under which it was appended, as far as its appender lived to say so."""

    @property
    def acknowledged(self) -> int:
        return sum(isinstance(each, Append) and each.outcome is Outcome.DONE for each in self.operations)


ACKNOWLEDGED: Final = b'"outcome":"done"'
BEGUN: Final = b'"kind":"begin"'
STALE: Final = b'"stale":true'
"""What the lines contain that tell of an append that was acknowledged, begun, or refused to a late holder."""


def count_of(mark: bytes, path: Path) -> int:
    """How many lines contain it."""
    return path.read_bytes().count(mark) if path.exists() else 0


def lines_of(path: Path) -> list[dict[str, Any]]:
    """All that was noted; a line that was cut off by a kill doesn't count."""
    return [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def gather(paths: Iterable[Path]) -> Recorded:
    """The histories of all workers of a run."""
    found = Recorded()
    for path in paths:
        _gather(lines_of(path), found)
    return found


def _gather(lines: list[dict[str, Any]], found: Recorded) -> None:
    begun: dict[str, dict[str, Any]] = {}
    followings: dict[str, dict[str, Any]] = {}
    for line in lines:
        match line["kind"]:
            case "begin":
                begun[line["id"]] = line
            case "end":
                found.operations.append(_append(begun.pop(line["id"]), line))
            case "follow":
                followings[line["id"]] = {**line, "delivered": [], "complete": False}
            case "entered" | "delivered" | "followed":
                _follow(followings[line["id"]], line)
            case "read":
                found.operations.append(
                    Read(line["who"], line["begun"], line["at"], line["length"], line["since"], line["digest"])
                )
            case "under":
                for seq in range(line["first"], line["last"] + 1):
                    found.epochs.setdefault(seq, set()).add(line["epoch"])
            case "unexpected":
                found.unexpected.append(line["error"])
    # What the worker didn't live to see the end of.
    found.operations += [_append(line, None) for line in begun.values()]
    found.operations += [
        Followed(each["who"], each["at"], each["entered"], each["since"], tuple(each["delivered"]), each["complete"])
        for each in followings.values()
        if "entered" in each
    ]


def _follow(following: dict[str, Any], line: dict[str, Any]) -> None:
    match line["kind"]:
        case "entered":
            following["entered"] = line["at"]
        case "delivered":
            following["delivered"].append((line["at"], line["seq"], line["word"]))
        case "followed":
            following["complete"] = line["complete"]


def _append(begin: dict[str, Any], end: dict[str, Any] | None) -> Append:
    words = tuple(begin["words"])
    if end is None:
        return Append(begin["who"], words, begin["at"], begin["at"], Outcome.UNKNOWN, expected=begin["expected"])
    return Append(
        begin["who"],
        words,
        begin["at"],
        end["at"],
        Outcome(end["outcome"]),
        end.get("last", 0),
        begin["expected"],
        end.get("current"),
    )
