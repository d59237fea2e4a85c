"""Directories of whose names watchers are told when these change elsewhere: what `fusefs.announce` needs of them."""

from __future__ import annotations

from fusefs.nodes.base import Directory, Node


class AnnouncedNames(Directory):
    """A name's meaning is the identity of what it names, None where it names nothing."""

    __slots__ = ()

    holds_files = False
    """Whether its names are those of files, not of directories."""

    @property
    def separate(self) -> bool:
        """Whether who watches the rest takes what goes here for deleted, and what comes from here for new."""
        return False

    def meaning(self, name: bytes) -> str | None:
        """What the name means, as far as the mount has heard."""
        raise NotImplementedError

    def meaning_of(self, child: Node) -> str | None:
        """What a name meant when `child` was found under it."""
        raise NotImplementedError

    async def compare_names(self) -> None:
        """Find out which names changed, and tell the announcer: for where that isn't known."""
