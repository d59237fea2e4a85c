"""What a crash left unfinished: drafts come back as scratch files `NAME.recovered-N` beside the file they were for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fusefs.scratch import ScratchArea
from store.errors import NotFound, StoreError
from store.model import SpaceId
from store.usage import UNCOUNTED

if TYPE_CHECKING:
    from store.driver import Staging
    from store.library import Store

_PIECE: Final = 1 << 20

log = logging.getLogger("chatfs")


async def recover_drafts(store: Store) -> int:
    """Bring back every draft whose process died, and count them. One that can't be brought back stays where it is."""
    recovered = 0
    try:
        abandoned = await store.driver.blobs.abandoned()
    except (StoreError, OSError) as error:
        log.error("drafts can't be looked at: %s", error)  # noqa: TRY400 - one line
        return 0
    for staging in abandoned:
        try:
            recovered += await _recover(store, staging)
        except (StoreError, OSError) as error:
            log.error("a draft of %s couldn't be recovered: %s", staging.label.get("name"), error)  # noqa: TRY400
    return recovered


def pieces(staging: Staging) -> Iterator[bytes]:
    """The bytes of a draft, in pieces."""
    offset = 0
    while offset < staging.size:
        piece = staging.read(offset, _PIECE)
        offset += len(piece)
        yield piece


async def _recover(store: Store, staging: Staging) -> int:
    label = staging.label
    name, workspace, chat = label.get("name"), label.get("workspace"), label.get("chat")
    if not (name and isinstance(name, str) and isinstance(workspace, str) and "/" not in name) or staging.size == 0:
        await staging.discard()
        return 0
    space = f"workspace/{workspace}" + (f"/chats/{chat}" if isinstance(chat, str) else "")
    if chat is not None and "/" in str(chat):
        await staging.discard()
        return 0
    area = ScratchArea(lambda: store.driver.local_dir(SpaceId(space)))
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(NotFound):
            quota = (await store.workspace(workspace)).quota
            # Most drafts are charged already, as such.
            size = staging.size if label.get(UNCOUNTED) else 0
            await stack.enter_async_context(quota.taking(lambda: size))
        kept = area.keep_pieces(f"{name}.recovered", pieces(staging))
        log.warning("an unfinished save of %s was found: its bytes are kept as %s", name, kept)
        await staging.discard()
    return 1
