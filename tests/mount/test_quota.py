"""The quota through mounts: the last byte, files without names, and sixteen writers of every kind at once."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
import trio

from store.driver import Access
from store.library import open_store
from store.workspace import Workspace as StoreWorkspace
from tests.support.mounts import Chat, Mounted, Workspace, message, mounting
from tests.support.ops import opened, refused
from tests.support.quotas import last_byte, on_disk
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[Mounted, Workspace, Chat]]:
    with mounting(tmp_path) as mounted:
        mounted.expected_trouble += ["more don't fit"]
        workspace = mounted.workspace()
        yield mounted, workspace, workspace.chat()


def used(mounted: Mounted) -> int:
    """As the store's library has it, beside the mount."""
    return on_workspace(mounted, lambda workspace: workspace.usage())


def leave(mounted: Mounted, size: int) -> int:
    """Set a quota that leaves about so much; what it leaves."""
    quota = used(mounted) + size
    on_workspace(mounted, lambda workspace: workspace.change("tests", quota_bytes=quota))
    return quota - used(mounted)


def quota_of(mounted: Mounted) -> int:
    """What was set last."""

    async def look(workspace: StoreWorkspace) -> int:
        return (await workspace.load()).quota_bytes

    return on_workspace(mounted, look)


def on_workspace(mounted: Mounted, use: Callable[[StoreWorkspace], Awaitable[T]]) -> T:
    """Use the workspace in this process."""

    async def run() -> T:
        async with open_store(mounted.url) as store:
            return await use(await store.workspace("demo"))

    return trio.run(run)


def fill(path: Path, flags: int = os.O_WRONLY | os.O_CREAT) -> int:
    """Write in pieces, then byte by byte, until nothing fits; how much did."""
    descriptor = os.open(path, flags, 0o600)
    size = 0
    for piece in (1000, 100, 10, 1):
        with refused(errno.EDQUOT):
            while True:
                size += os.write(descriptor, b"x" * piece)
    # The failed write begins where the last good one ended: a file with a hole isn't committed.
    os.ftruncate(descriptor, size)
    with contextlib.suppress(OSError):
        os.close(descriptor)
    return size


def test_a_scratch_file_takes_the_last_byte(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, _workspace, chat = made
    left = leave(mounted, 5000)
    assert fill(chat.directory / ".swp") == left
    assert used(mounted) == on_disk(mounted.store)
    with chat.jsonl.open("ab", buffering=0) as log, refused(errno.EDQUOT):
        log.write(b"1\n")
    assert (chat.directory / ".swp").read_bytes() == b"x" * left
    (chat.directory / ".swp").unlink()
    chat.say("there is room again")
    assert used(mounted) == on_disk(mounted.store)


def test_an_attachment_takes_the_last_byte(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, _workspace, chat = made
    before = used(mounted)
    (chat.attachments / "a").write_bytes(os.urandom(200_000))
    cost = used(mounted) - before
    left = leave(mounted, cost + 500)
    size = 200_000 + left - cost
    assert 200_000 < size < 999_999
    for beyond in (1, 0):
        descriptor = os.open(chat.attachments / "b", os.O_WRONLY | os.O_CREAT, 0o600)
        for start in range(0, size + beyond, 7777):
            os.write(descriptor, os.urandom(min(7777, size + beyond - start)))
        if beyond:
            with refused(errno.EDQUOT):
                os.close(descriptor)
            # That comes after close(2) has returned.
            wait_for((chat.directory / "b.recovered-1").exists)
            wait_for(lambda: used(mounted) == on_disk(mounted.store))  # no blob was made
            (chat.directory / "b.recovered-1").unlink()
        else:
            os.close(descriptor)
    assert used(mounted) == on_disk(mounted.store) == quota_of(mounted)
    with refused(errno.EDQUOT):
        (chat.attachments / "c").write_bytes(b"x")
    assert sorted(os.listdir(chat.attachments)) == ["a", "b"]
    (chat.attachments / "b").unlink()
    assert os.listdir(chat.attachments) == ["a"]


def test_what_has_no_name_any_more_counts_until_it_is_closed(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, _workspace, chat = made
    leave(mounted, 50_000)
    files = []
    for name in ("one", "two", "three"):
        file = (chat.directory / f".{name}").open("wb+", buffering=0)
        if name == "three":
            with refused(errno.EDQUOT):
                file.write(b"x" * 20_000)
        else:
            file.write(b"x" * 20_000)
        (chat.directory / f".{name}").unlink()
        files.append(file)
    replaced = (chat.directory / ".four").open("wb+", buffering=0)
    (chat.directory / ".five").write_bytes(b"")
    replaced.write(b"x" * 5000)
    (chat.directory / ".five").rename(chat.directory / ".four")
    assert used(mounted) == on_disk(mounted.store)
    files[0].seek(0)
    assert files[0].read() == b"x" * 20_000
    for file in (*files, replaced):
        file.close()
    (chat.directory / ".again").write_bytes(b"x" * 45_000)
    assert used(mounted) == on_disk(mounted.store)
    assert list(mounted.store.glob("workspace/**/scratch-unlinked")) == []


def test_a_crash_leaves_nothing_that_counts_for_ever(tmp_path: Path) -> None:
    with Mounted(tmp_path) as mounted:
        chat = mounted.workspace().chat()
        leave(mounted, 50_000)
        unlinked = (chat.directory / ".gone").open("wb", buffering=0)
        unlinked.write(b"x" * 20_000)
        (chat.directory / ".gone").unlink()
        draft = (chat.attachments / "draft").open("wb", buffering=0)
        draft.write(b"x" * 20_000)
        mounted.kill()
        for file in (unlinked, draft):
            with contextlib.suppress(OSError):
                file.close()
        mounted.start()
        assert (chat.directory / "draft.recovered-1").read_bytes() == b"x" * 20_000
        (chat.directory / ".again").write_bytes(b"x" * 29_000)
        assert used(mounted) == on_disk(mounted.store)


def test_a_copy_of_a_chat_costs_its_lines(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, workspace, chat = made
    (chat.attachments / "a").write_bytes(os.urandom(100_000))
    chat.say("hello")
    leave(mounted, 150_000)
    for name in ("copy", "another", "third"):
        subprocess.run(["cp", "-r", chat.directory, workspace.directory / "chats" / name], check=True)
    assert used(mounted) == on_disk(mounted.store)
    assert (workspace.directory / "chats/third/attachments/a").stat().st_size == 100_000


def test_at_the_quota_it_can_be_raised_through_workspace_json(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, workspace, chat = made
    leave(mounted, 2000)
    fill(chat.directory / ".swp")
    with refused(errno.EDQUOT):
        chat.md.write_text("# more\n" * 500)
    path = workspace.directory / "workspace.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"quota_bytes": 1 << 20}))
    chat.md.write_text("# more\n" * 500)
    assert chat.md.read_text() == "# more\n" * 500
    with opened(path, os.O_WRONLY) as descriptor, refused(errno.EFBIG):
        os.pwrite(descriptor, b" ", 2 << 20)


def test_what_is_rejected_is_kept_only_if_it_fits(made: tuple[Mounted, Workspace, Chat]) -> None:
    mounted, _workspace, chat = made
    mounted.expected_trouble += ["was refused"]
    leave(mounted, 3000)
    with refused(errno.EILSEQ):
        chat.md.write_bytes(b"\xff" * 2500)
    assert (chat.directory / "history.md.rejected-1").stat().st_size == 2500
    with refused(errno.EDQUOT), chat.jsonl.open("ab", buffering=0) as log:
        log.write(b'{"unfinished":"' + b"x" * 1000)
    assert used(mounted) == on_disk(mounted.store)
    assert sorted(path.name for path in chat.directory.glob("*rejected*")) == ["history.md.rejected-1"]


# ---- sixteen writers


def by_a_mount(directory: Path, name: str, over: threading.Event) -> None:
    """Every way to add bytes, until each was refused."""
    ways: dict[str, Callable[[int], object]] = {
        "append": lambda number: append(directory / "history.jsonl", message(name * (number % 50))),
        "attach": lambda number: (directory / f"attachments/{name}-{number}").write_bytes(os.urandom(number % 9000)),
        "scratch": lambda number: (directory / f".{name}-{number}").write_bytes(b"x" * (number * 7 % 5000)),
    }
    number = 0
    while ways and not over.is_set():
        number += 1
        for way in list(ways):
            try:
                ways[way](number)
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
                del ways[way]


def append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as log:
        log.write(line)


def by_commands(mounted: Mounted, name: str, file: Path) -> None:
    """`chatfs append` and `chatfs attach` in turn, until one was refused."""
    file.write_bytes(os.urandom(4000))
    while True:
        appended = mounted.cli("append", "demo/trip", given=message(name * 500), check=False)
        attached = mounted.cli("attach", "demo/trip", file, check=False)
        for done in (appended, attached):
            if done.returncode:
                assert b"more don't fit" in done.stderr, done.stderr
                return


def test_sixteen_writers_never_exceed_it(tmp_path: Path) -> None:
    """Processes with the library, commands, and two mounts. What is there is looked at all the while."""
    with mounting(tmp_path / "a") as first, mounting_beside(first) as second:
        for mounted in (first, second):
            mounted.expected_trouble += ["more don't fit"]
        first.workspace().chat()
        quota = 150_000
        first.cli("workspace", "quota", "demo", str(quota))
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.quotas", first.url, f"library-{number}", "fill", "1"],
                cwd=REPOSITORY,
            )
            for number in range(4)
        ]
        over = threading.Event()
        errors: list[BaseException] = []

        def run(function: object, *arguments: object) -> None:
            try:
                function(*arguments)  # type: ignore[operator]
            except BaseException as error:  # noqa: BLE001 - said below
                errors.append(error)

        threads = [
            threading.Thread(
                target=run, args=(by_a_mount, mounted.mountpoint / "demo/chats/trip", f"m{place}{number}", over)
            )
            for place, mounted in enumerate((first, second))
            for number in range(5)
        ]
        threads += [
            threading.Thread(target=run, args=(by_commands, first, f"command-{number}", tmp_path / f"file-{number}"))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        looks = trio.run(look_until, first, quota, threads, processes)
        for thread in threads:
            thread.join(60)
        assert not errors, errors
        assert [process.wait(60) for process in processes] == [0] * 4
        assert looks > 3
        assert quota - 10_000 < used(first) == on_disk(first.store) <= quota
        for mounted in (first, second):
            for path in (mounted.mountpoint / "demo/chats/trip").glob(".m*"):
                path.unlink()
        on_workspace(first, last_byte)
        shown = orjson.loads(first.cli("workspace", "show", "demo", "--json").stdout)
        assert shown["usage_bytes"] == on_disk(first.store) == quota


@contextlib.contextmanager
def mounting_beside(first: Mounted) -> Iterator[Mounted]:
    """Another mount of the same store."""
    root = first.root.parent / "b"
    root.mkdir()
    (root / "store").symlink_to(first.store)
    with mounting(root) as second:
        yield second


async def look_until(
    mounted: Mounted, quota: int, threads: list[threading.Thread], processes: list[subprocess.Popen[bytes]]
) -> int:
    """Measure until all have ended; how often that was."""
    looks = 0
    store_directory = mounted.store
    async with open_store(mounted.url, access=Access.READ) as store:
        workspace = await store.workspace("demo")
        while any(thread.is_alive() for thread in threads) or any(process.poll() is None for process in processes):
            assert await workspace.usage() <= quota
            # Not as chatfs counts, and without drafts: they become objects.
            assert await trio.to_thread.run_sync(on_disk, store_directory, False) <= quota
            looks += 1
            await trio.sleep(0.01)
    return looks
