"""The files by which drafts are known: `drafts/<uuid>.json`, locked as long as their process lives.

A draft's end leaves its label, which then says nothing, as a spare for the next draft: making and deleting a file costs
more than all else about a small one. Spares go when the store is closed; what a crash leaves of them is swept.

A label counts its drafts, and the names of a draft's files say which it is: a power cut may bring back what the label
said of one draft, beside the files of another.

Concurrency: for any thread; a label has one user at a time.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from store import durability
from store.driver import CHUNK
from store.drivers.file.objects import Objects

SUFFIX: Final = ".json"
_NOTHING: Final = {"label": None, "base": None, "limit": 0, "size": 0}
_SPARES: Final = 8
GENERATIONS: Final = 1 << 32
"""Of one draft of a label."""
_READS: Final = 5
"""How often a label is read that seems to be half written."""
_SPARE_SIZE: Final = 4096
"""Bytes of the longest label that becomes a spare."""


class Label:
    """A label that is there. `stem` is the path of all of the draft's files, up to their first dot."""

    __slots__ = ("draft", "fd", "size", "stem", "taken_over")

    def __init__(self, stem: str, fd: int, size: int, draft: int = 0, *, taken_over: bool = False) -> None:
        self.stem = stem
        self.fd = fd
        self.size = size
        self.draft = draft
        """How many drafts it has had before this one."""
        self.taken_over = taken_over
        """Whether it was made by a process that died: after a power cut nobody knows how many it really has had."""

    def write(self, record: dict[str, Any], *, why: str = "draft.label") -> None:
        """Let it say something else."""
        # In place, since the lock belongs to this file; spaces cover what a longer one leaves.
        text = orjson.dumps({**record, "draft": self.draft}).ljust(self.size)
        durability.pwrite_all(why, self.fd, text, 0)
        self.size = len(text)


class Labels:
    """The labels that one opener of a store makes."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._spares: list[Label] = []
        self._closed = False

    def make(self, record: dict[str, Any]) -> Label:
        """A label that says `record`. Raises OSError."""
        try:
            label = self._spares.pop()
        except IndexError:
            label = self._new()
        try:
            label.write(record)
        except BaseException:
            self._remove(label)
            raise
        return label

    def _new(self) -> Label:
        while True:
            stem = f"{self._objects.drafts}/{uuid.uuid4()}"
            try:
                fd = durability.create("draft.label", stem + SUFFIX, os.O_RDWR)
            except FileNotFoundError:
                durability.make_dirs("draft.make", self._objects.drafts, self._objects.root)
                continue
            if is_alone(fd):
                return Label(stem, fd, 0)
            # Somebody who looks for abandoned drafts has it in hand, and will leave it to be swept.
            os.close(fd)

    def drop(self, label: Label, files: Iterable[str]) -> None:
        """A draft has ended: nothing in `files` counts any more. Without what its label said a draft is none."""
        useful = label.size <= _SPARE_SIZE and not label.taken_over
        keep = useful and len(self._spares) < _SPARES and not self._closed
        try:
            if keep:
                label.write(_NOTHING, why="draft.drop")
            else:
                durability.system.unlink("draft.drop", label.stem + SUFFIX)
            for path in files:
                with contextlib.suppress(FileNotFoundError):
                    durability.system.unlink("draft.drop", path)
        except BaseException:
            # The next draft mustn't find files of this one under its name.
            self._remove(label)
            raise
        if keep:
            label.draft += 1
            self._spares.append(label)
        else:
            os.close(label.fd)

    def close(self) -> None:
        """Remove the spares."""
        self._closed = True
        while self._spares:
            self._remove(self._spares.pop())

    @staticmethod
    def _remove(label: Label) -> None:
        durability.discard("draft.drop", label.stem + SUFFIX)
        os.close(label.fd)


def is_alone(fd: int) -> bool:
    """Take a draft's lock; False where somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def draft_of(stem: str, names: Sequence[str]) -> tuple[dict[str, Any], int] | None:
    """Label and size of a draft that anybody may be writing to, `names` being its chunk files; None where it is none.

    For who only counts: nothing is locked.
    """
    record: dict[str, Any] = {}
    for _ in range(_READS):
        try:
            with open(stem + SUFFIX, "rb", buffering=0) as file:
                record = orjson.loads(file.read())
            label, size, draft = record["label"], int(record["size"]), int(record.get("draft", 0))
            break
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            continue  # it is being written
    else:
        return None
    latest: dict[int, int] = {}
    for name in names:
        index, generation = map(int, name.split("."))
        if generation // GENERATIONS == draft:
            latest[index] = max(latest.get(index, 0), generation)
    for index, generation in latest.items():
        with contextlib.suppress(FileNotFoundError):
            if end := os.lstat(f"{stem}.{index}.{generation}").st_size:
                size = max(size, index * CHUNK + end)
    return (label, size) if isinstance(label, dict) else None
