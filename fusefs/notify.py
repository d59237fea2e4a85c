"""Telling the kernel that what it has cached is no longer so.

`attributes` makes the next stat or read ask again: where the size or the mtime moved, the kernel then drops the pages
itself. `entry` makes it ask again what every name means, by counting up the epoch of its entries (Linux 6.16; an older
kernel drops that one name). Neither waits for anything.

`contents` drops a file's pages at once, for where neither size nor mtime tells. It may wait for a read in flight, so it
runs in a thread of its own, with the new state published before and no lock held. Dropping one name waits for whoever
works in that directory, too. Should the daemon be killed while one of these waits, the thread and the one it waits for
wait for each other for ever, and only `umount -f` frees them: both are for where there is no other way.

Concurrency: called on the event loop; `run` is the task that feeds the thread. Only what the kernel may have cached is
told: a node that it doesn't hold costs nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from fusefs.session_loop import fuse_device

if TYPE_CHECKING:
    from fusefs.nodes.base import Directory, Node

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.02
CROSSING_SECONDS: Final = 2.0
CROSSING_TICKS: Final = (1, 10, 100)
"""How long a listing's reply may be on its way, and after how many times RETRY_SECONDS its names are dropped again."""
LIVELY_SECONDS: Final = 2.0
"""How long after a change of its names a directory's listings give none that the kernel may keep."""
UNKNOWN_SECONDS: Final = 2.0
"""How often, and for how long, the kernel is told again of a node that it didn't know yet."""
_INC_EPOCH: Final = 8
"""FUSE_NOTIFY_INC_EPOCH, which libfuse doesn't know: see include/uapi/linux/fuse.h."""
_HEADER: Final = struct.Struct("=IiQ")
"""struct fuse_out_header: length, in place of an error the notification, 0."""


class Notifier:
    """The one path by which the kernel hears of changes."""

    __slots__ = ("_crossing", "_device", "_epochs", "_limiter", "_queued", "_unknown", "_wake", "epoch", "live")

    def __init__(self) -> None:
        self.live = False
        """Set once the mount is there: before, there is nobody to tell."""
        self.epoch = 0
        """How often every name had to be looked up again."""
        self._crossing: dict[Directory, int] = {}
        """Directories whose listing may have been on its way when a name changed, and for how many ticks already."""
        self._device = -1
        self._epochs = True
        """Whether the kernel hasn't said yet that it doesn't know of epochs."""
        self._queued: dict[int, None] = {}
        self._unknown: dict[Node, float] = {}
        """Nodes that the kernel didn't know when it was told of them, and until when that is tried again."""
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    def attributes(self, node: Node, *, until: float = 0.0) -> None:
        """The node's size or times changed; its old bytes didn't.

        `until` is when to give up on one that the kernel doesn't know yet.
        """
        if not self.live or node.lookups == 0 or not node.attributes_cached:
            return
        node.attributes_cached = False
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node.ino), attr_only=True)
        except FileNotFoundError:
            # The reply that names it is still to be sent, with attributes of before.
            node.attributes_cached = True
            self._unknown[node] = until or trio.current_time() + UNKNOWN_SECONDS
            self._wake.set()
        except OSError as error:
            log.warning("the kernel refused to drop the attributes of inode %d: %s", node.ino, error)

    def contents(self, node: Node) -> None:
        """The node's bytes changed."""
        if not self.live or node.lookups == 0:
            return
        # Where the mtime tells as well, nobody sees the old bytes until the thread comes to it.
        self.attributes(node)
        self._queued[node.ino] = None
        self._wake.set()

    def entry(self, directory: Directory, name: bytes) -> None:
        """What `name` means in `directory` changed."""
        if not self.live or directory.lookups == 0:
            return
        now = trio.current_time()
        directory.names_changed = now
        if self._next_epoch():
            if now - directory.listed < CROSSING_SECONDS:
                self._crossing[directory] = 0
                self._wake.set()
        else:
            pyfuse3.invalidate_entry_async(pyfuse3.InodeT(directory.ino), pyfuse3.FileNameT(name), ignore_enoent=True)

    def _next_epoch(self) -> bool:
        """Have every name looked up again; whether the kernel can do that."""
        if not self._epochs:
            return False
        if self._device < 0:
            self._device = fuse_device()
        try:
            os.write(self._device, _HEADER.pack(_HEADER.size, _INC_EPOCH, 0))
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EBADF}:
                log.warning("the kernel refused to count up its entries' epoch: %s", error)
            self._epochs = False
        else:
            self.epoch += 1
        return self._epochs

    def _after_crossing(self) -> None:
        """The kernel takes the names of a listing for as new as the moment when it comes to them, not for as new as the
        request: those whose reply crossed with a change are dropped again.
        """
        ticks = {directory: tick + 1 for directory, tick in self._crossing.items()}
        self._crossing = {directory: tick for directory, tick in ticks.items() if tick < CROSSING_TICKS[-1]}
        if any(tick in CROSSING_TICKS for tick in ticks.values()):
            self._next_epoch()
        if self._crossing:
            self._wake.set()

    async def run(self) -> None:
        """Feed the thread, for ever."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._unknown or self._crossing:
                await trio.sleep(RETRY_SECONDS)
                self._after_crossing()
                unknown, self._unknown = self._unknown, {}
                for node, until in unknown.items():
                    if trio.current_time() < until:
                        self.attributes(node, until=until)
            if self._queued:
                queued, self._queued = list(self._queued), {}
                await trio.to_thread.run_sync(_drop_pages, queued, limiter=self._limiter, abandon_on_cancel=True)


def _drop_pages(inodes: list[int]) -> None:
    for ino in inodes:
        try:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("the kernel refused to drop the pages of inode %d: %s", ino, error)
