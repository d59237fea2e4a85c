"""What a command itself raises; everything else comes from `store.errors`."""

from __future__ import annotations

from store.errors import StoreError


class CommandFailed(StoreError):
    """The command couldn't do it; one line, with what to do next. Exit code 1."""


class UsageError(Exception):
    """The words of the command contradict each other. Exit code 2."""
