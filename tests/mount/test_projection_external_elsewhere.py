"""Chats that are only in the project's directory: by their ids, mounted alone, tampered with, and in two mounts."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.mount.test_projection_external import Shared, sharing
from tests.mount.test_two_mounts_authority import Beside
from tests.projection.project import ME, Person, git
from tests.support.mounts import message, mounting
from tests.support.projects import WORKSPACE, copies, pulled
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

LINES = 3000


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with sharing(tmp_path) as found:
        yield found


def test_its_id_leads_to_it_before_and_after_it_is_taken_in(shared: Shared) -> None:
    trip = shared.external()
    id_ = orjson.loads((trip / "chat.json").read_bytes())["id"]
    by_id = shared.chats.parent / "by-id"
    assert os.listdir(by_id) == [id_]
    assert (by_id / id_).readlink() == Path("../chats/trip")
    before = (by_id / id_).lstat().st_ino
    assert (by_id / id_ / "history.md").read_text() == (trip / "history.md").read_text()
    assert shared.in_store() == []
    with (by_id / id_ / "history.jsonl").open("ab") as log:
        log.write(message("mine"))
    assert shared.in_store() == [id_]
    assert (by_id / id_).lstat().st_ino == before
    assert os.listdir(by_id) == [id_]


def test_what_was_removed_in_it_is_so_for_good_when_the_directory_is_synced(shared: Shared) -> None:
    """Else it waits a moment, since an `rm -r` of the whole chat begins so, too."""
    attachments = shared.external() / "attachments"
    (attachments / "notes.txt").unlink()
    directory = os.open(attachments, os.O_RDONLY)
    try:
        os.fsync(directory)
        assert len(shared.in_store()) == 1
        shared.mounted.kill()
    finally:
        os.close(directory)
    shared.mounted.start()
    assert os.listdir(attachments) == []
    assert "hello from ben" in (attachments.parent / "history.md").read_text()


def test_its_id_leads_nowhere_when_a_checkout_has_taken_it_away(shared: Shared) -> None:
    trip = shared.external()
    link = shared.chats.parent / "by-id" / orjson.loads((trip / "chat.json").read_bytes())["id"]
    assert link.is_dir()
    git(shared.project, "checkout", "-q", "HEAD~1")
    wait_for(lambda: not os.listdir(shared.chats), what="the checkout")
    assert not link.is_symlink()
    assert os.listdir(link.parent) == []


def test_a_mount_of_it_alone_takes_it_in(tmp_path: Path) -> None:
    """One that may not write says what to do."""
    project = pulled(tmp_path)
    refused = r"trip is only in the project.*take it in first \(chatfs project sync --import\)"
    with pytest.raises(AssertionError, match=refused), mounting(tmp_path, "--root", f"{WORKSPACE}/trip", "--read-only"):
        pass
    assert not list((tmp_path / "store" / "workspace").glob("*/chats/*"))
    (tmp_path / "stderr").unlink()
    with mounting(tmp_path, "--root", f"{WORKSPACE}/trip") as mounted:
        with (mounted.mountpoint / "history.jsonl").open("ab") as log:
            log.write(message("mine"))
        assert "hello" in (mounted.mountpoint / "history.md").read_text()
    (copy,) = copies(project, "trip")
    assert "mine" in (copy / "history.jsonl").read_text()


def test_a_file_that_was_tampered_with_is_never_shown_as_what_the_log_names(shared: Shared) -> None:
    """Nor in the place of another chat's whose bytes were the same."""
    trip, twin = shared.external(), shared.external("twin")
    shared.mounted.expected_trouble.append(r"isn't what the chat's log says")
    for chat in (trip, twin):
        (chat / "history.md").read_bytes()
    (shared.copy("trip") / "attachments/notes.txt").write_bytes(b"ben's lies!\n")
    assert (twin / "attachments/notes.txt").read_bytes() == b"ben's notes\n"
    (shared.copy("twin") / "attachments/notes.txt").write_bytes(b"ben's LIES!\n")
    with pytest.raises(OSError, match="Input/output error") as caught:
        (trip / "attachments/notes.txt").read_bytes()
    assert caught.value.errno == errno.EIO


def test_two_mounts_take_one_in_at_once(shared: Shared) -> None:
    """Nobody's write is refused because the other's has begun, and there is one chat."""

    async def make(ben: Person) -> None:
        chat = await ben.new("long")
        await chat.append_events([{"role": "user", "content": f"m{number}"} for number in range(LINES)], ME)

    shared.ben.does(make)
    shared.pull()
    with Beside(shared.mounted.root / "second", shared=shared.mounted.store) as other:
        places = [mounted.mountpoint / WORKSPACE / "chats/long" for mounted in (shared.mounted, other)]
        failures: list[OSError] = []
        ready = threading.Barrier(len(places))

        def write(place: Path) -> None:
            wait_for(place.exists, what="the external chat")
            (place / "history.md").read_bytes()
            ready.wait()
            try:
                with (place / "history.jsonl").open("ab") as log:
                    log.write(message(f"by {place.parts[-4]}"))
            except OSError as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(shared.in_store()) == 1
        for place in places:
            wait_for(lambda place=place: place.joinpath("history.md").read_text().count("\nby ") == 2, what="both")
            assert place.joinpath("history.md").read_text().count("\nm") == LINES
        other.unmount()
    assert other.trouble() == []
