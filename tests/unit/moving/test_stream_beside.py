"""Streams that are taken in beside `chatfs compact` and `chatfs gc`: `store.moving.taking`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from store.compaction import compact
from store.library import open_store
from store.model import Digest
from store.moving.blobs import Named
from store.moving.taking import Taking
from tests.support.moved import (
    LONG,
    chat_id,
    demo_stream,
    exported,
    logs,
    take,
    taken,
)


async def test_what_was_compacted_here_or_there_meanwhile_is_the_same(filled: Path) -> None:
    """Although the state that it was compacted to has forgotten what was removed."""
    whole = await demo_stream(filled)
    await taken(filled / "b", whole)
    async with open_store(str(filled / "a")) as store:
        await compact(await (await store.workspace("demo")).chat("trip"), keep=1)
    workspace, _ = await chat_id(filled / "a")
    packed = await exported(filled / "a", workspace)
    assert (await taken(filled / "b", packed)).failures == []
    await taken(filled / "c", packed)
    before = logs(filled / "c")
    assert (await taken(filled / "c", packed)).nothing_new
    assert logs(filled / "c") == before


async def test_a_blob_that_gc_deletes_as_its_entry_comes_is_named(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there already, and no log named it; given again, the stream brings it."""
    stream = await demo_stream(filled)
    async with open_store(str(filled / "b")) as store:
        ref = await store.driver.blobs.put(LONG)
        sizes = Taking._sizes

        async def before_gc(taking: Taking, digests: Iterable[Digest], named: Named) -> dict[Digest, int]:
            found = await sizes(taking, digests, named)
            if ref.digest in found:
                await store.driver.blobs.delete(ref.digest)
            return found

        monkeypatch.setattr(Taking, "_sizes", before_gc)
        moved = await take(store.driver, stream)
        assert moved.failures == [f"trip: the bytes of attachment 'long.bin' are missing ({ref.digest})"]
        monkeypatch.undo()
        assert (await take(store.driver, stream)).blobs == 1
