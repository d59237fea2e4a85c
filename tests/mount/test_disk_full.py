"""A full disk under the store: ENOSPC, nothing acknowledged is lost, and it goes on once there is room."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.disks import format_ext4, loop_device, mounted_device, needs_loop_devices
from tests.support.mounts import Chat, Mounted, Workspace, data, message, mounting, read_log
from tests.support.ops import append, opened, refused

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


@contextlib.contextmanager
def tmpfs(directory: Path) -> Iterator[None]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "chatfs-test", directory],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextlib.contextmanager
def ext4(directory: Path) -> Iterator[None]:
    """One that allocates late, and keeps its names in blocks, too."""
    needs_loop_devices()
    image = directory.with_name("image")
    format_ext4(image, 3 * SIZE)
    with loop_device(image) as device, mounted_device(device, directory):
        yield


@contextlib.contextmanager
def small_disk(root: Path, kind: Callable[[Path], contextlib.AbstractContextManager[None]]) -> Iterator[SmallDisk]:
    store = root / "store"
    store.mkdir()
    with kind(store), mounting(root) as mounted:
        mounted.expected_trouble.append(r"No space left|ENOSPC|full")
        yield SmallDisk(mounted)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, tmpfs) as found:
        yield found


@pytest.fixture(params=[tmpfs, ext4])
def any_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, request.param) as found:
        yield found


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


# ---- every operation


@dataclass
class Everything:
    """Every operation of a mount, each with how to see that it was done. Numbers make the calls differ."""

    workspace: Workspace
    done: dict[str, list[int]] = field(default_factory=dict)

    @property
    def chat(self) -> Path:
        return self.workspace.directory / "chats" / "trip"

    def prepare(self, count: int) -> None:
        """What the operations move about."""
        for number in range(count):
            for name in ("moving", "kept", "gone", "back"):
                (self.workspace.directory / "chats" / f"{name} {number}").mkdir()
            (self.workspace.directory / "chats" / f"back {number}").rmdir()
            (self.chat / "attachments" / f"from {number}").write_bytes(b"from")

    def do(self, what: str, number: int) -> None:  # noqa: C901 - a table
        chats, archive = self.workspace.directory / "chats", self.workspace.directory / "archive"
        match what:
            case "append":
                append(self.chat / "history.jsonl", message(f"append {number}. " + "x" * 3000))
            case "add":
                append(self.chat / "history.md", f"\n## user\n\nadd {number}. {'x' * 3000}\n".encode())
            case "save":
                text = (self.chat / "history.md").read_bytes()
                (self.chat / "history.md").write_bytes(b"## user\n\nsave %d.\n\n" % number + text)
            case "attach":
                (self.chat / "attachments" / f"attach {number}").write_bytes(b"%d" % number * 100_000)
            case "move an attachment":
                (self.chat / "attachments" / f"from {number}").rename(self.chat / "attachments" / f"to {number}")
            case "edit":
                (self.chat / "chat.json").write_text(json.dumps({"labels": [f"edit {number}"]}))
            case "edit the workspace":
                (self.workspace.directory / "workspace.json").write_text(json.dumps({"labels": [f"edit {number}"]}))
            case "make":
                (chats / f"make {number}").mkdir()
            case "rename":
                (chats / f"moving {number}").rename(chats / f"moved {number}")
            case "archive":
                (chats / f"kept {number}").rename(archive / f"kept {number}")
            case "trash":
                (chats / f"gone {number}").rmdir()
            case "restore":
                (self.workspace.directory / "trash" / f"back {number}").rename(chats / f"restored {number}")
            case "scratch":
                with opened(self.chat / f"scratch {number}", os.O_WRONLY | os.O_CREAT) as descriptor:
                    rest = b"%d" % number * 5_000
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
        self.done.setdefault(what, []).append(number)

    def missing(self) -> list[tuple[str, int]]:
        """What was acknowledged and isn't there."""
        return [
            (what, number) for what, numbers in self.done.items() for number in numbers if not self._there(what, number)
        ]

    def _there(self, what: str, number: int) -> bool:  # noqa: C901 - a table
        directory = self.workspace.directory
        match what:
            case "append" | "add" | "save":
                return (self.chat / "history.md").read_bytes().count(f"{what} {number}.".encode()) == 1
            case "attach":
                return (self.chat / "attachments" / f"attach {number}").read_bytes() == b"%d" % number * 100_000
            case "move an attachment":
                return (self.chat / "attachments" / f"to {number}").read_bytes() == b"from"
            case "edit":
                return number != self.done[what][-1] or self._labels(self.chat / "chat.json", number)
            case "edit the workspace":
                return number != self.done[what][-1] or self._labels(directory / "workspace.json", number)
            case "make":
                return (directory / "chats" / f"make {number}" / "history.md").exists()
            case "rename":
                return (directory / "chats" / f"moved {number}").exists()
            case "archive":
                return (directory / "archive" / f"kept {number}").exists()
            case "trash":
                return (directory / "trash" / f"gone {number}").exists()
            case "restore":
                return (directory / "chats" / f"restored {number}").exists()
            case _:
                return (self.chat / f"scratch {number}").read_bytes() == b"%d" % number * 5_000

    @staticmethod
    def _labels(path: Path, number: int) -> bool:
        return json.loads(path.read_bytes())["labels"] == [f"edit {number}"]


OPERATIONS = [
    *("append", "add", "save", "attach", "move an attachment", "edit", "edit the workspace", "make", "rename"),
    *("archive", "trash", "restore", "scratch"),
]
EACH = 12


@pytest.mark.timeout(180)
def test_every_operation_until_it_is_full_and_on(any_disk: SmallDisk) -> None:
    """Each operation again and again on a disk that fills up, then with room again; at last after a remount."""
    mounted = any_disk.mounted
    mounted.expected_trouble.append("(?!.*Traceback)")
    everything = Everything(mounted.workspace())
    (everything.chat).mkdir()
    everything.prepare(EACH)
    refusals = 0
    for number, what in itertools.product(range(EACH), OPERATIONS):
        if number % 3 == 0 and what == OPERATIONS[0]:
            # Less and less room, and at last none.
            any_disk.fill(leave=max(0, 400_000 - number * 50_000))
        try:
            everything.do(what, number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            refusals += 1
        if number % 3 == 2 and what == OPERATIONS[-1]:
            assert everything.missing() == []
            any_disk.make_room()
            for again in OPERATIONS[:4]:
                everything.do(again, 1000 + number)
            assert everything.missing() == []
    assert refusals > 5
    for log in [everything.workspace.log_file, *everything.workspace.log_file.parent.glob("chats/*/history.jsonl")]:
        entries = read_log(log)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    mounted.remount()
    assert everything.missing() == []
    leftovers = [name for name in os.listdir(everything.chat) if re.search(r"conflict|rejected", name)]
    assert leftovers == []


def test_snapshots_and_the_index_do_without_room(any_disk: SmallDisk) -> None:
    """Both are caches: a full disk takes none, and everything else goes on."""
    mounted = any_disk.mounted
    mounted.expected_trouble.append("(?!.*Traceback)")
    chat = mounted.workspace().chat()
    for start in range(0, 3_000, 500):
        append(chat.jsonl, b"".join(message(f"number {number}") for number in range(start, start + 500)))
    text = chat.md.read_bytes()
    any_disk.fill()
    mounted.remount()
    assert chat.md.read_bytes() == text
    found = mounted.cli("search", "number", check=False)
    assert b"Traceback" not in found.stderr
    any_disk.make_room()
    append(chat.jsonl, message("room again"))
    mounted.remount()
    assert b"room again" in chat.md.read_bytes()
    assert mounted.cli("search", "again").stdout
