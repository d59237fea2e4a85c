"""Check blobs: every object's bytes against its name, every manifest's chunks, and what logs refer to.

Concurrency: `References` belongs to the thread that checks spaces; `ObjectCheck` has threads of its own, since hashing
leaves the interpreter free.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from store import durability, regular
from store.beginning import COMPACTED, COMPACTOR
from store.driver import CHUNK
from store.drivers.chunks import LONG, SMALL, Manifest, chunk_count, split_digest
from store.drivers.file import aside, salvage
from store.drivers.file.objects import CHUNK_SUFFIX, MANIFEST_SUFFIX, SMALL_SUFFIX, Objects
from store.errors import BlobNotFound, CorruptBlob
from store.fsck import logs
from store.fsck.context import Context, is_old, locked_log, reason
from store.fsck.findings import counted
from store.kinds import CHAT
from store.model import Digest, NewEntry
from store.snapshots import unpack

_KNOWN: Final = 4096
_NAME: Final = re.compile(r"[0-9a-f]{64}(\.chunks?)?")
_PACKED: Final = re.compile(rb'\{"snapshot":[0-9]+,"seq":([0-9]+),"crc":([0-9]+),')
"""How a compacted state begins: see store.snapshots.pack."""
_BACKUP: Final = "restore objects/ from a backup"
ATTACH: Final = "attach the same file again, or restore objects/ from a backup"
THREADS: Final = 2
MANIFEST_MAX: Final = 1 << 28
"""Bytes of a manifest: of a blob of 4 TiB."""


class References:
    """What logs refer to: is it there?"""

    def __init__(self, context: Context, objects: Objects) -> None:
        self._context = context
        self._objects = objects
        self._known: OrderedDict[tuple[Any, Any], None] = OrderedDict()
        self._collects = False
        self.collected: set[Digest] = set()
        """Every digest that was asked for since `collect`."""

    def collect(self) -> None:
        """Keep what is asked for: where not all objects are read anyway."""
        self._collects = True

    def is_known(self, digest: Any, size: Any) -> bool:
        """Whether the blob is there with that size; a few thousand answers are remembered."""
        if not isinstance(digest, str) or type(size) is not int:
            return False
        key = (digest, size)
        if self._collects:
            self.collected.add(Digest(digest))
        if key in self._known:
            self._known.move_to_end(key)
            return True
        if self.size(Digest(digest)) != size:
            return False
        self._known[key] = None
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return True

    def size(self, digest: Digest) -> int | None:
        """A blob's size; None where it isn't there (or its manifest can't be read)."""
        try:
            is_long, name = split_digest(digest)
        except BlobNotFound:
            return None
        path = self._objects.path(name + (MANIFEST_SUFFIX if is_long else SMALL_SUFFIX))
        try:
            if not is_long:
                return os.lstat(path).st_size
            return int(regular.read(path).partition(b"\n")[0])
        except (OSError, ValueError):
            return None

    def check_attachment(self, where: str, path: Path, telling: logs.Telling) -> None:
        """Report an `attachment.put` whose blob isn't there as it should be."""
        digest, size, name = (telling.value.get(key) for key in ("digest", "size", "name"))
        if not isinstance(digest, str) or type(size) is not int:
            return  # no event of chatfs: folds skip it
        found = self.size(Digest(digest))
        what = f"attachment {name!r} of entry {telling.seq}"
        if found is None:
            self._context.error("blob-missing", f"{what}: its bytes ({digest}) are missing", path, where, advice=ATTACH)
        elif found != size:
            self._context.warning(
                "blob-size",
                f"{what} says {counted(size, 'byte')}, its blob has {found}",
                path,
                where,
                advice="attach it again",
            )

    def check_base(self, where: str, path: Path, telling: logs.Telling) -> None:
        """Report the state of a compacted log if it can't be loaded, or what it refers to isn't there."""
        digest = Digest(str(telling.value.get("state")))
        self.is_known(digest, telling.value.get("size"))
        problem = self._base_problem(digest, int(telling.value["through"]))
        if problem:
            what = f"the state behind which the compacted log begins {problem}"
            self._context.error("base-state", f"{what} ({digest})", path, where, advice=_BACKUP)
            return
        for name, blob, size in self.attachments(digest):
            if not self.is_known(blob, size):
                what = f"attachment {name!r} of the compacted state: its bytes ({blob}) are missing"
                self._context.error("blob-missing", what, path, where, advice=ATTACH)

    def _base_problem(self, digest: Digest, through: int) -> str:
        try:
            state, head = unpack(CHAT, self._blob(digest), "it")
            state.complete()
        except BlobNotFound:
            return "is missing"
        except Exception as error:  # noqa: BLE001 - whatever it is, it can't be loaded
            return f"can't be loaded: {error}"
        return "" if head["seq"] == through else f"is of entry {head['seq']}, not {through}"

    def attachments(self, digest: Digest) -> Iterable[tuple[str, Digest, int]]:
        """Name, digest and size of what a compacted state has attached. Raises where it can't be loaded."""
        state, _ = unpack(CHAT, self._blob(digest), "it")
        held = (*state.attachments.values(), *(each for _, each in state.attachment_state.removed.values()))
        return [(each.name, each.digest, each.size) for each in held]

    def _blob(self, digest: Digest) -> bytes:
        manifest = self._objects.manifest(digest)
        suffix = CHUNK_SUFFIX if manifest.size > CHUNK else SMALL_SUFFIX
        return b"".join(self._objects.read(chunk + suffix, 0, CHUNK) for chunk in manifest.chunks)

    def find_base(self, where: str, path: Path, through: int, checked: logs.Checked) -> None:
        """The event that names a compacted log's state is lost: its blob may still be there."""
        what = f"entries up to {through} were compacted, and the event that says what they led to is lost"
        found = next(self._packed(through, checked.crcs.get(through)), None)
        if found is None:
            self._context.error("base-state", what, path, where, advice=_BACKUP)
        else:
            ref = {"state": found, "size": self.size(found), "events": 0}
            event = orjson.dumps({"type": COMPACTED, "through": through, **ref})
            fix = None if not checked.complete else lambda: _append(self._context, path, event)
            self._context.error("base-state", f"{what}; {found} is that state", path, where, fix=fix)

    def _packed(self, through: int, crc: int | None) -> Iterator[Digest]:
        """The blobs that are the state at an entry."""
        for group in self._objects.groups():
            for name in self._objects.names_in(group):
                if name.endswith(CHUNK_SUFFIX):
                    continue
                digest = Digest(("sha256-chunks:" if name.endswith(MANIFEST_SUFFIX) else "sha256:") + name[:64])
                try:
                    manifest = self._objects.manifest(digest)
                    suffix = CHUNK_SUFFIX if manifest.size > CHUNK else SMALL_SUFFIX
                    match = _PACKED.match(regular.read(self._objects.path(manifest.chunks[0] + suffix))[:80])
                except Exception:  # noqa: BLE001, S112 - one that can't be read isn't it
                    continue
                if (
                    match
                    and int(match[1]) == through
                    and int(match[2]) == crc
                    and not self._base_problem(digest, through)
                ):
                    yield digest


def _append(context: Context, path: Path, event: bytes) -> str:
    with locked_log(path) as fd:
        salvage.append(path.parent, fd, NewEntry(event, COMPACTOR), context.now())
    return "the log names it again"


# ---- the bytes


@dataclass(frozen=True, slots=True)
class Bad:
    """An object whose bytes aren't what they must be. `digests`: the blobs that it belongs to."""

    name: str
    what: str
    digests: tuple[Digest, ...]
    movable: bool = False
    """Whether it is in the way of the right bytes."""


class ObjectCheck:
    """Reads objects and hashes them."""

    def __init__(self, context: Context, objects: Objects) -> None:
        self._context = context
        self._objects = objects

    def check_all(self) -> list[Bad]:
        """Every object there is; what is damaged or lacks a chunk."""
        found: list[Bad] = []
        groups = self._objects.groups()
        with ThreadPoolExecutor(THREADS, "fsck-objects") as pool:
            try:
                for part in pool.map(self._check_group, groups):
                    found += part
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return self._with_digests(found)

    def check_some(self, digests: Iterable[Digest]) -> list[Bad]:
        """The objects of some blobs."""
        names: dict[str, None] = {}
        for digest in digests:
            try:
                is_long, name = split_digest(digest)
                names[name + (MANIFEST_SUFFIX if is_long else SMALL_SUFFIX)] = None
                if is_long:
                    names.update(dict.fromkeys(chunk + CHUNK_SUFFIX for chunk in self._objects.manifest(digest).chunks))
            except (BlobNotFound, CorruptBlob):
                continue
        found = [bad for name in names if (bad := self._check(name)) is not None]
        return self._with_digests(found)

    def _check_group(self, group: str) -> list[Bad]:
        found = []
        directory = self._objects.directory / group
        try:
            names = sorted(path.name for path in directory.iterdir())
        except OSError as error:
            self._context.error(
                "unreadable", f"can't be listed: {reason(error)}", directory, advice="see who may read it"
            )
            return []
        for name in names:
            if _NAME.fullmatch(name) and name[:2] == group:
                bad = self._check(name)
                if bad is not None:
                    found.append(bad)
            else:
                self._stranger(directory / name)
        return found

    def _stranger(self, path: Path) -> None:
        try:
            if path.name.endswith(".tmp"):
                if is_old(path.lstat()):
                    self._context.info("leftover", "was left by a crash", path, advice="chatfs gc removes it")
                return
        except FileNotFoundError:
            return
        self._context.warning("stranger", "isn't chatfs's", path, advice="move it elsewhere")

    def _check(self, name: str) -> Bad | None:
        """Read one object; None where it is fine, or gone."""
        context = self._context
        path = Path(self._objects.path(name))
        try:
            fd = context.open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Bad(name, f"can't be read: {reason(error)}", ())
        with os.fdopen(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            try:
                data = file.read(MANIFEST_MAX if name.endswith(MANIFEST_SUFFIX) else CHUNK + 1)
            except OSError as error:
                return Bad(name, f"can't be read: {reason(error)}", ())
        context.check_mode(path, status)
        context.read(len(data))
        context.findings.looked(blobs=not name.endswith(CHUNK_SUFFIX))
        if len(data) != status.st_size or hashlib.sha256(data).hexdigest() != name[:64]:
            return Bad(name, "has other bytes than its name says", (), movable=True)
        return self._check_chunks(name, data) if name.endswith(MANIFEST_SUFFIX) else None

    def _check_chunks(self, name: str, data: bytes) -> Bad | None:
        try:
            size, *chunks = data.decode().split()
            manifest = Manifest(int(size), tuple(chunks))
        except ValueError:
            return Bad(name, "is no list of chunks", ())
        if len(chunks) != chunk_count(manifest.size):
            return Bad(name, "is no list of chunks", ())
        for index, chunk in enumerate(chunks):
            try:
                found = Path(self._objects.path(chunk + CHUNK_SUFFIX)).lstat().st_size
            except OSError:
                found = -1
            if found != manifest.length(index):
                what = (
                    "is missing" if found < 0 else f"has {counted(found, 'byte')} instead of {manifest.length(index)}"
                )
                return Bad(name, f"needs chunk {chunk[:16]}…, which {what}", (Digest(LONG + name[:64]),))
        return None

    def _with_digests(self, found: list[Bad]) -> list[Bad]:
        """Say which blobs they belong to."""
        chunks = {bad.name[:64] for bad in found if bad.name.endswith(CHUNK_SUFFIX)}
        of: dict[str, list[Digest]] = {}
        for name in self._objects.names(MANIFEST_SUFFIX) if chunks else ():
            text = regular.read(self._objects.path(name))
            for line in text.split(b"\n")[1:]:
                if line.decode(errors="replace") in chunks:
                    of.setdefault(line.decode(), []).append(Digest(LONG + name[:64]))
        return [replace(bad, digests=_digests(bad, of)) for bad in found]

    def put_aside(self, name: str, tell: Callable[[str], None]) -> str:
        """Move a damaged object to quarantine: the same bytes, attached again, then take its place.

        `tell` is told how it is called there, before it is gone from here. Raises OSError, StoreError.
        """
        path = Path(self._objects.path(name))
        with self._objects.held(alone=True):
            if self._check(name) is None:
                return "it is whole by now"
            with os.fdopen(self._context.open(path), "rb") as file:
                note = {"why": "the object's bytes aren't what its name says"}
                pieces = iter(lambda: file.read(CHUNK), b"")
                now = self._context.now()
                kept = aside.keep(self._context.root, f"objects/{name}", pieces, note, now, suffix="object")
            tell(kept)
            durability.system.unlink("blob.quarantine", path)
            durability.fsync_dir("blob.quarantine", path.parent)
        return f"moved to quarantine/{kept}"


def _digests(bad: Bad, of: dict[str, list[Digest]]) -> tuple[Digest, ...]:
    if bad.name.endswith(CHUNK_SUFFIX):
        return tuple(dict.fromkeys(of.get(bad.name[:64], ())))
    return (Digest((LONG if bad.name.endswith(MANIFEST_SUFFIX) else SMALL) + bad.name[:64]),)
