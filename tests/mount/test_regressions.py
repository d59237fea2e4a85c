"""Bugs that were found once: each keeps its name."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from store.chat import Chat as StoreChat
from store.model import ChatId
from store.workspace import Workspace as StoreWorkspace
from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.ops import append, elsewhere, opened, refused, with_chat
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

MEBI = 1 << 20


def test_a_file_removed_while_it_is_committed_stays_removed(chat: Chat) -> None:
    target = chat.attachments / "big.bin"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
    piece = os.urandom(MEBI)
    for _ in range(120):
        os.write(descriptor, piece)
    closing = threading.Thread(target=os.close, args=(descriptor,))
    closing.start()
    target.unlink()
    target.write_bytes(b"another")
    closing.join()
    assert os.listdir(chat.attachments) == ["big.bin"]
    assert target.read_bytes() == b"another"
    assert [event["size"] for event in chat.events() if event["type"] == "attachment.put"][-1] == 7


def test_a_listing_under_way_leaves_no_stale_size(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    with_chat(mounted, "demo", "trip", _fill)
    mounted.remount()
    # Folding 20,000 entries for history.md takes a while: the log moves meanwhile, and the reply comes after.
    words = [sys.executable, "-m", "fusefs", "--store", mounted.url, "append", "demo/trip", "-"]
    line = b'{"role":"user","content":"late"}\n'
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as writer:
        assert writer.stdin is not None
        writer.stdin.write(line)
        writer.stdin.close()
        with os.scandir(chat.directory) as entries:
            assert all(entry.stat().st_size for entry in entries if entry.is_file())
        assert writer.wait(30) == 0
    wait_for(lambda: chat.jsonl.stat().st_size == chat.log_file.stat().st_size, what="the size of the whole log")


async def _fill(_: StoreWorkspace, chat: StoreChat) -> None:
    for _round in range(20):
        await chat.append_lines([b'{"role":"user","content":"%b"}' % (b"y" * 200)] * 1000, "test")


def test_sizes_that_cant_be_are_refused(chat: Chat) -> None:
    target = chat.attachments / "sparse"
    target.write_bytes(b"x")
    with refused(errno.EFBIG):
        os.truncate(target, 8000 << 50)
    with opened(target, os.O_WRONLY) as descriptor, refused(errno.EFBIG):
        os.pwrite(descriptor, b"x", 1 << 40)
    chat.say("hi")
    text = chat.md.read_bytes()
    with opened(chat.md, os.O_RDWR) as descriptor, refused(errno.EFBIG):
        os.ftruncate(descriptor, 1 << 40)
    assert chat.md.read_bytes() == text
    assert target.read_bytes() == b"x"


def test_one_chat_id_in_two_workspaces_is_two_chats(mounted: Mounted) -> None:
    one, two = mounted.workspace("one"), mounted.workspace("two")
    chat = one.chat()
    chat.say("first")
    append(two.directory / "history.jsonl", _created(one))
    twin = two.directory / "chats" / "trip"
    assert (twin / "history.jsonl").read_bytes() == b""
    append(twin / "history.jsonl", b'{"role":"user","content":"second"}\n')
    assert len(chat.log()) == 1
    assert b"second" in (twin / "history.md").read_bytes()


def _created(workspace: Workspace) -> bytes:
    lines = (workspace.directory / "history.jsonl").read_bytes().splitlines(keepends=True)
    return next(line for line in lines if b'"chat.created"' in line)


def test_a_line_with_an_impossible_time_doesnt_harm_the_log(chat: Chat) -> None:
    with chat.jsonl.open("ab", 0) as log:
        log.write(b'{"seq":1,"ts":1000000000000000000,"actor":"x","data":1}\n')
        log.write(b'{"role":"user","content":"after"}\n')
    assert [type(event) for event in chat.events()] == [dict, dict]


def test_scratch_files_count_towards_the_quota(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    mounted.cli("workspace", "quota", "demo", "1M")
    with refused(errno.EDQUOT):
        (chat.md.parent / "any.bin").write_bytes(b"x" * 4 * MEBI)
    assert (chat.md.parent / "any.bin").stat().st_size <= MEBI


def test_a_workspace_removed_elsewhere_is_gone(mounted: Mounted) -> None:
    workspace = mounted.workspace("old")
    assert workspace.directory.is_dir()
    mounted.cli("workspace", "rm", "old")
    wait_for(lambda: not workspace.directory.exists(), what="the workspace to be gone")


def test_an_mtime_beyond_what_a_log_keeps_doesnt_lose_the_file(chat: Chat, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    os.utime(source, (10_413_792_000, 10_413_792_000))
    shutil.copy2(source, chat.attachments / "far")
    assert (chat.attachments / "far").read_bytes() == b"x"
    assert "attachment.put" in chat.types()


def test_an_unfinished_save_comes_back_beside_the_file(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say("hello")
    descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"unfinished")
    mounted.kill()
    with pytest.raises(OSError, match=r"connected|abort"):
        os.close(descriptor)
    mounted.start()
    assert b"hello" in chat.md.read_bytes()
    assert (chat.md.parent / "history.md.recovered-1").read_bytes() == b"unfinished"


def test_a_chat_whose_attachments_were_renamed_can_be_copied(chat: Chat) -> None:
    (chat.attachments / "a").write_bytes(b"a")
    (chat.attachments / "b").write_bytes(b"b")
    (chat.attachments / "a").rename(chat.attachments / "renamed")
    (chat.attachments / "b").unlink()
    copy = chat.directory.with_name("copy")
    subprocess.run(["cp", "-r", chat.directory, copy], check=True)
    assert os.listdir(copy / "attachments") == ["renamed"]
    assert (copy / "attachments" / "renamed").read_bytes() == b"a"
    assert (copy / "history.md").read_bytes() == chat.md.read_bytes()


def test_chats_found_by_their_ids_are_where_they_are(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chat = workspace.chat()
    identity = elsewhere(mounted, _only_chat)
    assert os.readlink(workspace.directory / "by-id" / identity) == "../chats/trip"
    chat.md.parent.rename(workspace.directory / "archive" / "trip")
    assert os.readlink(workspace.directory / "by-id" / identity) == "../archive/trip"


async def _only_chat(store: object) -> ChatId:
    workspace = await store.workspace("demo")  # type: ignore[attr-defined]
    return next(iter(workspace.state.chats))


def test_a_program_with_threads_can_copy_a_chat_file_by_file(chat: Chat, workspace: Workspace) -> None:
    """Whoever brings the log makes the attachments that it names, and takes them to be new: in any of its threads."""
    (chat.attachments / "a.txt").write_bytes(b"a")
    copy = workspace.chat("copy")
    with copy.jsonl.open("wb", buffering=0) as log:
        log.write(chat.jsonl.read_bytes())

    def make() -> int:
        with opened(copy.attachments / "a.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as made:
            return os.write(made, b"a")

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(make).result() == 1
    assert (copy.attachments / "a.txt").read_bytes() == b"a"
