"""What all nodes and handles have in common, and the answers of those that allow nothing.

Nodes know the store's use cases, not FUSE requests: `fusefs.operations` translates. A node refuses by raising
FUSEError, the store's errors pass through to the one table.

Concurrency: one event loop; the store may move on at every `await`.
"""

from __future__ import annotations

import errno
import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from pyfuse3 import EntryAttributes, FUSEError

from fusefs.inodes import inode_number
from fusefs.polling import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import PollHandle

    from fusefs.callers import Caller
    from fusefs.mount import Mount
    from fusefs.views import View


@dataclass(frozen=True, slots=True)
class Change:
    """What a setattr asks for; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None


def refuse(code: int) -> FUSEError:
    """The error with which a request ends."""
    return FUSEError(code)


AtHand: TypeAlias = "Callable[[bytes], tuple[Node, EntryAttributes] | None]"
"""Gives a name's node and attributes, None where there is no such name."""


class Node:
    """Something with an inode number. `became` is set once a rename put this node in another's place."""

    __slots__ = ("__weakref__", "attributes_cached", "became", "ino", "lookups", "mount", "name", "parent")

    keeps_changes = False
    """Whether its mode and times are in a log."""

    def __init__(self, mount: Mount, identity: str, parent: Directory | None = None, name: bytes = b"") -> None:
        self.mount = mount
        self.ino = inode_number(identity)
        self.lookups = 0
        self.attributes_cached = False
        self.became: Node | None = None
        self.parent = parent
        self.name = name

    def appeared(self) -> None:
        """The kernel holds it now."""
        if self.parent is not None:
            self.parent.hold(self.name, self)

    def vanished(self) -> None:
        """The kernel has let it go."""
        if self.parent is not None:
            self.parent.drop(self.name, self)

    def placed(self, parent: Directory, name: bytes) -> None:
        """It is found at another place from now on."""
        if self.lookups and self.parent is not None:
            self.parent.drop(self.name, self)
        self.parent, self.name = parent, name
        if self.lookups:
            parent.hold(name, self)

    async def attributes(self) -> EntryAttributes:
        """Exact size, true times."""
        raise NotImplementedError

    async def attributes_for(self, thread: int) -> EntryAttributes:
        """What the process of that thread sees: its own uncommitted writes, too."""
        return await self.attributes()

    async def change(self, change: Change, caller: Caller, handle: Handle | None) -> None:
        """Take or refuse a setattr. The base takes mode and times without effect, refuses another owner or size."""
        self.check_owner(change)
        if change.size is not None:
            raise refuse(errno.EPERM)

    def check_owner(self, change: Change) -> None:
        """Only the owner that it has already can be set."""
        options = self.mount.options
        if change.uid not in {None, options.uid} or change.gid not in {None, options.gid}:
            raise refuse(errno.EPERM)

    def may_grow(self, flags: int) -> bool:
        """Whether a mount that is append-only lets it be opened like that."""
        return False

    async def open(self, flags: int, caller: Caller) -> Handle:
        """A handle on its bytes."""
        raise refuse(errno.EISDIR)

    async def readlink(self) -> bytes:
        """Where a symbolic link points."""
        raise refuse(errno.EINVAL)

    async def settle(self) -> None:
        """Commit what is only in a draft, if anything."""


NOTHING: Final[AbstractContextManager[None]] = nullcontext()
_NONE: Final[dict[bytes, Node]] = {}
"""Stays empty. Most directories are listed and not entered: they need no dict of their own."""


class Directory(Node):
    """A node with names in it. `children` are those that the kernel holds; `hold` and `drop` change them."""

    __slots__ = ("children", "listed", "names_changed")

    def __init__(self, mount: Mount, identity: str, parent: Directory | None = None, name: bytes = b"") -> None:
        super().__init__(mount, identity, parent, name)
        self.children = _NONE
        self.listed = self.names_changed = -math.inf
        """When it was last listed, and when a name in it last changed without the kernel's doing, by trio's clock."""

    def hold(self, name: bytes, node: Node) -> None:
        """The kernel has `name`, and knows `node` by it."""
        if self.children is _NONE:
            self.children = {name: node}
        else:
            self.children[name] = node

    def drop(self, name: bytes, node: Node) -> None:
        """The kernel knows `node` by that name no longer."""
        if self.children.get(name) is node:
            del self.children[name]
            if not self.children:
                # An emptied dict keeps the room that it took.
                self.children = _NONE

    def seems_missing(self, name: bytes, thread: int) -> bool:
        """Whether the process of that thread must not see `name` yet, although it is there."""
        return False

    async def lookup(self, name: bytes) -> Node:
        """The node under `name`. Raises ENOENT."""
        raise refuse(errno.ENOENT)

    def keeps_absent(self, name: bytes) -> bool:
        """Whether the kernel may keep that `name` isn't there, as it is about to hear: it is told when it comes."""
        return False

    def making(self, name: bytes) -> AbstractContextManager[None]:
        """Meanwhile a request gives the directory this name."""
        return NOTHING

    async def names(self) -> list[bytes]:
        """What a listing shows, in its order, without `.` and `..`."""
        raise NotImplementedError

    async def at_hand(self) -> AtHand | None:
        """What answers for the names as of now without waiting; None where each has to be looked up by itself."""
        return None

    async def mkdir(self, name: bytes, caller: Caller) -> Node:
        """Make a directory."""
        raise refuse(errno.EPERM)

    async def create(self, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Node, Handle]:
        """Make a file (or open the one that is there) and open it."""
        raise refuse(errno.EPERM)

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        """Make a symbolic link."""
        raise refuse(errno.EPERM)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        """Remove a name that isn't a directory's."""
        raise refuse(errno.EPERM)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        """Remove a directory."""
        raise refuse(errno.EPERM)

    async def rename(self, name: bytes, target: Directory, new: bytes, caller: Caller) -> None:
        """Move `name` to `target`'s `new`, replacing what is there where that is allowed."""
        raise refuse(errno.EPERM)

    async def sync(self) -> None:
        """Return when the names that were made here survive a power cut."""

    def child(self, name: bytes, node: Node) -> Node:
        """`node`, or the one with the same identity that the kernel holds already."""
        known = self.mount.inodes.known(node.ino)
        if known is None or known.became is not None or type(known) is not type(node):
            return node
        if known.parent is not self or known.name != name or self.children.get(name) is not known:
            known.placed(self, name)
        return known


class InView(Node):
    """A node that shows what a log says: the view of that log is told while the kernel holds it."""

    __slots__ = ()

    view: View

    def appeared(self) -> None:
        super().appeared()
        self.view.held(self)

    def vanished(self) -> None:
        super().vanished()
        self.view.dropped(self)


class Handle:
    """An open file.

    `direct_io`: the kernel passes reads and writes on as they are, and caches nothing. `keep_cache`: the pages that it
    has of the file are still right.
    """

    __slots__ = ("caller", "direct_io", "flags", "keep_cache", "node")

    def __init__(self, node: Node, flags: int, caller: Caller) -> None:
        self.node = node
        self.flags = flags
        self.caller = caller
        self.direct_io = False
        self.keep_cache = True
        if self.writable:
            # Who opened it is recorded with what is written, perhaps after they have ended.
            caller.look()

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appending(self) -> bool:
        """Whether every write goes to the end."""
        return bool(self.flags & os.O_APPEND)

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes."""
        raise refuse(errno.EBADF)

    async def write(self, offset: int, data: bytes) -> int:
        """How many bytes were taken."""
        raise refuse(errno.EBADF)

    async def flush(self) -> None:
        """At every close(2), also of a duplicate: the last chance to report an error."""

    async def sync(self) -> None:
        """fsync(2)."""

    async def poll(self, waiting: PollHandle | None, thread: int) -> int:
        """The events that poll(2) finds, for that thread. `waiting` is to be notified when there are more."""
        return ALWAYS

    async def release(self) -> None:
        """The last reference is gone. Errors would reach nobody."""


def text_name(name: bytes) -> str:
    """A name as text. Raises EINVAL where it isn't UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise refuse(errno.EINVAL) from None
