"""The two kinds of state that logs fold into, and how they are kept as snapshots."""

from __future__ import annotations

from typing import Final

from store.fold import ChatState
from store.history import render_pieces
from store.snapshot import Dump, dump, load
from store.snapshot_workspace import dump_workspace, load_workspace
from store.snapshots import Kind
from store.workspace_state import WorkspaceState

CHAT: Final = Kind(
    make=ChatState,
    dump=dump,
    load=load,
    complete=ChatState.complete,
    pieces=render_pieces,
)
WORKSPACE: Final = Kind(
    make=WorkspaceState,
    dump=lambda state: Dump(dump_workspace(state), b"", 0),
    load=lambda value, _source: load_workspace(value),
    complete=lambda _state: None,
    pieces=lambda _state: (),
)
