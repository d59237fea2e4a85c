"""Directories of whose names watchers are told when these change elsewhere: what `fusefs.announce` needs of them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes

from fusefs.attributes import attributes
from fusefs.nodes.base import Directory, Node

if TYPE_CHECKING:
    from fusefs.mount import Mount


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


class Gone(Node):
    """What had a name, where the kernel didn't hold it."""

    __slots__ = ("mode",)

    def __init__(self, mount: Mount, parent: AnnouncedNames, name: bytes) -> None:
        super().__init__(mount, f"gone:{secrets.token_hex(8)}", parent, name)
        self.mode = mount.options.file_mode if parent.holds_files else mount.options.directory_mode

    async def attributes(self) -> EntryAttributes:
        return attributes(self.mount.options, self.ino, self.mode, timeout=0)
