"""Bring one log, with the blobs that it names, from one store to another; compare both.

Concurrency: see `store.moving.migrating`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from store.driver import AppendLog, Driver
from store.errors import BlobNotFound, CorruptBlob, CorruptLog, Diverged, InvalidInput, SpaceNotFound
from store.model import Digest, Entry, Seq, SpaceId
from store.moving.blobs import Named, bring
from store.moving.report import Moved, Told
from store.moving.spaces import FOLD_MAX, batches, check, same_text, shared


class Bringing:
    """Brings logs, and counts what it brought."""

    def __init__(self, source: Driver, target: Driver, moved: Moved, told: Told, *, verify: bool) -> None:
        self._source = source
        self._target = target
        self._moved = moved
        self._told = told
        self._verify = verify
        self._done: dict[SpaceId, tuple[Seq, int]] = {}
        """Up to which entry each log was brought."""

    async def log(self, log: AppendLog, name: str, *, whole: bool) -> bool:
        """Bring what the target doesn't have of `log`; whether that was anything.

        `whole`: compare all of it, whoever brought it. Raises Damage, where that is in the source, or in the target's
        log; Diverged; what the target raises.
        """
        head = log.head
        if self._done.get(log.space) == (head.seq, head.crc):
            return False
        since = await self._there(log, name)
        new = since is None or since < head.seq
        digest = ""
        if new or whole or self._verify:
            self._told(f"reading {name}")
            digest = await check(self._source, log)
        other = await self._target.open_log(log.space, create=True)
        try:
            if new:
                await self._bring(log, other, since, name)
            if new or whole or self._verify:
                await self._compare(log, other, digest, name)
        finally:
            await other.aclose()
        self._done[log.space] = head.seq, head.crc
        return new

    async def _there(self, log: AppendLog, name: str) -> Seq | None:
        """Up to where the target has it; None where it has no such log."""
        try:
            other = await self._target.open_log(log.space)
        except SpaceNotFound:
            return None
        try:
            return await shared(log, other, name)
        finally:
            await other.aclose()

    async def _bring(self, log: AppendLog, other: AppendLog, since: Seq | None, name: str) -> None:
        named = Named(self._source.blobs)
        if log.base.seq and other.head.seq == 0:
            await other.adopt([], after=log.base)
        held: list[Entry] = []
        # A workspace's log comes at once: of part of it, part of its chats would be shown.
        at_once = "/chats/" not in log.space and log.head.size <= FOLD_MAX
        async with aclosing(batches(log, since or log.base.seq)) as pieces:
            async for entries in pieces:
                if at_once:
                    held += entries
                else:
                    await self._adopt(other, entries, named, name)
                    self._told(f"copying {name}: entry {entries[-1].seq} of {log.head.seq}")
        if held:
            await self._adopt(other, held, named, name)
        await other.sync()
        self._moved.failures += [f"{name}: {what}" for what in named.missing()]

    async def _adopt(self, other: AppendLog, entries: Sequence[Entry], named: Named, name: str) -> None:
        digests = await named.of(entries)
        there = [digest for digest in digests if not await self._blob(digest, named, name)]
        try:
            await other.adopt(entries)
        except InvalidInput as error:
            raise Diverged(f"{name} was written to in the other store meanwhile ({error})") from error
        self._moved.entries += len(entries)
        for digest in there:
            # What nothing had named until now, chatfs gc may just have deleted.
            await self._blob(digest, named, name)

    async def _blob(self, digest: Digest, named: Named, name: str) -> int:
        self._told(f"copying {name}: {digest}")
        try:
            size = await bring(self._source.blobs, self._target.blobs, digest)
        except (BlobNotFound, CorruptBlob) as error:
            named.lacks(digest, error)
            return 0
        self._moved.blobs += size is not None
        self._moved.blob_bytes += size or 0
        return size is not None

    # ---- both

    async def _compare(self, log: AppendLog, other: AppendLog, digest: str, name: str) -> None:
        if self._verify:
            await self._read_blobs(log, name)
        if other.head[:3] != log.head[:3]:
            return  # it went on in the target: nobody can tell what its state was
        self._told(f"comparing {name}")
        if digest and log.base.seq == other.base.seq:
            same = await check(self._target, other) == digest
        else:  # too long; or one was compacted, which has forgotten what nobody can get at any more
            same = await same_text(log, other)
        if not same:
            raise CorruptLog("isn't the same in both stores: please report this", seq=log.head.seq, offset=0, log=name)

    async def _read_blobs(self, log: AppendLog, name: str) -> None:
        named = Named(self._source.blobs)
        async with aclosing(batches(log)) as pieces:
            async for entries in pieces:
                for digest in await named.of(entries):
                    self._told(f"reading {name}: {digest}")
                    try:
                        async for _ in self._target.blobs.get(digest):
                            pass
                    except (BlobNotFound, CorruptBlob) as error:
                        named.lacks(digest, error)
        self._moved.failures += [f"{name} in the other store: {what}" for what in named.missing()]
