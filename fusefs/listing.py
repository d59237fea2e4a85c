"""An open directory: its names, and the replies to readdir(2).

The names are those that were there when the directory was opened or rewound, and an entry's offset is its place among
them: whatever comes and goes meanwhile, an entry that stays is shown once. One that has gone is passed over, and one
that has come since may not be shown.

Concurrency: a listing is replied to by one request at a time, for the kernel holds the position's lock meanwhile;
another process that shares the descriptor may rewind it in between.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final, TypeAlias

import pyfuse3
import trio
from pyfuse3 import FileNameT, FUSEError

from fusefs.notify import LIVELY_SECONDS
from store.errors import StoreError

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, ReaddirToken

    from fusefs.inodes import InodeTable
    from fusefs.nodes.base import Directory, Node

DOTS: Final = (b".", b"..")

Entry: TypeAlias = "tuple[Node, EntryAttributes]"

log = logging.getLogger("chatfs")


class Listing:
    """An open directory."""

    __slots__ = ("_inodes", "_names", "directory")

    def __init__(self, inodes: InodeTable, directory: Directory) -> None:
        self.directory = directory
        self._inodes = inodes
        self._names: list[bytes] | None = None

    async def reply(self, start: int, token: ReaddirToken) -> None:
        """The entries from place `start` on, as many as fit."""
        names = self._names
        if names is None or start == 0:
            names = self._names = [*DOTS, *await self.directory.names()]
        at_hand = await self.directory.at_hand()
        now = self.directory.listed = trio.current_time()
        rested = now - LIVELY_SECONDS
        for index in range(start, len(DOTS)):
            if not await self._dot(index, token):
                return
        for index in range(max(start, len(DOTS)), len(names)):
            name = names[index]
            try:
                found = await self._asked(name) if at_hand is None else self._told(at_hand(name))
            except Exception:
                if index > start:
                    # What the reply has already is counted as looked up: it is sent. The next one begins here, and
                    # meets the error again.
                    return
                raise
            if found is None:
                continue
            node, shown = found
            if self.directory.names_changed > rested:
                shown.entry_timeout = 0
            if not pyfuse3.readdir_reply(token, FileNameT(name), shown, index + 1):
                self._inodes.forget(node.ino, 1)
                return

    async def _dot(self, index: int, token: ReaddirToken) -> bool:
        """Of these two the kernel keeps no lookup."""
        here = self.directory if index == 0 else self.directory.parent or self.directory
        return bool(pyfuse3.readdir_reply(token, FileNameT(DOTS[index]), await here.attributes(), index + 1))

    def _told(self, entry: Entry | None) -> Entry | None:
        """An entry, counted as looked up."""
        if entry is not None:
            self._inodes.looked_up(entry[0]).attributes_cached = True
        return entry

    async def _asked(self, name: bytes) -> Entry | None:
        """Likewise, looked up by itself."""
        try:
            node = await self.directory.lookup(name)
            # First, so that the kernel is told of what changes while the reply is made: then it doesn't keep the older.
            node = self._inodes.looked_up(node)
            node.attributes_cached = True
            try:
                return node, await node.attributes()
            except BaseException:
                self._inodes.forget(node.ino, 1)
                raise
        except FUSEError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        except StoreError as error:
            # One name that can't be read doesn't hide the others.
            log.error("%s is left out of its listing: %s", name.decode(errors="replace"), error)  # noqa: TRY400
            return None
