"""The process that announces: what it costs, and that neither its end nor the daemon's harms anybody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.library import Store
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support.mounts import Chat, Mounted
from tests.support.ops import elsewhere, say_elsewhere, with_chat
from tests.support.waiting import wait_for
from tests.support.watching import Watcher

pytestmark = pytest.mark.mount


def children(mounted: Mounted) -> list[int]:
    """The daemon's child processes."""
    assert mounted.process is not None
    pid = mounted.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(process: int) -> bool:
    """Whether the process is there, and not only its remains."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def changing(mounted: Mounted) -> Iterator[None]:
    """Meanwhile, somebody elsewhere makes, moves and removes chats, attaches, and appends."""
    ended = threading.Event()

    async def work(store: Store) -> None:
        demo = await store.workspace("demo")
        trip = await demo.chat("trip")
        number = 0
        while not ended.is_set():
            number += 1
            made = await demo.create_chat(f"made {number}", "elsewhere")
            await trip.append_events([{"role": "user", "content": f"{number}"}], "elsewhere")
            await trip.attach(f"{number}", b"bytes", "elsewhere")
            await demo.move_chat(made.id, Place.CHATS, f"moved {number}", "elsewhere")
            await trip.rename_attachment(f"{number}", f"r{number}", "elsewhere")
            await demo.trash_chat(made.id, "elsewhere")
            await trip.remove_attachment(f"r{number}", "elsewhere")

    running = threading.Thread(target=elsewhere, args=(mounted, work))
    running.start()
    try:
        yield
    finally:
        ended.set()
        running.join(60)
    assert not running.is_alive()


@pytest.fixture
def chat(mounted: Mounted) -> Chat:
    found = mounted.workspace().chat()
    found.say("hello")
    for path in (found.md, found.jsonl, found.directory / "chat.json"):
        path.read_bytes()
    os.listdir(found.attachments)
    return found


def test_it_starts_with_the_first_announcement_and_ends_with_the_mount(mounted: Mounted, chat: Chat) -> None:
    with Watcher(chat.directory) as watcher:
        say_elsewhere(mounted, "demo", "trip", "more")
        watcher.expect("MODIFY history.jsonl")
    [process] = children(mounted)
    assert os.readlink(f"/proc/{process}/cwd") == "/"
    held = [os.readlink(f"/proc/{process}/fd/{number}") for number in os.listdir(f"/proc/{process}/fd")]
    assert not [path for path in held if path == "/dev/fuse" or path.startswith(str(mounted.mountpoint))]
    mounted.unmount()
    wait_for(lambda: not alive(process))


def test_it_is_started_again_when_it_was_killed(mounted: Mounted, chat: Chat) -> None:
    with Watcher(chat.directory) as watcher:
        before = 0
        for number in range(3):
            say_elsewhere(mounted, "demo", "trip", f"{number}")
            watcher.expect("MODIFY history.jsonl", "MODIFY chat.json", "MODIFY history.md")
            watcher.clear()
            [process] = children(mounted)
            assert process != before
            before = process
            os.kill(process, signal.SIGKILL)
            wait_for(lambda process=process: not alive(process))


def test_it_stops_being_the_announcer_when_it_does_something_else(mounted: Mounted, chat: Chat) -> None:
    """A program that nobody asked to announce changes what it says."""
    chats = chat.directory.parent
    with Watcher(chats) as watcher:
        mounted.cli("chat", "new", "demo/other")
        watcher.expect("CREATE other")
    (chats / "mine").mkdir()
    (chats / "mine").rmdir()
    os.listdir(chats)
    events = [event["type"] for event in _workspace_events(mounted)]
    assert events[-2:] == ["chat.created", "chat.trashed"]


def _workspace_events(mounted: Mounted) -> list[dict[str, str]]:
    from tests.support.mounts import data, read_log  # noqa: PLC0415 - one use

    [log] = (mounted.store / "workspace").glob("*/history.jsonl")
    return data(read_log(log))


def test_users_and_announcements_at_the_same_names(mounted: Mounted, chat: Chat) -> None:
    """Nothing that a user asks for is taken for an announcement: each of their changes is in the log."""
    chats = chat.directory.parent
    with changing(mounted):
        for number in range(60):
            (chats / f"own {number}").mkdir()
            (chats / f"own {number}").rename(chats / f"kept {number}")
            (chat.attachments / f"own {number}").write_bytes(b"own")
            if number % 2:
                (chats / f"kept {number}").rmdir()
                (chat.attachments / f"own {number}").unlink()
            for name in os.listdir(chats):
                with contextlib.suppress(OSError):
                    os.stat(chats / name)
    wanted = {f"kept {number}" for number in range(0, 60, 2)} | {"trip"}
    wait_for(lambda: set(os.listdir(chats)) == wanted)
    assert {name for name in wanted if (chats / name / "history.jsonl").exists()} == wanted
    assert set(os.listdir(chat.attachments)) == {f"own {number}" for number in range(0, 60, 2)}
    made = [event["name"] for event in _workspace_events(mounted) if event["type"] == "chat.created"]
    assert [name for name in made if name.startswith("own")] == [f"own {number}" for number in range(60)]


def test_the_log_has_nothing_of_announcements(mounted: Mounted, chat: Chat) -> None:
    with Watcher(chat.directory.parent, chat.attachments) as watcher:
        with changing(mounted):
            wait_for(lambda: len(watcher.heard) > 40)
        wait_for(lambda: os.listdir(chat.directory.parent) == ["trip"])
    actors = {entry.actor for entry in chat.log()}
    assert {actor for actor in actors if not actor.startswith("uid:")} == {"elsewhere"}
    assert len(chat.events()) % 4 == 0


def test_what_is_mounted_over_it_is_left_alone(mounted: Mounted, chat: Chat, tmp_path: Path) -> None:
    """The calls are made by path: on another file system's files they'd do harm."""
    if os.getuid() != 0:
        pytest.skip("mounting takes root")
    chats = chat.directory.parent
    with Watcher(chats) as watcher:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mounted.mountpoint)], check=True)
        try:
            over = mounted.mountpoint / "demo" / "chats" / "trip"
            over.mkdir(parents=True)
            (over / "history.jsonl").write_bytes(b"theirs")
            before = (over / "history.jsonl").stat().st_mtime_ns
            say_elsewhere(mounted, "demo", "trip", "more")
            mounted.cli("chat", "rm", "demo/trip")
            wait_for(lambda: _asked_in_vain(mounted))
            assert (over / "history.jsonl").stat().st_mtime_ns == before
            assert over.is_dir()
            assert watcher.heard == []
        finally:
            subprocess.run(["umount", str(mounted.mountpoint)], check=True)
        mounted.cli("chat", "new", "demo/after")
        watcher.expect("CREATE after")


def _asked_in_vain(mounted: Mounted) -> bool:
    return len(children(mounted)) == 1


def test_unmounting_while_it_announces(mounted: Mounted, chat: Chat) -> None:
    with changing(mounted):
        for _ in range(3):
            with Watcher(chat.directory.parent) as watcher:
                wait_for(lambda: len(watcher.heard) > 10)
            mounted.remount()
            os.listdir(chat.directory)


@pytest.mark.parametrize("rounds", [5])
def test_a_daemon_killed_while_it_announces_leaves_nobody_hanging(mounted: Mounted, chat: Chat, rounds: int) -> None:
    async def look(_: StoreWorkspace, found: StoreChat) -> None:
        assert (await found.load()).message_count

    with changing(mounted):
        for number in range(rounds):
            with Watcher(chat.directory.parent, chat.attachments) as watcher:
                wait_for(lambda number=number: len(watcher.heard) > number)
                [process] = children(mounted)
                mounted.kill()
            with contextlib.suppress(OSError):
                os.statvfs(mounted.mountpoint)
                raise AssertionError("the mount is alive without its daemon")
            wait_for(lambda process=process: not alive(process))
            mounted.start()
            os.listdir(chat.directory)
            os.listdir(chat.attachments)
    with_chat(mounted, "demo", "trip", look)


def test_a_failure_to_announce_is_not_the_mounts_end(tmp_path: Path) -> None:
    trouble = ["inotify watchers may have missed a change: the disk failed"]
    with Mounted(tmp_path, expected_trouble=trouble, program="tests.support.failing_announcements") as mounted:
        chat = mounted.workspace().chat()
        with Watcher(chat.directory.parent) as watcher:
            mounted.cli("chat", "rename", "demo/trip", "moved")
            watcher.expect("MOVED_FROM trip", "MOVED_TO moved")
        mounted.unmount()
        assert trouble[0] in mounted.stderr
