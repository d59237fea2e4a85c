"""What changes elsewhere reaches inotify watchers of the mount, once, and what is done here isn't told twice."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.library import Store
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support.mounts import Chat, Mounted, Workspace, data, message, mounting
from tests.support.ops import append, elsewhere, opened, say_elsewhere, with_chat
from tests.support.waiting import wait_for
from tests.support.watching import Watcher

pytestmark = pytest.mark.mount

_numbers = itertools.count()


def settle(mounted: Mounted) -> None:
    """Return when all that has happened until now was announced.

    One file is announced twice: the second time when others that were announced of late may be again.
    """
    barrier = mounted.mountpoint / "barrier"
    if not barrier.exists():
        barrier.mkdir()
    with Watcher(barrier) as watcher:
        for _ in range(2):
            watcher.clear()
            new = f"c{next(_numbers)}"

            async def create(store: Store, name: str = new) -> None:
                await (await store.workspace("barrier")).create_chat(name, "elsewhere")

            elsewhere(mounted, create)
            watcher.expect("MODIFY history.jsonl")


def done(mounted: Mounted, watcher: Watcher) -> list[str]:
    """What was heard, when all was announced."""
    settle(mounted)
    return watcher.heard


@pytest.fixture
def chat(mounted: Mounted) -> Chat:
    found = mounted.workspace().chat()
    found.say("hello")
    for path in (found.md, found.jsonl, found.directory / "chat.json"):
        path.read_bytes()
    settle(mounted)
    return found


# ---- contents

CONTENTS = ("MODIFY history.jsonl", "MODIFY history.md", "MODIFY chat.json")


def _by_library(mounted: Mounted) -> None:
    say_elsewhere(mounted, "demo", "trip", "from elsewhere")


def _by_command(mounted: Mounted) -> None:
    mounted.cli("append", "demo/trip", given=message("from elsewhere"))


def _by_another_mount(mounted: Mounted) -> None:
    with Mounted(mounted.root / "second") as other:
        pass
    (mounted.root / "second" / "store").rename(mounted.root / "second" / "unused")
    (mounted.root / "second" / "store").symlink_to(mounted.store)
    with other:
        append(other.mountpoint / "demo" / "chats" / "trip" / "history.jsonl", message("from elsewhere"))


@pytest.mark.parametrize("change", [_by_library, _by_command, _by_another_mount])
def test_an_append_elsewhere_modifies_what_shows_it(
    mounted: Mounted, chat: Chat, change: Callable[[Mounted], None]
) -> None:
    files = [chat.jsonl, chat.md, chat.directory / "chat.json"]
    with Watcher(chat.directory) as around, Watcher(*files) as at:
        change(mounted)
        around.expect(*CONTENTS)
        at.expect(*CONTENTS)
        assert sorted(done(mounted, around)) == sorted(CONTENTS)
        assert sorted(at.heard) == sorted(CONTENTS)
    assert b"from elsewhere" in chat.md.read_bytes()


def test_who_reads_when_told_reads_what_is_new(mounted: Mounted, chat: Chat) -> None:
    """The kernel's pages of before are gone by then, also where the size is the same."""
    identity = data(chat.log())[0]["id"]
    with Watcher(chat.md) as watcher, chat.md.open("rb", buffering=0) as reader:
        for number in range(10):
            assert reader.seek(0) == 0
            reader.read()
            text = f"{number:05d}"

            async def work(_: StoreWorkspace, found: StoreChat, text: str = text) -> None:
                await found.append_events([{"type": "message.edited", "id": identity, "content": text}], "elsewhere")

            watcher.clear()
            with_chat(mounted, "demo", "trip", work)
            watcher.expect("MODIFY history.md")
            assert text.encode() in os.pread(reader.fileno(), 1000, 0)
            assert text.encode() in chat.md.read_bytes()


def test_what_is_written_here_is_told_of_the_other_files_only(mounted: Mounted, chat: Chat) -> None:
    with Watcher(chat.directory) as watcher:
        append(chat.jsonl, message("mine"))
        watcher.expect(*CONTENTS)
        assert sorted(done(mounted, watcher)) == sorted(CONTENTS)
        watcher.clear()
        append(chat.md, b"\nmore\n")
        watcher.expect(*CONTENTS)
        assert sorted(done(mounted, watcher)) == sorted(CONTENTS)


def test_a_burst_elsewhere_is_told_a_few_times(mounted: Mounted, chat: Chat) -> None:
    async def work(_: StoreWorkspace, found: StoreChat) -> None:
        for number in range(2000):
            await found.append_events([{"role": "user", "content": f"{number}"}], "elsewhere")

    with Watcher(chat.directory) as watcher:
        with_chat(mounted, "demo", "trip", work)
        wait_for(lambda: b"1999" in chat.md.read_bytes())
        heard = done(mounted, watcher)
    assert set(heard) == set(CONTENTS)
    assert len(heard) < 1000


# ---- attachments


def test_attachments_come_change_move_and_go(mounted: Mounted, chat: Chat) -> None:
    async def put(_: StoreWorkspace, found: StoreChat, content: bytes = b"one") -> None:
        await found.attach("a.txt", content, "elsewhere")

    async def change(where: StoreWorkspace, found: StoreChat) -> None:
        await put(where, found, b"two")

    async def mode(_: StoreWorkspace, found: StoreChat) -> None:
        await found.change_attachment("a.txt", "elsewhere", mode=0o640, mtime_ns=None)

    async def rename(_: StoreWorkspace, found: StoreChat) -> None:
        await found.rename_attachment("a.txt", "b.txt", "elsewhere")

    async def remove(_: StoreWorkspace, found: StoreChat) -> None:
        await found.remove_attachment("b.txt", "elsewhere")

    with Watcher(chat.attachments) as watcher:
        for work, events in (
            (put, ["CREATE a.txt"]),
            (change, ["MODIFY a.txt"]),
            (mode, ["ATTRIB a.txt"]),
            (rename, ["MOVED_FROM a.txt", "MOVED_TO b.txt"]),
            (remove, ["DELETE b.txt"]),
        ):
            watcher.clear()
            with_chat(mounted, "demo", "trip", work)
            watcher.expect(*events)
            assert done(mounted, watcher) == events
        assert len(watcher.cookies) == 2
        assert len(set(watcher.cookies)) == 1
    assert os.listdir(chat.attachments) == []


def test_attachments_by_command(mounted: Mounted, chat: Chat, tmp_path: Path) -> None:
    given = tmp_path / "given.txt"
    given.write_bytes(b"bytes")
    with Watcher(chat.attachments) as watcher:
        mounted.cli("attach", "demo/trip", given)
        watcher.expect("CREATE given.txt")
        # Told of after the fact: it is whole.
        assert (chat.attachments / "given.txt").read_bytes() == b"bytes"


# ---- chats and workspaces


def test_chats_come_move_and_go(mounted: Mounted, chat: Chat) -> None:
    demo = mounted.mountpoint / "demo"
    with Watcher(demo / "chats", demo / "archive") as watcher:
        for words, events in (
            (["chat", "new", "demo/new"], ["CREATE new"]),
            (["chat", "rename", "demo/new", "newer"], ["MOVED_FROM new", "MOVED_TO newer"]),
            (["chat", "archive", "demo/newer"], ["MOVED_FROM newer", "MOVED_TO newer"]),
            (["chat", "unarchive", "demo/newer"], ["MOVED_FROM newer", "MOVED_TO newer"]),
            (["chat", "rm", "demo/newer"], ["DELETE newer"]),
            (["chat", "restore", "demo/newer"], ["CREATE newer"]),
        ):
            watcher.clear()
            mounted.cli(*words)
            watcher.expect(*events)
            assert done(mounted, watcher) == events
    assert sorted(os.listdir(demo / "chats")) == ["newer", "trip"]
    assert (demo / "chats" / "newer" / "history.md").read_bytes() == b""


def test_who_watches_a_chat_hears_that_it_moves(mounted: Mounted, chat: Chat) -> None:
    with Watcher(chat.directory) as watcher:
        mounted.cli("chat", "rename", "demo/trip", "journey")
        watcher.expect("MOVE_SELF trip", "MODIFY chat.json")
        assert watcher.heard[0] == "MOVE_SELF trip"
        watcher.clear()
        say_elsewhere(mounted, "demo", "journey", "more")
        watcher.expect(*CONTENTS)


def test_workspaces_come_move_and_go(mounted: Mounted) -> None:
    mounted.workspace()
    settle(mounted)

    async def create(store: Store) -> None:
        await store.create_workspace("other", "elsewhere")

    async def rename(store: Store) -> None:
        await store.rename_workspace(await store.workspace("other"), "third", "elsewhere")

    async def trash(store: Store) -> None:
        await (await store.workspace("third")).trash("elsewhere")

    with Watcher(mounted.mountpoint) as watcher:
        for work, events in (
            (create, ["CREATE other"]),
            (rename, ["MOVED_FROM other", "MOVED_TO third"]),
            (trash, ["DELETE third"]),
        ):
            watcher.clear()
            elsewhere(mounted, work)
            watcher.expect(*events)
            assert done(mounted, watcher) == events


def named(before: set[str], events: list[str]) -> set[str]:
    """The names that a watcher of a directory takes it to have."""
    names = set(before)
    for event in events:
        what, name = event.split(" ", 1)
        if what in {"CREATE", "MOVED_TO"}:
            names.add(name)
        elif what in {"DELETE", "MOVED_FROM"}:
            assert name in names, events
            names.remove(name)
    return names


@pytest.mark.parametrize("known", [False, True])
def test_a_swap_of_names_is_told_as_it_ends(mounted: Mounted, chat: Chat, known: bool) -> None:  # noqa: FBT001
    chats = chat.directory.parent
    inode = chat.directory.stat().st_ino

    async def make(store: Store) -> None:
        await (await store.workspace("demo")).create_chat("other", "elsewhere")

    async def swap(store: Store) -> None:
        demo = await store.workspace("demo")
        trip, other = await demo.record("trip"), await demo.record("other")
        await demo.move_chat(trip.id, Place.CHATS, "aside", "elsewhere")
        await demo.move_chat(other.id, Place.CHATS, "trip", "elsewhere")
        await demo.move_chat(trip.id, Place.CHATS, "other", "elsewhere")

    with Watcher(chats) as watcher:
        elsewhere(mounted, make)
        if known:
            watcher.expect("CREATE other")
        elsewhere(mounted, swap)
        assert named({"trip"}, done(mounted, watcher)) == {"trip", "other"}
        assert {event.partition(" ")[2] for event in watcher.heard} >= {"trip", "other"}
    assert (chats / "other").stat().st_ino == inode
    assert (chats / "trip").stat().st_ino != inode
    assert b"hello" in (chats / "other" / "history.md").read_bytes()


def test_who_is_in_a_chat_that_changes_its_name_with_another_stays_in_it(mounted: Mounted, chat: Chat) -> None:
    chats = chat.directory.parent
    (chats / "other").mkdir()

    async def swap(store: Store) -> None:
        demo = await store.workspace("demo")
        trip, other = await demo.record("trip"), await demo.record("other")
        await demo.move_chat(trip.id, Place.CHATS, "aside", "elsewhere")
        await demo.move_chat(other.id, Place.CHATS, "trip", "elsewhere")
        await demo.move_chat(trip.id, Place.CHATS, "other", "elsewhere")

    with opened(chats / "trip", os.O_DIRECTORY) as one, opened(chats / "other", os.O_DIRECTORY) as two:
        for _ in range(2):
            elsewhere(mounted, swap)
            settle(mounted)
            for descriptor in (one, two):
                file = os.open("note", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
                os.close(file)


def test_what_is_done_here_is_told_once(mounted: Mounted, chat: Chat) -> None:
    chats, archive = chat.directory.parent, chat.directory.parent.parent / "archive"
    with Watcher(mounted.mountpoint, chats, archive, chat.attachments) as watcher:
        (chats / "mine").mkdir()
        (chats / "mine").rename(chats / "ours")
        (chats / "ours").rename(archive / "ours")
        (archive / "ours").rmdir()
        (chat.attachments / "a").write_bytes(b"a")
        (chat.attachments / "a").chmod(0o640)
        (chat.attachments / "a").rename(chat.attachments / "b")
        (chat.attachments / "b").unlink()
        os.mknod(chat.attachments / "c")
        (mounted.mountpoint / "w").mkdir()
        (mounted.mountpoint / "w").rename(mounted.mountpoint / "v")
        (mounted.mountpoint / "v").rmdir()
        assert done(mounted, watcher) == [
            "CREATE mine",
            "MOVED_FROM mine",
            "MOVED_TO ours",
            "MOVED_FROM ours",
            "MOVED_TO ours",
            "DELETE ours",
            "CREATE a",
            "MODIFY a",
            "ATTRIB a",
            "MOVED_FROM a",
            "MOVED_TO b",
            "DELETE b",
            "CREATE c",
            "CREATE w",
            "MOVED_FROM w",
            "MOVED_TO v",
            "DELETE v",
        ]


def test_a_chat_that_was_removed_while_in_use_can_be_entered_where_it_is_now(mounted: Mounted, chat: Chat) -> None:
    """The kernel takes a directory that was removed for dead, for as long as anybody is in it."""
    here = os.open(chat.directory, os.O_PATH)
    try:
        with Watcher(chat.directory.parent) as watcher:
            mounted.cli("chat", "rm", "demo/trip")
            watcher.expect("DELETE trip")
        trashed = chat.directory.parent.parent / "trash" / "trip"
        assert b"hello" in (trashed / "history.md").read_bytes()
        mounted.cli("chat", "restore", "demo/trip")
        wait_for(chat.md.exists)
        assert b"hello" in chat.md.read_bytes()
        chat.directory.rmdir()
        assert b"hello" in (trashed / "history.md").read_bytes()
    finally:
        os.close(here)


# ---- the switch, and inotifywait


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with mounting(tmp_path, "--no-inotify") as mounted:
        chat = mounted.workspace().chat()
        chat.md.read_bytes()
        with Watcher(chat.directory, chat.directory.parent) as watcher:
            say_elsewhere(mounted, "demo", "trip", "from elsewhere")
            wait_for(lambda: b"from elsewhere" in chat.md.read_bytes())
            mounted.cli("chat", "new", "demo/new")
            wait_for((chat.directory.parent / "new").exists)
            assert watcher.heard == []
        assert children(mounted) == []


def children(mounted: Mounted) -> list[int]:
    """The daemon's child processes."""
    assert mounted.process is not None
    pid = mounted.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_inotifywait_ends_at_a_change_elsewhere(mounted: Mounted, chat: Chat) -> None:
    command = ["inotifywait", "-e", "modify", "--format", "%w%f %e", str(chat.md)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        while "established" not in waiting.stderr.readline():
            pass
        say_elsewhere(mounted, "demo", "trip", "from elsewhere")
        told, _ = waiting.communicate(timeout=30)
    assert told == f"{chat.md} MODIFY\n"


def test_names_of_a_new_workspace(mounted: Mounted) -> None:
    """What came is watched at once, and what comes there is told."""
    with Watcher(mounted.mountpoint) as watcher:
        mounted.cli("workspace", "create", "new")
        watcher.expect("CREATE new")
    found = Workspace(mounted.mountpoint / "new", "", mounted.store)
    with Watcher(found.directory / "chats") as watcher:
        mounted.cli("chat", "new", "new/chat")
        watcher.expect("CREATE chat")


def test_attachments_of_a_chat_that_nobody_has_used_since_the_mount(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    for name in ("changed", "removed"):
        (chat.attachments / name).write_bytes(name.encode())
    mounted.remount()

    async def change(_: StoreWorkspace, found: StoreChat) -> None:
        await found.attach("changed", b"other bytes", "elsewhere")
        await found.remove_attachment("removed", "elsewhere")

    with Watcher(chat.attachments) as watcher:
        with_chat(mounted, "demo", "trip", change)
        watcher.expect("MODIFY changed", "DELETE removed")
        assert sorted(done(mounted, watcher)) == ["DELETE removed", "MODIFY changed"]
