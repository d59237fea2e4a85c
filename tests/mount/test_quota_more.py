"""What counts although it is no plain write: links, drafts of metadata, files that another mount has open."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fusefs.scratch import FILES_MAX
from store.library import open_store
from tests.mount.test_quota import leave, mounting_beside, used
from tests.support.mounts import Chat, Mounted, mounting
from tests.support.ops import opened, refused
from tests.support.quotas import on_disk
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[Mounted, Chat]]:
    with mounting(tmp_path / "a") as mounted:
        mounted.expected_trouble += ["more don't fit"]
        yield mounted, mounted.workspace().chat()


def test_symbolic_links_count(made: tuple[Mounted, Chat]) -> None:
    mounted, chat = made
    left = leave(mounted, 7000)
    for directory, name in ((chat.directory, "link"), (chat.attachments, ".link")):
        (directory / name).symlink_to("t" * (left // 2))
    assert used(mounted) == on_disk(mounted.store)
    with refused(errno.EDQUOT):
        (chat.directory / "another").symlink_to("tt")
    (chat.directory / "link").unlink()
    (chat.directory / "another").symlink_to("tt")


@pytest.mark.parametrize(("place", "area"), [(".", "scratch"), ("attachments", "scratch-attachments")])
def test_empty_files_dont_use_up_the_inodes(made: tuple[Mounted, Chat], place: str, area: str) -> None:
    """With a quota or without one: there are only so many in a directory."""
    mounted, chat = made
    (log,) = mounted.store.glob("workspace/*/chats/*/history.jsonl")
    kept = log.parent / area
    kept.mkdir(mode=0o700)
    (kept / ".first").touch(mode=0o600)
    for number in range(1, FILES_MAX):  # links, which are sooner made
        os.link(kept / ".first", kept / f".{number}")
    directory = chat.directory / place
    first, another = directory / ".first", directory / ".another"
    with refused(errno.EDQUOT):
        another.touch()
    with refused(errno.EDQUOT):
        another.symlink_to("x")
    first.touch()
    first.rename(another)
    (directory / ".1").unlink()
    first.write_bytes(b"x")
    with refused(errno.EDQUOT):
        (directory / ".1").touch()
    # What can't be an entry is kept, where there is room.
    mounted.expected_trouble += ["was refused"]
    with refused(errno.EDQUOT if area == "scratch" else errno.EINVAL), chat.jsonl.open("ab", buffering=0) as log:
        log.write(b'{"unfinished":')


def test_what_is_written_to_chat_json_and_not_saved_counts(made: tuple[Mounted, Chat]) -> None:
    mounted, chat = made
    leave(mounted, 10_000)
    with opened(chat.directory / "chat.json", os.O_WRONLY) as descriptor, refused(errno.EDQUOT):
        os.write(descriptor, b" " * 100_000)
    # The draft goes after close(2) has returned.
    wait_for(lambda: used(mounted) == on_disk(mounted.store))


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_another_mount_has_open_counts_until_it_is_closed(made: tuple[Mounted, Chat], how: str) -> None:
    mounted, chat = made
    leave(mounted, 50_000)
    with mounting_beside(mounted) as second:
        file = (second.mountpoint / "demo/chats/trip/.swp").open("wb+", buffering=0)
        file.write(b"x" * 40_000)
        if how == "removed":
            (chat.directory / ".swp").unlink()
        else:
            (chat.directory / ".new").write_bytes(b"")
            (chat.directory / ".new").rename(chat.directory / ".swp")
        with refused(errno.EDQUOT):
            (chat.directory / ".more").write_bytes(b"x" * 20_000)
        assert used(mounted) == on_disk(mounted.store)
        file.seek(0)
        assert file.read() == b"x" * 40_000
        file.close()
        # The last reference goes after close(2) has returned.
        wait_for(lambda: not list(mounted.store.glob("workspace/**/scratch-unlinked")))
        (chat.directory / ".more").write_bytes(b"x" * 45_000)
        assert used(mounted) == on_disk(mounted.store)


def test_scratch_files_have_no_permissions_that_the_mount_leaves_out(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with mounting(tmp_path, "--umask", "027") as mounted:
            chat = mounted.workspace().chat()
            for path in (chat.directory / "scratch", chat.attachments / ".scratch"):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
                assert stat.S_IMODE(path.stat().st_mode) == 0o640
                path.chmod(0o604)
                assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_the_disk_is_what_a_part_without_a_quota_shows(tmp_path: Path) -> None:
    async def make() -> None:
        async with open_store(f"file://{tmp_path}/store") as store:
            await (await store.create_workspace("demo", "tests")).create_chat("trip", "tests")
            await (await store.workspace("demo")).change("tests", quota_bytes=10_000)

    trio.run(make)
    with mounting(tmp_path, "--root", "demo/trip") as mounted:
        mounted.expected_trouble += ["more don't fit"]
        shown = os.statvfs(mounted.mountpoint)
        assert (shown.f_blocks * shown.f_frsize, shown.f_bavail) == (10_000 // shown.f_frsize * shown.f_frsize, 2)
        mounted.cli("workspace", "quota", "demo", "100")
        assert os.statvfs(mounted.mountpoint).f_blocks == 0
        with refused(errno.EDQUOT):
            (mounted.mountpoint / "x").write_bytes(b"x")
        mounted.cli("workspace", "quota", "demo", "none")
        assert os.statvfs(mounted.mountpoint).f_blocks == os.statvfs(mounted.store).f_blocks
