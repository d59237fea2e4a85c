"""What git is doing in a project's repository: while it is in the middle of something, nobody else touches the files.

A rebase, say, takes one's own commits away and puts them back one by one: in between, lines are missing that nobody has
deleted. Reads a few names in the git directory; runs no git.

Concurrency: a handful of system calls, made at once.
"""

from __future__ import annotations

import os
from typing import Final

import trio

from store.errors import StoreError

_LOCK: Final = "index.lock"
_UNDER_WAY: Final = {
    _LOCK: "a git command hasn't ended, or has left index.lock behind",
    "rebase-merge": "a rebase isn't finished",
    "rebase-apply": "a rebase isn't finished",
    "MERGE_HEAD": "a merge isn't committed",
    "MERGE_AUTOSTASH": "an autostash isn't applied",
    "CHERRY_PICK_HEAD": "a cherry-pick isn't finished",
    "REVERT_HEAD": "a revert isn't finished",
    "BISECT_LOG": "a bisection isn't finished",
}
_MOVES: Final = ("HEAD", "index", "ORIG_HEAD", "logs/HEAD")
_POINTER: Final = "gitdir: "
_PATIENCE: Final = 0.5
"""Seconds that a git command is waited for: most are over by then."""
_POLL: Final = 0.01

Mark = tuple[int, ...]
"""Changes when a git command has moved the work tree, or has only looked at it and written that down."""


class Busy(StoreError):
    """Git is in the middle of something: nothing is touched meanwhile."""


class Repository:
    """The repository that a project is in. It may be made later."""

    def __init__(self, project: str) -> None:
        self._project = project

    def under_way(self) -> str:
        """What git is in the middle of; "" where it rests."""
        return under_way(git_directory(self._project))

    def mark(self) -> Mark:
        """See Mark."""
        return mark(git_directory(self._project))

    def moved(self, before: Mark) -> bool:
        """Whether git has done something since, or is about it: what was read meanwhile may be half of it."""
        git = git_directory(self._project)
        return bool(under_way(git)) or mark(git) != before

    async def rest(self) -> Mark:
        """Wait until git rests, but not for long. Raises Busy."""
        with trio.move_on_after(_PATIENCE):
            while (busy := self.under_way()) == _UNDER_WAY[_LOCK]:  # noqa: ASYNC110 - git tells nobody
                await trio.sleep(_POLL)
        if busy:
            raise Busy(f"{self._project}: {busy}: nothing is projected until then")
        return self.mark()


def git_directory(project: str) -> str | None:
    """The git directory of the work tree that `project` is in; None where there is none."""
    directory = project
    while True:
        found = os.path.join(directory, ".git")
        if os.path.isdir(found):
            return found
        try:
            with open(found, encoding="utf-8") as file:
                text = file.read(4096).strip()
        except (OSError, UnicodeDecodeError):
            text = ""
        if text.startswith(_POINTER):
            return os.path.normpath(os.path.join(directory, text.removeprefix(_POINTER)))
        above = os.path.dirname(directory)
        if above == directory:
            return None
        directory = above


def under_way(git: str | None) -> str:
    """What git is in the middle of; "" where it rests."""
    if git is None:
        return ""
    return next((what for name, what in _UNDER_WAY.items() if os.path.lexists(os.path.join(git, name))), "")


def mark(git: str | None) -> Mark:
    """See Mark."""
    if git is None:
        return ()
    found: list[int] = []
    for name in _MOVES:
        try:
            stat = os.stat(os.path.join(git, name))
        except OSError:
            found.append(0)
        else:
            found += (stat.st_mtime_ns, stat.st_ino)
    return tuple(found)
