"""The `git:` driver beside git itself: gc, packed refs, push and fetch; and the packs that it makes."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
import trio

from store.driver import AppendLog
from store.drivers.git import packing
from store.drivers.git.driver import GitDriver
from store.drivers.git.objects import Objects
from store.errors import BackendError, CorruptLog, StoreFailed
from store.model import Seq
from store.registry import open_driver
from tests.contract.backends import CHAT, SPACE, FakeClock, GitBackend, entries, take
from tests.contract.git import REF, fsck, git, open_log, project, run
from tests.support.waiting import wait_for

GC = ("-c", "gc.auto=0", "gc", "--prune=now", "--quiet")


async def seqs(log: AppendLog) -> list[int]:
    return [entry.seq async for entry in log.read()]


async def test_gc_that_prunes_everything_takes_nothing_while_chatfs_appends(tmp_path: Path):
    """With `--prune=now` git deletes what is newer than its look at the refs."""
    path = project(tmp_path / "project")
    driver = await open_driver(f"git://{path}")
    log = await driver.open_log(SPACE, create=True)
    done = 0

    async def collect() -> None:
        nonlocal done
        while done < 6:
            await trio.to_thread.run_sync(lambda: run(path, *GC))
            done += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        appended = 0
        while done < 6 or appended < 100:
            appended = await log.append(entries("x" * 300))
            if appended % 50 == 0:
                await trio.to_thread.run_sync(packing.pack, "test", driver.objects.path)  # type: ignore[attr-defined]
            await trio.lowlevel.checkpoint()
    assert await seqs(log) == list(range(1, appended + 1))
    fsck(path)
    await log.aclose()
    await driver.aclose()
    driver = await open_driver(f"git://{path}")
    log = await driver.open_log(SPACE)
    assert await seqs(log) == list(range(1, appended + 1))
    await log.aclose()
    await driver.aclose()
    assert git(path, "log", "--format=%s", "main") == "begin"


async def test_refs_that_git_has_packed(git_backend: GitBackend):
    """Their files are gone, and the directories."""
    driver, other = await git_backend.open(), await git_backend.open()
    log, chat = await driver.open_log(SPACE, create=True), await driver.open_log(CHAT, create=True)
    await log.append(entries("a"))
    await chat.append(entries("a"))
    driver.watch(SPACE)
    changes = driver.changes()
    git(git_backend.path, "pack-refs", "--all", "--prune")
    assert not (git_backend.path / REF).exists()
    assert await other.spaces() == [SPACE]
    assert await other.spaces(SPACE) == [CHAT]
    again = await other.open_log(SPACE, create=True)
    async with log.subscribe(Seq(0)) as following:
        assert [entry.seq for entry in await take(following, 1)] == [1]
        assert await again.append(entries("b")) == 2
        assert [entry.seq for entry in await take(following, 1)] == [2]
    with trio.fail_after(10):
        assert await anext(changes) == {SPACE}
    assert (await log.refresh()).seq == 2
    git(git_backend.path, "pack-refs", "--all", "--prune")
    driver.watch_spaces(SPACE)
    await other.delete_space(CHAT)
    with trio.fail_after(10):
        while SPACE not in await anext(changes):
            pass
    assert await driver.spaces(SPACE) == []
    assert git(git_backend.path, "for-each-ref", "--format=%(refname)") == REF
    await other.delete_space(SPACE)
    assert git(git_backend.path, "for-each-ref") == ""
    assert await driver.spaces() == []


async def test_push_and_fetch_are_a_backup(git_backend: GitBackend, tmp_path: Path):
    driver = await git_backend.open()
    log, chat = await driver.open_log(SPACE, create=True), await driver.open_log(CHAT, create=True)
    for number in range(60):
        await log.append(entries(f"{number:0900}"))
    await chat.append(entries("a"))
    backup = tmp_path / "backup"
    git(tmp_path, "init", "-q", "--bare", str(backup))
    git(git_backend.path, "push", "-q", str(backup), "refs/chatfs/*:refs/chatfs/*")
    fsck(backup)
    # It can be read as it is, and written: then it is a store as any.
    there = GitBackend(backup)
    reading = await open_driver(f"git://{backup}")
    assert not reading.made
    copied = await reading.open_log(SPACE)
    assert copied.head == log.head
    assert [entry async for entry in copied.read()] == [entry async for entry in log.read()]
    assert await copied.append(entries("there")) == 61
    # Fetched back: who follows sees it, from who appended elsewhere.
    async with log.subscribe() as following:
        git(git_backend.path, "fetch", "-q", str(backup), "refs/chatfs/*:refs/chatfs/*")
        assert [entry.data for entry in await take(following, 1)] == [b'"there"']
    assert await log.append(entries("here")) == 61 + 1
    fsck(git_backend.path)
    await copied.aclose()
    await reading.aclose()
    await there.aclose()


async def test_a_log_that_diverged_is_refused_never_merged(git_backend: GitBackend, tmp_path: Path):
    log = await open_log(git_backend)
    await log.append(entries("a"))
    backup = tmp_path / "backup"
    git(tmp_path, "clone", "-q", "--mirror", str(git_backend.path), str(backup))
    other = await open_driver(f"git://{backup}")
    theirs = await other.open_log(SPACE)
    await theirs.append(entries("theirs"))
    await log.append(entries("ours", "more"))
    await log.sync()
    ours = git(git_backend.path, "rev-parse", REF)
    refused = run(git_backend.path, "fetch", str(backup), f"{REF}:{REF}", check=False)
    assert refused.returncode
    assert "non-fast-forward" in refused.stderr
    assert await log.append(entries("d")) == 4
    ours = git(git_backend.path, "rev-parse", REF)
    await log.sync()
    git(git_backend.path, "fetch", "-q", str(backup), f"+{REF}:{REF}")
    for each in (log, await open_log(git_backend)):
        with pytest.raises(CorruptLog, match=f"diverged.*git update-ref {REF} {ours}") as caught:
            await each.append(entries("e"))
        assert "\n" not in str(caught.value)
    assert git(git_backend.path, "rev-parse", REF) == git(backup, "rev-parse", REF)
    git(git_backend.path, "update-ref", REF, ours)
    assert await log.append(entries("e")) == 5
    await theirs.aclose()
    await other.aclose()


async def test_a_lease_that_was_fetched_has_ended(git_backend: GitBackend, tmp_path: Path):
    driver = await git_backend.open()
    log = await driver.open_log(SPACE, create=True)
    grant = await driver.leases.acquire(SPACE, "one", 10**9)
    await log.append(entries("a"), epoch=grant.epoch)
    backup = tmp_path / "backup"
    git(tmp_path, "clone", "-q", "--mirror", str(git_backend.path), str(backup))
    other = await open_driver(f"git://{backup}", clock=FakeClock())
    assert (await other.leases.acquire(SPACE, "two", 1000)).epoch == grant.epoch + 1
    await other.aclose()


async def test_a_lease_of_another_format(git_backend: GitBackend):
    driver = await git_backend.open()
    await driver.open_log(SPACE, create=True)
    grant = await driver.leases.acquire(SPACE, "one", 1000)
    path = driver.local_dir(SPACE) / f"lease-{grant.epoch}.json"
    for text in (b"nonsense", b"[]", b'{"holder":"x"}', b'{"holder":"x","epoch":7,"expires":1}'):
        path.write_bytes(text)
        for attempt in (
            driver.leases.acquire(SPACE, "two", 1),
            driver.leases.current(SPACE),
            driver.leases.renew(grant, 1),
        ):
            with pytest.raises(BackendError, match="can't be read: remove") as caught:
                await attempt
            assert "\n" not in str(caught.value)
        assert path.read_bytes() == text
    for text in (b"", b"\0" * 60):  # a power cut left it so
        path.write_bytes(text)
        assert (await driver.leases.acquire(SPACE, "two", 1)).epoch == grant.epoch + 1
        grant = await driver.leases.acquire(SPACE, "two", 1)
        path = driver.local_dir(SPACE) / f"lease-{grant.epoch}.json"


# ---- packs


def loose(path: Path) -> int:
    return len([found for found in (path / "chatfs/odb").glob("??/*") if len(found.parent.name) == 2])


async def test_what_is_packed_is_the_same_and_small(git_backend: GitBackend):
    driver = await git_backend.open()
    assert isinstance(driver, GitDriver)
    log = await driver.open_log(SPACE, create=True)
    for number in range(400):
        await log.append(entries(f"{number:0100}"))
    before = {entry async for entry in log.read()}
    count = loose(git_backend.path)
    assert count > 1200
    everything = git(git_backend.path, "cat-file", "--batch-check", "--batch-all-objects")
    assert packing.pack("test", driver.objects.path) == count
    assert loose(git_backend.path) == 0
    assert git(git_backend.path, "cat-file", "--batch-check", "--batch-all-objects") == everything
    fsck(git_backend.path)
    (index,) = (git_backend.path / "chatfs/odb/pack").glob("*.idx")
    git(git_backend.path, "verify-pack", str(index))
    text = sum(len(entry.data) for entry in before)
    assert index.with_suffix(".pack").stat().st_size < 12 * text
    assert {entry async for entry in (await open_log(git_backend)).read()} == before
    assert packing.pack("test", driver.objects.path) == 0
    await log.append(entries("a"))
    fsck(git_backend.path)


async def test_many_packs_become_one(git_backend: GitBackend):
    driver = await git_backend.open()
    assert isinstance(driver, GitDriver)
    log = await driver.open_log(SPACE, create=True)
    other = await open_log(git_backend)
    packs = git_backend.path / "chatfs/odb/pack"
    most = 0
    for number in range(18):
        for _ in range(5):
            await log.append(entries(f"{number:0300}"))
        packing.pack("test", driver.objects.path)
        most = max(most, len(list(packs.glob("*.pack"))))
        await other.refresh()
    assert most < 10
    fsck(git_backend.path)
    for index in packs.glob("*.idx"):
        git(git_backend.path, "verify-pack", str(index))
    # Whoever has the old ones open goes on with the new ones.
    assert await seqs(other) == await seqs(log) == list(range(1, 91))


async def test_many_packs_become_no_larger_one_than_an_index_can_say(
    git_backend: GitBackend, monkeypatch: pytest.MonkeyPatch
):
    """Beyond 2 GiB an offset would be read as another number, and what was joined is removed."""
    log = await open_log(git_backend)
    odb = git_backend.path / "chatfs/odb"
    monkeypatch.setattr(packing, "_JOIN", 1000)
    for number in range(20):
        await log.append(entries(f"{number:0300}"))
        packing.pack("test", odb)
    sizes = [path.stat().st_size for path in (odb / "pack").glob("*.pack")]
    assert len(sizes) == 20
    monkeypatch.setattr(packing, "_JOIN", 8)
    monkeypatch.setattr(packing, "_LARGEST", 8 * max(sizes))
    packing.pack("test", odb)
    joined = [path.stat().st_size for path in (odb / "pack").glob("*.pack")]
    assert len(joined) < 20
    assert max(joined) <= packing._LARGEST
    fsck(git_backend.path)
    assert await seqs(log) == list(range(1, 21))


def test_any_objects_can_be_packed(tmp_path: Path):
    """Sizes and contents at the borders of the format's numbers; blobs that begin alike, or with each other."""
    random_ = random.Random(1)
    git(tmp_path, "init", "-q", "--bare")
    odb = tmp_path / "objects"
    objects = Objects(tmp_path, odb)
    long = (random_.randbytes(4096) * 4200)[: (1 << 24) + 70_000]
    sizes = [0, 1, 15, 16, 127, 128, 2047, 2048, 65535, 65536, 65537, (1 << 24) - 1, 1 << 24, len(long)]
    blobs = {bytes(long[:size]) for size in sizes} | {b"\0" * size for size in sizes[:10]}
    blobs |= {random_.randbytes(random_.randrange(300)) for _ in range(60)}
    blobs |= {b"same" + random_.randbytes(2) for _ in range(60)}
    written = {objects.write("test", b"blob", blob)[0]: blob for blob in blobs}
    assert packing.pack("test", odb) == len(written)
    for name, blob in written.items():
        assert objects.read(name, b"blob") == blob
    objects.close()
    for index in (odb / "pack").glob("*.idx"):
        git(tmp_path, "verify-pack", str(index))


def test_a_broken_object_is_put_aside(tmp_path: Path):
    odb = tmp_path / "odb"
    odb.mkdir()
    objects = Objects(tmp_path, odb)
    for kept in range(3):
        objects.write("test", b"blob", b"%d" % kept)
    broken = [objects.write("test", b"blob", text) for text in (b"empty", b"other", b"cut" * 1000)]
    Path(broken[0][1]).write_bytes(b"")
    Path(broken[1][1]).write_bytes(zlib.compress(b"blob 1\0x"))
    Path(broken[2][1]).write_bytes(Path(broken[2][1]).read_bytes()[:-9])
    with pytest.raises(StoreFailed):
        packing.pack("test", odb, strict=True)
    assert packing.pack("test", odb) == 3
    assert {path.name for path in (tmp_path / "quarantine").iterdir()} == {f"{name}.object" for name, _ in broken}


async def test_a_store_that_grows_is_packed_meanwhile(git_backend: GitBackend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("store.drivers.git.driver.PACK", 200)
    log = await open_log(git_backend)
    packs = git_backend.path / "chatfs/odb/pack"
    for _ in range(150):
        await log.append(entries("x"))
        await trio.lowlevel.checkpoint()
    await trio.to_thread.run_sync(wait_for, lambda: list(packs.glob("*.idx")))
    assert await seqs(log) == list(range(1, 151))
    await log.aclose()
    # What is packed is removed meanwhile, which git may see: the end of packing is waited for.
    await git_backend.aclose()
    fsck(git_backend.path)
