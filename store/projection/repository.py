"""What git is doing in a project's repository: while it is in the middle of something, nobody else touches the files.

A rebase, say, takes one's own commits away and puts them back one by one: in between, lines are missing that nobody has
deleted. Reads a few names in the git directory; runs no git. Concurrency: blocking, a handful of system calls.
"""

from __future__ import annotations

import os
from typing import Final

_UNDER_WAY: Final = {
    "index.lock": "a git command hasn't ended",
    "rebase-merge": "a rebase isn't finished",
    "rebase-apply": "a rebase isn't finished",
    "MERGE_HEAD": "a merge isn't committed",
    "CHERRY_PICK_HEAD": "a cherry-pick isn't finished",
    "REVERT_HEAD": "a revert isn't finished",
    "BISECT_LOG": "a bisection isn't finished",
}
_MOVES: Final = ("HEAD", "index", "ORIG_HEAD", "logs/HEAD")
_POINTER: Final = "gitdir: "


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


def mark(git: str | None) -> tuple[int, ...]:
    """Changes when a git command has moved the work tree."""
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
