"""Files of the project that people, tools and git have changed: nothing is lost, doubled, or written over and over."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from store import durability
from store import events as ev
from store.projection import form
from store.projection.manifest import Manifest
from store.projection.project import LOCAL, Busy
from store.workspace_state import Place
from tests.projection.project import ME, Person, git, person, say, snapshot, texts
from tests.projection.test_kill import LINE

REPEATED = b'{"ts":7,"actor":"x"%b,"data":{"type":"noted"}}\n'
FUTURE_NS = 1 << 62


@pytest.mark.parametrize("numbers", [[2, 1], [2], [5], [1, 3], [3, 2, 1], [1, 2]])
async def test_lines_that_are_equal_may_be_numbered_in_any_way(me: Person, numbers: list[int]) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    lines = [REPEATED % (b',"repeat":%d' % number if number > 1 else b"") for number in numbers]
    path.write_bytes(path.read_bytes() + b"".join(lines))
    await me.reconcile()
    head, before = await chat.head(), snapshot(me.chats)
    assert head.seq == 1 + len(numbers)
    me.project._manifest.rows.clear()
    await me.reconcile()
    assert await chat.head() == head
    assert snapshot(me.chats) == before


async def test_who_removes_the_first_of_two_equal_lines_changes_nothing(me: Person) -> None:
    chat = await me.new("a")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    path.write_bytes(REPEATED % b"" + REPEATED % b',"repeat":2')
    await me.reconcile()
    head = await chat.head()
    path.write_bytes(REPEATED % b',"repeat":2')
    await me.reconcile()
    assert await chat.head() == head
    assert path.read_bytes() == REPEATED % b"" + REPEATED % b',"repeat":2'


# ---- somebody changes a file just when it is written


class Meddling:
    """Stands in for `durability.system`: `meddle` is called once, just before the first such call."""

    def __init__(self, real: durability.System, call: str, label: str, meddle: Callable[[], None]) -> None:
        self._real = real
        self._when = call, label
        self._meddle: Callable[[], None] | None = meddle

    def __getattr__(self, call: str) -> Any:
        real: Callable[..., Any] = getattr(self._real, call)

        def made(label: str, *arguments: Any) -> Any:
            if (call, label) == self._when and self._meddle is not None:
                meddle, self._meddle = self._meddle, None
                meddle()
            return real(label, *arguments)

        return made


def replace(path: Path, data: bytes) -> None:
    """As git does it: another file in the place of the first."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("call", ["fsync", "write"])
async def test_what_is_pulled_while_a_file_is_written_anew_is_not_written_over(
    me: Person, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = await me.new("a", "one", "two")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(second)  # one line is missing at the beginning: the file is written anew
    meddling = Meddling(
        durability.system,
        call,
        f"projection.{call}",
        lambda: replace(path, first + second + LINE % (7, 1, b"pulled")),
    )
    monkeypatch.setattr(durability, "system", meddling)
    await me.reconcile()
    assert await texts(chat) == ["one", "two", "pulled"]
    assert len(me.lines(chat)) == 3


async def test_a_chat_json_that_is_pulled_while_it_is_written_is_not_written_over(
    me: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "chat.json"
    pulled = orjson.dumps(orjson.loads(path.read_bytes()) | {"labels": ["theirs"]})
    meddling = Meddling(durability.system, "fsync", "projection.fsync", lambda: replace(path, pulled))
    await chat.change(ME, title="mine")
    monkeypatch.setattr(durability, "system", meddling)
    await me.reconcile()
    shown = orjson.loads(path.read_bytes())
    assert (shown["title"], shown["labels"]) == ("mine", ["theirs"])
    assert (await chat.load()).labels == ("theirs",)


async def test_a_copy_that_shares_its_files_stays_as_it_is(me: Person, tmp_path: Path) -> None:
    """As cp -al, and backups made by hard links, have them."""
    chat = await me.new("a", "one")
    await me.reconcile()
    path, kept = me.where(chat) / "history.jsonl", tmp_path / "kept"
    os.link(path, kept)
    before = kept.read_bytes()
    await say(chat, "two")
    await me.reconcile()
    assert kept.read_bytes() == before
    assert len(me.lines(chat)) == 2


async def test_nobody_ever_reads_half_of_a_line_of_a_short_log(me: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file grows page by page: `git add` would commit half of a line, and a merge then joins that with another's."""
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    seen: list[bytes] = []
    monkeypatch.setattr(
        durability,
        "system",
        Meddling(durability.system, "write", "projection.append", lambda: seen.append(path.read_bytes())),
    )
    await say(chat, "x" * 5000)
    before = path.stat().st_ino
    await me.project.write_out([chat.id])
    assert (len(me.lines(chat)), seen) == (2, [])
    assert path.stat().st_ino != before


async def test_nothing_is_concluded_while_git_is_at_work(me: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebase begins after the directories were listed, and its first step takes a chat away."""
    chat = await me.new("a", "one")
    await me.new("b", "one")
    await me.reconcile()
    me.commit()
    await say(await me.chat("b"), "two")
    where, kept = me.where(chat), me.directory / "kept"
    shutil.move(where, kept)
    marker = me.directory / ".git" / "rebase-merge"
    real = me.project._look

    def look(chats: Any) -> Any:
        found = real(chats)
        marker.mkdir()
        return found

    monkeypatch.setattr(me.project, "_look", look)
    with pytest.raises(Busy):
        await me.project.reconcile()
    monkeypatch.undo()
    marker.rmdir()
    shutil.move(kept, where)
    await me.reconcile()
    assert (await chat.load()).projection == ""
    assert len(me.lines(await me.chat("b"))) == 2


async def test_what_git_may_have_overwritten_does_not_count_as_written(me: Person) -> None:
    """Written while a merge was under way, which then put its own file there: no chat has gone two ways."""
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    before = path.read_bytes()
    git_moved = iter([False, True])
    real = me.project.git.moved
    me.project.git.moved = lambda before: next(git_moved, False) or real(before)  # type: ignore[method-assign]
    await say(chat, "mine")
    await me.reconcile()
    assert len(me.lines(chat)) == 2
    path.write_bytes(before + LINE % (7, 1, b"theirs"))
    await me.reconcile()
    assert sorted(await texts(chat)) == ["mine", "one", "theirs"]
    assert list(me.workspace.state.names) == ["a"]


# ---- chats that go two ways


async def fork(me: Person, chat_id: str, line: bytes) -> None:
    """Somebody replaces the file by one that begins the same and goes on with that line; it is newer."""
    chat = me.workspace.chat_by_id(chat_id)  # type: ignore[arg-type]
    path = me.where(chat) / "history.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line)
    os.utime(path, ns=(FUTURE_NS, FUTURE_NS))


async def test_a_way_that_goes_on_is_kept_in_one_chat(me: Person) -> None:
    """Two branches, and something is said on each of them, again and again."""
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "history.jsonl"
    base = path.read_bytes()
    branches = [base, base]
    for number in range(6):
        which = number % 2
        branches[which] += LINE % (number, number, b"%d" % number)
        path.write_bytes(branches[which])
        os.utime(path, ns=(FUTURE_NS + number, FUTURE_NS + number))
        await me.reconcile()
        assert path.read_bytes() == branches[which]
    kept = [await texts(await me.chat(name)) for name in me.workspace.state.names]
    assert sorted(kept) == [["one", "0", "2", "4"], ["one", "1", "3"], ["one", "1", "3", "5"]]


async def test_what_a_conflict_chat_lacks_after_a_crash_is_added(me: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = await me.new("a", "one", "mine")
    await me.reconcile()
    await fork(me, chat.id, LINE % (7, 1, b"theirs"))
    from store.projection import take_in  # noqa: PLC0415 - what is stopped half way

    async def stopped(*_: Any) -> None:
        raise OSError(5, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(take_in, "take_lines", stopped)
        assert len((await me.reconcile(sound=False)).problems) == 1
    await me.reconcile()
    found = {name.partition(" ")[0] + "!" * (" " in name): name for name in me.workspace.state.names}
    assert await texts(await me.chat(found["a"])) == ["one", "theirs"]
    assert await texts(await me.chat(found["a!"])) == ["one", "mine"]


async def test_a_long_name_may_go_two_ways(me: Person) -> None:
    chat = await me.new("n" * 255, "one", "mine")
    await me.reconcile()
    await fork(me, chat.id, LINE % (7, 1, b"theirs"))
    await me.reconcile()
    assert len(me.workspace.state.names) == 2


async def test_what_a_local_chat_said_is_not_projected_when_its_old_copy_comes_back(me: Person, tmp_path: Path) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    kept = tmp_path / "kept"
    where = me.where(chat)
    shutil.copytree(where, kept)
    await chat.change(ME, projection=ev.LOCAL)
    await me.reconcile()
    await say(chat, "secret")
    await me.reconcile()
    # A branch is switched, and there somebody else has gone on.
    shutil.copytree(kept, where)
    (where / "history.jsonl").write_bytes(LINE % (7, 1, b"theirs"))
    os.utime(where / "history.jsonl", ns=(FUTURE_NS, FUTURE_NS))
    await me.reconcile()
    await me.reconcile()
    assert len(me.workspace.state.names) == 2
    assert os.listdir(me.chats) == []
    assert {me.project.presence(each) for each in me.workspace.state.chats} == {LOCAL}
    said = [await texts(await me.chat(name)) for name in me.workspace.state.names]
    assert sorted(said) == [["one", "secret"], ["theirs"]]


# ---- directories of one chat


async def test_bytes_that_stand_in_another_directory_of_the_chat_are_not_missed(me: Person) -> None:
    """As a merge of two renames leaves them: the log here, and what it names there."""
    chat = await me.new("a", "one")
    await me.reconcile()
    where = me.where(chat)
    second = where.with_name("20200101T000000Z-other")
    shutil.copytree(where, second)
    os.utime(second / "chat.json", ns=(0, 0))
    (second / "attachments").mkdir()
    (second / "attachments" / "x").write_bytes(b"bytes")
    put = ev.AttachmentPut("m", "x", f"sha256:{hashlib.sha256(b'bytes').hexdigest()}", 5, "text/plain").encode()
    with (where / "history.jsonl").open("ab") as file:
        file.write(b'{"ts":7,"actor":"x","data":%b}\n' % put)
    assert (await me.reconcile()).problems == []
    assert (where / "attachments" / "x").read_bytes() == b"bytes"
    assert os.listdir(me.chats) == [where.name]


async def test_a_directory_that_was_merged_is_not_missed_when_the_chat_gets_its_name(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    orphan = me.chats / form.directory(chat.id, "b")
    shutil.copytree(me.where(chat), orphan)
    (orphan / "chat.json").unlink()
    await me.workspace.move_chat(chat.id, Place.CHATS, "b", ME)
    assert (await me.reconcile()).problems == []
    assert me.where(chat) == orphan
    assert os.listdir(me.chats) == [orphan.name]


# ---- what was remembered


async def test_a_manifest_whose_last_line_was_cut_off_keeps_the_others(me: Person) -> None:
    chats = [await me.new(name, "one") for name in ("a", "b")]
    await me.reconcile()
    path = Path(me.workspace.driver.local_dir(me.workspace.space.id)) / "projection.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    found = Manifest(path, str(me.directory))
    assert len(found.rows) == 1
    (kept,) = found.rows
    found.set(kept, found.rows[kept].moved(lines=0))
    found.save()
    assert Manifest(path, str(me.directory)).rows == found.rows
    assert kept in {chat.id for chat in chats}


# ---- by hand


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": ".."},
        {"name": "a/b"},
        {"name": "a\nb"},
        {"name": "x" * 300},
        {"name": 5},
        {"title": "x" * 100_000},
        {"labels": {"a": 1}},
        {"place": "trash"},
        {"place": "../x"},
        {"created": "yesterday", "end": False, "more": [1]},
    ],
)
async def test_nonsense_in_chat_json_changes_nothing(me: Person, change: dict[str, Any]) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "chat.json"
    before, state, head = path.read_bytes(), me.workspace.state.names, await chat.head()
    path.write_bytes(orjson.dumps(orjson.loads(before) | change))
    await me.reconcile()
    assert path.read_bytes() == before
    assert (me.workspace.state.names, await chat.head()) == (state, head)
    assert (await me.reconcile()).unchanged == 1


async def test_a_chat_json_of_another_version_says_so(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    path = me.where(chat) / "chat.json"
    text = orjson.dumps(orjson.loads(path.read_bytes()) | {"version": form.VERSION + 1})
    path.write_bytes(text)
    (problem,) = (await me.reconcile(sound=False)).problems
    assert str(path) in problem
    assert "newer chatfs" in problem
    assert path.read_bytes() == text


@pytest.mark.parametrize("name", ["..", "a/b", "", "x" * 255, "\n", "Ünï", "CON", "a" * 61 + "b"])
async def test_any_chats_name_has_a_place(me: Person, name: str) -> None:
    try:
        chat = await me.new(name, "one")
    except Exception:  # noqa: BLE001 - the store takes no such name
        return
    await me.reconcile()
    assert me.where(chat).parent == me.chats
    assert (await me.reconcile()).unchanged == 1


async def test_a_removed_external_chat_takes_all_of_its_directories_with_it(me: Person, tmp_path: Path) -> None:
    chat = await me.new("theirs", "one")
    await me.reconcile()
    where = me.where(chat)
    shutil.copytree(where, where.with_name("20200101T000000Z-other"))
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        await other.project.remove_external(chat.id)
        await other.project.look()
        assert other.project.externals == {}
    assert os.listdir(me.chats) == []


async def test_a_repository_that_is_made_later_is_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    async with person(f"file://{tmp_path}/store", directory) as me:
        await me.new("a", "one")
        await me.reconcile()
        git(directory, "init", "-q")
        (directory / ".git" / "MERGE_HEAD").write_text("")
        with pytest.raises(Busy):
            await me.project.reconcile()
