"""Bring the blobs that a log names: before the entries that name them, so that no log ever names what isn't there.

What looks like a digest is one, as for `store.gc.marks`; that a blob is missing matters only where an attachment or a
compacted log needs it. Blobs that a compacted state names come before it.

Concurrency: trio; one blob at a time, in constant memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

import orjson

from store import events as ev
from store.beginning import base_of
from store.digests import DIGEST, digests_in
from store.driver import BlobStore
from store.errors import BlobNotFound, CorruptBlob
from store.model import Digest, Entry

_MAY_NAME: Final = (b"sha256", b"\\u00")
_QUARANTINED: Final = b"blob.quarantined"
_OVERLAP: Final = 1024
"""Longer than any digest, however it is written."""
_KNOWN_MAX: Final = 100_000


class Named:
    """What one log names, entry by entry."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._attachments: dict[Digest, str] = {}
        self._known: set[Digest] = set()
        self._missing: dict[Digest, str] = {}
        self._set_aside: set[str] = set()

    async def of(self, entries: Iterable[Entry]) -> list[Digest]:
        """The digests in these entries that weren't in earlier ones, in the order in which they are to be brought."""
        found: list[Digest] = []
        for entry in entries:
            if not any(sign in entry.data for sign in _MAY_NAME):
                continue
            event = ev.parse(entry.data)
            if isinstance(event, ev.AttachmentPut):
                self._attachments[Digest(event.digest)] = f"attachment {event.name!r}"
            elif entry.actor == ev.REPAIRER and _QUARANTINED in entry.data:
                self._set_aside.update(digests_in(entry.data))
            base = base_of(entry)
            if base is not None:
                found += [digest async for digest in self._inside(base.digest)]
                self._attachments[base.digest] = "the compacted state"
            found += digests_in(entry.data)
        fresh = [digest for digest in dict.fromkeys(found) if digest not in self._known]
        if len(self._known) > _KNOWN_MAX:
            self._known.clear()
        self._known.update(fresh)
        return fresh

    async def _inside(self, digest: Digest) -> AsyncIterator[Digest]:
        """What a compacted state names. Where it can't be read, that is met when it is brought itself."""
        rest = b""
        line: list[bytes] | None = []
        try:
            async for piece in self._blobs.get(digest):
                text = rest + piece
                for found in digests_in(text):
                    yield found
                rest = text[-_OVERLAP:]
                if line is not None:
                    line.append(piece.partition(b"\n")[0])
                    if b"\n" in piece:
                        self._take_state(b"".join(line))
                        line = None
        except (BlobNotFound, CorruptBlob):
            return

    def _take_state(self, line: bytes) -> None:
        """The attachments in a state's JSON line: see `store.snapshot`."""
        try:
            state = orjson.loads(line)["state"]
            for row in [*state["present"], *(row[1:] for row in state["removed"])]:
                self._attachments[Digest(str(row[2]))] = f"attachment {row[1]!r}"
        except (ValueError, LookupError, TypeError):
            return  # not a state; whoever folds the log says so

    def lacks(self, digest: Digest, error: BlobNotFound | CorruptBlob) -> None:
        """That one can't be brought: remember it if the log needs it."""
        what = self._attachments.get(digest)
        if what is not None:
            how = "are missing" if isinstance(error, BlobNotFound) else "are damaged"
            self._missing[digest] = f"the bytes of {what} {how} ({digest})"

    def missing(self) -> list[str]:
        """What was lacking, and the log doesn't say itself that it was set aside."""
        return [what for digest, what in self._missing.items() if digest not in self._set_aside]


def is_digest(text: str) -> bool:
    """Whether `text` has a digest's form."""
    return DIGEST.fullmatch(text.encode()) is not None


async def bring(source: BlobStore, target: BlobStore, digest: Digest) -> int | None:
    """Copy a blob; its size, None where it was there. Raises BlobNotFound, CorruptBlob, BackendError."""
    try:
        await target.stat(digest)
    except (BlobNotFound, CorruptBlob):
        await source.stat(digest)
        ref = await target.put(source.get(digest))
        if ref.digest != digest:
            raise CorruptBlob(f"the bytes of {digest} are those of {ref.digest}") from None
        return ref.size
    return None
