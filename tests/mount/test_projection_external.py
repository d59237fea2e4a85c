"""Chats that are only in the project's directory, through a mount: listed, read, and taken in by the first write."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from store.model import uuid7
from tests.projection.project import ME, Person, git, say
from tests.support.mounts import Mounted, message, mounting
from tests.support.projects import WORKSPACE, Colleague, bind, copies, make_repository, publish, pulled
from tests.support.waiting import wait_for


@dataclass
class Shared:
    """Ann's mount on a store whose workspace is bound to a clone; Ben has another one."""

    mounted: Mounted
    project: Path
    workspace: str
    ben: Colleague

    @property
    def chats(self) -> Path:
        return self.mounted.mountpoint / WORKSPACE / "chats"

    def in_store(self) -> list[str]:
        """The chats of which the store has a log."""
        return sorted(path.name for path in (self.mounted.store / "workspace" / self.workspace).glob("chats/*"))

    def copy(self, chat: str) -> Path:
        """The directory of the chat with that name in the project."""
        (found,) = wait_for(lambda: copies(self.project, chat), what=f"the copy of {chat}")
        return found

    def pull(self) -> None:
        git(self.project, "pull", "-q", "--no-rebase", "origin", "main")

    def external(self, name: str = "trip") -> Path:
        """A chat that Ben has made and Ann has pulled, in the mount."""

        async def make(ben: Person) -> None:
            chat = await ben.new(name, "hello from ben", "and more")
            await chat.attach("notes.txt", b"ben's notes\n", ME)
            await ben.reconcile()
            (ben.where(chat) / "todo.txt").write_text("unknown to chatfs\n")

        self.ben.does(make)
        self.pull()
        directory = self.chats / name
        wait_for(lambda: name in os.listdir(self.chats), what="the external chat")
        return directory


@contextlib.contextmanager
def sharing(root: Path) -> Iterator[Shared]:
    """Ann's mount and Ben's store, of one project."""
    bare, project = make_repository(root)
    workspace = bind(root / "store", project)
    publish(project)
    ben = Colleague.clone(bare, root / "ben")
    with mounting(root) as mounted:
        yield Shared(mounted, project, workspace, ben)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with sharing(tmp_path) as found:
        yield found


def test_an_external_chat_is_read_in_the_mount(shared: Shared) -> None:
    trip = shared.external()
    assert sorted(os.listdir(trip)) == ["attachments", "chat.json", "history.jsonl", "history.md"]
    assert "hello from ben" in (trip / "history.md").read_text()
    lines = [orjson.loads(line) for line in (trip / "history.jsonl").read_bytes().splitlines()]
    assert [line["data"].get("content") for line in lines][:2] == ["hello from ben", "and more"]
    assert (trip / "attachments/notes.txt").read_bytes() == b"ben's notes\n"
    shown = orjson.loads((trip / "chat.json").read_bytes())
    assert (shown["name"], shown["messages"], shown["presence"]) == ("trip", 2, "external")
    assert shared.in_store() == []
    assert git(shared.project, "status", "--porcelain") == ""


def test_the_first_write_takes_it_in_and_goes_on(shared: Shared) -> None:
    trip = shared.external()
    before = {path: path.stat().st_ino for path in (trip, trip / "history.md", trip / "attachments/notes.txt")}
    with (trip / "history.md").open() as reader:
        assert "hello from ben" in reader.read()
        with (trip / "history.jsonl").open("ab") as log:
            log.write(message("mine"))
        reader.seek(0)
        assert "mine" in reader.read()
    assert {path: path.stat().st_ino for path in before} == before
    assert len(shared.in_store()) == 1
    assert (trip / "attachments/notes.txt").read_bytes() == b"ben's notes\n"
    assert (trip / "todo.txt").read_text() == "unknown to chatfs\n"
    wait_for(lambda: "mine" in (shared.copy("trip") / "history.jsonl").read_text(), what="the copy")
    assert orjson.loads((trip / "chat.json").read_bytes())["presence"] == "projected"


def test_an_editor_that_has_it_open_saves_without_noticing(shared: Shared) -> None:
    text = shared.external() / "history.md"
    before = text.read_text()
    text.write_text(before.replace("and more", "and much more"))
    assert text.read_text() == before.replace("and more", "and much more")
    with (text.parent / "history.jsonl").open() as log:
        assert orjson.loads(log.readlines()[-1])["data"]["type"] == "message.edited"


@contextlib.contextmanager
def editing(text: Path, old: str, new: str, *, within: Path | None = None) -> Iterator[Callable[[], None]]:
    """A process that has read the file, and saves it with a change when told so."""
    program = (
        "import sys; path, old, new = sys.argv[1:]; text = open(path).read(); print('read', flush=True);"
        "input(); open(path, 'w').write(text.replace(old, new))"
    )
    words = [sys.executable, "-c", program, str(text), old, new]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=within) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"

        def save() -> None:
            process.communicate("save\n", timeout=30)
            assert process.returncode == 0

        yield save


@pytest.mark.parametrize("where", ["end", "middle"])
def test_a_save_over_lines_that_were_pulled_meanwhile_keeps_both(shared: Shared, where: str) -> None:
    text = shared.external() / "history.md"
    with editing(text, "hello from ben", "hello from both") as save:
        (theirs,) = copies(shared.ben.directory, "trip")
        lines = (theirs / "history.jsonl").read_bytes().splitlines(keepends=True)
        said = {"type": "message.appended", "id": uuid7(), "role": "user", "content": "a third one"}
        line = orjson.dumps({"ts": orjson.loads(lines[-1])["ts"], "actor": "uid:7/x", "data": said}) + b"\n"
        lines.insert(1 if where == "middle" else len(lines), line)
        (theirs / "history.jsonl").write_bytes(b"".join(lines))
        publish(shared.ben.directory)
        shared.pull()
        wait_for(lambda: "a third one" in text.read_text(), what="what was pulled")
        assert shared.in_store() == []
        save()
    found = text.read_text()
    places = [found.index(words) for words in ("hello from both", "and more", "a third one")]
    assert (places[1] < places[2]) == (where == "end")
    assert "hello from ben" not in found
    assert not list(text.parent.glob("*conflict*"))


def test_a_save_of_one_that_a_checkout_has_taken_away_isnt_lost(shared: Shared) -> None:
    trip = shared.external()
    with editing(Path("history.md"), "hello from ben", "hello from both", within=trip) as save:
        git(shared.project, "checkout", "-q", "HEAD~1")
        wait_for(lambda: not os.listdir(shared.chats), what="the checkout")
        save()
    assert "hello from both" in (trip / "history.md").read_text()
    assert len(shared.in_store()) == 1
    # Nothing is in the way of going back: both are one chat then.
    git(shared.project, "checkout", "-q", "main")
    wait_for(lambda: "hello from both" in (shared.copy("trip") / "history.md").read_text(), what="the copy")
    assert (trip / "attachments/notes.txt").read_bytes() == b"ben's notes\n"


def test_removing_it_removes_it_from_the_project_alone(shared: Shared) -> None:
    trip = shared.external()
    directory = shared.copy("trip")
    subprocess.run(["rm", "-r", str(trip)], check=True)
    assert not trip.exists()
    assert not directory.exists()
    assert shared.in_store() == []
    assert os.listdir(shared.chats) == []


def test_one_attachment_that_is_removed_is_removed_for_good(shared: Shared) -> None:
    trip = shared.external()
    (trip / "attachments/notes.txt").unlink()
    assert not (trip / "attachments/notes.txt").exists()
    wait_for(shared.in_store, what="the import")
    wait_for(lambda: not (shared.copy("trip") / "attachments").exists(), what="the copy's removal")
    assert (trip / "history.md").read_text()
    assert not (trip / "attachments/notes.txt").exists()


def test_renaming_and_archiving_take_it_in(shared: Shared) -> None:
    trip = shared.external()
    ino = trip.stat().st_ino
    trip.rename(shared.chats / "journey")
    assert (shared.chats / "journey").stat().st_ino == ino
    (shared.chats / "journey").rename(shared.chats.parent / "archive/journey")
    assert os.listdir(shared.chats) == []
    wait_for(lambda: b'"place": "archive"' in (shared.copy("journey") / "chat.json").read_bytes(), what="the copy")


def test_a_checkout_takes_it_from_the_listing_and_gives_it_back(shared: Shared) -> None:
    trip = shared.external()
    text = (trip / "history.md").read_text()
    git(shared.project, "checkout", "-q", "HEAD~1")
    wait_for(lambda: not os.listdir(shared.chats), what="the checkout")
    assert not trip.exists()
    git(shared.project, "checkout", "-q", "main")
    wait_for(trip.exists, what="the checkout back")
    assert (trip / "history.md").read_text() == text
    assert shared.in_store() == []


def test_another_process_takes_it_in_while_it_is_open(shared: Shared) -> None:
    trip = shared.external()
    with (trip / "history.md").open() as reader:
        before = reader.read()
        shared.mounted.cli("append", f"{WORKSPACE}/trip", given=message("by another"))
        wait_for(lambda: "by another" in (trip / "history.md").read_text(), what="the append")
        reader.seek(0)
        assert reader.read().startswith(before.rstrip())


@pytest.mark.parametrize("option", ["--append-only", "--read-only"])
def test_mounts_that_may_not_change_chats_never_take_one_in(tmp_path: Path, option: str) -> None:
    pulled(tmp_path)
    with mounting(tmp_path, option) as mounted:
        log = mounted.mountpoint / WORKSPACE / "chats/trip/history.jsonl"
        assert "hello" in log.read_text()
        with pytest.raises(OSError, match=r"Operation not permitted|Read-only file system") as caught:
            log.open("ab")
        assert caught.value.errno == (errno.EPERM if option == "--append-only" else errno.EROFS)
        assert not list((mounted.store / "workspace").glob("*/chats/*"))


def test_what_cp_brings_into_it_is_taken_in(shared: Shared, tmp_path: Path) -> None:
    trip = shared.external()
    new = tmp_path / "new.bin"
    new.write_bytes(os.urandom(100_000))
    shutil.copyfile(new, trip / "attachments/new.bin")
    assert (trip / "attachments/new.bin").read_bytes() == new.read_bytes()
    assert sorted(os.listdir(trip / "attachments")) == ["new.bin", "notes.txt"]
    wait_for(lambda: (shared.copy("trip") / "attachments/new.bin").exists(), what="the copy")


def test_it_is_found_at_once_and_once(shared: Shared) -> None:
    trip = shared.external()

    def hits(words: str) -> list[tuple[str, str]]:
        found = orjson.loads(shared.mounted.cli("search", "--json", words).stdout)
        return [(hit["chat"], hit["kind"]) for hit in found]

    assert hits("notes") == [("trip", "attachment")]

    async def more(ben: Person) -> None:
        await say(await ben.chat("trip"), "walruses")

    shared.ben.does(more)
    shared.pull()
    assert hits("walruses") == [("trip", "message")]
    with (trip / "history.jsonl").open("ab") as log:
        log.write(message("penguins"))
    assert hits("walruses") == hits("penguins") == [("trip", "message")]


def test_one_that_is_removed_isnt_found(shared: Shared) -> None:
    trip = shared.external()
    assert b"trip" in shared.mounted.cli("search", "hello").stdout
    trip.rmdir()
    assert shared.mounted.cli("search", "hello", check=False).stdout == b""


def test_an_unmount_waits_for_no_more_of_a_removal(shared: Shared) -> None:
    trip = shared.external()
    (trip / "attachments/notes.txt").unlink()
    shared.mounted.unmount()
    assert len(shared.in_store()) == 1
    assert not (shared.copy("trip") / "attachments").exists()
    shared.mounted.start()
    assert os.listdir(trip / "attachments") == []
    assert "hello from ben" in (trip / "history.md").read_text()
