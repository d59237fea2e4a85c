"""Two mounts of one store, two daemons: whoever is asked to write, there is one log, and both show it."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from store.model import SpaceId
from tests.support.mounts import Chat, Mounted, Workspace, message
from tests.support.ops import append, elsewhere
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


@dataclass
class Beside(Mounted):
    """Another mount, of a store that is there."""

    shared: Path = Path()

    @property
    def store(self) -> Path:
        return self.shared


@pytest.fixture
def other(mounted: Mounted) -> Iterator[Mounted]:
    with Beside(mounted.root / "second", shared=mounted.store) as beside:
        yield beside
        if beside.process is not None:
            beside.unmount()
    assert beside.trouble() == []


@pytest.fixture
def workspace(mounted: Mounted) -> Workspace:
    return mounted.workspace()


@pytest.fixture
def chat(workspace: Workspace) -> Chat:
    """Made and written through the first: it holds both leases."""
    made = workspace.chat()
    made.say("one")
    return made


@pytest.fixture
def twin(chat: Chat, mounted: Mounted, other: Mounted) -> Chat:
    """The same chat, seen through the second."""
    directory = other.mountpoint / chat.directory.relative_to(mounted.mountpoint)
    wait_for(directory.is_dir)
    return Chat(directory, chat.id, chat.log_file)


def holder(mounted: Mounted, chat: Chat) -> tuple[int | None, int]:
    """The process that holds the chat's lease, and under which epoch."""
    (found,) = [
        one for one in json.loads(mounted.cli("status", "--json").stdout)["in_use"] if one["space"].endswith(chat.id)
    ]
    return found["pid"], found["epoch"]


def pid(mounted: Mounted) -> int:
    assert mounted.process is not None
    return mounted.process.pid


def said(chat: Chat) -> list[str]:
    return [line["data"]["content"] for line in map(json.loads, chat.jsonl.read_text().splitlines())]


def shown(chat: Chat, *texts: str) -> None:
    """Both files show these, and nothing else."""
    wait_for(lambda: said(chat) == list(texts), what=f"{texts} in {chat.jsonl}")
    wait_for(lambda: all(text in chat.md.read_text() for text in texts), what=f"{texts} in {chat.md}")


def test_appends_through_both(mounted: Mounted, chat: Chat, twin: Chat) -> None:
    for number in range(5):
        append(twin.jsonl, message(f"second {number}"))
        append(chat.jsonl, message(f"first {number}"))
    expected = ["one", *(f"{who} {number}" for number in range(5) for who in ("second", "first"))]
    shown(chat, *expected)
    shown(twin, *expected)
    assert [entry.seq for entry in chat.log()] == list(range(1, 12))
    assert holder(mounted, chat) == (pid(mounted), 1)


def test_who_wrote_is_kept_when_it_is_forwarded(chat: Chat, twin: Chat) -> None:
    append(twin.jsonl, message("two"))
    first, second = chat.log()
    assert first.actor == second.actor
    assert first.actor.startswith(f"uid:{os.getuid()}/")


def test_saves_of_both_are_merged(chat: Chat, twin: Chat) -> None:
    chat.md.write_text("## user\n\none\n\n## user\n\ntwo\n\n## user\n\nthree\n")
    wait_for(lambda: "three" in twin.md.read_text())
    twin.md.write_text(twin.md.read_text().replace("three", "THREE"))
    wait_for(lambda: "THREE" in chat.md.read_text())
    chat.md.write_text(chat.md.read_text().replace("two", "TWO"))
    wait_for(lambda: "TWO" in twin.md.read_text())
    assert "THREE" in twin.md.read_text()
    assert chat.md.read_bytes() == twin.md.read_bytes()


def test_attachments_and_their_names(chat: Chat, twin: Chat) -> None:
    (twin.attachments / "a.bin").write_bytes(b"x" * 3_000_000)
    wait_for(lambda: (chat.attachments / "a.bin").exists())
    assert (chat.attachments / "a.bin").read_bytes() == b"x" * 3_000_000
    (twin.attachments / "a.bin").rename(twin.attachments / "b.bin")
    wait_for(lambda: os.listdir(chat.attachments) == ["b.bin"])
    (chat.attachments / "b.bin").unlink()
    wait_for(lambda: os.listdir(twin.attachments) == [])


def test_chats_made_renamed_and_archived_through_the_second(
    mounted: Mounted, other: Mounted, chat: Chat, twin: Chat
) -> None:
    theirs = twin.directory.parent
    (theirs / "more").mkdir()
    wait_for((chat.directory.parent / "more").is_dir)
    twin.directory.rename(theirs / "journey")
    wait_for((chat.directory.parent / "journey").is_dir)
    wait_for(lambda: not chat.directory.exists())
    (theirs / "journey").rename(theirs.parent / "archive" / "journey")
    wait_for((chat.directory.parents[1] / "archive" / "journey").is_dir)
    with pytest.raises(FileExistsError):
        (theirs / "more").mkdir()


def test_writers_of_both_at_once(chat: Chat, twin: Chat) -> None:
    def write(path: Path, name: str) -> None:
        for number in range(40):
            append(path, message(f"{name} {number}"))

    threads = [
        threading.Thread(target=write, args=(one.jsonl, f"{name}{number}"))
        for name, one in (("first", chat), ("second", twin))
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = [json.loads(entry.data)["content"] for entry in chat.log()][1:]
    assert len(found) == 160
    for name in ("first0", "first1", "second0", "second1"):
        assert [text for text in found if text.startswith(f"{name} ")] == [f"{name} {number}" for number in range(40)]
    shown(chat, "one", *found)
    shown(twin, "one", *found)


def test_an_unmount_hands_the_authority_over(mounted: Mounted, other: Mounted, chat: Chat, twin: Chat) -> None:
    mounted.unmount()
    append(twin.jsonl, message("two"))
    assert holder(other, chat) == (pid(other), 2)
    shown(twin, "one", "two")


def test_a_killed_daemon_is_replaced(mounted: Mounted, other: Mounted, chat: Chat, twin: Chat) -> None:
    append(twin.jsonl, message("two"))
    mounted.kill()
    append(twin.jsonl, message("three"))
    assert holder(other, chat) == (pid(other), 2)
    shown(twin, "one", "two", "three")
    mounted.start()
    append(chat.jsonl, message("four"))
    shown(chat, "one", "two", "three", "four")
    shown(twin, "one", "two", "three", "four")


def test_a_stopped_daemon_is_replaced_and_goes_on_afterwards(
    mounted: Mounted, other: Mounted, chat: Chat, twin: Chat
) -> None:
    os.kill(pid(mounted), signal.SIGSTOP)
    try:
        append(twin.jsonl, message("two"))  # waits until the lease has lapsed
        assert holder(other, chat) == (pid(other), 2)
        shown(twin, "one", "two")
    finally:
        os.kill(pid(mounted), signal.SIGCONT)
    append(chat.jsonl, message("three"))
    shown(chat, "one", "two", "three")
    shown(twin, "one", "two", "three")
    assert holder(other, chat) == (pid(other), 2)


def test_a_daemon_that_was_overtaken_refuses_once(mounted: Mounted, workspace: Workspace, chat: Chat) -> None:
    """Somebody takes the lease that it believes to have: EROFS, nothing was written, then it goes on."""
    space = SpaceId(f"workspace/{workspace.id}/chats/{chat.id}")

    async def overtake(store: object) -> None:
        leases = store.driver.leases  # type: ignore[attr-defined]
        grant = await leases.current(space)
        await leases.release(grant)
        await leases.release(await leases.acquire(space, "somebody", 5000))

    append(chat.jsonl, message("two"))
    elsewhere(mounted, overtake)
    with pytest.raises(OSError) as caught:
        append(chat.jsonl, message("lost"))
    assert caught.value.errno == errno.EROFS
    shown(chat, "one", "two")
    append(chat.jsonl, message("three"))
    shown(chat, "one", "two", "three")


def test_an_overtaken_save_of_history_md(mounted: Mounted, workspace: Workspace, chat: Chat) -> None:
    """Refused with EROFS when it is closed; the text as it was stays, and saving again works."""
    space = SpaceId(f"workspace/{workspace.id}/chats/{chat.id}")

    async def overtake(store: object) -> None:
        leases = store.driver.leases  # type: ignore[attr-defined]
        await leases.release(await leases.current(space))
        await leases.release(await leases.acquire(space, "somebody", 5000))

    before = chat.md.read_text()
    append(chat.jsonl, message("two"))
    elsewhere(mounted, overtake)
    text = chat.md.read_text()
    with pytest.raises(OSError) as caught:
        chat.md.write_text(text.replace("one", "ONE"))
    assert caught.value.errno == errno.EROFS
    assert before in chat.md.read_text()
    chat.md.write_text(text.replace("one", "ONE"))
    assert "ONE" in chat.md.read_text()


@pytest.fixture
def relaxed(mounted: Mounted) -> Iterator[Mounted]:
    with Beside(mounted.root / "second", ("--durability", "relaxed"), shared=mounted.store) as beside:
        yield beside
        beside.unmount()
    assert beside.trouble() == []


def test_a_relaxed_mount_forwards_too(mounted: Mounted, relaxed: Mounted, chat: Chat) -> None:
    jsonl = relaxed.mountpoint / chat.jsonl.relative_to(mounted.mountpoint)
    wait_for(jsonl.exists)
    for number in range(10):
        append(jsonl, message(f"{number}"))
    shown(chat, "one", *map(str, range(10)))
    assert holder(mounted, chat) == (pid(mounted), 1)
