"""What comes from a project is charged before a byte of it is stored, and what doesn't fit stays in the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.errors import QuotaExceeded
from tests.projection.project import ME, Person, person, texts
from tests.support.quotas import on_disk

BIG = os.urandom(50_000)


async def leave(me: Person, size: int) -> None:
    """Set a quota that leaves about so much."""
    await me.workspace.change(ME, quota_bytes=await me.workspace.usage() + size)


def blobs(directory: Path) -> list[Path]:
    return list(directory.glob("objects/??/*"))


async def test_other_files_of_a_chat_that_leaves_stay_where_they_dont_fit(me: Person, tmp_path: Path) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    notes = me.where(chat) / "notes.txt"
    notes.write_bytes(BIG)
    await leave(me, 10_000)
    await chat.change(ME, projection="local")
    (problem,) = (await me.reconcile(sound=False)).problems
    assert "more don't fit (make room, or allow more with chatfs workspace quota demo SIZE)" in problem
    assert notes.read_bytes() == BIG
    assert list((chat.directory / "scratch").iterdir()) == []
    assert await me.workspace.usage() == on_disk(tmp_path / "store")
    await leave(me, 60_000)
    await me.reconcile()
    assert (chat.directory / "scratch/notes.txt").read_bytes() == BIG
    assert not notes.exists()
    # It is there already: that takes no room.
    await chat.change(ME, projection="projected")
    await me.reconcile()
    (me.where(chat) / "notes.txt").write_bytes(BIG)
    await leave(me, 10_000)
    await chat.change(ME, projection="local")
    await me.reconcile()
    assert os.listdir(chat.directory / "scratch") == ["notes.txt"]


async def test_an_attachment_that_is_put_there_by_hand_is_stored_only_if_it_fits(me: Person, tmp_path: Path) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    (me.where(chat) / "attachments").mkdir()
    (me.where(chat) / "attachments/photo").write_bytes(BIG)
    await leave(me, 10_000)
    (problem,) = (await me.reconcile(sound=False)).problems
    assert "more don't fit" in problem
    assert blobs(tmp_path / "store") == []
    await leave(me, 60_000)
    await me.reconcile()
    assert (await chat.attachment("photo")).size == len(BIG)
    assert await me.workspace.usage() == on_disk(tmp_path / "store")


async def test_of_a_chat_that_doesnt_fit_no_bytes_are_taken_in(me: Person, tmp_path: Path) -> None:
    made = await me.new("theirs", "one", "two")
    for number in range(2):
        await made.attach(f"photo {number}", bytes([number]) * 30_000, ME)
    await me.reconcile()
    (me.where(made) / "notes.txt").write_bytes(BIG)
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        await leave(other, 50_000)
        with pytest.raises(QuotaExceeded):
            await other.project.import_external(made.id)
        assert blobs(tmp_path / "other") == []
        assert (await other.workspace.load()).chats == {}
        await leave(other, 70_000)
        chat = await other.project.import_external(made.id)
        assert await texts(chat) == ["one", "two"]
        assert sorted((await chat.load()).attachments) == ["photo 0", "photo 1"]
        assert (other.where(chat) / "notes.txt").read_bytes() == BIG, "it stays there alone"
        assert list((chat.directory / "scratch").iterdir()) == []
        assert await other.workspace.usage() == on_disk(tmp_path / "other")


async def test_of_a_chat_whose_lines_dont_fit_no_bytes_are_taken_in(me: Person, tmp_path: Path) -> None:
    made = await me.new("theirs", "x" * 20_000)
    await made.attach("photo", b"x" * 30_000, ME)
    await me.reconcile()
    async with person(f"file://{tmp_path}/other", me.directory) as other:
        await other.project.look()
        await leave(other, 40_000)
        with pytest.raises(QuotaExceeded):
            await other.project.import_external(made.id)
        assert blobs(tmp_path / "other") == []
        assert list((tmp_path / "other").glob("workspace/*/chats/*")) == []
