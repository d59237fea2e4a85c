"""How bytes get their digest, and what a long blob's manifest says: the same for every driver.

The definition is `store.driver.BlobStore`'s. No I/O here.

Concurrency: pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from store.driver import CHUNK
from store.errors import BlobNotFound, CorruptBlob
from store.model import BlobRef, Digest

SMALL: Final = "sha256:"
LONG: Final = "sha256-chunks:"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A blob's size and its chunks' SHA-256. At most one chunk: a small blob."""

    size: int
    chunks: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """The blob's digest."""
        if self.size <= CHUNK:
            return Digest(SMALL + self.chunks[0])
        return Digest(LONG + hashlib.sha256(self.encode()).hexdigest())

    @property
    def ref(self) -> BlobRef:
        """Digest and size."""
        return BlobRef(self.digest, self.size)

    def encode(self) -> bytes:
        """What a long blob's digest is the SHA-256 of."""
        return b"%d\n" % self.size + "".join(f"{chunk}\n" for chunk in self.chunks).encode()

    def length(self, index: int) -> int:
        """Bytes of a chunk."""
        return min(CHUNK, self.size - index * CHUNK)


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def chunk_count(size: int) -> int:
    """How many chunks a blob has; an empty one has one empty chunk."""
    return max(1, -(-size // CHUNK))


def parts(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(chunk, offset in it, bytes of it) of a range."""
    end = offset + size
    while offset < end:
        index, begin = divmod(offset, CHUNK)
        count = min(CHUNK - begin, end - offset)
        yield index, begin, count
        offset += count


def manifest_of(size: int, chunks: Sequence[str]) -> Manifest:
    """The manifest of a blob whose chunks are known."""
    assert len(chunks) == chunk_count(size)
    return Manifest(size, tuple(chunks))


def blob_of(data: bytes) -> BlobRef:
    """Of the blob that these bytes are."""
    pieces = [data[start : start + CHUNK] for start in range(0, max(1, len(data)), CHUNK)]
    return manifest_of(len(data), [sha256(piece) for piece in pieces]).ref


def decode_manifest(digest: Digest, data: bytes) -> Manifest:
    """A long blob's manifest; raises CorruptBlob where it isn't the one that `digest` names."""
    if LONG + hashlib.sha256(data).hexdigest() != digest:
        raise CorruptBlob(f"the manifest of {digest} is damaged: run chatfs fsck --repair")
    size, *chunks = data.decode().split()
    return Manifest(int(size), tuple(chunks))


def split_digest(digest: Digest) -> tuple[bool, str]:
    """(whether it is a long blob's, the hex). Raises BlobNotFound: what isn't a digest names nothing."""
    for prefix in (SMALL, LONG):
        if digest.startswith(prefix) and _HEX.fullmatch(digest, len(prefix)):
            return prefix == LONG, digest[len(prefix) :]
    raise BlobNotFound(f"no blob {digest}")
