"""Damaged logs are found, and repaired as far as that loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from store.fsck import Severity, ahead
from store.library import open_store
from tests.support.checked import Made, flip, replace, texts


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
