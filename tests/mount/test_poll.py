"""poll(2), select(2) and epoll(7) on history.jsonl: a reader at its end waits until an entry comes, from wherever."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, message, mounting
from tests.support.ops import append, opened, say_elsewhere
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

SECONDS = 20_000
"""Milliseconds that a poll waits for what must come."""


@pytest.fixture
def chat(mounted: Mounted) -> Chat:
    found = mounted.workspace().chat()
    found.say("hello")
    return found


def ready(descriptor: int, timeout: int = 0) -> int:
    """The events that poll(2) finds."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN | select.POLLOUT)
    found = waiting.poll(timeout)
    return found[0][1] if found else 0


def drain(descriptor: int) -> bytes:
    """Read to the end."""
    found = b""
    while piece := os.read(descriptor, 1 << 16):
        found += piece
    return found


@pytest.mark.parametrize("cached", [False, True])
def test_it_is_readable_until_its_end_was_read(chat: Chat, cached: bool) -> None:  # noqa: FBT001 - a parameter
    if cached:
        chat.jsonl.read_bytes()
    with opened(chat.jsonl, os.O_RDONLY) as reader:
        assert ready(reader) == select.POLLIN
        os.read(reader, 10)
        assert ready(reader) == select.POLLIN
        drain(reader)
        assert ready(reader) == 0
        append(chat.jsonl, message("more"))
        assert ready(reader) == select.POLLIN
        assert b"more" in drain(reader)
        assert ready(reader) == 0


def _by_this_mount(mounted: Mounted, chat: Chat) -> None:
    append(chat.jsonl, message("more"))


def _by_saving(mounted: Mounted, chat: Chat) -> None:
    append(chat.md, b"\nmore\n")


def _by_library(mounted: Mounted, chat: Chat) -> None:
    say_elsewhere(mounted, "demo", "trip", "more")


def _by_command(mounted: Mounted, chat: Chat) -> None:
    mounted.cli("append", "demo/trip", given=message("more"))


def _poll(descriptor: int) -> bool:
    return ready(descriptor, SECONDS) == select.POLLIN


def _select(descriptor: int) -> bool:
    return select.select([descriptor], [], [], SECONDS / 1000)[0] == [descriptor]


def _epoll(descriptor: int, flags: int = 0) -> bool:
    with select.epoll() as waiting:
        waiting.register(descriptor, select.EPOLLIN | flags)
        return waiting.poll(SECONDS / 1000) == [(descriptor, select.EPOLLIN)]


def _edge(descriptor: int) -> bool:
    return _epoll(descriptor, select.EPOLLET)


@pytest.mark.parametrize("wait", [_poll, _select, _epoll, _edge])
@pytest.mark.parametrize("change", [_by_this_mount, _by_saving, _by_library, _by_command])
def test_who_waits_wakes_when_an_entry_comes(
    mounted: Mounted, chat: Chat, change: Callable[[Mounted, Chat], None], wait: Callable[[int], bool]
) -> None:
    with opened(chat.jsonl, os.O_RDONLY) as reader:
        drain(reader)
        woken: list[bool] = []
        waiting = threading.Thread(target=lambda: woken.append(wait(reader)))
        waiting.start()
        wait_for(lambda: _sleeps(waiting))
        assert woken == []
        change(mounted, chat)
        waiting.join(30)
        assert woken == [True]
        assert b"more" in drain(reader)
        assert ready(reader) == 0


def _sleeps(thread: threading.Thread) -> bool:
    """Whether a thread waits in a system call for something to come."""
    where = Path(f"/proc/self/task/{thread.native_id}/wchan").read_text()
    return "poll" in where or "select" in where


def test_edges_come_one_for_each_change(mounted: Mounted, chat: Chat) -> None:
    with opened(chat.jsonl, os.O_RDONLY) as reader, select.epoll() as waiting:
        waiting.register(reader, select.EPOLLIN | select.EPOLLET)
        assert waiting.poll(0) == [(reader, select.EPOLLIN)]
        assert waiting.poll(0) == []
        for number in range(5):
            drain(reader)
            say_elsewhere(mounted, "demo", "trip", f"number {number}")
            assert waiting.poll(SECONDS / 1000) == [(reader, select.EPOLLIN)]
            assert waiting.poll(0) == []
            assert f"number {number}".encode() in drain(reader)


def test_levels_stay_until_all_was_read(chat: Chat) -> None:
    with opened(chat.jsonl, os.O_RDONLY) as reader, select.epoll() as waiting:
        waiting.register(reader, select.EPOLLIN)
        size = os.fstat(reader).st_size
        for _ in range(size):
            assert waiting.poll(0) == [(reader, select.EPOLLIN)]
            os.read(reader, 1)
        assert waiting.poll(0) == []


def test_many_wait_at_once(mounted: Mounted, chat: Chat) -> None:
    follower = (
        "import os, select, sys\n"
        "log = os.open(sys.argv[1], os.O_RDONLY)\n"
        "found, waiting = b'', select.poll()\n"
        "waiting.register(log, select.POLLIN)\n"
        "while b'last' not in found:\n"
        "    waiting.poll()\n"
        "    found += os.read(log, 4096)\n"
        "print(found.count(b'number'))\n"
    )
    command = [sys.executable, "-c", follower, str(chat.jsonl)]
    following = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(5)]
    for number in range(50):
        append(chat.jsonl, message(f"number {number}"))
        if number % 10 == 0:
            say_elsewhere(mounted, "demo", "trip", f"number {number} b")
    append(chat.jsonl, message("last"))
    assert [int(process.communicate(timeout=30)[0]) for process in following] == [55] * 5


def test_who_waits_can_be_ended(chat: Chat) -> None:
    command = [sys.executable, "-c", "import select, sys; f = open(sys.argv[1]); f.read(); p = select.poll(); "]
    command[-1] += "p.register(f, select.POLLIN); print(p.poll(0), flush=True); p.poll()"
    with subprocess.Popen([*command, str(chat.jsonl)], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"[]\n"
        waiting.kill()
        assert waiting.wait(10) == -9
    append(chat.jsonl, message("more"))


def test_the_workspaces_log(mounted: Mounted, chat: Chat) -> None:
    with opened(mounted.mountpoint / "demo" / "history.jsonl", os.O_RDONLY) as reader:
        drain(reader)
        assert ready(reader) == 0
        mounted.cli("chat", "new", "demo/new")
        assert ready(reader, SECONDS) == select.POLLIN
        assert b"chat.created" in drain(reader)


def test_a_writer_can_always_write_and_other_files_are_always_ready(chat: Chat) -> None:
    with opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as writer:
        assert ready(writer) & select.POLLOUT
    with opened(chat.md, os.O_RDONLY) as reader:
        drain(reader)
        assert ready(reader) == select.POLLIN | select.POLLOUT
    (chat.attachments / "a").write_bytes(b"a")
    with opened(chat.attachments / "a", os.O_RDONLY) as reader:
        assert ready(reader) == select.POLLIN | select.POLLOUT
    # None of them made the kernel take the whole mount for one that knows no poll.
    with opened(chat.jsonl, os.O_RDONLY) as reader:
        drain(reader)
        assert ready(reader) == 0


def test_a_log_that_became_shorter_wakes_who_waits(mounted: Mounted, chat: Chat) -> None:
    chat.say(*["long " * 100] * 40)
    with opened(chat.jsonl, os.O_RDONLY) as reader:
        drain(reader)
        assert ready(reader) == 0
        mounted.cli("compact", "demo/trip", "--keep", "1")
        assert ready(reader, SECONDS) == select.POLLIN


def test_read_only_mounts_poll_too(tmp_path: Path) -> None:
    with mounting(tmp_path) as mounted:
        mounted.workspace().chat().say("hello")
        mounted.unmount()
        mounted.options = ("--read-only",)
        mounted.start()
        with opened(mounted.mountpoint / "demo" / "chats" / "trip" / "history.jsonl", os.O_RDONLY) as reader:
            drain(reader)
            assert ready(reader) == 0
            say_elsewhere(mounted, "demo", "trip", "more")
            assert ready(reader, SECONDS) == select.POLLIN


def test_a_position_is_seen_of_a_file_whose_name_the_kernel_has_dropped(mounted: Mounted, chat: Chat) -> None:
    new = chat.directory.parent / "new"
    with opened(chat.jsonl, os.O_RDONLY) as reader:
        drain(reader)
        # That it isn't there is kept, until it comes; then the kernel forgets all names.
        assert not new.exists()
        mounted.cli("chat", "new", "demo/new")
        wait_for(new.exists)
        chat.jsonl.stat()
        assert ready(reader) == 0
        os.lseek(reader, 10, os.SEEK_SET)
        assert ready(reader) == select.POLLIN
