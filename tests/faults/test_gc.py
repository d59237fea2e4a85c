"""Collecting garbage: what nobody can get at goes, whatever is named anywhere stays, a crash leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
import trio.testing

from store import compaction, durability
from store.drivers.file.objects import Objects
from store.errors import InvalidInput
from store.fsck import Severity, check_store
from store.gc.collect import Collected, collect
from store.library import Store, open_store
from store.model import Millis, NewEntry, clock_ms
from store.workspace import Workspace
from store.workspace_state import Place
from tests.support.sandboxed import session_of

REPOSITORY = Path(__file__).parents[2]
DAY = 86_400
LONG = b"".join(b"%07d\n" % n for n in range(300_000))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def ago(days: float) -> Any:
    """A clock that is behind."""
    return lambda: Millis(clock_ms() - int(days * DAY * 1000))


def age(root: Path, days: float = 1) -> None:
    """Make all files older."""
    then = time.time() - days * DAY
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (then, then))


async def run(root: Path, **how: Any) -> Collected:
    async with open_store(f"file://{root}") as store:
        return await collect(store, "gc", **how)


def blobs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "objects").glob("??/*"))


def found(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def problems(root: Path) -> list[str]:
    return [each.kind for each in check_store(root).findings if each.severity < Severity.INFO]


async def made(store: Store, name: str = "trip") -> Workspace:
    workspace = await store.create_workspace("demo", "test")
    chat = await workspace.create_chat(name, "test")
    await chat.append_events([{"role": "user", "content": "hello"}], "test")
    return workspace


# ---- the trash


async def test_chats_go_when_they_have_been_in_the_trash_for_long(root: Path):
    async with open_store(f"file://{root}", clock=ago(31)) as store:
        workspace = await made(store, "old")
        await workspace.trash_chat((await workspace.record("old")).id, "test")
    async with open_store(f"file://{root}") as store:
        workspace = await store.workspace("demo")
        for name in ("new", "kept"):
            await workspace.create_chat(name, "test")
        await workspace.trash_chat((await workspace.record("new")).id, "test")
    would = await run(root, dry_run=True)
    assert len(found(root, "workspace/*/chats/*")) == 3
    done = await run(root)
    assert (would.chats, would.bytes) == (done.chats, done.bytes)
    assert done.chats.count == 1
    assert done.chats.bytes > 100
    async with open_store(f"file://{root}") as store:
        workspace = await store.workspace("demo")
        names = {name for place in Place for name, _ in workspace.state.in_place(place)}
        assert names == {"new", "kept"}
        events = [orjson.loads(entry.data) async for entry in workspace.space.read()]
        assert [event["type"] for event in events].count("chat.deleted") == 1
    assert len(found(root, "workspace/*/chats/*")) == 2
    assert problems(root) == []
    assert (await run(root)).bytes == 0


async def test_what_was_restored_in_time_stays(root: Path):
    async with open_store(f"file://{root}", clock=ago(31)) as store:
        workspace = await made(store)
        record = await workspace.record("trip")
        await workspace.trash_chat(record.id, "test")
        await workspace.move_chat(record.id, Place.CHATS, "trip", "test")
    assert (await run(root)).chats.count == 0
    assert problems(root) == []


async def test_a_chat_with_a_sandbox_stays(root: Path):
    async with open_store(f"file://{root}", clock=ago(31)) as store:
        workspace = await made(store)
        record = await workspace.record("trip")
        await workspace.trash_chat(record.id, "test")
        await store.driver.kv.put(f"sandboxes/{record.id}", session_of(workspace.id, record.id))
    done = await run(root)
    assert done.chats.count == 0
    assert any("sandbox" in note for note in done.notes)


async def test_a_workspace_goes_with_its_trash_and_its_name(root: Path):
    async with open_store(f"file://{root}", clock=ago(31)) as store:
        workspace = await made(store)
        await workspace.trash_chat((await workspace.record("trip")).id, "test")
        await workspace.trash("test")
    assert (await run(root, retention_days=60)).workspaces.count == 0
    assert (await run(root)).workspaces.count == 1
    assert found(root, "workspace/*") == []
    async with open_store(f"file://{root}") as store:
        assert await store.driver.kv.get("names/demo") is None
        await store.create_workspace("demo", "test")


async def test_a_deletion_that_a_crash_interrupted_is_finished(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        record = await workspace.record("trip")
        await workspace.trash_chat(record.id, "test")
        await workspace.space.append([NewEntry(orjson.dumps({"type": "chat.deleted", "chat": record.id}), "gc")])
    assert len(found(root, "workspace/*/chats/*")) == 1
    assert problems(root) == []
    assert (await run(root)).chats.count == 1
    assert len(found(root, "workspace/*/chats/*")) == 0


async def test_a_chat_that_nobody_lists_stays_unless_it_was_never_used(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        for name in ("0" * 8, "1" * 8):
            space = f"{workspace.space.id}/chats/{name}-0000-7000-8000-000000000000"
            log = await store.driver.open_log(space, create=True)  # type: ignore[arg-type]
            if name[0] == "1":
                await log.append([NewEntry(b'{"role":"user","content":"lost?"}', "test")])
            await log.aclose()
    assert (await run(root)).leftovers.count == 0  # it may be in the making
    age(root)
    done = await run(root)
    assert (done.chats.count, done.leftovers.count) == (0, 1)
    assert problems(root) == ["chat-unlisted"]


# ---- attachments


async def test_only_blobs_that_nothing_names_go(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        await chat.attach("kept.txt", b"kept", "test")
        await chat.attach("removed.txt", b"removed, but in the log", "test")
        await chat.remove_attachment("removed.txt", "test")
        await chat.attach("long.bin", LONG, "test")
        await store.driver.blobs.put(b"never named")
        await store.driver.blobs.put(LONG + b"never named either")
        staging = store.driver.blobs.stage((await store.driver.blobs.put(b"a base")).digest, label={"name": "x"})
        staging.write(1, b"draft")
        before = blobs(root)
        assert (await run(root)).blobs.count == 0  # all of them are young
        age(root)
        would = await run(root, dry_run=True)
        assert blobs(root) == before
        done = await run(root)
        assert (would.blobs.count, would.blobs.bytes) == (done.blobs.count, done.blobs.bytes)
        # The chunk that the two long ones have in common stays.
        assert done.blobs.count == 2
        assert len(before) - len(blobs(root)) == 3
        assert b"".join([piece async for piece in chat.read_attachment("long.bin")]) == LONG
        assert await store.driver.blobs.read((await chat.attachment("kept.txt")).digest, 0, 10) == b"kept"
        assert staging.read(0, 10) == b"adraft"
        await staging.discard()
    assert problems(root) == []


async def test_a_blob_that_is_put_again_is_young_again(root: Path):
    async with open_store(f"file://{root}") as store:
        await made(store)
        for content in (b"small", LONG):
            await store.driver.blobs.put(content)
        age(root)
        for content in (b"small", LONG):
            await store.driver.blobs.put(content)
        assert (await run(root)).blobs.count == 0
        age(root)
        assert (await run(root)).blobs.count == 2
        # Deleted by another instance: this one must notice.
        for content in (b"small", LONG):
            ref = await store.driver.blobs.put(content)
            assert b"".join([piece async for piece in store.driver.blobs.get(ref.digest)]) == content
    assert problems(root) == []


async def test_a_blob_that_another_process_deleted_is_made_durable_anew(root: Path, monkeypatch: pytest.MonkeyPatch):
    async with open_store(f"file://{root}") as store:
        ref = await store.driver.blobs.put(b"small")
        Objects(root).drop(ref.digest.partition(":")[2])
        synced: list[str] = []
        usual = durability.system.fsync

        def fsync(label: str, fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            usual(label, fd)

        monkeypatch.setattr(durability.system, "fsync", fsync)
        await store.driver.blobs.put(b"small")
    assert any(name.endswith(f"/objects/{ref.digest[7:9]}") for name in synced)


async def test_what_a_compacted_state_names_stays(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        await chat.attach("a.txt", b"named by the state alone", "test")
        await chat.attach("b.txt", b"removed before", "test")
        await chat.remove_attachment("b.txt", "test")
        await compaction.compact(chat, keep=0)
    age(root)
    await run(root)
    age(root)
    assert (await run(root)).blobs.count == 0
    assert problems(root) == []
    async with open_store(f"file://{root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        assert [piece async for piece in chat.read_attachment("a.txt")] == [b"named by the state alone"]


@pytest.mark.parametrize("how", ["a digest changed", "its beginning changed", "unreadable", "gone"])
async def test_nothing_is_deleted_while_a_compacted_state_is_damaged(root: Path, how: str):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        ref = await chat.attach("a.txt", b"named by the state alone", "test")
        await chat.append_events([{"role": "user", "content": "hello again"}] * 3, "test")
        await compaction.compact(chat, keep=1)
        for snapshot in (chat.directory / "snapshots").iterdir():
            snapshot.unlink()
        log = (chat.directory / "history.jsonl").read_bytes()
    state = log.partition(b'"state":"sha256:')[2][:64].decode()
    path = root / "objects" / state[:2] / state
    good = path.read_bytes()
    path.unlink()
    if how == "a digest changed":
        assert ref.digest[7:].encode() in good
        path.write_bytes(good.replace(ref.digest[7:].encode(), b"0" * 64))
    elif how == "its beginning changed":
        path.write_bytes(b"?" + good[1:])
    elif how == "unreadable":
        path.symlink_to("elsewhere")
    age(root)
    done = await run(root)
    assert done.blobs.count == 0
    assert any("attachments are left alone" in note for note in done.notes)
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    path.chmod(0o600)
    age(root)
    done = await run(root)
    assert (done.blobs.count, done.notes) == (0, [])
    assert problems(root) == []
    async with open_store(f"file://{root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        assert [piece async for piece in chat.read_attachment("a.txt")] == [b"named by the state alone"]


async def test_text_that_looks_like_a_lost_state_keeps_nothing(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        await chat.append_events([{"role": "user", "content": "hello again"}] * 3, "test")
        await compaction.compact(chat, keep=1)
        (through,) = {orjson.loads(e.data)["through"] async for e in chat.log() if b"log.compacted" in e.data}
        lost = {"state": f"sha256:{'7' * 64}", "through": through}
        await chat.append_events([{"role": "user", "content": "log.compacted", **lost}], "test")
        await chat.append_events([{"type": "x.compacted", "of": {"type": "log.compacted", **lost}}], "test")
        await store.driver.blobs.put(b"never named")
    age(root)
    done = await run(root)
    assert (done.blobs.count, done.notes) == (1, [])


@pytest.mark.parametrize("how", ["damaged", "quarantined", "missing"])
async def test_no_chunk_goes_while_a_list_of_chunks_is_damaged(root: Path, how: str):
    async with open_store(f"file://{root}") as store:
        chat = await (await made(store)).chat("trip")
        await chat.attach("long.bin", LONG, "test")
        await store.driver.blobs.put(b"never named")
    (path,) = found(root, "objects/*/*.chunks")
    good = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(good[:-10] + (b"0" if good[-10:-9] != b"0" else b"1") + good[-9:])
    if how == "quarantined":
        check_store(root, repair=True)
        assert not path.exists()
    age(root)
    done = await run(root)
    assert done.blobs.count == 1
    assert any("parts of large attachments are left alone" in note for note in done.notes)
    path.write_bytes(good)
    age(root)
    assert (await run(root)).bytes == 0
    async with open_store(f"file://{root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        assert b"".join([piece async for piece in chat.read_attachment("long.bin")]) == LONG


@pytest.mark.parametrize("content", [b"small", LONG])
async def test_a_blob_that_a_draft_left_as_it_was_is_young_again(root: Path, content: bytes):
    async with open_store(f"file://{root}") as store:
        await made(store)
        base = await store.driver.blobs.put(content)
        age(root)
        staging = store.driver.blobs.stage(base.digest, label={"name": "x"})
        assert await staging.commit() == base
        assert (await run(root)).blobs.count == 0
        age(root)
        staging = store.driver.blobs.stage(base.digest, label={"name": "x"})
        staging.truncate(base.size + 1)
        staging.truncate(base.size)
        assert await staging.commit() == base
        await staging.discard()
        assert (await run(root)).blobs.count == 0
        age(root)
        assert (await run(root)).blobs.count == 1


async def test_what_is_written_while_an_unchanged_draft_waits_for_a_collection_stays(root: Path):
    async with open_store(f"file://{root}") as store:
        base = await store.driver.blobs.put(b"small")
        staging = store.driver.blobs.stage(base.digest, label={"name": "x"})
        objects = Objects(root)
        async with trio.open_nursery() as nursery:
            with objects.held(alone=True):
                nursery.start_soon(staging.commit)
                await trio.testing.wait_all_tasks_blocked()
                staging.write(0, b"S")
        assert staging.read(0, 10) == b"Small"
        ref = await staging.commit()
        assert await store.driver.blobs.read(ref.digest, 0, 10) == b"Small"


async def test_letters_written_as_escapes_name_a_blob_too(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        ref = await store.driver.blobs.put(b"hidden name")
        event = orjson.dumps(
            {
                "type": "attachment.put",
                "id": "x",
                "name": "x",
                "digest": ref.digest,
                "size": ref.size,
                "content_type": "x",
            }
        )
        await chat.append_lines(
            [
                event.replace(b"sha", b"s\\u0068a").replace(
                    b":" + ref.digest[7:9].encode(), b"\\u003a" + ref.digest[7:9].encode()
                )
            ],
            "test",
        )
        assert (await chat.attachment("x")).digest == ref.digest
    age(root)
    assert (await run(root)).blobs.count == 0


async def test_nothing_is_deleted_while_a_log_is_damaged(root: Path):
    async with open_store(f"file://{root}") as store:
        await made(store)
        await store.driver.blobs.put(b"never named")
    age(root)
    (log,) = found(root, "workspace/*/chats/*/history.jsonl")
    log.write_bytes(log.read_bytes().replace(b"hello", b"hellO"))
    done = await run(root)
    assert done.blobs.count == 0
    assert any("chatfs fsck --repair" in note for note in done.notes)
    check_store(root, repair=True)
    assert (await run(root)).blobs.count == 1


async def test_an_event_that_comes_while_blobs_are_looked_for_counts(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look at the logs and the deletion, somebody names an old blob."""
    from store.gc import sweep  # noqa: PLC0415

    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        chat = await workspace.chat("trip")
        ref = await store.driver.blobs.put(b"named at the last moment")
        age(root)
        usual = sweep.BlobSweep._delete

        def late(self: sweep.BlobSweep, names: list[str]) -> set[str]:
            if names:
                trio.from_thread.run(chat.put_attachment, "late.txt", ref, "test")
            return usual(self, names)

        monkeypatch.setattr(sweep.BlobSweep, "_delete", late)
        assert (await collect(store, "gc")).blobs.count == 0
    assert problems(root) == []


# ---- files that were left


async def test_stale_editor_files_go_and_a_users_bytes_stay(root: Path):
    async with open_store(f"file://{root}") as store:
        workspace = await made(store)
        directory = (await workspace.chat("trip")).directory
    stale = [
        ".history.md.swp",
        "history.md~",
        "4913",
        "#history.md#",
        "sedAbC123",
        ".goutputstream-XYZ123",
        ".#history.md",
    ]
    kept = [
        "history.md.rejected-1",
        "history.md.conflict-2",
        "history.md.recovered-3",
        ".history.md.swp.rejected-1",
        "notes.txt",
        "2024",
        ".profile",
        "sedentary",
        "sed202401",
        ".notes.202401",
        ".notes.README",
        ".notes.Draft2",
    ]
    for area, names in (("scratch", stale + kept), ("scratch-attachments", [".big.iso.Ab3dEf", ".hidden"])):
        (directory / area).mkdir()
        for name in names:
            (directory / area / name).write_bytes(b"x")
    assert (await run(root)).scratch.count == 0
    age(root, 31)
    (directory / "scratch" / ".other.swp").write_bytes(b"fresh")
    done = await run(root)
    assert done.scratch.count == len(stale) + 1
    assert sorted(path.name for path in (directory / "scratch").iterdir()) == sorted([*kept, ".other.swp"])
    assert [path.name for path in (directory / "scratch-attachments").iterdir()] == [".hidden"]


async def test_what_crashes_left_goes_and_drafts_stay(root: Path):
    async with open_store(f"file://{root}") as store:
        await made(store)
    drafts = root / "drafts"
    drafts.mkdir(exist_ok=True)
    stem = "01a1fe0b-8677-74da-8806-a09cf48c7ada"
    orphan = "01a1fe0b-8677-74da-8806-a09cf48c7adb"
    (workspace,) = found(root, "workspace/*")
    left = [
        drafts / f"{orphan}.0.0",
        drafts / ".put-1-2-x",
        root / ".store.json.0.tmp",
        workspace / ".history.base.0.tmp",
    ]
    kept = [drafts / f"{stem}.json", drafts / f"{stem}.0.0"]
    for path in left + kept:
        path.write_bytes(b"x")
    (workspace / "chats" / ".new-0123456789abcdef").mkdir()
    assert (await run(root)).leftovers.count == 0
    age(root)
    os.utime(workspace / "chats" / ".new-0123456789abcdef", (1, 1))
    assert (await run(root)).leftovers.count == len(left) + 1
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)


async def test_a_memory_store_has_nothing_to_collect():
    async with open_store("memory:") as store:
        with pytest.raises(InvalidInput):
            await collect(store, "gc")


# ---- crashes


def test_killed_at_any_moment_the_next_one_finishes(root: Path):
    rng = random.Random(7)

    async def prepare() -> None:
        async with open_store(f"file://{root}", clock=ago(31)) as store:
            workspace = await store.create_workspace("demo", "test")
            for number in range(12):
                chat = await workspace.create_chat(f"c{number}", "test")
                await chat.attach("own.txt", b"own %d" % number, "test")
                await chat.attach("shared.bin", LONG, "test")
                await chat.append_events([{"role": "user", "content": "x"}] * 20, "test")
                if number % 2:
                    await workspace.trash_chat(chat.id, "test")
            for number in range(200):
                await store.driver.blobs.put(b"garbage %d" % number, durable=False)
        age(root, 2)

    trio.run(prepare)
    code = (
        "import sys, trio\n"
        "from store.library import open_store\n"
        "from store.gc.collect import collect\n"
        "async def main():\n"
        "    async with open_store(sys.argv[1]) as store:\n"
        "        print(flush=True)\n"
        "        await collect(store, 'gc')\n"
        "trio.run(main)\n"
    )
    killed = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"file://{root}"], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(rng.uniform(0, 0.06))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait(30)
        process.stdout.close()
        assert problems(root) == []
    assert killed
    trio.run(run, root)

    async def look() -> None:
        async with open_store(f"file://{root}") as store:
            workspace = await store.workspace("demo")
            assert sorted(workspace.state.names) == sorted(f"c{number}" for number in range(0, 12, 2))
            assert not workspace.state.trash
            for name in workspace.state.names:
                chat = await workspace.chat(name)
                assert b"".join([piece async for piece in chat.read_attachment("shared.bin")]) == LONG

    trio.run(look)
    assert len(found(root, "workspace/*/chats/*")) == 6
    assert len([name for name in blobs(root) if "." not in name]) == 6
    assert problems(root) == []
    assert trio.run(run, root).bytes == 0
