"""What a Space folds its log into, what a fold says of a change, and how a log is folded fast."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from store.document import Effect
from store.driver import AppendLog
from store.model import Entries, Entry, Seq, SpaceId
from store.workspace_state import Names

Change = Effect | Names


class Folded(Protocol):
    """A chat's or a workspace's state."""

    seq: Seq

    def apply(self, entry: Entry) -> Change:
        """Take in the next entry."""
        ...

    def replay(self, entries: Entries) -> None:
        """Take in the next ones, where nobody asks what they do."""
        ...


S = TypeVar("S", bound=Folded)

Moved = Callable[[SpaceId, Change | None], None]
"""Called after a log has moved and the fold (if it is loaded) with it; the change is None where it isn't known."""


def all_of(changes: Sequence[Any]) -> Change | None:
    """All of them as one; None where there are none."""
    if not changes:
        return None
    first: Change = changes[0]
    return first if len(changes) == 1 else first.joined(changes)


async def replay(opened: AppendLog, state: Folded) -> None:
    """Bring the state to where the log ends. Raises as `AppendLog.read` does; the state then ends before that."""
    # What a fold makes stays: looking through all of it again and again would take half of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        async with contextlib.aclosing(opened.read_batches(state.seq)) as batches:
            async for entries in batches:
                state.replay(entries)
    finally:
        if collects:
            gc.enable()
