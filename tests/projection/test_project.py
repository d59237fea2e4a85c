"""One person's project: what is written, what is left alone, and which copy wins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest

from store import events as ev
from store.compaction import compact
from store.drivers.chunks import blob_of
from store.errors import ChatNotFound, CorruptBlob, InvalidInput, StoreError
from store.fold import fold
from store.history import render
from store.model import uuid7
from store.projection import binding as bindings
from store.projection import external as externals
from store.projection import form, portable
from store.projection.project import EXTERNAL, LOCAL, PROJECTED, Busy, Unbound
from store.workspace_state import Place
from tests.projection.project import ME, Person, git, person, say, snapshot, texts

SECOND = 1_000_000_000


async def test_a_chat_is_written_as_files_for_git(me: Person) -> None:
    chat = await me.new("My trip", "hello", "again")
    await chat.change(ME, title="A title", labels=["x"])
    await chat.attach("a.txt", b"bytes", ME)
    await me.reconcile()
    where = me.where(chat)
    assert where.name == form.directory(chat.id, "My trip")
    assert sorted(os.listdir(where)) == ["attachments", "chat.json", "history.jsonl", "history.md"]
    assert (where / "history.md").read_bytes() == await chat.text()
    assert (where / "attachments/a.txt").read_bytes() == b"bytes"
    log = [entry async for entry in chat.log()]
    assert [(line["ts"], line["actor"], line["data"]) for line in me.lines(chat)] == [
        (entry.ts, entry.actor, orjson.loads(entry.data)) for entry in log
    ]
    shown = orjson.loads((where / "chat.json").read_bytes())
    assert list(shown) == ["version", "id", "created", "name", "title", "labels", "place", "end"]
    assert (shown["id"], shown["name"], shown["title"], shown["labels"]) == (chat.id, "My trip", "A title", ["x"])
    assert me.project.presence(chat.id) == PROJECTED
    assert (me.chats.parent / "id").read_text().splitlines()[1] == me.workspace.id
    assert git(me.directory, "check-attr", "merge", "text", "--", f"{where}/history.jsonl").split()[2::3] == [
        "union",
        "unset",
    ]


async def test_what_did_not_change_is_not_touched(me: Person, tmp_path: Path) -> None:
    chat, other = await me.new("a", "hello"), await me.new("b", "hello")
    await chat.attach("x", b"1", ME)
    await me.reconcile()
    before = snapshot(me.chats.parent)
    assert (await me.reconcile()).unchanged == 2
    assert snapshot(me.chats.parent) == before
    # Nor where nothing is remembered.
    manifest = Path(me.workspace.driver.local_dir(me.workspace.space.id)) / "projection.jsonl"
    assert manifest.exists()
    manifest.unlink()
    me.project._manifest.rows.clear()
    await me.reconcile()
    assert snapshot(me.chats.parent) == before
    await say(other, "more")
    await me.reconcile()
    after = snapshot(me.chats.parent)
    changed = {path for path in before if before[path] != after[path]}
    name = me.where(other).name
    assert changed == {f"chats/{name}/history.jsonl", f"chats/{name}/history.md"}


async def test_appending_appends(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    before = snapshot(me.chats)
    await say(chat, "two")
    await say(chat, "three")
    report = await me.project.write_out([chat.id])
    assert (report.written, report.problems) == (1, [])
    after = snapshot(me.chats)
    (path,) = [path for path in before if path.endswith("history.jsonl")]
    assert after[path][0] == before[path][0], "another file"
    assert after[path][2].startswith(before[path][2])
    assert len(me.lines(chat)) == 3
    assert (me.where(chat) / "history.md").read_bytes() == await chat.text()
    assert (await me.reconcile()).unchanged == 1


async def test_git_status_shows_just_the_chat_that_moved(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.new("b", "one")
    await me.reconcile()
    me.commit()
    for number in range(1000):
        await say(chat, str(number))
    await me.project.write_out([chat.id])
    where = me.where(chat).relative_to(me.directory)
    assert git(me.directory, "status", "--porcelain").splitlines() == [
        f" M {where}/history.jsonl",
        f" M {where}/history.md",
    ]


async def test_a_renamed_chat_has_another_directory(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    old = me.where(chat)
    await me.workspace.move_chat(chat.id, Place.CHATS, "b", ME)
    await me.reconcile()
    assert not old.exists()
    assert me.where(chat).name == form.directory(chat.id, "b")
    assert (await me.reconcile()).unchanged == 1


async def test_chats_of_one_second_and_one_slug_get_two_directories(me: Person) -> None:
    stem = uuid7()[:-6]
    for end, name in (("00000a", "a b"), ("00000b", "a-b")):
        await me.workspace.create_chat(name, ME, chat=stem + end)  # type: ignore[arg-type]
    await me.reconcile()
    plain = form.directory(stem + "00000a", "a b")  # type: ignore[arg-type]
    assert sorted(os.listdir(me.chats)) == [plain, f"{plain}-00000b"]
    assert (await me.reconcile()).unchanged == 2


async def test_a_local_chat_is_never_there(me: Person) -> None:
    chat = await me.new("secret", "one")
    await chat.change(ME, projection="local")
    await me.reconcile()
    assert os.listdir(me.chats) == []
    assert me.project.presence(chat.id) == LOCAL
    await chat.change(ME, projection="projected")
    await me.reconcile()
    assert me.project.presence(chat.id) == PROJECTED
    assert "projection" not in (me.where(chat) / "history.jsonl").read_text()
    (me.where(chat) / "notes.txt").write_text("mine")
    await me.project.set_local(chat, ME, local=True)
    assert os.listdir(me.chats) == []
    assert (chat.directory / "scratch/notes.txt").read_text() == "mine"
    assert await texts(chat) == ["one"]


async def test_a_longer_copy_is_taken_in_whatever_its_time(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    line = b'{"ts":5,"actor":"uid:7/other","data":{"type":"message.appended","id":"m","role":"user","content":"two"}}\n'
    path.write_bytes(path.read_bytes() + line)
    os.utime(path, ns=(0, 0))
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    *_, last = [entry async for entry in chat.log()]
    assert (last.actor, last.origin) == (ev.PROJECTOR, ev.PROJECTOR and last.origin)
    assert last.origin is not None
    assert (last.origin.actor, last.origin.ts) == ("uid:7/other", 5)
    assert path.read_bytes().endswith(line)
    assert (me.where(chat) / "history.md").read_bytes() == await chat.text()


async def test_a_checkout_of_an_older_commit_takes_nothing_away(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    me.commit("one")
    await say(chat, "two")
    await me.reconcile()
    me.commit("two")
    git(me.directory, "checkout", "-q", "HEAD~1")
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    assert len(me.lines(chat)) == 2
    git(me.directory, "checkout", "-q", "-f", "main")
    await me.reconcile()
    assert git(me.directory, "status", "--porcelain") == ""


async def diverge(me: Person, *, newer: bool) -> str:
    """A chat whose copy was replaced; its name."""
    chat = await me.new("a", "one", "mine")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    first, _ = path.read_bytes().splitlines(keepends=True)
    last = (await chat.load()).ts
    path.write_bytes(
        first + b'{"ts":7,"actor":"x","data":{"type":"message.appended","id":"m","role":"user","content":"theirs"}}\n'
    )
    at = last * 1_000_000 + (SECOND if newer else 0)
    os.utime(path, ns=(at, at))
    return chat.id


@pytest.mark.parametrize("newer", [True, False])
async def test_of_two_ways_the_newer_wins_and_the_other_is_a_chat_of_its_own(me: Person, *, newer: bool) -> None:
    await diverge(me, newer=newer)
    report = await me.reconcile()
    assert len(report.done) == 1
    names = sorted(me.workspace.state.names)
    assert len(names) == 2
    assert names[1].startswith("a (conflict 20")
    winner, loser = [await texts(await me.chat(name)) for name in names]
    assert winner == ["one", "theirs" if newer else "mine"]
    assert loser == ["one", "mine" if newer else "theirs"]
    for name in names:
        assert [line["data"]["content"] for line in me.lines(await me.chat(name))] == await texts(await me.chat(name))
    assert (await me.reconcile()).unchanged == 2


async def test_going_back_and_forth_makes_no_more_chats(me: Person) -> None:
    await diverge(me, newer=True)
    chat = await me.chat("a")
    path = me.where(chat) / "history.jsonl"
    theirs = path.read_bytes()
    await me.reconcile()
    mine = (
        me.where(next(iter([await me.chat(name) for name in me.workspace.state.names if "conflict" in name])))
        / "history.jsonl"
    ).read_bytes()
    for text in (mine, theirs, mine, theirs):
        path.write_bytes(text)
        os.utime(path, ns=(1 << 62, 1 << 62))
        await me.reconcile()
        assert path.read_bytes() == text
    assert len(me.workspace.state.names) == 3


async def test_nothing_is_taken_from_a_file_with_conflict_markers_until_they_are_gone(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b"<<<<<<< HEAD\n=======\n>>>>>>> b\n")
    report = await me.reconcile(sound=False)
    (problem,) = report.problems
    assert "merge conflict at line 2" in problem
    await say(chat, "two")
    other = await me.new("b", "one")
    report = await me.reconcile(sound=False)
    assert len(report.problems) == 1
    assert me.project.presence(other.id) == PROJECTED, "one that can't be read keeps no other"
    assert b"<<<<<<<" in path.read_bytes()
    path.write_bytes(good)
    await me.reconcile()
    assert len(me.lines(chat)) == 2


async def test_a_half_line_of_somebody_else_is_left_alone_and_one_of_ours_completed(me: Person) -> None:
    chat = await me.new("a", "one", "two")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    await me.reconcile()
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"ts":1,"ac')
    report = await me.reconcile(sound=False)
    assert "ends in the middle of a line" in report.problems[0]
    assert path.read_bytes() == whole + b'{"ts":1,"ac'


async def test_a_deleted_directory_makes_the_chat_local_and_its_return_projected(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    where = me.where(chat)
    kept = me.directory / "kept"
    where.rename(kept)
    report = await me.reconcile()
    assert "is local now" in report.done[0]
    assert await texts(chat) == ["one"]
    assert (await chat.load()).projection == ev.GONE
    assert me.project.presence(chat.id) == LOCAL
    assert (await me.reconcile()).unchanged == 1
    kept.rename(where)
    await me.reconcile()
    assert (await chat.load()).projection == ev.PROJECTED
    assert me.project.presence(chat.id) == PROJECTED


async def test_nothing_is_concluded_from_a_project_that_is_not_there(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    away = me.directory.with_name("away")
    me.directory.rename(away)
    with pytest.raises(Unbound):
        await me.project.reconcile()
    me.directory.mkdir()
    with pytest.raises(Unbound):
        await me.project.reconcile()
    me.directory.rmdir()
    away.rename(me.directory)
    assert (await me.reconcile()).unchanged == 1
    assert (await chat.load()).projection == ""


async def test_trash_and_restore_act_on_both(me: Person) -> None:
    chat = await me.new("a", "one")
    await chat.attach("x", b"1", ME)
    await me.reconcile()
    await me.workspace.trash_chat(chat.id, ME)
    await me.reconcile()
    assert os.listdir(me.chats) == []
    await me.workspace.move_chat(chat.id, Place.CHATS, "a", ME)
    await me.reconcile()
    assert (me.where(chat) / "attachments/x").read_bytes() == b"1"
    await me.workspace.move_chat(chat.id, Place.ARCHIVE, "a", ME)
    await me.reconcile()
    assert orjson.loads((me.where(chat) / "chat.json").read_bytes())["place"] == "archive"


async def test_a_chat_in_the_trash_that_somebody_still_writes_to_comes_back(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    await me.workspace.trash_chat(chat.id, ME)
    path.write_bytes(path.read_bytes() + b'{"ts":7,"actor":"x","data":{"role":"user"}}\n')
    report = await me.reconcile()
    assert "restored" in report.done[0]
    assert me.workspace.state.chats[chat.id].place is Place.CHATS
    assert len(me.lines(chat)) == 2


async def test_chat_json_may_be_edited(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "chat.json"
    shown = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps(shown | {"name": "b", "title": "T", "labels": ["l"], "place": "archive"}))
    await me.reconcile()
    state, record = await chat.load(), me.workspace.state.chats[chat.id]
    assert (record.name, record.place, state.title, state.labels) == ("b", Place.ARCHIVE, "T", ("l",))
    assert orjson.loads((me.where(chat) / "chat.json").read_bytes())["name"] == "b"
    assert me.where(chat).name == form.directory(chat.id, "b")
    assert (await me.reconcile()).unchanged == 1


async def test_attachments_may_be_added_and_changed_by_hand(me: Person) -> None:
    chat = await me.new("a", "one")
    await chat.attach("x", b"old", ME)
    await me.reconcile()
    attachments = me.where(chat) / "attachments"
    (attachments / "x").write_bytes(b"newer")
    (attachments / "y").write_bytes(b"more")
    (attachments / ".hidden").write_bytes(b"no")
    await me.reconcile()
    assert b"".join([piece async for piece in chat.read_attachment("x")]) == b"newer"
    assert b"".join([piece async for piece in chat.read_attachment("y")]) == b"more"
    assert ".hidden" not in (await chat.load()).attachments
    await chat.remove_attachment("x", ME)
    await me.reconcile()
    assert not (attachments / "x").exists()
    # What somebody deletes there by hand isn't gone.
    (attachments / "y").unlink()
    await me.reconcile()
    assert (attachments / "y").read_bytes() == b"more"
    assert (await me.reconcile()).unchanged == 1


async def external(me: Person, tmp_path: Path) -> str:
    """A chat that somebody else has committed; its id."""
    chat = await me.new("theirs", "one", "two")
    await chat.attach("x", b"bytes", ME)
    await me.reconcile()
    kept = tmp_path / "kept"
    shutil.copytree(me.where(chat), kept)
    (kept / "notes.txt").write_text("unknown")
    name = me.where(chat).name
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        assert other.project.presence(chat.id) == EXTERNAL
    shutil.rmtree(me.where(chat))
    shutil.copytree(kept, me.chats / name)
    return chat.id


async def test_an_external_chat_is_read_and_imported(me: Person, tmp_path: Path) -> None:
    id_ = await external(me, tmp_path)
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        assert other.workspace.id == me.workspace.id
        await other.new("theirs", "another of that name")
        await other.reconcile()
        (found,) = other.project.externals.values()
        assert (found.id, found.name) == (id_, "theirs (2)")
        read = await externals.read(other.project.root, found)
        assert [message.content.strip() for message in read.state.messages()] == ["one", "two"]
        files = externals.Attachments(other.project.root)
        assert await files.read(found, "x", blob_of(b"bytes").digest, 1, 3) == b"yte"
        chat = await other.project.import_external(found.id)
        assert await texts(chat) == ["one", "two"]
        assert b"".join([piece async for piece in chat.read_attachment("x")]) == b"bytes"
        assert (chat.directory / "scratch/notes.txt").read_text() == "unknown"
        assert other.project.externals == {}
        # The older of the two has the name.
        assert other.workspace.state.chats[chat.id].name == "theirs"
        assert sorted(other.workspace.state.names) == ["theirs", "theirs (2)"]
        assert await other.project.import_external(found.id) is chat
        await other.reconcile()
        assert (await other.reconcile()).unchanged == 2


async def test_an_attachment_of_an_external_chat_is_what_its_log_says_or_cannot_be_read(
    me: Person, tmp_path: Path
) -> None:
    id_ = await external(me, tmp_path)
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        found = other.project.externals[id_]  # type: ignore[index]
        put = Path(other.project.root, found.directory, "attachments/x").write_bytes
        files = externals.Attachments(other.project.root)
        large = os.urandom((1 << 20) + 5)
        for data in (b"", b"bytes", large):
            put(data)
            digest = blob_of(data).digest
            assert await files.read(found, "x", digest, 0, 1 << 21) == data
            assert await files.read(found, "x", digest, 2, 3) == data[2:5]
            put(data + b"!")
            for _ in range(2):
                with pytest.raises(CorruptBlob, match=r"attachments/x isn't what the chat's log says"):
                    await files.read(found, "x", digest, 0, 5)


async def test_an_external_chat_is_removed_without_importing(me: Person, tmp_path: Path) -> None:
    await external(me, tmp_path)
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.reconcile()
        (found,) = other.project.externals
        await other.project.remove_external(found)
        assert os.listdir(me.chats) == []
        assert found not in other.workspace.state.chats
        with pytest.raises(ChatNotFound):
            await other.project.import_external(found)


async def test_two_directories_of_one_chat_are_merged(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    where = me.where(chat)
    second = where.with_name("20200101T000000Z-other")
    shutil.copytree(where, second)
    with (second / "history.jsonl").open("ab") as file:
        file.write(b'{"ts":7,"actor":"x","data":{"type":"message.appended","id":"m","role":"user","content":"two"}}\n')
    os.utime(second / "chat.json", ns=(0, 0))
    report = await me.reconcile()
    assert "two directories" in report.done[0]
    assert await texts(chat) == ["one", "two"]
    assert os.listdir(me.chats) == [where.name]
    assert len(me.lines(chat)) == 2


async def test_links_are_not_followed(me: Person, tmp_path: Path) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    outside = tmp_path / "outside"
    outside.write_text("secret")
    path = me.where(chat) / "history.md"
    path.unlink()
    path.symlink_to(outside)
    await say(chat, "two")
    report = await me.reconcile(sound=False)
    assert "isn't a file" in report.problems[0]
    assert outside.read_text() == "secret"
    path.unlink()
    (me.where(chat) / "attachments").symlink_to(tmp_path)
    await chat.attach("outside", b"overwritten", ME)
    report = await me.reconcile(sound=False)
    assert "isn't a directory" in report.problems[0]
    assert outside.read_text() == "secret"


async def test_a_chats_directory_that_is_a_link_is_refused(me: Person, tmp_path: Path) -> None:
    await me.new("a", "one")
    shutil.rmtree(me.chats)
    me.chats.symlink_to(tmp_path)
    with pytest.raises(StoreError):
        await me.project.reconcile()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("20")]


@pytest.mark.parametrize("name", ["rebase-merge", "MERGE_HEAD", "index.lock"])
async def test_nothing_happens_while_git_is_in_the_middle_of_something(me: Person, name: str) -> None:
    await me.new("a", "one")
    (me.directory / ".git" / name).write_text("")
    with pytest.raises(Busy):
        await me.project.reconcile()
    assert os.listdir(me.chats) == []
    (me.directory / ".git" / name).unlink()
    await me.reconcile()


async def test_a_directory_belongs_to_one_workspace(me: Person, tmp_path: Path) -> None:
    inner = me.directory / "a" / "b"
    inner.mkdir(parents=True)
    found = bindings.find(inner)
    assert found is not None
    assert (found.directory, found.workspace) == (str(me.directory), me.workspace.id)
    assert bindings.find(tmp_path) is None
    with pytest.raises(InvalidInput):
        bindings.write(me.directory, uuid7())  # type: ignore[arg-type]
    (me.chats.parent / "id").write_text("# a comment\nnonsense\n")
    with pytest.raises(InvalidInput):
        bindings.find(inner)


async def test_one_process_at_a_time_projects(me: Person, tmp_path: Path) -> None:
    async with person(f"file://{tmp_path}/store", me.directory) as other:
        assert me.project.active
        assert not other.project.active


async def test_a_compacted_chat_stays_projected(me: Person) -> None:
    chat = await me.new("a", "one", "two", "three")
    await me.reconcile()
    before = (me.where(chat) / "history.jsonl").read_bytes()
    await compact(chat, keep=1)
    await me.reconcile()
    assert (me.where(chat) / "history.jsonl").read_bytes() == before
    await say(chat, "four")
    await me.reconcile()
    assert len(me.lines(chat)) == 4
    text = await chat.text()
    shutil.rmtree(me.where(chat))
    me.project._manifest.rows.clear()
    await me.reconcile()
    assert await texts(chat) == ["one", "two", "three", "four"]
    lines = portable.read((me.where(chat) / "history.jsonl").read_bytes()).lines
    assert render(fold(portable.entries_of(lines))) == text
