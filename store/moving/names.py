"""Workspaces' names in the store that something is moved to.

Concurrency: trio; the compare-and-set of the KV decides between several.
"""

from __future__ import annotations

from store.driver import ABSENT, Document, Driver
from store.errors import NameTaken, StoreError
from store.model import ChatId, SpaceId, WorkspaceId, workspace_space
from store.moving.spaces import workspace_state


async def check_free(driver: Driver, workspace: WorkspaceId, name: str) -> None:
    """Raises NameTaken where another workspace has that name."""
    for space in await driver.spaces():
        if space == workspace_space(workspace):
            continue
        try:
            state = await workspace_state(driver, space)
        except StoreError:
            continue  # nobody knows its name, so it has none
        if state is not None and state.name == name and not state.trashed:
            raise NameTaken(
                f"the other store has another workspace {name!r} ({state.id}): rename one of them, or move to "
                "another store"
            )


async def claim(driver: Driver, workspace: WorkspaceId, name: str) -> None:
    """Note that the workspace has that name. Raises NameTaken."""
    key = f"names/{name}"
    while True:
        note = await driver.kv.get(key)
        if note is not None:
            if note.value.get("id") == workspace:
                return
            await check_free(driver, workspace, name)
        value = {"id": workspace}
        if isinstance(await driver.kv.put(key, value, if_match=ABSENT if note is None else note.etag), Document):
            return


async def unclaim(driver: Driver, workspace: WorkspaceId, name: str) -> None:
    """The workspace has that name no more."""
    note = await driver.kv.get(f"names/{name}")
    if note is not None and note.value.get("id") == workspace:
        await driver.kv.delete(f"names/{name}", if_match=note.etag)


def chat_of(space: SpaceId) -> ChatId:
    """The chat whose space that is."""
    return ChatId(space.rpartition("/")[2])
