"""BlobStore."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from store.driver import CHUNK, Driver
from store.drivers.file.objects import Objects
from store.errors import BlobNotFound, CorruptBlob, StoreFailed, StoreFull
from store.model import BlobRef, Digest
from tests.contract.backends import Backend, FaultySystem, FileBackend, drafts_in, faulty, take
from tests.support.waiting import wait_for

LONG = random.Random(7).randbytes(2 * CHUNK + 12345)
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1]


def digest_of(data: bytes) -> str:
    """The definition, written down once more."""
    if len(data) <= CHUNK:
        return "sha256:" + hashlib.sha256(data).hexdigest()
    manifest = f"{len(data)}\n"
    for start in range(0, len(data), CHUNK):
        manifest += hashlib.sha256(data[start : start + CHUNK]).hexdigest() + "\n"
    return "sha256-chunks:" + hashlib.sha256(manifest.encode()).hexdigest()


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def got(driver: Driver, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
    return b"".join([piece async for piece in driver.blobs.get(digest, offset, size)])


async def listed(driver: Driver, prefix: str = "") -> list[BlobRef]:
    return [ref async for ref in driver.blobs.list(prefix)]


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (bytes(CHUNK), "sha256:30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"),
        (
            bytes(CHUNK + 1),
            "sha256-chunks:"
            + hashlib.sha256(
                b"1048577\n"
                b"30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58\n"
                b"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d\n"
            ).hexdigest(),
        ),
    ],
)
async def test_known_digests(driver: Driver, data: bytes, digest: str):
    assert await driver.blobs.put(data) == BlobRef(Digest(digest), len(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [None, 1000, CHUNK, 3 * CHUNK])
async def test_what_is_put_is_got(backend: Backend, size: int, step: int | None):
    one, two = await backend.open(), await backend.open()
    data = LONG[:size]
    ref = await one.blobs.put(data if step is None else pieces(data, step), durable=False)
    assert ref == BlobRef(Digest(digest_of(data)), size)
    assert await got(two, ref.digest) == data
    assert await two.blobs.stat(ref.digest) == ref
    assert await listed(two) == [ref]


async def test_ranges_across_chunks(driver: Driver):
    ref = await driver.blobs.put(LONG)
    random_ = random.Random(3)
    edges = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(LONG) - 1, len(LONG), len(LONG) + 5]
    for _ in range(60):
        offset = random_.choice(edges)
        size = random_.choice([0, 1, 10, CHUNK - 1, CHUNK, CHUNK + 1, 10**8])
        expected = LONG[offset : offset + size]
        assert await got(driver, ref.digest, offset, size) == expected
        assert await driver.blobs.read(ref.digest, offset, size) == expected
    assert await got(driver, ref.digest, CHUNK + 5) == LONG[CHUNK + 5 :]


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "0" * 64, "sha256-chunks:" + "0" * 64, "x", "sha256:../x"]
)
async def test_what_isnt_there(driver: Driver, digest: Digest):
    for attempt in (driver.blobs.stat(digest), driver.blobs.read(digest, 0, 1), got(driver, digest)):
        with pytest.raises(BlobNotFound):
            await attempt
    with pytest.raises(BlobNotFound):
        driver.blobs.stage(digest, label={})


async def test_put_again_changes_nothing(backend: Backend):
    one, two = await backend.open(), await backend.open()
    assert await one.blobs.put(LONG) == await two.blobs.put(pieces(LONG, 4096))
    assert len(await listed(one)) == 1


async def test_list_by_prefix(driver: Driver):
    refs = [await driver.blobs.put(b"%d" % number) for number in range(30)]
    long = await driver.blobs.put(LONG)
    # An equal chunk isn't a blob until somebody puts it as one.
    assert sorted(ref.digest for ref in await listed(driver)) == sorted(ref.digest for ref in [*refs, long])
    chunk = await driver.blobs.put(LONG[:CHUNK])
    everything = {*refs, long, chunk}
    for prefix in ("", "sha256:", "sha256-", "sha256:a", refs[0].digest[:10], refs[1].digest, "zz"):
        assert set(await listed(driver, prefix)) == {ref for ref in everything if ref.digest.startswith(prefix)}


async def test_delete(backend: Backend):
    one, two = await backend.open(), await backend.open()
    small, long = await one.blobs.put(b"small"), await one.blobs.put(LONG)
    assert await got(two, long.digest) == LONG
    for ref in (small, long):
        await two.blobs.delete(ref.digest)
        await one.blobs.delete(ref.digest)
        for driver in (one, two):
            with pytest.raises(BlobNotFound):
                await driver.blobs.stat(ref.digest)
            with pytest.raises(BlobNotFound):
                await got(driver, ref.digest)
    assert await listed(one) == []
    assert await one.blobs.put(LONG) == long
    assert await got(two, long.digest) == LONG


async def test_a_chunk_goes_with_the_last_blob_that_has_it(driver: Driver):
    first = await driver.blobs.put(LONG)
    second = await driver.blobs.append(first.digest, b"more")
    chunk = await driver.blobs.put(LONG[:CHUNK])
    await driver.blobs.delete(first.digest)
    assert await got(driver, second.digest) == LONG + b"more"
    await driver.blobs.delete(chunk.digest)
    assert await got(driver, second.digest) == LONG + b"more"
    chunk = await driver.blobs.put(LONG[:CHUNK])
    await driver.blobs.delete(second.digest)
    assert await got(driver, chunk.digest) == LONG[:CHUNK]
    assert await listed(driver) == [chunk]


async def test_watch(backend: Backend):
    one, two = await backend.open(), await backend.open()
    await one.blobs.put(b"before")
    async with one.blobs.watch() as arrivals:
        small, long = await two.blobs.put(b"a"), await two.blobs.put(LONG)
        await two.blobs.put(b"a")
        staging = one.blobs.stage(label={})
        staging.write(0, b"staged")
        staged = await staging.commit()
        assert await take(arrivals, 3) == [small.digest, long.digest, staged.digest]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0, 5, CHUNK - 1, CHUNK, 2 * CHUNK + 50])
async def test_append_and_patch(driver: Driver, size: int, offset: int):
    base = await driver.blobs.put(LONG[:size])
    appended = await driver.blobs.append(base.digest, b"tail")
    assert appended == BlobRef(Digest(digest_of(LONG[:size] + b"tail")), size + 4)
    expected = bytearray(LONG[:size].ljust(offset, b"\0"))
    expected[offset : offset + 4] = b"mend"
    patched = await driver.blobs.patch(base.digest, offset, b"mend")
    assert patched.digest == digest_of(bytes(expected))
    assert await got(driver, patched.digest) == expected
    assert await got(driver, base.digest) == LONG[:size]


async def test_appending_costs_only_the_last_chunk(file_backend: FileBackend):
    driver = await file_backend.open()
    base = await driver.blobs.put(LONG)
    for number in range(256):
        (file_backend.path / "objects" / f"{number:02x}").mkdir(exist_ok=True)
    system = FaultySystem("nothing", OSError())
    before = set(chunks_in(file_backend))
    with faulty(system):
        await driver.blobs.append(base.digest, b"more")
    assert len(set(chunks_in(file_backend)) - before) == 1
    assert system.seen.count("draft.chunk") == 1
    assert system.seen.count("blob.link") == 2  # the chunk and the manifest
    with faulty(system):
        system.seen.clear()
        await driver.blobs.patch(base.digest, CHUNK - 2, b"1234")
    assert system.seen.count("draft.chunk") == 2
    assert len(set(chunks_in(file_backend)) - before) == 3


def chunks_in(backend: FileBackend) -> list[Path]:
    return list((backend.path / "objects").glob("*/*.chunk"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("known", [False, True])
async def test_a_flipped_byte_is_found(file_backend: FileBackend, known: bool):  # noqa: FBT001
    driver = await file_backend.open()
    small, long = await driver.blobs.put(b"small"), await driver.blobs.put(LONG)
    if known:
        await got(driver, long.digest)
        await got(driver, small.digest)
    else:
        driver = await file_backend.open()
    flip(file_backend.path / "objects" / small.digest[7:9] / small.digest[7:], 2)
    second = hashlib.sha256(LONG[CHUNK : 2 * CHUNK]).hexdigest()
    flip(file_backend.path / "objects" / second[:2] / f"{second}.chunk", CHUNK - 1)
    with pytest.raises(CorruptBlob):
        await driver.blobs.read(small.digest, 0, 1)
    assert await driver.blobs.read(long.digest, 0, CHUNK) == LONG[:CHUNK]
    with pytest.raises(CorruptBlob):
        await driver.blobs.read(long.digest, CHUNK, 1)
    with pytest.raises(CorruptBlob):
        await got(driver, long.digest)
    # Putting the right bytes again mends it.
    await driver.blobs.put(b"small")
    await driver.blobs.put(LONG)
    assert await got(driver, small.digest) == b"small"
    assert await got(driver, long.digest) == LONG


async def test_a_damaged_manifest_is_found(file_backend: FileBackend):
    ref = await (await file_backend.open()).blobs.put(LONG)
    name = ref.digest.partition(":")[2]
    flip(file_backend.path / "objects" / name[:2] / f"{name}.chunks", 20)
    driver = await file_backend.open()
    with pytest.raises(CorruptBlob):
        await driver.blobs.stat(ref.digest)
    await driver.blobs.put(LONG)
    assert await got(driver, ref.digest) == LONG


async def test_a_link_in_the_store_isnt_followed(file_backend: FileBackend, tmp_path: Path):
    driver = await file_backend.open()
    ref = await driver.blobs.put(b"small")
    path = file_backend.path / "objects" / ref.digest[7:9] / ref.digest[7:]
    (tmp_path / "elsewhere").write_bytes(b"small")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        await driver.blobs.read(ref.digest, 0, 10)


@pytest.mark.parametrize(("error", "raised"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreFailed)])
@pytest.mark.parametrize("data", [b"small", LONG])
async def test_a_failed_put_leaves_nothing(backend: Backend, error: int, raised: type[Exception], data: bytes):
    driver = await backend.open()
    for label in ("blob.write", "blob.link"):
        with backend.failing(label, OSError(error, "injected")), pytest.raises(raised):
            await driver.blobs.put(data)
        assert await listed(driver) == []
    assert await driver.blobs.abandoned() == []
    ref = await driver.blobs.put(data)
    assert await got(driver, ref.digest) == data
    assert drafts_in(backend) == []


async def test_a_stream_that_breaks_leaves_nothing(backend: Backend):
    async def broken() -> AsyncIterator[bytes]:
        yield LONG
        raise RuntimeError("broken")

    driver = await backend.open()
    with pytest.raises(RuntimeError, match="broken"):
        await driver.blobs.put(broken())
    assert await listed(driver) == []
    assert await driver.blobs.abandoned() == []


async def test_many_put_and_delete_at_once(backend: Backend):
    drivers = [await backend.open() for _ in range(3)]
    kept = await drivers[0].blobs.put(LONG)

    async def churn(driver: Driver, number: int) -> None:
        for turn in range(5):
            own = await driver.blobs.append(kept.digest, b"%d.%d" % (number, turn), durable=False)
            shared = await driver.blobs.put(b"shared %d" % turn, durable=False)
            await driver.blobs.delete(own.digest)
            await driver.blobs.delete(shared.digest)

    async with trio.open_nursery() as nursery:
        for number, driver in enumerate(drivers):
            nursery.start_soon(churn, driver, number)
    assert await got(await backend.open(), kept.digest) == LONG
    assert await listed(drivers[0]) == [kept]


async def test_a_durable_put_syncs_bytes_before_names(file_backend: FileBackend):
    driver = await file_backend.open()
    system = FaultySystem("nothing", OSError())
    with faulty(system):
        await driver.blobs.put(b"small", durable=False)
        assert not [label for label in system.seen if label == "blob.sync"]
        system.seen.clear()
        # It is there, but nobody has synced it.
        await driver.blobs.put(b"small", durable=True)
        assert system.seen.index("blob.write") < system.seen.index("blob.heal") < system.seen.index("blob.sync")
        system.seen.clear()
        await driver.blobs.put(b"small", durable=True)
        assert not [label for label in system.seen if label in {"blob.heal", "blob.sync"}]
        system.seen.clear()
        staging = driver.blobs.stage(label={})
        staging.write(0, b"other")
        await staging.commit(durable=True)
    assert system.seen.index("blob.sync") < system.seen.index("blob.link") < len(system.seen) - 1
    assert "blob.sync" in system.seen[system.seen.index("blob.link") :]


# ---- readers of the file driver


async def test_readers_of_one_chunk_share_its_hashing(file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch):
    ref = await (await file_backend.open()).blobs.put(LONG)
    driver = await file_backend.open()
    hashed: list[str] = []
    check = Objects._check
    monkeypatch.setattr(Objects, "_check", lambda self, name, data: (hashed.append(name), check(self, name, data)))
    found: dict[int, bytes] = {}

    async def read(offset: int) -> None:
        found[offset] = await driver.blobs.read(ref.digest, offset, 4096)

    async with trio.open_nursery() as nursery:
        for offset in range(0, len(LONG), 50_000):
            nursery.start_soon(read, offset)
    assert found == {offset: LONG[offset : offset + 4096] for offset in range(0, len(LONG), 50_000)}
    assert len(hashed) == len(set(hashed)) == -(-len(LONG) // CHUNK)


def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the objects' files that are hashed from now on, in order."""
    hashed: list[str] = []
    check = Objects._check
    monkeypatch.setattr(Objects, "_check", lambda self, name, data: (hashed.append(name), check(self, name, data)))
    return hashed


async def test_chunks_are_hashed_ahead_of_who_reads_in_order(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch
):
    data = random.Random(8).randbytes(20 * CHUNK)
    ref = await (await file_backend.open()).blobs.put(data)
    driver = await file_backend.open()
    hashed = hashes(monkeypatch)
    for offset in range(0, 4 * CHUNK, CHUNK // 2):
        assert await driver.blobs.read(ref.digest, offset, CHUNK // 2) == data[offset : offset + CHUNK // 2]
    await trio.to_thread.run_sync(wait_for, lambda: len(hashed) >= 8)
    # Not much more is hashed than is read.
    assert len(hashed) == len(set(hashed)) == 8
    assert await got(driver, ref.digest) == data
    assert len(hashed) == len(set(hashed)) == 20


async def test_nothing_is_hashed_ahead_of_who_reads_here_and_there(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch
):
    data = random.Random(9).randbytes(20 * CHUNK)
    ref = await (await file_backend.open()).blobs.put(data)
    driver = await file_backend.open()
    hashed = hashes(monkeypatch)
    for index in (3, 19, 7, 11, 5):
        assert await driver.blobs.read(ref.digest, index * CHUNK + 9, 9) == data[index * CHUNK + 9 : index * CHUNK + 18]
    assert len(hashed) == 5


async def test_damage_ahead_is_told_to_who_comes_to_it(file_backend: FileBackend):
    data = random.Random(10).randbytes(8 * CHUNK)
    ref = await (await file_backend.open()).blobs.put(data)
    driver = await file_backend.open()
    missing, damaged = (
        file_backend.path / "objects" / name[:2] / f"{name}.chunk"
        for name in (hashlib.sha256(data[at * CHUNK : (at + 1) * CHUNK]).hexdigest() for at in (4, 6))
    )
    missing.unlink()
    damaged.write_bytes(b"\0" * CHUNK)
    for index in range(8):
        if index in (4, 6):
            with pytest.raises(BlobNotFound if index == 4 else CorruptBlob):
                await driver.blobs.read(ref.digest, index * CHUNK, CHUNK)
        else:
            assert await driver.blobs.read(ref.digest, index * CHUNK, CHUNK) == data[index * CHUNK :][:CHUNK]
    missing.write_bytes(data[4 * CHUNK : 5 * CHUNK])
    assert await driver.blobs.read(ref.digest, 4 * CHUNK, CHUNK) == data[4 * CHUNK : 5 * CHUNK]


async def test_the_store_is_closed_while_chunks_are_hashed_ahead(file_backend: FileBackend):
    data = random.Random(11).randbytes(8 * CHUNK)
    ref = await (await file_backend.open()).blobs.put(data)
    for chunks in range(1, 8):
        driver = await file_backend.open()
        for index in range(chunks):
            assert await driver.blobs.read(ref.digest, index * CHUNK, CHUNK) == data[index * CHUNK :][:CHUNK]
        await driver.aclose()


async def test_every_reader_of_a_damaged_chunk_is_told(file_backend: FileBackend):
    ref = await (await file_backend.open()).blobs.put(LONG)
    driver = await file_backend.open()
    path = next(path for path in (file_backend.path / "objects").glob("*/*.chunk") if path.stat().st_size == CHUNK)
    path.write_bytes(b"\0" * CHUNK)
    told: list[int] = []

    async def read(offset: int) -> None:
        try:
            assert await driver.blobs.read(ref.digest, offset, 10) == LONG[offset : offset + 10]
        except CorruptBlob:
            told.append(offset)

    async with trio.open_nursery() as nursery:
        for offset in [0, 5, CHUNK, CHUNK + 5]:
            nursery.start_soon(read, offset)
    assert sorted(told) in ([0, 5], [CHUNK, CHUNK + 5])


@pytest.mark.parametrize("data", [b"small", LONG])
async def test_a_file_that_is_changed_after_it_was_read_is_checked_again(file_backend: FileBackend, data: bytes):
    driver = await file_backend.open()
    ref = await driver.blobs.put(data)
    assert await driver.blobs.read(ref.digest, 0, 5) == data[:5]
    files = [path for path in (file_backend.path / "objects").glob("??/*") if path.suffix != ".chunks"]
    good = {path: path.read_bytes() for path in files}
    for path in files:
        with path.open("r+b") as file:
            file.write(b"damage")
    with pytest.raises(CorruptBlob):
        await driver.blobs.read(ref.digest, 0, 5)
    for path, content in good.items():
        path.unlink()
        path.write_bytes(content)
    assert await driver.blobs.read(ref.digest, 0, 5) == data[:5]
    await (await file_backend.open()).blobs.delete(ref.digest)
    with pytest.raises(BlobNotFound):
        await driver.blobs.read(ref.digest, 0, 5)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP])
async def test_what_is_not_in_memory_is_read_all_the_same(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch, code: int
):
    driver = await file_backend.open()
    ref = await driver.blobs.put(LONG)
    assert await got(driver, ref.digest) == LONG

    def not_at_once(*_: object) -> int:
        raise OSError(code, "not in the page cache")

    other = await file_backend.open()
    for blobs in (driver.blobs, other.blobs):
        assert await blobs.read(ref.digest, 3, 5) == LONG[3:8]
        monkeypatch.setattr(os, "preadv", not_at_once)
        assert await blobs.read(ref.digest, CHUNK - 3, 10) == LONG[CHUNK - 3 : CHUNK + 7]
        monkeypatch.undo()
