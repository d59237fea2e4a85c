"""Where a directory of the mount is, whatever it was called when it was looked up."""

from __future__ import annotations

import os

from fusefs.nodes.base import Directory
from fusefs.nodes.chat_dir import ChatDirectory
from fusefs.nodes.workspace_dir import WorkspaceDirectory


def path_of(directory: Directory) -> bytes | None:
    """Its absolute path now; None where it is nowhere."""
    mount = directory.mount
    names: list[bytes] = []
    node: Directory | None = directory
    while node is not None and node is not mount.root:
        if isinstance(node, ChatDirectory):
            state = node.view.workspace.state
            record = state.chats.get(node.chat)
            if record is None or node.parent is None:
                return None
            names[:0] = [record.place.encode(), state.shown_name(record).encode()]
            node = node.parent.parent
        else:
            of_workspace = node.view.workspace if isinstance(node, WorkspaceDirectory) else None
            names.insert(0, node.name if of_workspace is None else of_workspace.state.name.encode())
            node = node.parent
    return b"/".join([os.fsencode(mount.options.mountpoint), *names])
