"""Two copies of one chat, the durable one and the project's: what both are to become. Pure.

A stream is a list of distinct portable lines (`store.projection.portable`). The rules, the first that applies:

1. One begins with all of the other: the longer one.
2. The project's lines stand in the durable copy in the same order, with others between: the durable copy.
3. The project has every durable line, in another order or with others between: the project's. Its order is what others
   have, through git; the durable copy is nobody's but ours. So two who merge each other's lines end with one order.
4. The durable copy has every line of the project, in another order: the project's order, then the rest.
5. Each has lines that the other hasn't, and the project still has all that was written out to it: the project's, then
   what was not written out yet.
6. Otherwise they diverged (somebody replaced the file, or a branch was switched): the newer one is the chat, and the
   other becomes a chat of its own.

In 1 to 5 no line is lost, and times play no part: a checkout changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

FIELDS: Final = ("name", "title", "labels", "place")
"""What is decided besides the stream."""


def combine(durable: Sequence[bytes], project: Sequence[bytes], written: int | None) -> list[bytes] | None:
    """What both are to be; None: they diverged.

    `written` says how many of the durable lines were written out to the project; None: that isn't known.
    """
    shorter = min(len(durable), len(project))
    if list(durable[:shorter]) == list(project[:shorter]):
        return list(project if len(project) > len(durable) else durable)
    ours, theirs = set(durable), set(project)
    if theirs <= ours:
        if is_subsequence(project, durable):
            return list(durable)
        return [*project, *(line for line in durable if line not in theirs)]
    if ours <= theirs:
        return list(project)
    if written is not None and theirs.issuperset(durable[:written]):
        return [*project, *(line for line in durable if line not in theirs)]
    return None


def is_subsequence(part: Iterable[bytes], whole: Iterable[bytes]) -> bool:
    """Whether `part` is `whole` with lines left out."""
    rest = iter(whole)
    return all(line in rest for line in part)


def project_wins(durable_ms: int, project_ns: int) -> bool:
    """Whose time is later. Ties, to the millisecond, go to the durable copy."""
    return project_ns // 1_000_000 > durable_ms


def settle(
    durable: Mapping[str, Any],
    project: Mapping[str, Any],
    written: Mapping[str, Any] | None,
    *,
    newer: bool,
) -> dict[str, Any]:
    """The metadata that both are to have, field by field.

    A field that only one side changed since `written` (what was last written out; None: not known) is that side's; one
    that both changed is the project's if `newer`. What the project doesn't say, it hasn't changed.
    """
    found: dict[str, Any] = {}
    for field in FIELDS:
        ours, theirs = durable[field], project.get(field, durable[field])
        if written is not None and field in written:
            base = written[field]
            found[field] = ours if theirs == base else theirs if ours == base or newer else ours
        else:
            found[field] = theirs if newer else ours
    return found
