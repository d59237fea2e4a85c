"""What another process or another mount changes is seen at once, and merged."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.library import Store
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support.editor import BASE, Editor
from tests.support.mounts import Chat, Mounted, message, mounting
from tests.support.ops import append, elsewhere, say_elsewhere, with_chat
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

# ---- changes from elsewhere


def test_what_the_library_appends_is_seen_at_once(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say("hello")
    before = chat.md.stat(), chat.jsonl.stat()
    chat.md.read_bytes()
    with chat.jsonl.open("rb") as reader, chat.md.open("rb") as text:
        reader.read()
        shown = text.read()
        say_elsewhere(mounted, "demo", "trip", "from elsewhere")
        line = wait_for(reader.read)
        assert json.loads(line)["data"]["content"] == "from elsewhere"
        assert os.fstat(text.fileno()).st_size > len(shown)
        assert b"from elsewhere" in text.read()
    after = chat.md.stat(), chat.jsonl.stat()
    assert after[0].st_size == len(chat.md.read_bytes()) > before[0].st_size
    assert after[1].st_size == len(chat.jsonl.read_bytes()) > before[1].st_size
    assert chat.md.read_bytes().endswith(b"from elsewhere\n")
    assert all(new.st_mtime_ns > old.st_mtime_ns for old, new in zip(before, after, strict=True))
    assert b'"messages": 2' in (chat.directory / "chat.json").read_bytes()


def test_an_edit_of_the_same_size_elsewhere_is_seen(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    [identity] = chat.say("hello")
    text = chat.md.read_bytes()
    with chat.md.open("rb", buffering=0) as reader:
        assert reader.read() == text

        async def work(_: StoreWorkspace, found: StoreChat) -> None:
            await found.append_events([{"type": "message.edited", "id": identity, "content": "HELLO"}], "elsewhere")

        with_chat(mounted, "demo", "trip", work)
        wanted = text.replace(b"hello", b"HELLO")
        wait_for(lambda: os.pread(reader.fileno(), 1000, 0) == wanted)
    assert chat.md.read_bytes() == wanted


def test_attachments_from_elsewhere_are_seen(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    assert os.listdir(chat.attachments) == []
    assert not (chat.attachments / "a.txt").exists()

    async def attach(_: StoreWorkspace, found: StoreChat) -> None:
        await found.attach("a.txt", b"first", "elsewhere")

    with_chat(mounted, "demo", "trip", attach)
    wait_for(lambda: os.listdir(chat.attachments) == ["a.txt"])
    attached = chat.attachments / "a.txt"
    inode = attached.stat().st_ino
    assert attached.read_bytes() == b"first"

    async def again(_: StoreWorkspace, found: StoreChat) -> None:
        await found.attach("a.txt", b"FIRST", "elsewhere")
        await found.attach("b.txt", b"second", "elsewhere")

    with_chat(mounted, "demo", "trip", again)
    wait_for(lambda: sorted(os.listdir(chat.attachments)) == ["a.txt", "b.txt"])
    wait_for(lambda: attached.read_bytes() == b"FIRST")
    assert attached.stat().st_ino == inode

    async def move(_: StoreWorkspace, found: StoreChat) -> None:
        await found.rename_attachment("a.txt", "c.txt", "elsewhere")
        await found.remove_attachment("b.txt", "elsewhere")

    with_chat(mounted, "demo", "trip", move)
    wait_for(lambda: os.listdir(chat.attachments) == ["c.txt"])
    assert not attached.exists()
    assert (chat.attachments / "c.txt").read_bytes() == b"FIRST"


def test_chats_and_workspaces_from_elsewhere_are_seen(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chats = workspace.directory / "chats"
    chat = workspace.chat()
    assert not (chats / "new").exists()
    assert not (mounted.mountpoint / "other").exists()

    async def create(store: Store) -> None:
        demo = await store.workspace("demo")
        await demo.create_chat("new", "elsewhere")
        other = await store.create_workspace("other", "elsewhere")
        await other.create_chat("chat", "elsewhere")

    elsewhere(mounted, create)
    wait_for(lambda: (chats / "new" / "history.md").exists())
    wait_for(lambda: os.listdir(mounted.mountpoint / "other" / "chats") == ["chat"])
    assert sorted(os.listdir(mounted.mountpoint)) == ["demo", "other"]
    assert sorted(os.listdir(chats)) == ["new", "trip"]

    async def move(store: Store) -> None:
        demo = await store.workspace("demo")
        await demo.move_chat((await demo.record("trip")).id, Place.CHATS, "journey", "elsewhere")
        await demo.trash_chat((await demo.record("new")).id, "elsewhere")

    with (chats / "trip" / "history.jsonl").open("rb") as reader:
        elsewhere(mounted, move)
        wait_for(lambda: os.listdir(chats) == ["journey"])
        wait_for(lambda: not chat.directory.exists())
        assert not (chats / "new").exists()
        append(chats / "journey" / "history.jsonl", b"1\n")
        assert json.loads(reader.read())["data"] == 1
    assert b'"name": "journey"' in (chats / "journey" / "chat.json").read_bytes()
    assert (workspace.directory / "trash" / "new").is_dir()

    async def rename(store: Store) -> None:
        await store.rename_workspace(await store.workspace("other"), "another", "elsewhere")

    elsewhere(mounted, rename)
    wait_for(lambda: sorted(os.listdir(mounted.mountpoint)) == ["another", "demo"])
    wait_for(lambda: not (mounted.mountpoint / "other").exists())


def test_poll_wakes_a_reader(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    with chat.jsonl.open("rb", buffering=0) as reader:
        reader.read()
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        append(chat.jsonl, b"1\n")
        assert poller.poll(5000)
        assert json.loads(reader.read())["data"] == 1


@pytest.fixture
def two_mounts(tmp_path: Path) -> Iterator[tuple[Mounted, Chat, Chat]]:
    """One store, mounted twice, and one chat as each shows it."""
    with mounting(tmp_path / "a") as first:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "store").symlink_to(first.store)
        chat = first.workspace().chat()
        with mounting(tmp_path / "b") as second:
            directory = second.mountpoint / "demo" / "chats" / "trip"
            yield first, chat, Chat(directory, chat.id, chat.log_file)


def test_two_mounts_of_one_store_see_each_other(two_mounts: tuple[Mounted, Chat, Chat]) -> None:
    _, here, there = two_mounts
    for number in range(5):
        writer, reader = (here, there) if number % 2 else (there, here)
        append(writer.jsonl, message(f"message {number}"))
        assert writer.jsonl.read_bytes() == here.log_file.read_bytes()
        wait_for(lambda: reader.jsonl.read_bytes() == here.log_file.read_bytes())  # noqa: B023 - used at once
        wanted = writer.md.read_bytes()
        assert reader.md.read_bytes() == wanted
        assert reader.md.stat().st_size == len(wanted)
    there.md.write_bytes(there.md.read_bytes().replace(b"message 2", b"MESSAGE 2"))
    assert here.types().count("message.edited") == 1
    wait_for(lambda: here.md.read_bytes() == there.md.read_bytes())
    (here.attachments / "a").write_bytes(b"a")
    wait_for(lambda: os.listdir(there.attachments) == ["a"])
    here.directory.rename(here.directory.with_name("journey"))
    wait_for(lambda: os.listdir(there.directory.parent) == ["journey"])


def test_saves_in_two_mounts_are_merged(two_mounts: tuple[Mounted, Chat, Chat]) -> None:
    _, here, there = two_mounts
    here.md.write_text(BASE)
    first, second = Editor(here.md), Editor(there.md)
    first.read()
    assert second.read() == BASE
    first.replace("one", "ONE")
    second.replace("three", "THREE")
    first.end()
    second.end()
    wanted = BASE.replace("one", "ONE").replace("three", "THREE")
    assert there.md.read_text() == wanted
    wait_for(lambda: here.md.read_text() == wanted)


def test_appenders_in_two_mounts_lose_nothing(two_mounts: tuple[Mounted, Chat, Chat]) -> None:
    _, here, there = two_mounts
    script = 'for n in $(seq 50); do echo "{\\"n\\": $n, \\"by\\": \\"$1\\"}" >> "$0"; done'
    running = [
        subprocess.Popen(["sh", "-c", script, chat.jsonl, by]) for chat, by in ((here, "a"), (there, "b"), (here, "c"))
    ]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    events = here.events()
    for by in "abc":
        assert [event["n"] for event in events if event["by"] == by] == list(range(1, 51))
    assert here.jsonl.read_bytes() == here.log_file.read_bytes()
    wait_for(lambda: there.jsonl.read_bytes() == here.log_file.read_bytes())
