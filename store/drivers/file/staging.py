"""A blob being made: files under `drafts/`, one for each chunk that was touched.

::

    drafts/<uuid>.json      {"label", "base", "limit", "size", "draft"}; "label": null for the store's own use
    drafts/<uuid>.<i>.<g>   chunk i, generation g; shorter than the chunk: zeros follow

Generations are counted from `draft` * 2**32 on: files with another g are what earlier drafts of the label have left.

Chunk i is its file of the highest generation; else the base's chunk as far as `limit`; else zeros. The size is the
largest of `size` and where the chunk files end. Nothing is made before the first write; the label goes first. After a
commit it stays, based on the blob that was made, until whoever committed has named that, and discards the draft.

A flock on the label says that its process lives (see `labels`). A commit freezes what is there by beginning a new
generation: frozen files are only copied, so writes go on while a thread hashes what `hashing` hasn't hashed already.

Concurrency: on the trio loop, but for a commit's hashing and linking, and `sync`; commits of one staging take turns.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import orjson
import trio

from store import durability
from store.driver import CHUNK
from store.drivers.chunks import Manifest, parts
from store.drivers.file.commit import Frozen, add_small, make_blob
from store.drivers.file.hashing import INLINE, Digests
from store.drivers.file.labels import GENERATIONS, SUFFIX, Label, Labels
from store.drivers.file.objects import Objects, suffix_of
from store.errors import BlobNotFound, CorruptBlob
from store.model import BlobRef, Digest
from store.turns import take

_OPEN: Final = 4
"""How many chunk files stay open."""


class FileStaging:
    """See `store.driver.Staging`. Made by `FileBlobs`."""

    def __init__(
        self,
        objects: Objects,
        labels: Labels,
        limiter: trio.CapacityLimiter,
        base: Manifest | None,
        label: dict[str, Any] | None,
    ) -> None:
        self._objects = objects
        self._labels = labels
        self._limiter = limiter
        self._label = label
        self._base = base
        self._limit = self._size = base.size if base else 0
        self._cut: int | None = None
        self._files: dict[int, int] = {}
        self._older: list[tuple[int, int]] = []
        self._generation = 0
        self._file: Label | None = None
        """The label's file, from the first write on."""
        self._digests = Digests()
        self._fds: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._turn: trio.Lock | None = None
        """Of commits and the end; made by the first that may have to wait."""
        self._made: Manifest | None = None
        """The blob that all of it was made, where nothing was written since; it isn't based on that yet."""
        self._discarded = False

    @property
    def size(self) -> int:
        """See Staging."""
        return self._size

    @property
    def label(self) -> dict[str, Any]:
        """See Staging."""
        return self._label or {}

    # ---- reading and writing

    def read(self, offset: int, size: int) -> bytes:
        """See Staging."""
        size = max(0, min(size, self._size - offset))
        with durability.failing("reading a draft"):
            found = [
                self._chunk(index, begin, count).ljust(count, b"\0") for index, begin, count in parts(offset, size)
            ]
        return found[0] if len(found) == 1 else b"".join(found)

    def write(self, offset: int, data: bytes) -> int:
        """See Staging."""
        size = len(data)
        if not size:
            return 0
        view = memoryview(data)
        at = 0
        with durability.failing("writing a draft"):
            self._make()
            for index, begin, count in parts(offset, size):
                fd = self._writable(index, begin, count)
                part = data if count == size else view[at : at + count]
                self._digests.changes(index)
                try:
                    durability.pwrite_all("draft.chunk", fd, part, begin)
                except BaseException:
                    self._undo_write(index, fd)
                    raise
                self._digests.wrote(index, begin, part, self._path(index, self._generation))
                at += count
                self._size = max(self._size, offset + at)
        return size

    def _undo_write(self, index: int, fd: int) -> None:
        """Some of it may be there: what is behind the end mustn't be seen when the draft gets longer."""
        self._digests.forget()
        end = min(CHUNK, max(0, self._size - index * CHUNK))
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_size > end:
                durability.system.ftruncate("draft.truncate", fd, end)

    def truncate(self, size: int) -> None:
        """See Staging."""
        with durability.failing("truncating a draft"):
            self._make()
            self._digests.forget()
            if size < self._size:
                self._shorten(size)
            self._size = size
            self._write_label()

    def _chunk(self, index: int, begin: int, count: int) -> bytes:
        """Bytes of a chunk; fewer where zeros follow."""
        if index in self._files:
            return os.pread(self._fd(index), count, begin)
        count = min(count, self._limit - index * CHUNK - begin)
        if self._base is None or count <= 0:
            return b""
        return self._objects.read(self._base.chunks[index] + suffix_of(self._base), begin, count)

    def _writable(self, index: int, begin: int, count: int) -> int:
        """The chunk's file in this generation, with what it holds copied unless all of that gets overwritten."""
        if self._files.get(index) == self._generation:
            return self._fd(index)
        covered = begin == 0 and count >= min(CHUNK, self._size - index * CHUNK)
        return self._own(index, b"" if covered else self._chunk(index, 0, CHUNK))

    def _own(self, index: int, content: bytes) -> int:
        """Make the chunk's file of this generation."""
        path = self._path(index, self._generation)
        fd = durability.system.open("draft.chunk", path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
        try:
            if content:
                durability.pwrite_all("draft.copy", fd, content, 0)
        except BaseException:
            os.close(fd)
            durability.discard("draft.drop", path)
            raise
        if index in self._files:
            self._older.append((index, self._files[index]))
        self._files[index] = self._generation
        self._keep((index, self._generation), fd)
        return fd

    def _shorten(self, size: int) -> None:
        for index in [index for index in self._files if (index + 1) * CHUNK > size]:
            left = max(0, size - index * CHUNK)
            if self._files[index] == self._generation:
                fd = self._fd(index)
                if left < os.fstat(fd).st_size:
                    durability.system.ftruncate("draft.truncate", fd, left)
            else:
                self._own(index, self._chunk(index, 0, left))
        self._limit = min(self._limit, size)
        if self._cut is not None:
            self._cut = min(self._cut, size)

    def _fd(self, index: int) -> int:
        key = (index, self._files[index])
        fd = self._fds.get(key)
        if fd is None:
            fd = os.open(self._path(*key), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._keep(key, fd)
        return fd

    def _keep(self, key: tuple[int, int], fd: int) -> None:
        self._fds[key] = fd
        if len(self._fds) > _OPEN:
            os.close(self._fds.popitem(last=False)[1])

    def _path(self, index: int, generation: int) -> str:
        assert self._file is not None
        return f"{self._file.stem}.{index}.{generation}"

    # ---- the files

    def _make(self) -> None:
        if self._discarded:
            raise trio.ClosedResourceError("the draft was discarded")
        if self._made is not None:
            self._settle()
        if self._file is None:
            self._file = self._labels.make(self._record())
            self._generation = self._file.draft * GENERATIONS

    def _record(self) -> dict[str, Any]:
        base = self._base.digest if self._base else None
        return {"label": self._label, "base": base, "limit": self._limit, "size": self._size}

    def _write_label(self) -> None:
        assert self._file is not None
        self._file.write(self._record())

    def _drop(self) -> None:
        """Remove the files: nothing in them counts any more."""
        while self._fds:
            os.close(self._fds.popitem()[1])
        files = [self._path(*item) for item in (*self._files.items(), *self._older)]
        label, self._file = self._file, None
        self._files, self._older, self._made = {}, [], None
        if not self._discarded:
            self._digests = Digests()
        if label is not None:
            self._labels.drop(label, files)

    async def discard(self) -> None:
        """See Staging."""
        self._discarded = True
        turn = None if self._turn is None else await self._take_turn()  # waits for a commit's thread
        try:
            with durability.failing("removing a draft"):
                self._drop()
        finally:
            if turn is not None:
                turn.release()

    async def _take_turn(self) -> trio.Lock:
        turn = self._turn = self._turn or trio.Lock()
        await take(turn)
        return turn

    async def sync(self) -> None:
        """See Staging."""
        if self._file is not None:
            paths = [self._file.stem + SUFFIX, *(self._path(*item) for item in self._files.items())]
            with durability.failing("syncing a draft"):
                await trio.to_thread.run_sync(self._sync_files, paths, limiter=self._limiter)

    def _sync_files(self, paths: Sequence[str]) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # committed meanwhile
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    with self._objects.synced(path) as failed_before:
                        if failed_before:
                            durability.pwrite_all("draft.sync", fd, os.pread(fd, 2 * CHUNK, 0), 0)
                        durability.system.fsync("draft.sync", fd)
                finally:
                    os.close(fd)
        self._objects.sync_dir("draft.sync", self._objects.drafts)
        self._objects.sync_dir("draft.sync", self._objects.root)

    # ---- committing

    async def commit(self, *, durable: bool = True) -> BlobRef:
        """See Staging."""
        if not durable and self._turn is None and (ref := self._commit_now()) is not None:
            return ref
        turn = await self._take_turn()  # waits for another commit of this staging
        try:
            return await self._commit(durable=durable)
        finally:
            turn.release()

    def _commit_now(self) -> BlobRef | None:
        """`commit` of what is small, new, and was written in order, as most drafts are; None: it isn't so.

        Its file stays until the draft is discarded or written to again, and is only copied from now on.
        """
        size, generation = self._size, self._generation
        if self._base is not None or self._label is None or self._older or self._files.get(0) != generation:
            return None
        hexed = self._digests.of(0, size) if size <= INLINE and not self._discarded else ""
        if not hexed:
            return None
        fd = self._fd(0)
        manifest = Manifest(size, (hexed,))
        # First: what may have been linked is never written to again.
        self._generation += 1
        if not add_small(self._objects, manifest, self._path(0, generation), fd):
            self._generation = generation
            return None
        self._made = manifest
        return manifest.ref

    def _settle(self) -> None:
        """Be based on what was made."""
        manifest, self._made = self._made, None
        assert manifest is not None
        self._digests = Digests()
        self._cut = manifest.size
        try:
            self._rebase(manifest)
        finally:
            self._cut = None

    async def _commit(self, *, durable: bool) -> BlobRef:
        if self._discarded:
            raise trio.ClosedResourceError("the draft was discarded")
        if self._made is not None:
            with durability.failing("writing a draft"):
                self._settle()
        if (base := self._unchanged()) is not None:
            with durability.failing("storing a blob"):
                is_there = await self._touch(base.digest)
            # Somebody may have written meanwhile.
            if is_there and self._unchanged() is not None:
                if self._label is None:
                    self._drop()
                return base.ref
        files = {index: self._path(index, generation) for index, generation in self._files.items()}
        frozen = Frozen(files, self._base, self._limit, self._size, self._digests)
        self._generation += 1
        self._digests = Digests()
        self._cut = frozen.size
        try:
            with durability.failing("storing a blob"):
                manifest = await self._make_blob(frozen, durable=durable)
                self._rebase(manifest)
        finally:
            self._cut = None
        return manifest.ref

    def _unchanged(self) -> Manifest | None:
        """The base, where it is all that a commit would store."""
        base = self._base
        return base if base is not None and not self._files and self._limit == self._size == base.size else None

    async def _touch(self, digest: Digest) -> bool:
        """Whoever commits may be about to name the blob: see `objects`, on sweeping."""
        with contextlib.suppress(BlockingIOError):
            return self._touch_held(digest, wait=False)
        return await trio.to_thread.run_sync(lambda: self._touch_held(digest, wait=True), limiter=self._limiter)

    def _touch_held(self, digest: Digest, *, wait: bool) -> bool:
        with self._objects.held(wait=wait):
            return self._objects.touch(digest)

    async def _make_blob(self, frozen: Frozen, *, durable: bool) -> Manifest:
        if not durable and frozen.size <= INLINE and not (frozen.base and frozen.base.size > CHUNK):
            with contextlib.suppress(BlockingIOError):
                return make_blob(self._objects, frozen, durable=False, wait=False)
        return await trio.to_thread.run_sync(self._make_blob_in_thread, frozen, durable, limiter=self._limiter)

    def _make_blob_in_thread(self, frozen: Frozen, durable: bool) -> Manifest:  # noqa: FBT001
        return make_blob(self._objects, frozen, durable=durable, wait=True)

    def _rebase(self, manifest: Manifest) -> None:
        """What was frozen is the base now; what was written since stays on top."""
        assert self._cut is not None
        self._base, self._limit = manifest, self._cut
        newer = {index: generation for index, generation in self._files.items() if generation == self._generation}
        if self._label is None and not newer and self._size == manifest.size == self._limit:
            self._drop()
            return
        if self._file is None:  # nothing was ever written
            return
        older = [*self._older, *(item for item in self._files.items() if item[0] not in newer)]
        self._files, self._older = newer, older
        self._write_label()
        self._older = []
        for key in older:
            fd = self._fds.pop(key, None)
            if fd is not None:
                os.close(fd)
            durability.discard("draft.drop", self._path(*key))

    # ---- after a crash

    @classmethod
    def take_over(
        cls,
        objects: Objects,
        labels: Labels,
        limiter: trio.CapacityLimiter,
        stem: str,
        fd: int,
        names: Sequence[str],
    ) -> FileStaging | None:
        """The draft whose label's lock is held on `fd`, `names` being its chunk files; None where it is of no use."""
        text = os.pread(fd, 1024 * 1024, 0)
        try:
            record = orjson.loads(text)
            label, digest = record["label"], record["base"]
            limit, size, draft = int(record["limit"]), int(record["size"]), int(record.get("draft", 0))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None
        chunks = [(int(index), int(generation)) for index, _, generation in (name.partition(".") for name in names)]
        own = [item for item in chunks if item[1] // GENERATIONS == draft]
        if label is None or (digest is None and not size and not own):
            return None
        base = None
        if digest is not None:
            try:
                base = objects.manifest(Digest(digest))
            except (BlobNotFound, CorruptBlob):
                # What was written is all that is left.
                limit = 0
        staging = cls(objects, labels, limiter, base, label)
        staging._file = Label(stem, fd, len(text), draft, taken_over=True)
        staging._limit = limit
        staging._older = [item for item in chunks if item[1] // GENERATIONS != draft]
        for index, generation in own:
            if generation < staging._files.get(index, -1):
                staging._older.append((index, generation))
                continue
            if index in staging._files:
                staging._older.append((index, staging._files[index]))
            staging._files[index] = generation
        for item in staging._files.items():
            # A file without bytes only says that there are zeros.
            if end := os.lstat(staging._path(*item)).st_size:
                size = max(size, item[0] * CHUNK + end)
        staging._size = size
        # What is there may be linked as a blob already, so it is only copied.
        staging._generation = max(staging._files.values(), default=draft * GENERATIONS - 1) + 1
        return staging
