"""What isn't chatfs's in the project: it is kept when a chat leaves, never followed, and in nobody's way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from store import events as ev
from store.projection import form
from store.workspace_state import Place
from tests.projection.project import ME, Person, say

# ---- what leaves the project


async def test_a_file_that_was_put_beside_a_chat_on_its_way_to_the_trash_is_kept(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    attachments = me.where(chat) / "attachments"
    attachments.mkdir()
    (attachments / "report.pdf").write_bytes(b"bytes")
    await me.workspace.trash_chat(chat.id, ME)
    await me.reconcile()
    assert os.listdir(me.chats) == []
    await me.workspace.move_chat(chat.id, Place.CHATS, "a", ME)
    assert b"".join([piece async for piece in chat.read_attachment("report.pdf")]) == b"bytes"


@pytest.mark.parametrize("how", ["trash", "local"])
async def test_what_chatfs_can_not_keep_stays_there(me: Person, how: str) -> None:
    chat = await me.new("a", "one")
    await chat.attach("x", b"1", ME)
    await me.reconcile()
    where = me.where(chat)
    (where / "notes").mkdir()
    (where / "notes" / "mine.txt").write_text("mine")
    (where / "attachments" / ".hidden").write_text("mine, too")
    if how == "trash":
        await me.workspace.trash_chat(chat.id, ME)
    else:
        await chat.change(ME, projection=ev.LOCAL)
    (problem,) = (await me.reconcile(sound=False)).problems
    assert problem.startswith(f"{where} has attachments/.hidden, notes")
    assert sorted(os.listdir(where)) == ["attachments", "notes"]
    assert os.listdir(where / "attachments") == [".hidden"]
    assert (where / "notes" / "mine.txt").read_text() == "mine"
    (problem,) = (await me.reconcile(sound=False)).problems
    assert "remove the directory" in problem
    shutil.rmtree(where)
    await me.reconcile()


async def test_two_files_of_one_name_that_nobody_knows_are_both_kept(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    where = me.where(chat)
    second = where.with_name("20200101T000000Z-other")
    shutil.copytree(where, second)
    for directory, text in ((where, "one"), (second, "two")):
        (directory / "notes.txt").write_text(text)
    for _ in range(2):
        await me.reconcile()
    assert sorted(path.read_text() for path in (chat.directory / "scratch").glob("notes.txt*")) == ["one", "two"]


# ---- what somebody has planted


def _link(path: Path) -> None:
    path.symlink_to("/etc")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_link, _pipe, _directory])
@pytest.mark.parametrize("name", ["chat.json", "history.jsonl", "history.md", "attachments", "attachments/x"])
@pytest.mark.parametrize("whose", ["nobody's", "a chat's"])
async def test_what_somebody_has_planted_in_one_directory_keeps_no_other_chat(
    me: Person, make: Callable[[Path], None], name: str, whose: str
) -> None:
    chat = await me.new("a", "one")
    await chat.attach("x", b"1", ME)
    await me.reconcile()
    where = me.where(chat) if whose == "a chat's" else me.chats / "20200101T000000Z-planted"
    path = where / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)
    other = await me.new("b", "one")
    await say(chat, "two")
    for _ in range(2):
        await me.reconcile(sound=False)
    assert (me.chats / form.directory(other.id, "b") / "history.jsonl").read_bytes().count(b"\n") == 1
    assert path.is_symlink() or not path.is_file() or name == "attachments/x"
    assert not (Path("/etc") / "x").exists()
    await me.project.look()
