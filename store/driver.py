"""What a backend must offer: four small protocols, and the Driver that hands them out.

Everything else (folds, the lens, use cases, the mount) is written once, above these. `tests/contract` says in code what
the docstrings say here, and runs on every driver.

Concurrency: everything runs on one trio event loop. A method without `async` only touches memory or the page cache.
Instances may be used by many tasks at once; one space may be opened by many processes at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, NewType, Protocol

from store.errors import CorruptLog, StoreError
from store.model import BlobRef, Digest, Entries, Entry, Epoch, Head, Millis, NewEntry, Seq, SpaceId
from store.peers import Peers

Clock = Callable[[], Millis]
"""Milliseconds since the epoch; tests hand in their own."""
Progress = Callable[[int, int], None]
"""Told (done, total) while long work goes on; (0, 0) while it has to wait for another process."""

Etag = NewType("Etag", str)
ABSENT = Etag("")
"""As `if_match`: only if there is no such document."""


class AppendLog(Protocol):
    """The log of one space, opened."""

    space: SpaceId

    @property
    def head(self) -> Head:
        """Where the log ended when this instance last looked: no I/O."""
        ...

    async def refresh(self) -> Head:
        """Look again, and return the head: sees every append that was acknowledged anywhere before the call.

        A batch of which not all lines are there yet doesn't count.
        """
        ...

    async def append(
        self,
        batch: Sequence[NewEntry],
        *,
        expected_seq: Seq | None = None,
        epoch: Epoch | None = None,
        intent: Callable[[Head], None] | None = None,
    ) -> Seq:
        """Append all of `batch`, or nothing, after whatever the log holds by then; return the last seq.

        Entries get consecutive seqs. Their ts never runs backwards: it is at least the previous entry's. When it
        returns, every process sees the entries and a crash of any process loses nothing; `sync` makes them survive a
        power cut. An empty batch is a no-op that returns the last seq.

        `intent` is called with the head as it will be, just before the batch is written, while nobody else can append;
        what it raises is raised, and nothing is written. Where the batch has to be written anew it is called again.

        Raises SeqConflict where `expected_seq` isn't the last seq, StaleEpoch where `epoch` is lower than one that has
        been granted (checked atomically with the append), StoreFull or StoreFailed where the backend fails: then the
        log is as it was, and the next append works, unless the failure couldn't be undone (see `failure`).
        """
        ...

    def append_now(self, batch: Sequence[NewEntry], *, epoch: Epoch | None = None) -> list[Entry] | None:
        """`append` of a batch that isn't empty, right behind `head`, where nothing has to be waited for: the entries.

        Others may stand behind them already when it returns (where this process was stopped meanwhile).

        None, and nothing is appended, where that can't be: another instance has appended or is about to, the log has
        to be looked at, recovered or synced first. Then `append` it. Raises what that raises.
        """
        ...

    async def adopt(self, entries: Sequence[Entry], *, after: Head | None = None) -> Seq:
        """Append entries of another log exactly as they are, crcs and batches included; return the last seq.

        Whole batches that follow the head: else InvalidInput, which names the entry. All of them, or none where this
        raises; a crash may leave the first batches. `after` is where the other log's beginning was truncated away (its
        `base`): only for a log without entries, which then begins behind that. Errors else as `append` has them.
        """
        ...

    @property
    def base(self) -> Head:
        """What the log begins behind: seq, ts and crc of the entry that was truncated away last, or EMPTY_HEAD."""
        ...

    def read(self, since: Seq = Seq(0), limit: int | None = None, *, reverse: bool = False) -> AsyncIterator[Entry]:
        """Entries with seq > `since`, oldest first, or newest first with `reverse`; at most `limit`. Streams.

        Raises Truncated where entries after `since` have been truncated away (never with since=0, which means from
        the oldest that is there), and CorruptLog where the damage stands.
        """
        ...

    def read_batches(self, since: Seq = Seq(0)) -> AsyncGenerator[Entries, None]:
        """The same, oldest first, as many at once as come at once: for who takes them all."""
        ...

    def subscribe(self, since: Seq | None = None) -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """Entries with seq > `since`, then live ones, for ever; only live ones where `since` is None.

        Subscribed when the context is entered. Every entry once and in order, whoever appends; a slow reader costs
        bounded memory. Raises Truncated where entries that weren't delivered yet have been truncated away.
        """
        ...

    async def truncate_before(self, seq: Seq) -> None:
        """Drop the entries with a lower seq, atomically: all or none. `head.seq + 1` drops everything.

        The seq of the next append is as if nothing had been dropped. Raises ValueError beyond `head.seq + 1`.
        """
        ...

    async def sync(self) -> None:
        """Return when all that was appended before the call survives a power cut. Concurrent calls share the work."""
        ...

    @property
    def damage(self) -> CorruptLog | None:
        """What was found behind the head and isn't torn: nothing is appended behind it."""
        ...

    @property
    def failure(self) -> StoreError | None:
        """Why appends and syncs are refused (and what they raise), since one of them failed; None: they aren't."""
        ...

    async def recover(self) -> None:
        """Accept appends again: look at the log anew, and write once more what may not be on stable storage.

        Nothing to do without a `failure`; raises what is in the way where it stays. CorruptLog: entries were lost.
        """
        ...

    @property
    def text_id(self) -> int:
        """Names the text before the head: it stays while entries are added, and changes where any byte of it did (by a
        truncation, a repair).
        """
        ...

    def read_text(self, offset: int, size: int) -> bytes:
        """Bytes of the log's text (its lines as `store.codec` writes them), within `head.size`."""
        ...

    async def aclose(self) -> None:
        """Let go of the log. Doesn't sync."""
        ...


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON value with the etag of its present version. No two versions of a key ever have the same etag."""

    value: Any
    etag: Etag


@dataclass(frozen=True, slots=True)
class EtagConflict:
    """`if_match` didn't match: `current` is what is there, None where nothing is."""

    current: Document | None


@dataclass(frozen=True, slots=True)
class KvChange:
    """A key was put (`document`) or deleted (None)."""

    key: str
    document: Document | None


class JsonKv(Protocol):
    """Small JSON documents. A key is segments joined by `/`, each non-empty, any printable text without `/`."""

    async def get(self, key: str) -> Document | None: ...

    async def put(self, key: str, value: Any, *, if_match: Etag | None = None) -> Document | EtagConflict:
        """Write; with `if_match` only over that version (ABSENT: only where nothing is). Durable when it returns.

        A compare-and-set that holds across processes.
        """
        ...

    async def delete(self, key: str, *, if_match: Etag | None = None) -> EtagConflict | None:
        """Delete; nothing to delete is no error (without `if_match`)."""
        ...

    async def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that begin with `prefix`."""
        ...

    def watch(self, prefix: str = "") -> AbstractAsyncContextManager[AsyncIterator[KvChange]]:
        """Changes from when the context is entered, whoever makes them. Quick successive ones of a key may merge."""
        ...


CHUNK = 1024 * 1024
"""Bytes of a blob's chunks (the last one may be shorter)."""


class Staging(Protocol):
    """A blob being made: a private, patchable copy of `base` (or nothing), which costs only the chunks touched.

    What is written is kept outside this process's memory, so that it outlives a crash (see `BlobStore.abandoned`).
    """

    @property
    def size(self) -> int: ...

    @property
    def label(self) -> dict[str, Any]: ...

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        ...

    def write(self, offset: int, data: bytes) -> int:
        """Write all of `data`, return its length. Raises StoreFull, StoreFailed.

        A gap before `offset` reads as zeros.
        """
        ...

    def truncate(self, size: int) -> None:
        """Cut, or lengthen with zeros."""
        ...

    async def sync(self) -> None:
        """Return when what was written survives a power cut."""
        ...

    async def commit(self, *, durable: bool = True) -> BlobRef:
        """Make it a blob (hashing in a thread). The staging stays usable, as one based on that blob.

        After a crash that comes before `discard` it is abandoned all the same: nobody may have named the blob yet.
        With `durable`, the blob survives a power cut when this returns.
        """
        ...

    async def discard(self) -> None:
        """Drop it. Idempotent."""
        ...


class BlobStore(Protocol):
    r"""Immutable bytes under their digest.

    A blob of at most CHUNK bytes has the digest `sha256:<hex of its SHA-256>`. A longer one is a list of chunks and has
    `sha256-chunks:<hex>`, the SHA-256 over its manifest: `b"%d\n" % size`, then the hex SHA-256 of each chunk and a
    newline. So a digest says by itself how to check it, equal bytes always have equal digests, and a change to a long
    blob re-hashes only what it touched. Reads check each chunk (once per process) and raise CorruptBlob.
    """

    async def put(self, source: AsyncIterator[bytes] | bytes, *, durable: bool = True) -> BlobRef:
        """Store a stream in constant memory."""
        ...

    def get(self, digest: Digest, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """Stream a range. Raises BlobNotFound, CorruptBlob."""
        ...

    async def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer only at the end."""
        ...

    async def stat(self, digest: Digest) -> BlobRef:
        """Raises BlobNotFound."""
        ...

    def list(self, prefix: str = "") -> AsyncIterator[BlobRef]:
        """All blobs whose digest begins with `prefix`; the chunks of long blobs aren't listed by themselves."""
        ...

    async def delete(self, digest: Digest) -> None:
        """Delete if it is there; a long blob's chunks go unless another blob has them."""
        ...

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Digest]]:
        """Digests of blobs that become present, whoever puts them."""
        ...

    async def append(self, digest: Digest, data: bytes, *, durable: bool = True) -> BlobRef:
        """A new blob: that one, then `data`. Costs the last chunk and the new ones."""
        ...

    async def patch(self, digest: Digest, offset: int, data: bytes, *, durable: bool = True) -> BlobRef:
        """A new blob: that one with `data` at `offset`. Costs the chunks touched."""
        ...

    def stage(self, base: Digest | None = None, *, label: dict[str, Any]) -> Staging:
        """Begin a blob. `label` (JSON) is kept with it, and says after a crash what it was to become."""
        ...

    def drafts(self) -> Sequence[tuple[dict[str, Any], int]]:
        """Label and size of every staging, whoever makes it, that was written to and isn't discarded."""
        ...

    async def abandoned(self) -> Sequence[Staging]:
        """Stagings whose process died, taken over by the caller, who commits or discards them."""
        ...


@dataclass(frozen=True, slots=True)
class Grant:
    """The append authority over a space until `expires`."""

    space: SpaceId
    holder: str
    epoch: Epoch
    expires: Millis


RELEASED: Final = Millis(0)
"""When a grant expires that was given back: at once by every clock, also by one that is behind."""


class Lease(Protocol):
    """Who may append to a space. All of it is atomic across processes."""

    async def acquire(self, space: SpaceId, holder: str, ttl_ms: int, *, lapsed: Grant | None = None) -> Grant:
        """Grant to `holder`, with an epoch higher than all before (also when it held the lease already).

        Raises LeaseHeld while another's is unexpired; `lapsed` is one that counts as expired, whatever the clock says.
        """
        ...

    async def renew(self, grant: Grant, ttl_ms: int) -> Grant:
        """The same epoch, a later expiry. Raises NotHolder where it has been granted anew (an expired one that nobody
        else took can still be renewed).
        """
        ...

    async def release(self, grant: Grant) -> None:
        """Give it back (RELEASED). Raises NotHolder. The epoch is remembered."""
        ...

    async def current(self, space: SpaceId) -> Grant | None:
        """The latest grant, expired or not; None where there never was one."""
        ...


class Access(Enum):
    """What opening a store may do to it. Where it can't be done, ReadOnly or StoreNotFound is raised."""

    READ = "read"
    """Nothing: it is opened read-only."""
    LOOK = "look"
    """What costs nobody anything, for who only wants to see something: as WRITE where the store has the present format
    and can be written, else as READ."""
    WRITE = "write"
    """It is written; one of an older format is migrated first."""
    MAKE = "make"
    """As WRITE, and made where there is none."""
    MAKE_INSIDE = "make inside"
    """As MAKE, if the directory is there that it is to stand in: else whoever named it has surely mistyped it."""


class Driver(Protocol):
    """One backend, opened."""

    url: str
    read_only: bool
    """Whether it was opened so that nothing in it is changed: what would, raises ReadOnly."""
    made: bool
    """Whether there was none, and opening it made it."""
    kv: JsonKv
    blobs: BlobStore
    leases: Lease
    peers: Peers

    async def open_log(self, space: SpaceId, *, create: bool = False) -> AppendLog:
        """Raises SpaceNotFound unless `create`. Repairs a torn tail. Costs O(tail), not O(log)."""
        ...

    async def spaces(self, under: str = "workspace") -> list[SpaceId]:
        """The spaces directly in `under`: "workspace", or a workspace's space for its chats. Names only."""
        ...

    async def delete_space(self, space: SpaceId) -> None:
        """Delete a space with its local directory. There is no way back."""
        ...

    def local_dir(self, space: SpaceId) -> Path:
        """A directory on this machine for what belongs to the space but isn't logged: scratch files, projections.

        It may not exist yet.
        """
        ...

    def watch(self, space: SpaceId) -> None:
        """Report appends to `space` that other instances or processes make, through `changes`. Counted."""
        ...

    def unwatch(self, space: SpaceId) -> None:
        """Undo one `watch`."""
        ...

    def watch_spaces(self, under: str = "workspace") -> None:
        """Report through `changes`, as `under` itself, that a space was made or deleted directly in it."""
        ...

    def changes(self) -> AsyncIterator[set[SpaceId]]:
        """The watched spaces that changed, coalesced; own changes may be among them. One reader."""
        ...

    def usage(self) -> tuple[int, int, int, int]:
        """(block size, blocks, free blocks, blocks available) of where the bytes go, as statvfs(3) has them."""
        ...

    async def sync(self) -> None:
        """Return when everything that was written to the store before, by whomever, survives a power cut. Costly."""
        ...

    async def aclose(self) -> None: ...
