r"""A commit of a log: who and when, as its last entry says, and the epoch that it was made under.

::

    tree <the log's text>
    parent <the commit before>
    author uid:1000/vim <chatfs@localhost> 1795241582 +0000
    committer uid:1000/vim <chatfs@localhost> 1795241582 +0000

    entries 5-7

    Chatfs-Epoch: 3

`Chatfs-Epoch` is left out before the first grant of a lease. A grant is a commit of the same tree with a higher one,
and with `Chatfs-Holder` and `Chatfs-Expires` (milliseconds since 1970) as it was at first.

Concurrency: pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_TREE: Final = re.compile(rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)author ")
_PARENT: Final = re.compile(rb"parent ([0-9a-f]{40})\n")
_SECONDS: Final = re.compile(rb"\ncommitter [^\n]* ([0-9]{1,18}) [+-][0-9]{4}\n")
_TRAILER: Final = re.compile(rb"^Chatfs-(Epoch|Holder|Expires): (.*)$", re.MULTILINE)
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f<>]")
_EDGES: Final = " .,:;\"'\\"
"""What git takes off a name's ends."""


@dataclass(frozen=True, slots=True)
class Commit:
    """`holder` and `expires` only where the commit is itself the grant."""

    tree: str
    parents: tuple[str, ...]
    seconds: int
    epoch: int = 0
    holder: str | None = None
    expires: int = 0


def encode(commit: Commit, who: str, subject: str) -> bytes:
    """The bytes of a commit."""
    name = _UNFIT.sub("", who).strip(_EDGES) or "chatfs"
    ident = f"{name} <chatfs@localhost> {commit.seconds} +0000"
    lines = [f"tree {commit.tree}", *(f"parent {parent}" for parent in commit.parents)]
    lines += [f"author {ident}", f"committer {ident}", "", subject]
    if commit.epoch:
        lines += ["", f"Chatfs-Epoch: {commit.epoch}"]
        if commit.holder is not None:
            lines += [f"Chatfs-Holder: {commit.holder}", f"Chatfs-Expires: {commit.expires}"]
    return ("\n".join(lines) + "\n").encode(errors="replace")


def parse(data: bytes) -> Commit | None:
    """The commit in these bytes; None where they aren't one that `encode` could have made."""
    begin, seconds = _TREE.match(data), _SECONDS.search(data)
    if begin is None or seconds is None:
        return None
    parents = tuple(found.decode() for found in _PARENT.findall(begin[2]))
    fields = {found.decode(): value.decode(errors="replace") for found, value in _TRAILER.findall(data, seconds.end())}
    try:
        return Commit(
            begin[1].decode(),
            parents,
            int(seconds[1]),
            int(fields.get("Epoch", 0)),
            fields.get("Holder"),
            int(fields.get("Expires", 0)),
        )
    except ValueError:
        return None
