"""Make a blob of what a staging holds: hash the touched chunks, link them into the objects, the manifest last.

Knows nothing of how a staging comes to be; what it is given nobody changes any more.

Concurrency: for any thread; holds the objects' lock shared.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from store import durability
from store.driver import CHUNK
from store.drivers.chunks import Manifest, chunk_count, manifest_of, sha256, split_digest
from store.drivers.file.hashing import Digests
from store.drivers.file.objects import CHUNK_SUFFIX, MANIFEST_SUFFIX, SMALL_SUFFIX, Objects, suffix_of

_FRESH_SECONDS: Final = 60
"""A file that was written since is young enough not to be swept before its blob is named."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A draft at one moment: `files` are the touched chunks' files; `base` counts as far as `limit`.

    `digests` may know some already.
    """

    files: dict[int, str]
    base: Manifest | None
    limit: int
    size: int
    digests: Digests


def make_blob(objects: Objects, frozen: Frozen, *, durable: bool, wait: bool) -> Manifest:
    """Hash what was touched and link it; the manifest comes last. Raises BlockingIOError without `wait`."""
    suffix = SMALL_SUFFIX if frozen.size <= CHUNK else CHUNK_SUFFIX
    frozen.digests.stop()
    kept_from_base: list[str] = []
    with objects.held(wait=wait):
        base_there = frozen.base is not None and objects.has(frozen.base)
        zeros = ""
        hexes: list[str] = []
        new = False
        for index in range(chunk_count(frozen.size)):
            length = min(CHUNK, frozen.size - index * CHUNK)
            if index in frozen.files:
                path, name = frozen.files[index], frozen.digests.of(index, length)
                if name and not durable:
                    new = objects.install(name + suffix, path, durable=False, right=True)
                else:
                    name, new = _store_file(objects, path, length, suffix, name, durable=durable)
            elif _kept_whole(frozen, index, length):
                assert frozen.base is not None
                name = frozen.base.chunks[index]
                kept_from_base.append(name + suffix)
                new = _keep(objects, frozen.base, name, suffix, is_there=base_there, durable=durable)
            elif frozen.base is None or frozen.limit <= index * CHUNK:
                if length != CHUNK or not zeros:
                    name = sha256(bytes(length))
                    new = objects.add(name + suffix, bytes(length), durable=durable)
                    zeros = name if length == CHUNK else zeros
                name = zeros if length == CHUNK else name
            else:
                kept = min(length, frozen.limit - index * CHUNK)
                data = objects.read(frozen.base.chunks[index] + suffix_of(frozen.base), 0, kept).ljust(length, b"\0")
                name = sha256(data)
                new = objects.add(name + suffix, data, durable=durable)
            hexes.append(name)
        if durable:
            # Whoever put the base may not have synced it.
            objects.require(kept_from_base)
        manifest = manifest_of(frozen.size, hexes)
        if frozen.size > CHUNK:
            _, name = split_digest(manifest.digest)
            new = objects.add(name + MANIFEST_SUFFIX, manifest.encode(), durable=durable)
        if new:
            objects.announce(manifest.digest)
    return manifest


def add_small(objects: Objects, manifest: Manifest, path: str, fd: int) -> bool:
    """Link the whole of a small blob whose digest is known, open as `fd`, without syncing; False: that had to wait."""
    try:
        fresh = time.time() - os.fstat(fd).st_mtime < _FRESH_SECONDS
        with objects.held(wait=False):
            if objects.install(manifest.chunks[0] + SMALL_SUFFIX, path, durable=False, right=True, fresh=fresh):
                objects.announce(manifest.digest)
    except BlockingIOError:
        return False
    except OSError as error:
        raise durability.store_error(error, "storing a blob") from error
    return True


def _kept_whole(frozen: Frozen, index: int, length: int) -> bool:
    """Whether the chunk is just the base's."""
    base = frozen.base
    if base is None or index >= len(base.chunks) or base.length(index) != length:
        return False
    return frozen.limit >= index * CHUNK + length


def _store_file(objects: Objects, path: str, length: int, suffix: str, name: str, *, durable: bool) -> tuple[str, bool]:
    """`name` is "" where the bytes have to be hashed."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        stat = os.fstat(fd)
        if stat.st_size != length:
            if stat.st_nlink > 1:
                # Taken over from a crash that came after it was linked: that blob keeps its bytes.
                data = os.pread(fd, length, 0).ljust(length, b"\0")
                name = sha256(data)
                return name, objects.add(name + suffix, data, durable=durable)
            durability.system.ftruncate("draft.truncate", fd, length)
        name = name or sha256(os.pread(fd, length, 0))
        if durable:
            with objects.synced(path) as failed_before:
                if failed_before:
                    return name, objects.add(name + suffix, os.pread(fd, length, 0), durable=True)
                durability.system.fsync("blob.sync", fd)
    finally:
        os.close(fd)
    return name, objects.install(name + suffix, path, durable=durable, right=True)


def _keep(objects: Objects, base: Manifest, name: str, suffix: str, *, is_there: bool, durable: bool) -> bool:
    if suffix_of(base) != suffix or not is_there:
        return _relink(objects, base, name, suffix, durable=durable)
    if suffix == SMALL_SUFFIX:
        # Of a long blob it is the manifest that must be young, and that is added.
        objects.touch(base.digest)
    return False


def _relink(objects: Objects, base: Manifest, name: str, suffix: str, *, durable: bool) -> bool:
    """A chunk of the base becomes a small blob, or the other way round, or the base was deleted: link or check it."""
    source = name + suffix_of(base)
    objects.read(source, 0, 0)
    if durable:
        objects.require([source])
    return objects.install(name + suffix, objects.path(source), durable=durable)
