"""Which of the names that changed were moved, and in which order that can be told: see `fusefs.announce`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from fusefs.nodes.announced import AnnouncedNames

Place: TypeAlias = "tuple[AnnouncedNames, bytes]"
"""A name in a directory."""


def moves(left: dict[Place, str], came: dict[Place, str]) -> list[tuple[Place, Place, str]]:
    """What left one name and came to another: taken out of both, and in an order in which no name is taken yet.

    Of a ring that changed places, one stays in both: it is removed first and made anew at the end.
    """
    to = {meaning: place for place, meaning in came.items() if not place[0].separate}
    found: dict[Place, Place] = {}
    for place, meaning in left.items():
        if meaning in to and not place[0].separate:
            found[place] = to.pop(meaning)
    ordered: list[tuple[Place, Place, str]] = []
    while found:
        free = next((place for place, target in found.items() if target not in found), None)
        if free is None:
            found.pop(next(iter(found)))
            continue
        ordered.append((free, found.pop(free), left[free]))
    for source, target, _ in ordered:
        del left[source], came[target]
    return ordered
