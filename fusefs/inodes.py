"""Inode numbers, and the nodes that the kernel knows.

A number is taken from a BLAKE2b hash of the node's identity, so it is the same after a remount and never means another
node. The files of one directory differ only in the last four bits, in the order in which a copy must meet them: cp(1)
sorts what it copies by inode number, and the log has to come before what the log renders. A node stays in the table
while the kernel has looked it up more often than it forgot it; memory is bounded by what the kernel holds.

Concurrency: no awaits.
"""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Final

from pyfuse3 import ROOT_INODE, FUSEError

from store.model import ChatId, WorkspaceId

if TYPE_CHECKING:
    from fusefs.nodes.base import Node

_MASK: Final = (1 << 63) - 16
_PLACES: Final = {
    "": 0,
    "history.jsonl": 1,
    "history.md": 2,
    "chat.json": 3,
    "workspace.json": 3,
    "attachments": 4,
    "chats": 4,
    "archive": 5,
    "trash": 6,
    "by-id": 7,
}
_OTHER: Final = 15
_FEW: Final = 1 << 14
"""A table of no more nodes than that may keep its room."""


def inode_number(identity: str) -> int:
    """The number for an identity: above 15, below 2**63."""
    base, _, name = identity.partition("/")
    place = _PLACES.get(name, _OTHER)
    hashed = hashlib.blake2b((identity if place == _OTHER else base).encode(), digest_size=8).digest()
    return max(int.from_bytes(hashed, "big") & _MASK, 16) | place


def chat_identity(workspace: WorkspaceId, chat: ChatId) -> str:
    """What a chat's directory is told by. A copied workspace log may name the same chat again: that is another one."""
    return f"chat:{workspace}:{chat}"


class InodeTable:
    """Number -> node, for all that the kernel holds, and the handles' nodes."""

    __slots__ = ("_most", "_nodes")

    def __init__(self, root: Node) -> None:
        self._most = _FEW
        self._nodes: dict[int, Node] = {int(ROOT_INODE): root}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: int) -> Node:
        """The node behind a number from the kernel.

        A node that became another (by a rename over it) stands for that.
        """
        node = self._nodes.get(ino)
        if node is None:
            raise FUSEError(errno.ESTALE)
        while node.became is not None:
            node = node.became
        return node

    def known(self, ino: int) -> Node | None:
        """The node with this number, if the kernel holds it."""
        return self._nodes.get(ino)

    def looked_up(self, node: Node) -> Node:
        """A reply is about to name `node`: the kernel's lookup count rises by one.

        Returns the node that is counted: the one with this number that the kernel holds already, where `node` was made
        or kept beside it. The kernel forgets a number's lookups all at once, so none may be lost.
        """
        known = self._nodes.get(node.ino)
        if known is None:
            self._nodes[node.ino] = node
            self._most = max(self._most, len(self._nodes))
            node.lookups = 1
            node.appeared()
            return node
        if known is not node:
            if type(known) is type(node) and known.became is None:
                node = known
            else:
                self._nodes[node.ino] = node
                node.lookups, known.lookups = known.lookups, 0
                known.vanished()
                node.appeared()
        node.lookups += 1
        return node

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped `count` of its lookups."""
        node = self._nodes.get(ino)
        if node is None or ino == ROOT_INODE:
            return
        node.lookups -= count
        if node.lookups <= 0:
            node.lookups = 0
            del self._nodes[ino]
            node.vanished()
            if len(self._nodes) < self._most // 8:
                # A dict keeps the room that it once took.
                self._nodes = dict(self._nodes)
                self._most = max(len(self._nodes), _FEW)
