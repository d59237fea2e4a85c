"""Times decide only where content doesn't: wrong clocks, equal times, touched files; and disks that can't follow."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.model import clock_ms
from tests.projection.project import ME, Person, git, person, say, snapshot, texts
from tests.projection.test_kill import LINE
from tests.support.disks import format_ext4, loop_device, mounted_device, needs_loop_devices

PAST, FUTURE = 1_000_000_000, 4_000_000_000


def touch(me: Person, seconds: float) -> None:
    """Every file of the project, as a clock that is wrong would have it."""
    for path in me.chats.rglob("*"):
        os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("seconds", [PAST, FUTURE])
async def test_touched_files_change_nothing(me: Person, seconds: int) -> None:
    chat = await me.new("a", "one", "two")
    await chat.attach("x", b"bytes", ME)
    await chat.change(ME, title="t")
    await me.reconcile()
    touch(me, seconds)
    before = snapshot(me.chats)
    head = await chat.head()
    await me.reconcile()
    assert snapshot(me.chats) == before
    assert await chat.head() == head
    assert len(me.workspace.state.chats) == 1


@pytest.mark.parametrize("seconds", [PAST, FUTURE])
@pytest.mark.parametrize("side", ["durable", "project"])
async def test_the_longer_copy_wins_whatever_the_clock_says(me: Person, side: str, seconds: int) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    if side == "durable":
        await say(chat, "two")
    else:
        with (me.where(chat) / "history.jsonl").open("ab") as file:
            file.write(LINE % (7, 1, b"two"))
    touch(me, seconds)
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    assert len(me.lines(chat)) == 2
    assert len(me.workspace.state.chats) == 1


@pytest.mark.parametrize(
    ("difference_ms", "winner"), [(-60_000, "ours"), (0, "ours"), (1, "theirs"), (60_000, "theirs")]
)
async def test_only_where_content_says_nothing_the_newer_wins_and_a_tie_is_the_durable_ones(
    me: Person, difference_ms: int, winner: str
) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    await say(chat, "ours")
    newest = [entry async for entry in chat.log()][-1].ts
    path = me.where(chat) / "history.jsonl"
    path.write_bytes(LINE % (7, 1, b"theirs"))
    ns = (newest + difference_ms) * 1_000_000
    os.utime(path, ns=(ns, ns))
    report = await me.reconcile()
    assert len(report.done) == 1
    found = {
        record.name.partition(" (")[0] + (" (" in record.name) * "!": await texts(me.workspace.chat_by_id(each))
        for each, record in me.workspace.state.chats.items()
    }
    lines = {"ours": ["one", "ours"], "theirs": ["theirs"]}
    loser = "theirs" if winner == "ours" else "ours"
    assert found == {"a": lines[winner], "a!": lines[loser]}


async def test_an_older_commit_with_newer_times_takes_nothing_away(me: Person) -> None:
    chat = await me.new("a", "one")
    await me.reconcile()
    me.commit()
    await say(chat, "two")
    await me.workspace.move_chat(chat.id, me.workspace.state.chats[chat.id].place, "b", ME)
    await me.reconcile()
    me.commit()
    git(me.directory, "checkout", "-q", "HEAD~1")
    touch(me, clock_ms() / 1000 + 3600)
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    assert len(me.lines(chat)) == 2
    git(me.directory, "checkout", "-q", "-f", "main")
    git(me.directory, "clean", "-fdq")
    await me.reconcile()
    assert await texts(chat) == ["one", "two"]
    assert list(me.workspace.state.chats) == [chat.id]


@pytest.mark.parametrize("lost", ["history.jsonl", "history.md", "chat.json", "attachments"])
async def test_a_projection_that_is_half_there_is_completed(me: Person, lost: str) -> None:
    chat = await me.new("a", "one", "two")
    await chat.attach("x", b"bytes", ME)
    await me.reconcile()
    where = me.where(chat)
    before = {name: data for name, (_, _, data) in snapshot(where).items()}
    path = where / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (where / ".history.jsonl.0123456789abcdef.tmp").write_bytes(b"half")
    await me.reconcile()
    assert {name: data for name, (_, _, data) in snapshot(where).items()} == before
    assert await texts(chat) == ["one", "two"]


@pytest.mark.parametrize("before", ["one", "other"])
async def test_who_pulled_the_same_two_files_has_the_same_title(me: Person, before: str) -> None:
    """A merge may leave a log that says one title, and a chat.json that says another: all end with that.

    Else two people take over each other's title for ever, and commit that.
    """
    chat = await me.new("a", "one")
    await chat.change(ME, title=before)
    await me.reconcile()
    where = me.where(chat)
    with (where / "history.jsonl").open("ab") as file:
        file.write(b'{"ts":7,"actor":"x","data":{"type":"chat.changed","title":"other"}}\n')
    path = where / "chat.json"
    path.write_text(path.read_text().replace('"title": "other"', '"title": "one"'))
    await me.reconcile()
    assert (await chat.load()).title == "one"
    assert (await me.reconcile()).unchanged == 1


# ---- projects that can't be written


@contextmanager
def _tmpfs(root: Path) -> Iterator[Path]:
    """A tmpfs."""
    directory = root / "disk"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "chatfs-test", directory], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def _remount(directory: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", directory], check=True)


async def test_a_read_only_project(tmp_path: Path) -> None:
    with _tmpfs(tmp_path) as disk:
        project = disk / "project"
        project.mkdir()
        async with person(f"file://{tmp_path}/store", project) as me:
            chat = await me.new("a", "one")
            await me.reconcile()
            _remount(disk, "ro")
            try:
                await say(chat, "two")
                report = await me.reconcile(sound=False)
                assert report.problems == ["demo/a isn't projected: Read-only file system"]
                assert await texts(chat) == ["one", "two"]
                assert len(me.lines(chat)) == 1
                again = await me.reconcile(sound=False)
                assert again.problems == report.problems
            finally:
                _remount(disk, "rw")
            await me.reconcile()
            assert len(me.lines(chat)) == 2


async def test_a_project_on_a_full_disk(tmp_path: Path) -> None:
    needs_loop_devices()
    image = tmp_path / "image"
    format_ext4(image, 16 << 20)
    with loop_device(image) as device, mounted_device(device, tmp_path / "disk") as disk:
        project = disk / "project"
        project.mkdir()
        async with person(f"file://{tmp_path}/store", project) as me:
            chat = await me.new("a", "one")
            other = await me.new("b", "one")
            await me.reconcile()
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                except OSError:
                    pass
            await say(chat, "x" * 20_000)
            await chat.attach("big", b"y" * 100_000, ME)
            await say(other, "two")
            report = await me.reconcile(sound=False)
            assert any(line.startswith("demo/a isn't projected: ") for line in report.problems), report
            assert len(await texts(chat)) == 2
            filler.unlink()
            await me.reconcile()
            assert len(me.lines(chat)) == 3
            assert (me.where(chat) / "attachments" / "big").read_bytes() == b"y" * 100_000
            assert len(me.lines(other)) == 2
            assert not [name for name in snapshot(disk) if ".tmp" in name]
