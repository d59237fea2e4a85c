"""What processes last read of a file: the bases of their next saves."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeVar

READERS: Final = 64
"""How many processes' last reads of one file are remembered."""

T = TypeVar("T")


class LastReads(OrderedDict[int, T]):
    """Process -> what it read last; the latest readers."""

    def note(self, process: int, what: T) -> None:
        """`process` (0: nobody that is known) has read `what`."""
        if process:
            self[process] = what
            self.move_to_end(process)
            if len(self) > READERS:
                self.popitem(last=False)
