"""Documents, blobs and leases of a store that is opened read-only: what would change something raises ReadOnly.

Concurrency: as in `kv`, `blobs`, `lease`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

from store.driver import Document, Etag, EtagConflict, Grant
from store.drivers.file.blobs import FileBlobs
from store.drivers.file.kv import FileKv
from store.drivers.file.lease import FileLease
from store.drivers.file.staging import FileStaging
from store.errors import ReadOnly
from store.model import BlobRef, Digest, SpaceId


def _refuse(what: str) -> NoReturn:
    raise ReadOnly(f"{what}: the store was opened read-only")


class ReadOnlyKv(FileKv):
    """See `store.driver.JsonKv`."""

    async def put(self, key: str, value: Any, *, if_match: Etag | None = None) -> Document | EtagConflict:
        """Refused."""
        _refuse(f"writing {key!r}")

    async def delete(self, key: str, *, if_match: Etag | None = None) -> EtagConflict | None:
        """Refused."""
        _refuse(f"deleting {key!r}")

    def _make(self) -> None:
        """What isn't there isn't watched."""


class ReadOnlyBlobs(FileBlobs):
    """See `store.driver.BlobStore`."""

    async def put(self, source: AsyncIterator[bytes] | bytes, *, durable: bool = True) -> BlobRef:
        """Refused."""
        _refuse("storing a blob")

    async def append(self, digest: Digest, data: bytes, *, durable: bool = True) -> BlobRef:
        """Refused."""
        _refuse("storing a blob")

    async def patch(self, digest: Digest, offset: int, data: bytes, *, durable: bool = True) -> BlobRef:
        """Refused."""
        _refuse("storing a blob")

    async def delete(self, digest: Digest) -> None:
        """Refused."""
        _refuse(f"deleting {digest}")

    def stage(self, base: Digest | None = None, *, label: dict[str, Any]) -> FileStaging:
        """Refused."""
        _refuse("beginning a draft")

    def _make_announced(self) -> None:
        _refuse("watching blobs")

    async def abandoned(self) -> Sequence[FileStaging]:
        """They wait for somebody who may write."""
        return []


class ReadOnlyLease(FileLease):
    """See `store.driver.Lease`."""

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int, *, lapsed: Grant | None = None) -> Grant:
        """Refused."""
        _refuse(f"acquiring the lease of {space}")

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """Refused."""
        _refuse(f"renewing the lease of {grant.space}")

    async def release(self, grant: Grant) -> None:
        """Refused."""
        _refuse(f"releasing the lease of {grant.space}")
