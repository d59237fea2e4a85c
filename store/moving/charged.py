"""What a move brings into a workspace that was there, and has a quota: it is counted, and not refused.

The logs come as they are, the quota among what they say. What this store had charged is less than what is used then, so
it counts no more, and whoever adds something next measures.

Concurrency: trio.
"""

from __future__ import annotations

import os

import trio

from store.driver import Driver
from store.model import WorkspaceId, workspace_space
from store.quota.ledger import LEDGER, Ledger


async def forget_charged(driver: Driver, workspace: WorkspaceId) -> None:
    """Have it measured anew. Raises StoreFailed where another process keeps the ledger locked."""
    directory = driver.local_dir(workspace_space(workspace))
    if not await trio.to_thread.run_sync(os.path.lexists, directory / LEDGER):
        return
    ledger = Ledger(directory)
    try:
        async with ledger.locked():
            ledger.void()
    finally:
        ledger.close()
