"""SIGKILL of the daemon in the middle of things: what a system call had acknowledged is there after the next mount."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.library import Store
from store.workspace_state import Place
from tests.support import ops
from tests.support.mounts import Chat, Mounted, data, message, mounting, read_log
from tests.support.ops import append
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


class Acknowledged:
    """Does `work(0)`, `work(1)`, … in a thread, until it fails; `done` is what returned."""

    def __init__(self, work: Callable[[int], object]) -> None:
        self.done: list[int] = []
        self.error: OSError | None = None
        """What it failed with."""
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        try:
            while True:
                self._work(number)
                self.done.append(number)
                number += 1
        except OSError as error:
            self.error = error

    def reaches(self, count: int) -> None:
        """Wait for so many calls; nothing has failed before."""
        wait_for(lambda: len(self.done) >= count or self.error is not None, what=f"{count} calls")
        if self.error is not None:
            raise AssertionError(f"call {len(self.done)} of {self._work} failed") from self.error

    def end(self) -> list[int]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.done


@contextlib.contextmanager
def killed(mounted: Mounted, after: int, *works: Callable[[int], object]) -> Iterator[list[list[int]]]:
    """Kill the daemon while `works` go on, each having been done `after` times, and mount again."""
    running = [Acknowledged(work) for work in works]
    done: list[list[int]] = []
    try:
        for work in running:
            work.reaches(after)
        mounted.kill()
    finally:
        done += [work.end() for work in running]
    mounted.start()
    yield done


@pytest.mark.parametrize("after", [1, 7, 40])
def test_appended_lines_are_there(mounted: Mounted, after: int) -> None:
    chat = mounted.workspace().chat()
    works = [
        lambda number, by=by: append(chat.jsonl, message(f"{by} {number}") + message(f"{by} {number} b"))
        for by in ("a", "b")
    ]
    with killed(mounted, after, *works) as done:
        contents = [event["content"] for event in data(chat.log())]
        for by, numbers in zip("ab", done, strict=True):
            own = [content for content in contents if content.startswith(by)]
            assert own[: 2 * len(numbers)] == [f"{by} {n}{b}" for n in numbers for b in ("", " b")]
            # The last, which nobody acknowledged, is there as a whole or not at all.
            assert len(own) - 2 * len(numbers) in {0, 2}
        assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
        append(chat.jsonl, message("after"))
        assert data(chat.log())[-1]["content"] == "after"
        assert b"after" in chat.md.read_bytes()


def test_saved_texts_are_there(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    texts = [b"## user\n\nversion %d\n%b" % (number, b"line\n" * (number % 50)) for number in range(10_000)]
    with killed(mounted, 20, lambda number: chat.md.write_bytes(texts[number])) as [done]:
        found = chat.md.read_bytes()
        assert found in texts[len(done) - 1 : len(done) + 1]
        assert chat.md.stat().st_size == len(found)
        chat.md.write_bytes(b"## user\n\nafter\n")
        assert chat.md.read_bytes() == b"## user\n\nafter\n"


def test_attached_files_are_there(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    contents = [b"%d " % number * (1 + number * 997 % 90_000) for number in range(200)]

    def attach(number: int) -> None:
        (chat.attachments / f"{number}").write_bytes(contents[number])

    with killed(mounted, 20, attach) as [done]:
        names = set(os.listdir(chat.attachments))
        assert names - {str(number) for number in done} <= {str(len(done))}
        for number in done:
            assert (chat.attachments / f"{number}").read_bytes() == contents[number]
        attach(199)
        assert (chat.attachments / "199").read_bytes() == contents[199]


def test_made_renamed_and_trashed_chats_are_there(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chats = workspace.directory / "chats"

    def live(number: int) -> None:
        chat = chats / f"new {number}"
        chat.mkdir()
        append(chat / "history.jsonl", message(f"{number}"))
        chat.rename(chats / f"named {number}")
        if number % 2:
            (chats / f"named {number}").rmdir()

    with killed(mounted, 12, live) as [done]:
        listed = set(os.listdir(chats))
        for number in done:
            assert (f"named {number}" in listed) == (number % 2 == 0)
            where = chats if number % 2 == 0 else workspace.directory / "trash"
            assert f"{number}".encode() in (where / f"named {number}" / "history.md").read_bytes()
        (chats / "after").mkdir()
        assert "after" in os.listdir(chats)
        assert read_log(workspace.log_file)


@pytest.mark.parametrize("after", [3, 10, 25])
def test_nobody_waits_for_a_killed_daemon(mounted: Mounted, after: int) -> None:
    """Names change from both sides meanwhile: a notification that waits for a directory would wait for ever."""
    workspace = mounted.workspace()
    chats = workspace.directory / "chats"
    chat = workspace.chat()

    def save(number: int) -> None:
        temporary = chat.directory / "new"
        temporary.write_bytes(b"## user\n\n%d\n" % number)
        temporary.replace(chat.md)

    def make(number: int) -> None:
        (chats / f"made {number}").mkdir()
        (chats / f"made {number}").rmdir()

    def look(number: int) -> None:
        for name in os.listdir(chats):
            with contextlib.suppress(FileNotFoundError):
                os.listdir(chats / name / "attachments")

    async def rename(store: Store) -> None:
        demo = await store.workspace("demo")
        other = await demo.create_chat("other", "elsewhere")
        for number in range(200):
            await demo.move_chat(other.id, Place.CHATS, f"other {number}", "elsewhere")

    elsewhere = threading.Thread(target=ops.elsewhere, args=(mounted, rename))
    elsewhere.start()
    with killed(mounted, after, save, make, look) as [saves, *_]:
        elsewhere.join(60)
        assert not elsewhere.is_alive()
        found = chat.md.read_bytes()
        assert found in {b"## user\n\n%d\n" % number for number in (len(saves) - 1, len(saves))}
        wait_for(lambda: "other 199" in os.listdir(chats))


# ---- what was not saved yet


@contextlib.contextmanager
def unfinished(path: Path, flags: int, content: bytes) -> Iterator[None]:
    """A file that is written and not closed."""
    descriptor = os.open(path, flags, 0o600)
    try:
        if content:
            os.write(descriptor, content)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def chat(mounted: Mounted) -> Chat:
    found = mounted.workspace().chat()
    found.say("hello")
    mounted.expected_trouble.append("unfinished save")
    return found


REPLACE, APPEND, CREATE = os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_CREAT


@pytest.mark.parametrize(
    ("name", "flags", "content"),
    [
        ("history.md", REPLACE, b"## user\n\nunfin"),
        ("history.md", APPEND, b"\n## user\n\nunfin"),
        ("history.md", REPLACE, b"\xff not even UTF-8"),
        ("chat.json", REPLACE, b'{"title": "unf'),
        ("attachments/photo.jpg", CREATE, b"\xff\xd8" * 100_000),
    ],
)
def test_an_unfinished_save_comes_back_beside_the_file(
    mounted: Mounted, chat: Chat, name: str, flags: int, content: bytes
) -> None:
    before = chat.md.read_bytes(), chat.log()
    with unfinished(chat.directory / name, flags, content):
        mounted.kill()
    mounted.start()
    recovered = chat.directory / f"{name.rpartition('/')[2]}.recovered-1"
    assert recovered.read_bytes() == content
    assert (chat.md.read_bytes(), chat.log()) == before
    assert os.listdir(chat.attachments) == []
    assert recovered.name in mounted.stderr
    recovered.unlink()
    mounted.remount()
    assert not recovered.exists()


def test_recovered_ones_get_numbers(mounted: Mounted, chat: Chat) -> None:
    for number in (1, 2):
        with unfinished(chat.md, REPLACE, b"%d" % number):
            mounted.kill()
        mounted.start()
    assert (chat.directory / "history.md.recovered-1").read_bytes() == b"1"
    assert (chat.directory / "history.md.recovered-2").read_bytes() == b"2"


def test_a_synced_part_is_saved_and_only_the_rest_comes_back(mounted: Mounted, chat: Chat) -> None:
    descriptor = os.open(chat.md, REPLACE)
    os.write(descriptor, b"## user\n\nsynced\n")
    os.fsync(descriptor)
    os.write(descriptor, b"not synced\n")
    mounted.kill()
    with contextlib.suppress(OSError):
        os.close(descriptor)
    mounted.start()
    assert chat.md.read_bytes() == b"## user\n\nsynced\n"
    assert (chat.directory / "history.md.recovered-1").read_bytes() == b"## user\n\nsynced\nnot synced\n"


def test_a_closed_save_does_not_come_back(mounted: Mounted, chat: Chat) -> None:
    chat.md.write_bytes(b"## user\n\nsaved\n")
    (chat.attachments / "a").write_bytes(b"saved")
    (chat.directory / "scratch").write_bytes(b"saved")
    mounted.kill()
    mounted.start()
    assert chat.md.read_bytes() == b"## user\n\nsaved\n"
    assert (chat.attachments / "a").read_bytes() == b"saved"
    assert (chat.directory / "scratch").read_bytes() == b"saved"
    assert list(chat.directory.glob("*recovered*")) == []


def test_an_unfinished_line_of_the_log_is_the_writers_still(mounted: Mounted, chat: Chat) -> None:
    """The tail of a line that waits for its newline isn't acknowledged: what was logged is whole."""
    with unfinished(chat.jsonl, APPEND, message("whole") + b'{"role":"us'):
        mounted.kill()
    mounted.start()
    assert [event["content"] for event in data(chat.log())] == ["hello", "whole"]


def test_drafts_of_a_living_mount_are_left_alone(mounted: Mounted, chat: Chat, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "store").symlink_to(mounted.store)
    with unfinished(chat.md, REPLACE, b"## user\n\nin progress\n"):
        with mounting(other) as second:
            assert list((second.mountpoint / "demo" / "chats" / "trip").glob("*recovered*")) == []
        assert chat.types() == []
    assert chat.md.read_bytes() == b"## user\n\nin progress\n"
    assert list(chat.directory.glob("*recovered*")) == []


def test_what_a_dead_mount_left_comes_back_in_another(mounted: Mounted, chat: Chat, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "store").symlink_to(mounted.store)
    with unfinished(chat.md, REPLACE, b"left"):
        mounted.kill()
    with mounting(other) as second:
        second.expected_trouble.append("unfinished save")
        found = second.mountpoint / "demo" / "chats" / "trip" / "history.md.recovered-1"
        assert found.read_bytes() == b"left"
        append(found.with_name("history.jsonl"), message("and on"))
    mounted.start()
    assert b"and on" in chat.md.read_bytes()
