"""What the kernel keeps of the mount is dropped when it is no longer so: names that come, attributes, pages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.library import Store
from store.workspace import Workspace as StoreWorkspace
from store.workspace_state import Place
from tests.support.mounts import Chat, Mounted, mounting
from tests.support.ops import elsewhere, rests, with_chat
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


@pytest.fixture(params=["fusefs", "tests.support.without_epochs"], ids=["epochs", "single names"])
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """A mount that writes every request to its stderr; on this kernel, and on one that knows of no epochs.

    Without announcements to inotify watchers: those go through the mount themselves, and make the kernel look.
    """
    with mounting(tmp_path, "--debug", "--no-inotify", program=request.param) as found:
        found.expected_trouble.append(r"unique: \d+, error: -\d+")
        yield found


def test_a_name_that_is_not_there_is_asked_for_once(traced: Mounted) -> None:
    chat = traced.workspace().chat()
    missing = [chat.directory.parent / "nothing", chat.attachments / "nothing.txt", traced.mountpoint / ".git"]
    for path in missing:
        os.path.lexists(path)
    before = traced.stderr.count("LOOKUP")
    assert before >= len(missing)
    for _ in range(5):
        assert [os.path.lexists(path) for path in missing] == [False] * 3
    assert traced.stderr.count("LOOKUP") == before


def test_a_name_that_comes_from_elsewhere_is_found(traced: Mounted) -> None:
    workspace = traced.workspace()
    chat = workspace.chat()
    chats, archive, trash = (workspace.directory / place for place in ("chats", "archive", "trash"))
    missing = [chats / "journey", archive / "journey", trash / "journey", chat.attachments / "a.txt"]
    assert not any(path.exists() for path in missing)

    async def create(store: Store) -> None:
        demo = await store.workspace("demo")
        await demo.create_chat("journey", "elsewhere")
        await (await demo.chat("trip")).attach("a.txt", b"a", "elsewhere")

    elsewhere(traced, create)
    wait_for((chats / "journey").is_dir)
    wait_for((chat.attachments / "a.txt").is_file)

    async def archived(store: Store) -> None:
        demo = await store.workspace("demo")
        await demo.move_chat((await demo.record("journey")).id, Place.ARCHIVE, "journey", "elsewhere")

    elsewhere(traced, archived)
    wait_for((archive / "journey").is_dir)
    wait_for(lambda: not (chats / "journey").exists())

    async def trashed(store: Store) -> None:
        demo = await store.workspace("demo")
        await demo.trash_chat((await demo.record("journey")).id, "elsewhere")

    elsewhere(traced, trashed)
    wait_for((trash / "journey").is_dir)
    assert not (archive / "journey").exists()


def test_a_name_that_comes_from_here_is_found(traced: Mounted) -> None:
    workspace = traced.workspace()
    chat = workspace.chat()
    chats, archive = workspace.directory / "chats", workspace.directory / "archive"
    for path in (chats / "a", chats / "b", archive / "b", chat.attachments / "x", chat.attachments / "y"):
        assert not path.exists()
    (chats / "a").mkdir()
    assert (chats / "a").is_dir()
    (chats / "a").rename(chats / "b")
    assert (chats / "b").is_dir()
    assert not (chats / "a").exists()
    (chats / "b").rename(archive / "b")
    assert (archive / "b").is_dir()
    (chat.attachments / "x").write_bytes(b"x")
    assert (chat.attachments / "x").read_bytes() == b"x"
    (chat.attachments / "x").rename(chat.attachments / "y")
    assert (chat.attachments / "y").read_bytes() == b"x"
    assert not (chat.attachments / "x").exists()
    (chats / "a").mkdir()
    assert (chats / "a").is_dir()


def test_a_request_that_fails_leaves_no_name_as_missing(traced: Mounted) -> None:
    """mkdir(2) of a name that another process has made a moment before."""
    workspace = traced.workspace()
    chats = workspace.chat().directory.parent
    for number in range(10):
        path = chats / f"new-{number}"
        assert not path.exists()

        async def create(store: Store, name: str = path.name) -> None:
            await (await store.workspace("demo")).create_chat(name, "elsewhere")

        elsewhere(traced, create)
        with pytest.raises(FileExistsError):
            path.mkdir()
        assert path.is_dir()


def test_chat_json_says_the_new_name_at_once(chat: Chat) -> None:
    """The names are of the same length: only the mtime tells that the file is another."""
    directory = chat.directory
    for number in range(100):
        assert json.loads((directory / "chat.json").read_bytes())["name"] == directory.name
        directory = directory.rename(directory.with_name(("tour", "trip")[number % 2]))
    assert json.loads((directory / "chat.json").read_bytes())["name"] == "trip"


@pytest.mark.parametrize("seen_before", [False, True])
def test_touch_does_not_keep_the_old_text(tmp_path: Path, *, seen_before: bool) -> None:
    """utimensat(2)'s reply brings the new mtime: no later stat shows a difference that would make the pages go."""
    with mounting(tmp_path, "--no-inotify") as mounted:
        _touch_after_an_edit(mounted, seen_before=seen_before)


def _touch_after_an_edit(mounted: Mounted, *, seen_before: bool) -> None:
    chat = mounted.workspace().chat()
    [identity] = chat.say("hello")
    wait_for(lambda: rests(chat.md))
    before = chat.md.read_bytes()

    async def edit(_: StoreWorkspace, found: StoreChat) -> None:
        await found.append_events([{"type": "message.edited", "id": identity, "content": "HELLO"}], "elsewhere")

    with_chat(mounted, "demo", "trip", edit)
    if seen_before:
        wait_for(lambda: chat.md.stat().st_mtime_ns and b"HELLO" in chat.md.read_bytes())
    os.utime(chat.md)
    wanted = before.replace(b"hello", b"HELLO")
    wait_for(lambda: rests(chat.md))
    assert chat.md.read_bytes() == wanted


def test_two_readers_of_a_growing_log_see_no_nul_bytes(chat: Chat) -> None:
    """One that asks for the size makes the kernel believe it, before it has dropped the page that another reads."""
    readers = []
    for _ in range(2):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(ready)
                status = _watch(chat.jsonl, told)
            finally:
                os._exit(status)
        os.close(told)
        assert os.read(ready, 1) == b"."
        os.close(ready)
        readers.append(child)
    with chat.jsonl.open("ab", buffering=0) as log:
        for number in range(300):
            log.write(json.dumps({"n": number}).encode() + b"\n")
        log.write(b'"the end"\n')
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in readers] == [0, 0]


def _watch(path: Path, told: int) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    last = b""
    os.write(told, b".")
    while b'"the end"' not in last:
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, 1 << 20, 0)
        if len(text) < size or b"\0" in text or not text.startswith(last) or text[-1:] != b"\n":
            return 1
        last = text
    return 0
