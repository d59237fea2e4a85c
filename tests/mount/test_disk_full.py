"""A full disk under the store: ENOSPC, nothing acknowledged is lost, and it goes on once there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, data, message, mounting
from tests.support.ops import append, refused

pytestmark = pytest.mark.mount

SIZE = 8 << 20


class SmallDisk:
    """A mount whose store is on a file system of 8 MiB."""

    def __init__(self, mounted: Mounted) -> None:
        self.mounted = mounted
        self._ballast = mounted.store / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Use all of the disk but `leave` bytes."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(self._ballast, max(0, self._ballast.stat().st_size - leave))

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    store = tmp_path / "store"
    store.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "chatfs-test", store],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    try:
        with mounting(tmp_path) as mounted:
            mounted.expected_trouble.append(r"No space left|ENOSPC|full")
            yield SmallDisk(mounted)
    finally:
        subprocess.run(["umount", "-l", store], check=True)


@pytest.fixture
def chat(disk: SmallDisk) -> Chat:
    found = disk.mounted.workspace().chat()
    found.say("hello")
    return found


def contents(chat: Chat) -> list[str]:
    return [event["content"] for event in data(chat.log())]


def test_appends_to_the_log(disk: SmallDisk, chat: Chat) -> None:
    disk.fill(leave=100_000)
    accepted = ["hello"]
    with refused(errno.ENOSPC):
        for number in range(1000):
            text = f"{number} " + "x" * 5000
            append(chat.jsonl, message(text))
            accepted.append(text)
    assert len(accepted) > 5
    assert contents(chat) == accepted
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
    with refused(errno.ENOSPC):
        append(chat.jsonl, message("x" * 50_000))
    disk.make_room()
    append(chat.jsonl, message("room again"))
    assert contents(chat) == [*accepted, "room again"]
    disk.mounted.remount()
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
    assert b"room again" in chat.md.read_bytes()


def test_a_batch_is_refused_as_a_whole(disk: SmallDisk, chat: Chat) -> None:
    disk.fill(leave=50_000)
    with refused(errno.ENOSPC):
        append(chat.jsonl, b"".join(message(f"{number}" + "x" * 1000) for number in range(500)))
    assert contents(chat) == ["hello"]
    disk.make_room()
    append(chat.jsonl, message("room again"))
    assert contents(chat) == ["hello", "room again"]
    assert [entry.seq for entry in chat.log()] == [1, 2]


@pytest.mark.parametrize("leave", [0, 20_000, 300_000])
def test_a_save_of_the_text(disk: SmallDisk, chat: Chat, leave: int) -> None:
    before = chat.md.read_bytes()
    disk.fill(leave=leave)
    with refused(errno.ENOSPC):
        chat.md.write_bytes(before + b"\n## user\n\n" + b"x" * 250_000)
    assert contents(chat) == ["hello"]
    disk.make_room()
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
    chat.md.write_bytes(before.replace(b"hello", b"good morning"))
    assert chat.md.read_bytes() == before.replace(b"hello", b"good morning")
    assert chat.types() == ["message.edited"]


def test_a_save_that_fits_nowhere_comes_back_at_the_next_mount(disk: SmallDisk, chat: Chat) -> None:
    disk.mounted.expected_trouble += ["stay a draft", "unfinished save"]
    text = chat.md.read_bytes() + b"\n## user\n\n" + b"x" * 600_000 + b"\n"
    descriptor = os.open(chat.md, os.O_WRONLY | os.O_TRUNC)
    assert os.write(descriptor, text) == len(text)
    disk.fill()
    with refused(errno.ENOSPC):
        os.close(descriptor)
    assert contents(chat) == ["hello"]
    disk.mounted.unmount()
    disk.make_room()
    disk.mounted.start()
    assert (chat.directory / "history.md.recovered-1").read_bytes() == text
    assert b"hello" in chat.md.read_bytes()


def test_an_attachment(disk: SmallDisk, chat: Chat) -> None:
    (chat.attachments / "kept").write_bytes(b"kept" * 1000)
    chat.events()
    disk.fill(leave=100_000)
    path = chat.attachments / "large"
    with refused(errno.ENOSPC):
        path.write_bytes(b"x" * 1_000_000)
    assert os.listdir(chat.attachments) == ["kept"]
    with refused(errno.ENOSPC), (chat.attachments / "kept").open("r+b") as kept:
        kept.write(b"x" * 1_000_000)
    assert (chat.attachments / "kept").read_bytes() == b"kept" * 1000
    assert chat.events() == []
    disk.make_room()
    path.write_bytes(b"x" * 1_000_000)
    assert path.read_bytes() == b"x" * 1_000_000
    assert (chat.attachments / "kept").read_bytes() == b"kept" * 1000


def test_chats_and_scratch(disk: SmallDisk, chat: Chat) -> None:
    disk.fill()
    with refused(errno.ENOSPC):
        (chat.directory / "scratch").write_bytes(b"x" * 100_000)
    with refused(errno.ENOSPC):
        for number in range(1000):
            chat.directory.with_name(f"{number}").mkdir()
    made = os.listdir(chat.directory.parent)
    assert "trip" in made
    disk.make_room()
    chat.directory.with_name("room").mkdir()
    assert os.listdir(chat.directory.parent) == [*made, "room"]
    assert os.listdir(chat.directory.with_name("room"))


def test_what_is_there_can_be_read_from_a_full_disk(disk: SmallDisk, chat: Chat) -> None:
    (chat.attachments / "a").write_bytes(b"a" * 10_000)
    text = chat.md.read_bytes()
    disk.fill()
    disk.mounted.remount()
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
    assert (chat.attachments / "a").read_bytes() == b"a" * 10_000
    assert chat.md.read_bytes() == text
