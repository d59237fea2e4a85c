"""What was moved, and what wasn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Told = Callable[[str], None]
"""Told in a few words what is being done, often."""


def silent(_text: str) -> None:
    """Where nobody looks."""


@dataclass(slots=True)
class Moved:
    """What a move did. Whatever was there already isn't counted."""

    workspaces: int = 0
    """Looked at, as `logs` are; the rest is what was brought."""
    logs: int = 0
    entries: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    files: int = 0
    failures: list[str] = field(default_factory=list)
    """What couldn't be moved, a line each."""
    notes: list[str] = field(default_factory=list)
    """What else one should know."""

    @property
    def nothing_new(self) -> bool:
        """Whether all was there already."""
        return not (self.entries or self.blobs or self.files)
