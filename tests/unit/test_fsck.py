"""A check of a whole store: it finds each kind of damage, repairs what loses nothing, and finds nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from store import compaction, durability
from store.errors import FormatError, NameTaken, StoreNotFound
from store.fsck import Finding, Report, Scope, Severity, ahead, check_store, counted
from store.fsck.spaces import _spans
from store.index import schema
from store.library import open_store
from store.locks import blocking_lock
from store.model import NewEntry
from store.workspace_state import Place
from tests.support.waiting import wait_for

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "store"
LONG = b"".join(b"%07d\n" % n for n in range(300_000))


@dataclass
class Made:
    """A store with workspace `demo`: `trip` with attachments and a snapshot, `cut` compacted, `old` in the trash."""

    root: Path
    chats: dict[str, Path]

    @property
    def workspace(self) -> Path:
        (found,) = (self.root / "workspace").iterdir()
        return found

    def log(self, chat: str) -> Path:
        return self.chats[chat] / "history.jsonl"

    def object(self, suffix: str = "", content: bytes | None = None) -> Path:
        """An object's file, by how its name ends; a small one by its bytes."""
        for path in sorted((self.root / "objects").glob("??/*")):
            if path.suffix == suffix and (content is None or path.read_bytes() == content):
                return path
        raise AssertionError(suffix)

    def check(self, *, repair: bool = False, full: bool = True, scope: Scope | None = None) -> Report:
        return check_store(self.root, scope, repair=repair, full=full)

    def problems(self, **how: bool) -> list[Finding]:
        return [found for found in self.check(**how).findings if found.severity < Severity.INFO]

    def kinds(self, **how: bool) -> list[str]:
        return [found.kind for found in self.problems(**how)]


async def make(root: Path) -> Made:
    async with open_store(f"file://{root}") as store:
        workspace = await store.create_workspace("demo", "test")
        chats = {}
        for name in ("trip", "cut", "old"):
            chat = await workspace.create_chat(name, "test")
            await chat.append_events([{"role": "user", "content": f"hello {n}"} for n in range(20)], "test")
            chats[name] = chat.directory
        trip = await workspace.chat("trip")
        await trip.attach("small.txt", b"small", "test")
        await trip.attach("long.bin", LONG, "test")
        await trip.space.keep_snapshot()
        await trip.append_events([{"role": "user", "content": "after the snapshot"}], "test")
        cut = await workspace.chat("cut")
        await cut.attach("kept.txt", b"kept by the state", "test")
        await compaction.compact(cut, keep=0)
        await cut.append_events([{"role": "user", "content": "after the compaction"}], "test")
        await workspace.move_chat((await workspace.record("old")).id, Place.TRASH, "old", "test")
        await store.driver.kv.put("sandboxes/x", {"id": "x"})
        for name in ("trip", "cut"):
            await (await workspace.chat(name)).release()
    return Made(root, chats)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return trio.run(make, tmp_path_factory.mktemp("fsck") / "store")


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    root = tmp_path / "store"
    shutil.copytree(original.root, root, symlinks=True)
    return Made(root, {name: root / path.relative_to(original.root) for name, path in original.chats.items()})


async def texts(made: Made) -> dict[str, bytes]:
    async with open_store(f"file://{made.root}") as store:
        workspace = await store.workspace("demo")
        return {name: await (await workspace.chat(name)).text() for name in ("trip", "cut")}


def flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    os.chmod(path, 0o600)
    path.write_bytes(data)


def replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def events_in(made: Made, chat: str) -> list[dict[str, Any]]:
    return [orjson.loads(line)["data"] for line in made.log(chat).read_bytes().splitlines()]


@contextlib.contextmanager
def fails(label: str) -> Iterator[None]:
    """Writes for `label` do."""

    class Failing(durability.System):
        def write(self, label_: str, fd: int, data: bytes | memoryview) -> int:
            if label_ == label:
                raise OSError(errno.EIO, "broken")
            return super().write(label_, fd, data)

    durability.system = Failing()
    try:
        yield
    finally:
        durability.system = durability.System()


# ---- nothing wrong


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_store_is_clean(made: Made, full: bool):  # noqa: FBT001
    report = made.check(full=full)
    assert [found for found in report.findings if found.severity < Severity.INFO] == []
    assert report.exit_code == 0
    assert (report.counts.logs, report.counts.blobs) == (4, 4)
    assert report.counts.bytes > len(LONG)


def test_the_frozen_store_of_format_1_is_clean(tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(GOLDEN, root)
    for path in (root, *root.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)  # git keeps no modes
    report = check_store(root, full=True)
    assert [found for found in report.findings if found.severity < Severity.INFO] == []


def test_checking_changes_nothing(made: Made):
    def everything() -> dict[str, tuple[int, bytes]]:
        paths = sorted(path for path in made.root.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    flip(made.log("trip"), 300)
    before = everything()
    made.check()
    assert everything() == before


def test_it_can_run_while_others_write(made: Made):
    """Appends, whole batches, attachments and truncations, while the store is checked again and again."""
    stop = threading.Event()
    rounds = [0]

    async def write() -> None:
        async with open_store(f"file://{made.root}") as store:
            workspace = await store.workspace("demo")
            chat, other = await workspace.chat("trip"), await workspace.chat("cut")
            while not stop.is_set():
                rounds[0] += 1
                await chat.append_events([{"role": "user", "content": "x" * 5000}] * 9, "test")
                await chat.attach(f"a{rounds[0] % 7}.txt", b"%d" % rounds[0], "test")
                if rounds[0] % 5 == 0:
                    await compaction.compact(other, keep=0)
                    await other.append_events([{"role": "user", "content": "again"}], "test")
                    await chat.space.keep_snapshot()

    thread = threading.Thread(target=trio.run, args=(write,))
    thread.start()
    try:
        for _ in range(8):
            begun = rounds[0]
            assert made.problems(full=False) == []
            wait_for(lambda begun=begun: rounds[0] > begun or not thread.is_alive(), 20)
    finally:
        stop.set()
        thread.join(30)
    assert rounds[0] >= 8
    assert made.problems() == []


# ---- logs


async def test_a_damaged_log_is_repaired_and_the_rest_stays(made: Made):
    before = (await texts(made))["trip"]
    shutil.rmtree(made.chats["trip"] / "snapshots")
    replace(made.log("trip"), b"hello 7", b"hellO 7")
    (found,) = made.problems()
    assert (found.severity, found.kind, found.where) == (Severity.ERROR, "log-damaged", "demo/trip")
    assert "entry 8 can't be read" in found.what
    assert made.check().exit_code == 4
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    after = (await texts(made))["trip"]
    assert b"hello 7\n" not in after
    assert [line for line in before.splitlines() if line not in after.splitlines()] == [b"hello 7"]
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        events = [orjson.loads(entry.data)["type"] async for entry in chat.log()]
        assert events.count("log.lost") == events.count("log.repaired") == 1
        await chat.append_events([{"role": "user", "content": "and on it goes"}], "test")
    assert any(b"hellO 7" in path.read_bytes() for path in (made.root / "quarantine").iterdir())
    infos = [found for found in made.check().findings if found.kind == "entries-lost"]
    assert [found.where for found in infos] == ["demo/trip"]


async def test_what_a_snapshot_knew_of_a_lost_entry_is_kept(made: Made):
    replace(made.log("trip"), b"hello 7", b"hellO 7")
    made.check(repair=True)
    kept = b"".join(path.read_bytes() for path in (made.root / "quarantine").glob("*.copy"))
    assert b"hello 7" in kept
    assert made.problems() == []


async def test_a_damaged_crc_costs_nothing(made: Made):
    before = await texts(made)
    replace(made.log("trip"), b'"crc":"', b'"crC":"')
    (found,) = made.problems(repair=True)
    assert "1 entry restored" in found.done
    assert made.problems() == []
    assert await texts(made) == before


async def test_a_torn_tail_is_no_error(made: Made):
    before = await texts(made)
    with made.log("trip").open("ab") as log:
        log.write(b'{"seq":99,"ts":17')
    report = made.check()
    assert (report.exit_code, [found.kind for found in report.findings if found.where == "demo/trip"]) == (
        0,
        ["torn-tail"],
    )
    assert made.check(repair=True).exit_code == 1
    assert [path.read_bytes() for path in (made.root / "quarantine").glob("*.torn")] == [b'{"seq":99,"ts":17']
    assert not made.log("trip").read_bytes().endswith(b"17")
    assert await texts(made) == before


def test_damage_and_a_torn_tail_at_once(made: Made):
    replace(made.log("trip"), b"hello 7", b"hellO 7")
    with made.log("trip").open("ab") as log:
        log.write(b'{"seq":99,"ts":17')
    made.check(repair=True)
    assert made.problems() == []
    kept = {path.suffix for path in (made.root / "quarantine").iterdir()}
    assert {".torn", ".damaged"} <= kept


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: flip(path, path.read_bytes().index(b'"crc":') + 7),
        lambda path: replace(path, b'"crc":', b'"crc":9999'),
    ],
    ids=["missing", "garbage", "one digit", "no crc-32"],
)
async def test_a_base_is_read_off_the_log(made: Made, spoil: Callable[[Path], None]):
    before = await texts(made)
    shutil.rmtree(made.chats["cut"] / "snapshots")
    base = made.chats["cut"] / "history.base"
    was = orjson.loads(base.read_bytes())
    spoil(base)
    assert made.kinds() == ["base-damaged"]
    assert made.check(repair=True).exit_code == 1
    assert {key: value for key, value in orjson.loads(base.read_bytes()).items() if key != "ts"} == {
        "seq": was["seq"],
        "crc": was["crc"],
    }
    assert made.problems() == []
    assert await texts(made) == before


async def test_an_interrupted_truncation_is_no_damage(made: Made):
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        entries = [entry async for entry in chat.log()]
    base = {"seq": 5, "ts": entries[4].ts, "crc": entries[4].crc}
    (made.chats["trip"] / "history.base").write_bytes(orjson.dumps(base))
    (made.chats["trip"] / "history.base").chmod(0o600)
    assert made.problems(full=False) == []


async def test_the_event_of_a_compaction_is_found_again(made: Made):
    before = await texts(made)
    shutil.rmtree(made.chats["cut"] / "snapshots")
    replace(made.log("cut"), b'"log.compacted"', b'"log.compActed"')
    assert set(made.kinds()) == {"log-damaged", "base-state"}
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert await texts(made) == before


def test_a_compacted_state_that_is_gone_is_an_error(made: Made):
    for path in (made.root / "objects").glob("??/*"):
        if path.read_bytes().startswith(b'{"snapshot"'):
            path.unlink()
    assert made.kinds() == ["base-state"]
    assert made.check(repair=True).exit_code == 4


async def test_a_chat_that_the_workspace_lost_is_listed_again(made: Made):
    name = made.chats["trip"].name
    log = made.workspace / "history.jsonl"
    replace(log, b'"chat.created","chat":"' + name.encode(), b'"chat.creAted","chat":"' + name.encode())
    kinds = made.kinds(repair=True)
    assert {"log-damaged", "chat-unlisted"} <= set(kinds)
    assert made.problems() == []
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat(f"found-{name}")
        assert b"hello 7" in await chat.text()


def test_a_chat_without_its_directory_is_an_error(made: Made):
    shutil.rmtree(made.chats["trip"])
    (found,) = made.problems()
    assert (found.kind, found.where) == ("chat-missing", "demo/trip")


def test_a_log_that_is_a_link_is_not_followed(made: Made, tmp_path: Path):
    outside = tmp_path / "outside"
    made.log("trip").rename(outside)
    made.log("trip").symlink_to(outside)
    was = outside.read_bytes()
    flip(outside, 300)
    assert {"log-unreadable", "stranger"} == set(made.kinds(repair=True))
    assert outside.read_bytes() != was


# ---- blobs


@pytest.mark.parametrize(("suffix", "name"), [("", "small.txt"), (".chunk", "long.bin"), (".chunks", "long.bin")])
async def test_a_damaged_blob_is_set_aside_for_the_right_bytes_to_come(made: Made, suffix: str, name: str):
    path = made.object(suffix, b"small" if not suffix else None)
    flip(path, 3)
    found = [each for each in made.problems() if each.kind == "blob-damaged"]
    assert any(f"demo/trip/attachments/{name}" in each.what for each in found)
    assert made.check(repair=True).exit_code == 4
    assert not path.exists()
    (kept,) = (made.root / "quarantine").glob("*.object")
    assert set(made.kinds()) <= {"blob-missing", "blob-damaged"}
    for chat, said in (("trip", [kept.name]), ("cut", []), ("old", [])):
        told = [event for event in events_in(made, chat) if event.get("type") == "blob.quarantined"]
        assert [event["quarantine"] for event in told] == said
        assert all(event["attachments"] == [name] for event in told)
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        await chat.attach(name, b"small" if name == "small.txt" else LONG, "test")
    assert made.problems() == []


@pytest.mark.parametrize("content", [b"kept by the state", None])
async def test_what_a_compacted_log_needs_is_known(made: Made, content: bytes | None):
    """An attachment that only the compacted state has, and that state."""
    path = made.object("", content) if content else max(made.root.glob("objects/??/*"), key=_is_state)
    flip(path, 3)
    (found,) = [each for each in made.problems() if each.kind == "blob-damaged"]
    assert ("demo/cut/attachments/kept.txt" if content else "the compacted log of demo/cut") in found.what
    assert found.left
    assert made.check(repair=True).exit_code == made.check().exit_code == 4
    told = events_in(made, "cut")[-1]
    assert (told["type"], told["attachments"]) == ("blob.quarantined", ["kept.txt"] if content else [])


def _is_state(path: Path) -> bool:
    return path.read_bytes().startswith(b'{"snapshot"')


async def test_a_blob_stays_where_a_log_cant_take_that_it_went(made: Made):
    path = made.object("", b"small")
    flip(path, 3)
    with fails("log.salvage"):
        (found,) = [each for each in made.check(repair=True).findings if each.kind == "blob-damaged"]
    assert "couldn't be repaired: the log of demo/trip can't take the event that says so" in found.advice
    assert path.exists()
    assert made.check(repair=True).exit_code == 4
    assert not path.exists()
    assert [event["type"] for event in events_in(made, "trip")[-2:]] == ["message.appended", "blob.quarantined"]


async def test_events_of_any_shape_are_in_nobodys_way(made: Made):
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        digest = (await chat.attachment("small.txt")).digest
        name = digest.partition(":")[2]
        shapes: list[dict[str, Any]] = [
            {"type": ["attachment.put"], "digest": digest},
            {"type": {"type": "log.compacted"}, "state": digest},
            {"type": "attachment.put", "id": "x", "name": [], "digest": [digest], "size": 5},
            {"type": "attachment.put", "id": "x", "name": "y", "digest": digest, "size": [5]},
            {"type": "log.compacted", "through": [], "state": {digest: 1}},
            {"type": "chat.deleted", "chat": [digest]},
        ]
        await chat.append_events(shapes, "test")
    assert made.problems(full=True) == []
    flip(made.root / "objects" / name[:2] / name, 0)
    (found,) = made.problems(repair=True)
    assert found.kind == "blob-damaged"
    assert found.done
    assert "trip/attachments/small.txt" in found.what


def test_a_missing_blob_names_the_attachment(made: Made):
    made.object("", b"small").unlink()
    (found,) = made.problems(repair=True)
    assert (found.kind, found.where, found.left) == ("blob-missing", "demo/trip", True)
    assert "'small.txt'" in found.what


def test_a_damaged_blob_that_nobody_needs_is_repaired_by_setting_it_aside(made: Made):
    path = made.root / "objects" / "ab" / ("ab" * 32)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_bytes(b"other")
    path.chmod(0o600)
    assert made.check().exit_code == 4
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []


# ---- what was made from the logs


@pytest.mark.parametrize(
    ("spoiled", "kind"),
    [
        ("snapshots/*.json", "snapshot"),
        ("snapshots/*.md", "snapshot"),
        ("history.md", "text"),
        ("history.md.json", "text"),
    ],
)
async def test_what_can_be_made_again_is_dropped(made: Made, spoiled: str, kind: str):
    before = await texts(made)
    path = max(made.chats["trip"].glob(spoiled))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # history.md and a snapshot's text are one file
    path.write_bytes(content)
    path.chmod(0o600)
    assert made.kinds() == [kind]
    report = made.check()
    assert (report.exit_code, report.count(Severity.WARNING)) == (0, 1)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert not path.exists()
    assert await texts(made) == before


async def test_a_snapshot_that_is_sound_and_wrong_is_found_by_a_full_check(made: Made):
    from store import snapshots  # noqa: PLC0415

    path = max(made.chats["trip"].glob("snapshots/*.json"))
    head = snapshots._decode(path.read_bytes(), "")
    head["state"]["title"] = "never said"
    head.pop("sum", None)
    path.write_bytes(snapshots._encode(head))
    assert made.problems(full=False) == []
    assert made.kinds(full=True) == ["snapshot"]


async def test_a_snapshot_that_knows_more_than_the_log_is_kept(made: Made):
    lines = made.log("trip").read_bytes().splitlines(keepends=True)
    made.log("trip").write_bytes(b"".join(lines[:4]))
    assert {"snapshot", "text"} == set(made.kinds())
    made.check(repair=True)
    assert made.problems() == []
    kept = b"".join(path.read_bytes() for path in (made.root / "quarantine").glob("*.copy"))
    assert b"hello 15" in kept


async def test_a_spoiled_index_is_dropped(made: Made):
    async with open_store(f"file://{made.root}") as store:
        await store.index.catch_up()
    assert made.problems() == []
    path = made.root / "index.db"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    (found,) = made.problems()
    assert (found.kind, "\n" in found.what) == ("index", False)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert not path.exists()


def test_a_heading_of_sqlite_isnt_said(made: Made):
    """It comes with a newline."""
    path = made.root / "index.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        connection.execute("CREATE TABLE gone (x)")
        connection.execute("CREATE TABLE spaces (x)")
        connection.execute("INSERT INTO gone VALUES (1)")
        connection.commit()
        connection.execute("DROP TABLE gone")  # leaves a free page
        connection.commit()
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[36:40] = bytes(4)  # SQLite's file format: the number of free pages
    path.write_bytes(content)
    (found,) = made.problems()
    assert found.what.startswith("is damaged: ")
    assert not {"\n", "*"} & set(found.what)


def _still(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk, also for root, whom modes don't stop: SQLite opens files only if they are immutable."""
    usual, access = sqlite3.connect, os.access

    def connect(name: str, **how: Any) -> sqlite3.Connection:
        return usual(name if name.endswith("?immutable=1") else "file:/nowhere/index.db?mode=ro", **how)

    monkeypatch.setattr(sqlite3, "connect", connect)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != made.root and access(path, mode))


@pytest.mark.parametrize("damaged", [False, True])
async def test_an_index_on_a_read_only_disk(made: Made, monkeypatch: pytest.MonkeyPatch, *, damaged: bool):
    async with open_store(f"file://{made.root}") as store:
        await store.index.catch_up()
    path = made.root / "index.db"
    assert not path.with_name("index.db-wal").exists()
    if damaged:
        content = bytearray(path.read_bytes())
        content[4096:8192] = b"\xff" * 4096
        path.write_bytes(content)
    _still(made, monkeypatch)
    assert made.kinds() == ["index"] * damaged
    path.with_name("index.db-wal").write_bytes(b"what makes it whole")
    path.with_name("index.db-wal").chmod(0o600)
    assert made.kinds() == []


def test_damage_is_said_once(made: Made):
    path = max(made.chats["trip"].glob("snapshots/*.json"))
    flip(path)
    (found,) = made.problems()
    assert found.what == f"the snapshot can't be loaded: {path.name} is damaged"


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([[6, 6]], "entry 6"),
        ([[6, 7]], "entries 6-7"),
        ([[6, 6], [9, 11]], "entries 6 and 9-11"),
        ([[1, 1], [3, 3], [5, 6]], "entries 1, 3 and 5-6"),
        ([[n, n] for n in range(1, 30, 2)], "entries 1, 3, 5, 7, 9, 11, 13, 15 and more"),
    ],
)
def test_entries_are_listed_in_words(spans: list[list[int]], said: str):
    assert _spans(spans) == said


def test_one_of_a_thing_is_no_plural():
    assert [counted(1, what) for what in ("file", "entry")] == ["1 file", "1 entry"]
    assert [counted(0, what) for what in ("file", "entry")] == ["0 files", "0 entries"]


# ---- the store's own


async def test_drafts_are_looked_at(made: Made):
    drafts = made.root / "drafts"
    drafts.mkdir(exist_ok=True, mode=0o700)
    label = {"label": {"name": "history.md"}, "base": None, "limit": 0, "size": 3}
    path = drafts / "01a1fe0b-8677-74da-8806-a09cf48c7ada.json"
    durability.write_new("test", path, orjson.dumps(label))
    report = made.check()
    assert [found.kind for found in report.findings if found.path.startswith("drafts")] == ["draft"]
    assert report.exit_code == 0
    path.write_bytes(orjson.dumps(label | {"base": "sha256:" + "0" * 64}))
    assert made.kinds() == ["draft"]
    with blocking_lock(path, lambda: -1):
        assert made.problems() == []  # its process lives


def test_documents_leases_modes_and_strangers(made: Made, tmp_path: Path):
    (made.root / "kv" / "sandboxes,x.json").write_bytes(b"{")
    lease = made.chats["trip"] / "lease-12.json"
    lease.write_bytes(b'{"holder":"x","epoch":0,"expires":1}')
    lease.chmod(0o600)
    made.log("trip").chmod(0o644)
    (made.root / "notes.txt").write_text("mine")
    (made.chats["trip"] / "link").symlink_to(tmp_path)
    assert sorted(made.kinds()) == ["document", "lease-damaged", "mode", "stranger", "stranger"]
    made.check(repair=True)
    assert made.log("trip").stat().st_mode & 0o777 == 0o600
    assert sorted(made.kinds()) == ["document", "lease-damaged", "stranger", "stranger"]
    assert (made.root / "notes.txt").exists()


def test_the_present_lease_is_looked_at(made: Made):
    directory = made.chats["trip"]
    for name, content in (
        ("lease.json", b"{"),
        ("lease-9.json", b"{"),
        ("lease-10.json", b'{"holder":"x","epoch":10,"expires":1}'),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    assert made.problems() == []
    (directory / "lease-11.json").write_bytes(b'{"holder":"x","epoch":11,"expires":99999999999999}')
    (directory / "lease-11.json").chmod(0o600)
    assert made.kinds() == ["lease-odd"]


def test_an_interrupted_takeover_is_finished(made: Made):
    path = made.log("trip")
    whole = path.read_bytes()
    path.rename(path.with_name("history.taken"))
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    path.chmod(0o600)
    assert "takeover" in made.kinds()
    assert path.read_bytes() != whole
    made.check(repair=True)
    assert path.read_bytes() == whole
    assert not path.with_name("history.taken").exists()
    assert made.problems() == []


@pytest.mark.parametrize("content", [b"{", b'{"key":"names/demo","etag":"1","value":{}}'])
@pytest.mark.parametrize("name", ["demo", "\N{SNOWMAN}" * 80], ids=["short", "long"])
async def test_a_damaged_document_of_a_name_is_set_aside(made: Made, name: str, content: bytes):
    async with open_store(f"file://{made.root}") as store:
        await store.rename_workspace(await store.workspace("demo"), name, "test")
    (path,) = (path for path in (made.root / "kv").glob("*.json") if path.name != "sandboxes,x.json")
    path.write_bytes(content)
    (found,) = made.problems()
    assert (found.severity, found.kind, found.left) == (Severity.WARNING, "document", True)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert [kept.read_bytes() for kept in (made.root / "quarantine").glob("*.document")] == [content]
    async with open_store(f"file://{made.root}") as store:
        workspace = await store.workspace(name)
        with pytest.raises(NameTaken):
            await store.create_workspace(name, "test")
        await store.rename_workspace(workspace, "other", "test")
        await store.create_workspace(name, "test")
    assert made.problems() == []


async def test_a_name_that_two_workspaces_have(made: Made):
    async with open_store(f"file://{made.root}") as store:
        other = await store.create_workspace("other", "test")
        event = NewEntry(b'{"type":"workspace.changed","name":"demo"}', "test")
        await other.space.append([event])
    assert made.kinds() == ["name-twice"]


def test_one_chat_alone(made: Made):
    flip(made.log("cut"), 40)
    flip(made.object("", b"small"), 1)
    report = made.check(scope=Scope("demo", "trip"))
    assert [found.kind for found in report.findings if found.severity is Severity.ERROR] == ["blob-damaged"]
    assert report.counts.logs == 2  # the workspace's says which chat it is


def test_long_logs_are_read_by_processes_of_their_own(made: Made, monkeypatch: pytest.MonkeyPatch):
    alone = made.check(full=False)
    monkeypatch.setattr(ahead, "LONG", 1)
    monkeypatch.setattr(ahead, "ENOUGH", 1)
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _pid: {0, 1})
    taken = []
    usual = ahead.Ahead.take
    monkeypatch.setattr(ahead.Ahead, "take", lambda self, space: taken.append(usual(self, space)) or taken[-1])
    together = made.check(full=False)
    assert [scanned is not None for scanned in taken] == [True] * 3
    assert (together.findings, together.counts) == (alone.findings, alone.counts)
    flip(made.log("trip"), 300)
    made.object("", b"kept by the state").unlink()
    assert sorted(made.kinds(full=False)) == ["blob-missing", "log-damaged"]
    assert [scanned is not None for scanned in taken[3:]].count(True) == 2


def test_what_is_no_store(tmp_path: Path):
    with pytest.raises(StoreNotFound):
        check_store(tmp_path / "nothing")
    (tmp_path / "store.json").write_bytes(b'{"format": 999, "id": "x"}')
    with pytest.raises(FormatError):
        check_store(tmp_path)
