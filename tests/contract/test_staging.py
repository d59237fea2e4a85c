"""Staging: patchable drafts of blobs."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from store.driver import CHUNK, Driver, Staging
from store.drivers.file.blobs import FileBlobs
from store.errors import StoreFailed, StoreFull
from tests.contract.backends import Backend, FaultySystem, FileBackend, MemoryBackend, drafts_in, faulty
from tests.contract.test_blobs import LONG, digest_of, got, listed


async def test_a_new_one_is_empty(backend: Backend):
    driver = await backend.open()
    staging = driver.blobs.stage(label={"a": [1]})
    assert (staging.size, staging.label, staging.read(0, 10)) == (0, {"a": [1]}, b"")
    assert drafts_in(backend) == []
    ref = await staging.commit()
    assert ref.digest == digest_of(b"")
    assert drafts_in(backend) == []


async def test_write_commit_and_go_on(backend: Backend):
    driver = await backend.open()
    staging = driver.blobs.stage(label={})
    assert staging.write(0, b"hello") == 5
    first = await staging.commit()
    assert staging.read(0, 10) == b"hello"
    staging.write(5, b" world")
    second = await staging.commit()
    assert await got(driver, first.digest) == b"hello"
    assert await got(driver, second.digest) == b"hello world"
    assert (await staging.commit()) == second
    await staging.discard()
    assert drafts_in(backend) == []


async def test_a_small_one_that_was_committed_changes_no_blob(backend: Backend):
    """Without syncing, its own file becomes the blob: from then on it is only copied."""
    driver = await backend.open()
    staging = driver.blobs.stage(label={"name": "x"})
    staging.write(0, b"hello")
    refs = {b"hello": await staging.commit(durable=False)}
    assert await staging.commit(durable=False) == refs[b"hello"]
    staging.write(1, b"u")
    refs[b"hullo"] = await staging.commit(durable=False)
    staging.truncate(3)
    refs[b"hul"] = await staging.commit(durable=False)
    staging.write(3, b"k")
    staging.write(4, b"s")
    refs[b"hulks"] = await staging.commit(durable=True)
    assert staging.read(0, 10) == b"hulks"
    for data, ref in refs.items():
        assert (ref.digest, ref.size) == (digest_of(data), len(data))
        assert await got(driver, ref.digest) == data
    staging.write(0, b"B")
    await staging.discard()
    assert [await got(driver, ref.digest) for ref in refs.values()] == list(refs)
    await driver.aclose()
    assert drafts_in(backend) == []


@pytest.mark.parametrize("label", ["blob.link", "blob.announce", "draft.label"])
async def test_a_small_commit_that_fails_can_be_tried_again(file_backend: FileBackend, label: str):
    driver = await file_backend.open()
    await driver.blobs.put(b"so that the directories are there")
    staging = driver.blobs.stage(label={"name": "x"})
    staging.write(0, b"small")
    with faulty(FaultySystem(label, OSError(errno.EIO, "broken"))), pytest.raises(StoreFailed):
        await staging.commit(durable=False)
        staging.write(5, b"er")
        await staging.commit(durable=False)
    assert staging.read(0, 10) in {b"small", b"smaller"}
    staging.write(0, b"taller")
    ref = await staging.commit(durable=False)
    assert await got(driver, ref.digest) == staging.read(0, 10)
    for small in [found for found in await listed(driver) if found.digest == digest_of(b"small")]:
        assert await got(driver, small.digest) == b"small"
    await staging.discard()
    await driver.aclose()
    assert drafts_in(file_backend) == []


async def test_an_untouched_one_is_its_base(backend: Backend):
    driver = await backend.open()
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    assert staging.size == len(LONG)
    assert staging.read(CHUNK - 5, 10) == LONG[CHUNK - 5 : CHUNK + 5]
    assert await staging.commit() == base
    assert drafts_in(backend) == []


async def test_discard_leaves_nothing(backend: Backend):
    driver = await backend.open()
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    staging.write(CHUNK - 1, b"xx")
    staging.truncate(5)
    await staging.discard()
    await staging.discard()
    assert drafts_in(backend) == []
    assert await listed(driver) == [base]
    with pytest.raises(trio.ClosedResourceError):
        staging.write(0, b"x")


async def test_cut_bytes_never_come_back(driver: Driver):
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    staging.write(2 * CHUNK, b"touched")
    staging.truncate(10)
    staging.truncate(len(LONG))
    assert staging.read(0, len(LONG)) == LONG[:10] + bytes(len(LONG) - 10)
    ref = await staging.commit()
    assert ref.digest == digest_of(LONG[:10] + bytes(len(LONG) - 10))


async def test_the_ones_of_a_closed_instance_are_abandoned(backend: Backend):
    """As after a crash: but here the first instance's descriptors have to be closed by hand."""
    one, two = await backend.open(), await backend.open()
    base = await one.blobs.put(LONG)
    staging = one.blobs.stage(base.digest, label={"name": "x"})
    staging.write(CHUNK, b"edited")
    finished = one.blobs.stage(label={"name": "y"})
    finished.write(0, b"committed")
    await finished.commit()
    await finished.discard()
    assert await two.blobs.abandoned() == []
    await one.aclose()
    forget(staging)
    (found,) = await two.blobs.abandoned()
    assert await two.blobs.abandoned() == []
    expected = LONG[:CHUNK] + b"edited" + LONG[CHUNK + 6 :]
    assert (found.label, found.size, found.read(0, 10**8)) == ({"name": "x"}, len(LONG), expected)
    found.write(0, b"!")
    assert (await found.commit()).digest == digest_of(b"!" + expected[1:])
    await found.discard()
    assert drafts_in(backend) == []


async def test_what_is_committed_and_not_named_yet_is_abandoned_too(backend: Backend):
    one, two = await backend.open(), await backend.open()
    for data in (b"small", LONG):
        staging = one.blobs.stage(label={"name": "x"})
        staging.write(0, data)
        ref = await staging.commit(durable=False)
        assert await staging.commit(durable=False) == ref
        if isinstance(backend, FileBackend):
            forget(staging)
            (found,) = await two.blobs.abandoned()
            assert (found.label, found.read(0, 10**8)) == ({"name": "x"}, data)
            assert await found.commit() == ref
            await found.discard()
        else:
            await staging.discard()
    await one.aclose()
    assert await two.blobs.abandoned() == []
    assert drafts_in(backend) == []


def forget(staging: Any) -> None:
    """What the kernel does when a process dies."""
    if hasattr(staging, "_file"):
        os.close(staging._file.fd)
        for fd in staging._fds.values():
            os.close(fd)
        staging._fds.clear()


async def test_one_that_lost_its_base_keeps_what_was_written(file_backend: FileBackend):
    one, two = await file_backend.open(), await file_backend.open()
    base = await one.blobs.put(LONG)
    staging = one.blobs.stage(base.digest, label={"name": "x"})
    staging.write(CHUNK, b"edited")
    forget(staging)
    await two.blobs.delete(base.digest)
    (found,) = await two.blobs.abandoned()
    assert found.size == len(LONG)
    assert found.read(CHUNK, 6) == b"edited"
    await found.discard()
    assert drafts_in(file_backend) == []


async def test_a_crash_after_linking_changes_no_blob(file_backend: FileBackend):
    one, two = await file_backend.open(), await file_backend.open()
    staging = one.blobs.stage(label={"name": "x"})
    staging.write(0, b"bytes")
    # The blob is linked, the draft still says that its bytes are in a file of its own.
    with faulty(FaultySystem("draft.label", OSError(errno.EIO, "injected"))), pytest.raises(StoreFailed, match="blob"):
        await staging.commit()
    forget(staging)
    (found,) = await two.blobs.abandoned()
    assert found.read(0, 10) == b"bytes"
    found.write(0, b"B")
    found.truncate(9)
    assert await got(two, digest_of(b"bytes")) == b"bytes"
    assert (await found.commit()).digest == digest_of(b"Bytes" + bytes(4))
    await found.discard()
    assert await got(await file_backend.open(), digest_of(b"bytes")) == b"bytes"
    assert drafts_in(file_backend) == []


class Paused(FaultySystem):
    """A disk on which linking takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__("nothing", OSError())
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def link(self, label: str, source: str | Path, target: str | Path) -> None:
        self.reached.set()
        assert self.go_on.wait(10)
        super().link(label, source, target)


async def test_writes_go_on_during_a_commit(file_backend: FileBackend):
    backend = file_backend
    driver = await backend.open()
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    staging.write(0, b"before")
    expected = b"before" + LONG[6:]
    found = []

    async def commit() -> None:
        found.append(await staging.commit())

    with faulty(Paused()) as system:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            assert await trio.to_thread.run_sync(system.reached.wait, 10)
            staging.write(2, b"during")
            staging.truncate(CHUNK + 7)
            staging.truncate(CHUNK + 9)
            system.go_on.set()
    now = expected[:2] + b"during" + expected[8 : CHUNK + 7] + b"\0\0"
    assert found[0].digest == digest_of(expected)
    assert staging.read(0, 10**8) == now
    assert (await staging.commit()).digest == digest_of(now)
    await staging.discard()
    assert await got(await backend.open(), found[0].digest) == expected
    assert drafts_in(backend) == []


@pytest.mark.parametrize("label", ["draft.chunk", "draft.copy"])
async def test_a_full_disk(backend: Backend, label: str):
    driver = await backend.open()
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    if label == "draft.copy" and isinstance(backend, MemoryBackend):
        label = "draft.chunk"
    with backend.failing(label, OSError(errno.ENOSPC, "injected")), pytest.raises(StoreFull):
        staging.write(7, b"lost")
    assert staging.read(0, 20) == LONG[:20]
    staging.write(7, b"kept")
    ref = await staging.commit()
    assert await got(driver, ref.digest) == LONG[:7] + b"kept" + LONG[11:]


async def test_a_commit_that_fails_can_be_tried_again(backend: Backend):
    driver = await backend.open()
    base = await driver.blobs.put(LONG)
    staging = driver.blobs.stage(base.digest, label={})
    staging.write(1, b"one")
    staging.write(2 * CHUNK + 1, b"two")
    for label in ("blob.link", "blob.write"):
        with backend.failing(label, OSError(errno.ENOSPC, "injected")), pytest.raises(StoreFull):
            await staging.commit()
        staging.write(CHUNK + 5, label.encode())
    staging.truncate(2 * CHUNK + 3)
    staging.truncate(2 * CHUNK + 6)
    expected = bytearray(LONG[: 2 * CHUNK + 3] + bytes(3))
    expected[1:4] = b"one"
    expected[CHUNK + 5 : CHUNK + 15] = b"blob.write" if label == "blob.write" else expected[CHUNK + 5 : CHUNK + 15]
    expected[2 * CHUNK + 1 : 2 * CHUNK + 3] = b"tw"
    assert staging.read(0, 10**8) == expected
    assert (await staging.commit()).digest == digest_of(bytes(expected))
    await staging.discard()
    assert drafts_in(backend) == []


async def test_a_small_commit_is_few_system_calls(file_backend: FileBackend):
    driver = await file_backend.open()
    await driver.blobs.put(b"so that the directories are there")
    warm = driver.blobs.stage(label={})
    warm.write(0, b"x")
    await warm.commit(durable=False)
    await driver.blobs.delete(digest_of(b"x"))  # type: ignore[arg-type]
    staging = driver.blobs.stage(label={})
    with faulty(FaultySystem("nothing", OSError())) as system:
        staging.write(0, b"x")
        await staging.commit(durable=False)
        await staging.discard()
    assert system.seen == ["draft.label", "draft.chunk", "blob.link", "blob.announce", "draft.drop"]


async def test_small_drafts_share_a_label(file_backend: FileBackend):
    """One after the other: none of them makes a file but the blob's own."""
    driver = await file_backend.open()
    labels = set()
    for number in range(20):
        staging = driver.blobs.stage(label={"name": f"{number}"})
        staging.write(0, b"%d" % number)
        labels |= set((file_backend.path / "drafts").glob("*.json"))
        ref = await staging.commit(durable=False)
        assert await driver.blobs.read(ref.digest, 0, 10) == b"%d" % number
        await staging.discard()
    assert len(labels) == 1
    await driver.aclose()
    assert list((file_backend.path / "drafts").iterdir()) == []


async def test_a_label_that_was_used_before_says_only_what_it_is_for_now(file_backend: FileBackend):
    one, two = await file_backend.open(), await file_backend.open()
    first = one.blobs.stage(label={"name": "a name that is longer than the next one's"})
    first.write(0, b"committed")
    first.write(CHUNK, b"committed, too")
    await first.commit()
    await first.discard()
    second = one.blobs.stage(label={"name": "b"})
    second.write(2, b"x")
    forget(second)
    (found,) = await two.blobs.abandoned()
    assert (found.label, found.size, found.read(0, 10)) == ({"name": "b"}, 3, b"\0\0x")
    await found.discard()
    assert drafts_in(file_backend) == []


async def test_a_draft_that_cant_be_removed_leaves_nothing_to_the_next(file_backend: FileBackend):
    one, two = await file_backend.open(), await file_backend.open()
    first = one.blobs.stage(label={"name": "a"})
    first.write(0, b"discarded")
    with faulty(FaultySystem("draft.drop", OSError(errno.EIO, "injected"))) as system:
        system.unlink = lambda label, _path: system._meet(label)  # type: ignore[method-assign]
        system.pwrite = lambda _label, fd, data, offset: os.pwrite(fd, data, offset)  # type: ignore[method-assign]
        with pytest.raises(StoreFailed):
            await first.discard()
    second = one.blobs.stage(label={"name": "b"})
    second.write(CHUNK, b"kept")
    forget(second)
    (found,) = await two.blobs.abandoned()
    assert (found.label, found.size, found.read(0, 9)) == ({"name": "b"}, CHUNK + 4, bytes(9))
    await found.discard()


async def test_a_draft_that_is_worked_on_until_its_process_dies_is_taken_over_whole(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch
):
    """Who looks for abandoned drafts has listed its files when more are made, and the process dies only then."""
    one, two = await file_backend.open(), await file_backend.open()
    staging = one.blobs.stage(label={"name": "x"})
    staging.write(0, b"begins")
    hold = FileBlobs._hold

    def die_before(self: FileBlobs, label: str) -> int | None:
        staging.write(CHUNK, b"goes on")
        forget(staging)
        return hold(self, label)

    monkeypatch.setattr(FileBlobs, "_hold", die_before)
    (found,) = await two.blobs.abandoned()
    assert (found.read(0, 6), found.read(CHUNK, 10)) == (b"begins", b"goes on")
    await found.discard()
    assert drafts_in(file_backend) == []


# ---- digests that are known before the commit


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("at", [1000, 500])
async def test_what_a_failed_write_left_isnt_in_the_blob_unnoticed(
    file_backend: FileBackend, at: int, *, durable: bool
):
    driver = await file_backend.open()
    staging = driver.blobs.stage(label={})
    staging.write(0, b"a" * 1000)

    class Full(FaultySystem):
        def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
            if self.seen:
                raise OSError(errno.ENOSPC, "injected")
            self.seen.append(label)
            return os.pwrite(fd, data[:50], offset)

    with faulty(Full("draft.chunk", OSError())), pytest.raises(StoreFull):
        staging.write(at, b"b" * 100)
    expected = staging.read(0, 2000)
    assert len(expected) == 1000
    ref = await staging.commit(durable=durable)
    await staging.discard()
    other = await file_backend.open()
    assert (ref.size, ref.digest) == (1000, digest_of(expected))
    assert await other.blobs.stat(ref.digest) == ref
    assert await got(other, ref.digest) == expected


@pytest.mark.parametrize("how", ["gap", "truncate", "crash"])
async def test_what_a_failed_write_left_behind_the_end_is_gone(file_backend: FileBackend, how: str):
    driver = await file_backend.open()
    staging: Staging = driver.blobs.stage(label={"name": "x"})
    staging.write(0, b"a" * 1000)
    with faulty(FaultySystem("draft.chunk", OSError(errno.ENOSPC, "injected"))) as system:
        system.pwrite = (
            lambda label, fd, data, offset: (  # type: ignore[method-assign]
                os.pwrite(fd, data[:50], offset) if offset == 1000 else system._meet(label) or 0
            )
        )
        with pytest.raises(StoreFull):
            staging.write(1000, b"b" * 100)
    if how == "gap":
        staging.write(2000, b"z")
    elif how == "truncate":
        staging.truncate(2000)
    else:
        forget(staging)
        (staging,) = await (await file_backend.open()).blobs.abandoned()
        assert staging.size == 1000
    assert staging.read(0, 2000) == (b"a" * 1000).ljust(min(staging.size, 2000), b"\0")
    await staging.discard()


@pytest.mark.parametrize("piece", [700, 65536, 128 * 1024, CHUNK, CHUNK + 5])
async def test_what_is_written_in_order_and_then_changed_is_what_is_committed(file_backend: FileBackend, piece: int):
    """Chunks are hashed while later ones are written: none of that counts once they are changed."""
    size = 3000 if piece == 700 else 2 * CHUNK + 3000
    for change in range(8):
        driver = await file_backend.open()
        model = bytearray(random.Random(change).randbytes(size))
        staging = driver.blobs.stage(label={})
        for at in range(0, size, piece):
            staging.write(at, bytes(model[at : at + piece]))
        if change in {1, 2}:
            model[10:12] = b"ab"
            staging.write(10, b"ab")
        if change in {2, 3}:
            model[0:size] = bytes(size)
            staging.write(0, bytes(size))
        if change == 4:
            del model[2000:]
            staging.truncate(2000)
            model += bytes(size - 2000)
            staging.truncate(size)
        if change == 5:
            model += bytes(50)
            staging.truncate(size + 50)
        if change == 6:
            await staging.commit(durable=False)
            model += b"more"
            staging.write(size, b"more")
        if change == 7:
            staging.write(0, bytes(model[:100]))
        ref = await staging.commit(durable=change % 2 == 0)
        assert (ref.digest, ref.size) == (digest_of(bytes(model)), len(model))
        assert await driver.blobs.read(ref.digest, 0, len(model)) == model
        await staging.discard()
        assert drafts_in(file_backend) == []


# ---- any operations, against a bytearray

offsets = st.one_of(
    st.integers(0, 20),
    st.sampled_from([CHUNK, 2 * CHUNK]).flatmap(lambda edge: st.integers(edge - 5, edge + 5)),
    st.integers(0, 2 * CHUNK + 50),
)
operations = st.one_of(
    st.tuples(st.just("write"), offsets, st.binary(min_size=0, max_size=12)),
    st.tuples(st.just("fill"), offsets, st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1])),
    st.tuples(st.just("truncate"), offsets),
    st.tuples(st.just("read"), offsets, st.sampled_from([0, 1, 30, CHUNK, 3 * CHUNK])),
    st.tuples(st.just("commit"), st.booleans()),
    st.tuples(st.just("crash")),
    st.tuples(st.just("fail")),
)


async def check(backend: Backend, base_size: int, steps: list[tuple]) -> None:
    driver = await backend.open()
    model = bytearray(LONG[:base_size])
    staging: Staging = driver.blobs.stage(
        (await driver.blobs.put(bytes(model), durable=False)).digest if base_size else None, label={"n": 1}
    )
    dirty = False
    for name, *args in steps:
        if name in {"write", "fill"}:
            offset, data = args
            data = data if name == "write" else LONG[100 : 100 + data]
            assert staging.write(offset, data) == len(data)
            if data:
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + len(data)] = data
                dirty = True
        elif name == "truncate":
            staging.truncate(args[0])
            del model[args[0] :]
            model.extend(bytes(args[0] - len(model)))
            dirty = True
        elif name == "read":
            assert staging.read(args[0], args[1]) == model[args[0] : args[0] + args[1]]
        elif name == "commit":
            ref = await staging.commit(durable=args[0])
            assert (ref.digest, ref.size) == (digest_of(bytes(model)), len(model))
            dirty = False
        elif name == "fail":
            with backend.failing("blob.link", OSError(errno.EIO, "injected")):
                try:
                    await staging.commit(durable=False)
                    dirty = False
                except Exception as error:  # noqa: BLE001
                    assert "injected" in str(error) or error.__cause__ is not None  # noqa: PT017
        elif name == "crash" and dirty and isinstance(backend, FileBackend):
            forget(staging)
            (staging,) = await driver.blobs.abandoned()
            assert staging.label == {"n": 1}
        assert staging.size == len(model)
    assert staging.read(0, len(model) + 1) == model
    ref = await staging.commit(durable=False)
    assert ref.digest == digest_of(bytes(model))
    assert await got(driver, ref.digest) == model
    await staging.discard()
    assert drafts_in(backend) == []


@pytest.mark.parametrize("kind", ["memory", "file"])
@given(
    base=st.sampled_from([0, 5, CHUNK, CHUNK + 3, 2 * CHUNK, 2 * CHUNK + 100]), steps=st.lists(operations, max_size=12)
)
@example(base=CHUNK, steps=[("write", CHUNK, b"x"), ("fail",), ("truncate", 3), ("crash",), ("truncate", CHUNK + 9)])
@example(base=0, steps=[("truncate", 7), ("crash",), ("write", 3, b"x"), ("fail",), ("crash",)])
@example(base=2 * CHUNK, steps=[("write", 0, b"x"), ("write", 2 * CHUNK, b"y"), ("truncate", 1), ("crash",)])
@example(base=5, steps=[("write", 1, b"x"), ("fail",), ("write", 1, b"y"), ("fail",), ("commit", False), ("crash",)])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_operations(kind: str, base: int, steps: list[tuple]):
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            backend: Backend = MemoryBackend() if kind == "memory" else FileBackend(Path(directory) / "store")
            try:
                await check(backend, base, steps)
            finally:
                await backend.aclose()

    trio.run(main)
