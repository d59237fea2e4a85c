"""Chats of an older layout become copies as any other: merged, imported, and nothing of the project is deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from store.model import uuid7
from store.projection import older
from store.workspace_state import Place
from tests.projection.project import ME, Person, git, person, say, snapshot, texts
from tests.projection.test_kill import run
from tests.support import torture

LINE = b'{"seq":%d,"ts":%d,"actor":"uid:1000/vim","data":{"type":"message.appended","id":"m%d","role":"user",'


def line(number: int, text: str = "") -> bytes:
    """As the store writes it; the checksum says nothing here."""
    content = b'"content":"%b"},"crc":"00000000"}\n' % (text or f"text {number}").encode()
    return LINE % (number, 1_700_000_000_000 + number, number) + content


def put(chats: Path, directory: str, log: bytes, *, mtime: int = 1_800_000_000, **metadata: Any) -> Path:
    """A directory of the older layout."""
    made = chats / directory
    made.mkdir(parents=True)
    (made / "history.jsonl").write_bytes(log)
    if metadata:
        (made / "chat.json").write_bytes(orjson.dumps(metadata))
    for path in made.iterdir():
        os.utime(path, (mtime, mtime))
    return made


def contents(directory: Path) -> set[bytes]:
    """Every file's bytes below, whatever the files are called."""
    return {data for _, _, data in snapshot(directory).values()}


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("0199b2c3-d4e5-7000-8000-0000000000ff", "0199b2c3-d4e5-7000-8000-0000000000ff"),
        ("My trip-0199b2c3-d4e5-7000-8000-0000000000ff", "0199b2c3-d4e5-7000-8000-0000000000ff"),
        ("20261121T061302Z-trip-0199b2c3-d4e5-7000-8000-0000000000ff", None),
        ("20261121T061302Z-trip", None),
        ("trip", None),
    ],
)
def test_which_directories_are_of_the_older_layout(name: str, chat: str | None) -> None:
    assert older.chat_of(name) == chat


async def test_it_gets_todays_form_and_is_imported(me: Person) -> None:
    chat = uuid7()
    made = put(
        me.chats,
        f"My trip-{chat}",
        line(1) + line(2) + b'{"role":"user","content":"by hand"}\n',
        id=chat,
        title="A title",
        labels=["x"],
        lifecycle="archived",
    )
    (made / "attachments").mkdir()
    (made / "attachments" / "a.txt").write_bytes(b"bytes")
    (made / "notes.org").write_bytes(b"unknown")
    me.commit("older")
    before = contents(me.chats)
    report = await me.reconcile()
    assert len([text for text in report.done if "older layout" in text]) == 1
    (record,) = me.workspace.state.chats.values()
    assert (record.id, record.name, record.place) == (chat, "My trip", Place.ARCHIVE)
    mine = await me.chat("My trip")
    assert await texts(mine) == ["text 1", "text 2", "by hand"]
    state = await mine.load()
    assert (state.title, state.labels, list(state.attachments)) == ("A title", ("x",), ["a.txt"])
    where = me.where(mine)
    assert where.name.endswith("Z-my-trip")
    assert (where / "notes.org").read_bytes() == b"unknown"
    assert me.lines(mine)[0]["actor"] == "uid:1000/vim"
    assert before <= contents(me.directory / ".chatfs")
    entries = [entry async for entry in mine.log()]
    assert (await me.reconcile()).done == []
    assert [entry async for entry in mine.log()] == entries
    assert me.project.presence(mine.id) == "projected"


async def test_several_of_one_chat_are_merged_and_the_newest_wins(me: Person) -> None:
    one, two = uuid7(), uuid7()
    put(me.chats, one, line(1) + line(2), mtime=1_800_000_000, name="longer")
    put(me.chats, f"newer-{one}", line(1), mtime=1_800_000_001, title="newer title")
    put(me.chats, two, line(1) + line(2, "theirs"), mtime=1_800_000_001, name="forked")
    put(me.chats, f"old-{two}", line(1) + line(2, "ours") + line(3), mtime=1_800_000_000)
    before = contents(me.chats)
    report = await me.reconcile()
    assert len([text for text in report.done if "is in quarantine/ now" in text]) == 2
    # The newest says what the chat is called; of the log the longer one is taken, where it goes on from the other.
    assert await texts(await me.chat("newer")) == ["text 1", "text 2"]
    assert (await (await me.chat("newer")).load()).title == "newer title"
    assert await texts(await me.chat("forked")) == ["text 1", "theirs"]
    kept = me.directory / ".chatfs" / "quarantine"
    assert {one, f"old-{two}"} <= {path.name for path in kept.iterdir()}
    assert before <= contents(me.directory / ".chatfs")


async def test_beside_a_chat_that_the_store_has_it_is_a_copy_as_any_other(me: Person) -> None:
    chat = await me.new("trip", "one")
    await me.reconcile()
    (first,) = me.lines(chat)
    here = b'{"seq":1,"ts":%d,"actor":"%b","data":%b,"crc":"00000000"}\n'
    put(me.chats, chat.id, here % (first["ts"], ME.encode(), orjson.dumps(first["data"])) + line(2, "two"))
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    assert len(me.lines(chat)) == 2
    assert [path.name for path in me.chats.iterdir()] == [me.where(chat).name]


async def test_what_cant_be_read_stays_as_it_is_until_it_can(me: Person) -> None:
    chat = uuid7()
    made = put(me.chats, chat, line(1) + b"nonsense\n" + line(2))
    before = snapshot(me.chats)
    (problem,) = (await me.reconcile(sound=False)).problems
    assert problem.startswith(f"{made} is of an older layout, and stays so: history.jsonl: line 2 is not JSON")
    assert snapshot(me.chats) == before
    assert me.workspace.state.chats == {}
    (made / "history.jsonl").write_bytes(line(1) + line(2) + line(3)[:-20])
    await me.reconcile()
    assert await texts(me.workspace.chat_by_id(chat)) == ["text 1", "text 2"]  # type: ignore[arg-type]
    kept = me.directory / ".chatfs" / "quarantine" / chat / "history.jsonl"
    assert kept.read_bytes().endswith(line(3)[:-20])


async def test_two_people_who_move_the_same_chats_have_one(tmp_path: Path) -> None:
    bare, ann, ben = (tmp_path / name for name in ("bare", "ann", "ben"))
    for directory in (bare, ann):
        directory.mkdir()
    git(bare, "init", "-q", "--bare", "-b", "main")
    git(ann, "init", "-q", "-b", "main")
    git(ann, "remote", "add", "origin", str(bare))
    chat = uuid7()
    async with person(f"file://{tmp_path}/store-ann", ann) as first:
        put(first.chats, f"trip-{chat}", line(1) + b'{"role":"user","content":"by hand"}\n')
        first.commit("older")
        git(ann, "push", "-q", "-u", "origin", "main")
        git(tmp_path, "clone", "-q", str(bare), str(ben))
        async with person(f"file://{tmp_path}/store-ben", ben) as second:
            for who in (first, second):
                await who.reconcile()
                await say(await who.chat("trip"), f"of {who.directory.name}")
                await who.reconcile()
                who.commit("moved")
            git(ann, "push", "-q", "origin", "HEAD:main")
            git(ben, "fetch", "-q")
            git(ben, "merge", "-q", "-m", "merged", "origin/main")
            await second.reconcile()
            assert len(second.workspace.state.chats) == 1
            found = await texts(await second.chat("trip"))
            assert found[:2] == ["text 1", "by hand"]
            assert sorted(found[2:]) == ["of ann", "of ben"]


def test_the_next_start_finishes_what_a_kill_has_left(tmp_path: Path) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    store, project = work / "store", work / "project"
    project.mkdir(parents=True)
    one, two = uuid7(), uuid7()

    async def begin(me: Person) -> None:
        await me.reconcile()
        made = put(me.chats, f"trip-{one}", line(1) + line(2), id=one, title="t")
        (made / "attachments").mkdir()
        (made / "attachments" / "a").write_bytes(b"bytes")
        put(me.chats, two, line(1), mtime=1_800_000_001, name="forked")
        put(me.chats, f"old-{two}", line(1, "other"), mtime=1_800_000_000)

    async def bring_together(me: Person) -> None:
        await me.project.reconcile()

    async def look(me: Person) -> None:
        await me.reconcile()
        assert {each.name for each in me.workspace.state.chats.values()} == {"trip", "forked"}
        trip = await me.chat("trip")
        assert await texts(trip) == ["text 1", "text 2"]
        assert list((await trip.load()).attachments) == ["a"]
        assert await texts(await me.chat("forked")) == ["text 1"]
        assert sorted(path.name.partition("Z-")[2] for path in me.chats.iterdir()) == ["forked", "trip"]
        assert originals <= contents(me.directory / ".chatfs")
        before = snapshot(me.directory)
        report = await me.reconcile()
        assert (report.done, report.written) == ([], 0)
        assert snapshot(me.directory) == before

    assert not run(store, project, begin)
    originals = contents(project / ".chatfs" / "chats")
    shutil.copytree(work, kept)
    every = torture.either(7, 1)
    at = 1 + torture.seeded("older kill").randrange(every)
    kills = 0
    while run(store, project, bring_together, at, after=kills % 2 == 1):
        kills += 1
        assert not run(store, project, look), f"killed at call {at}"
        shutil.rmtree(work)
        shutil.copytree(kept, work)
        at += every
    assert kills > 5
