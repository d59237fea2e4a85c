"""Which spaces of a store are in use: who may append to each, until when, and how far they have read. Changes nothing.

Concurrency: trio. Every instance that lives is asked; one that is stopped is waited for no longer than `PATIENCE`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from store import forwarding
from store.driver import RELEASED, Driver
from store.errors import StoreError
from store.forwarding import HeldSpace
from store.model import Epoch, Millis, Seq, SpaceId, chat_space
from store.peers import PeerInfo

if TYPE_CHECKING:
    from store.library import Store

PATIENCE: Final = 1.0
"""Seconds in which an instance has to say what it holds."""


@dataclass(frozen=True, slots=True)
class InUse:
    """A space whose lease isn't given back.

    `alive` is None where that can't be known; `answers` says whether the holder does, when it is asked. `last` is the
    log's last entry, `seen` the last one that the holder has read: None where it says of none.
    """

    name: str
    space: SpaceId
    holder: str
    info: PeerInfo | None
    alive: bool | None
    answers: bool
    epoch: Epoch
    expires: Millis
    last: Seq | None
    seen: Seq | None


async def in_use(store: Store) -> list[InUse]:
    """All of them, by name."""
    driver = store.driver
    living = {info.name: info for info in await driver.peers.everyone()}
    held = await _asked(driver, living)
    found = []
    async for name, space in _spaces(store):
        grant = None
        with contextlib.suppress(StoreError):
            grant = await driver.leases.current(space)
        if grant is None or grant.expires == RELEASED:
            continue
        said = held.get(grant.holder, {}).get(space)
        dead = driver.peers.is_dead(grant.holder)
        found.append(
            InUse(
                name,
                space,
                grant.holder,
                living.get(grant.holder),
                False if dead else True if grant.holder in living else None,
                grant.holder in held,
                grant.epoch,
                grant.expires,
                await _last(driver, space),
                None if said is None or said.epoch != grant.epoch else said.seq,
            )
        )
    return sorted(found, key=lambda one: one.name)


async def _spaces(store: Store) -> AsyncIterator[tuple[str, SpaceId]]:
    for workspace in await store.workspaces():
        yield workspace.state.name, workspace.space.id
        for record in list(workspace.state.chats.values()):
            yield f"{workspace.state.name}/{record.name}", chat_space(workspace.id, record.id)


async def _asked(driver: Driver, living: dict[str, PeerInfo]) -> dict[str, dict[SpaceId, HeldSpace]]:
    """What each instance holds that answers."""
    found: dict[str, dict[SpaceId, HeldSpace]] = {}

    async def ask(name: str) -> None:
        with contextlib.suppress(StoreError), trio.move_on_after(PATIENCE):
            told = forwarding.spaces(await driver.peers.ask(name, forwarding.STATUS))
            found[name] = {one.space: one for one in told}

    async with trio.open_nursery() as nursery:
        for name in living:
            nursery.start_soon(ask, name)
    return found


async def _last(driver: Driver, space: SpaceId) -> Seq | None:
    try:
        log = await driver.open_log(space)
    except StoreError:
        return None
    seq = log.head.seq
    await log.aclose()
    return seq
