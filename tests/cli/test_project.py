"""`chatfs project …`, and what the other commands do in a workspace that has one. Git and processes are real."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from store.projection.manifest import LOCK
from tests.cli.conftest import Cli
from tests.projection.project import git
from tests.support.waiting import wait_for

HELLO = b'{"role":"user","content":"hello"}\n'


@dataclass
class Work:
    """A person's commands, and their clone."""

    cli: Cli
    directory: Path

    @property
    def chats(self) -> Path:
        return self.directory / ".chatfs" / "chats"

    def names(self) -> list[str]:
        """What the chats' directories are called behind the time."""
        return sorted(path.name.partition("-")[2] for path in self.chats.iterdir())

    def lines(self, name: str) -> list[dict[str, Any]]:
        (path,) = self.chats.glob(f"*-{name}/history.jsonl")
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]

    def presence(self, workspace: str = "demo") -> dict[str, str]:
        return {each["name"]: each["presence"] for each in self.cli.json("chat", "ls", workspace)}

    def push(self) -> None:
        git(self.directory, "add", "-A")
        git(self.directory, "commit", "-q", "-m", "chats")
        git(self.directory, "push", "-q", "origin", "HEAD:main")


@pytest.fixture
def ann(cli: Cli, tmp_path: Path) -> Work:
    """With a workspace `demo` whose project has a remote."""
    bare, directory = tmp_path / "bare", tmp_path / "ann"
    for path in (bare, directory):
        path.mkdir()
    git(bare, "init", "-q", "--bare", "-b", "main")
    git(directory, "init", "-q", "-b", "main")
    git(directory, "remote", "add", "origin", str(bare))
    assert cli.run("workspace", "create", "demo", "--project", directory) == "made workspace demo\n"
    return Work(cli, directory)


@pytest.fixture
def ben(ann: Work, tmp_path: Path) -> Work:
    """Who cloned it, when it had a chat `trip` of one message with an attachment."""
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    note = tmp_path / "note.txt"
    note.write_bytes(b"ann's")
    ann.cli.run("attach", "demo/trip", note)
    ann.push()
    directory = tmp_path / "ben"
    git(tmp_path, "clone", "-q", str(tmp_path / "bare"), str(directory))
    root = tmp_path / "home-ben"
    root.mkdir()
    found = Work(Cli(root), directory)
    found.cli.run("project", "init", directory, "--workspace", "demo")
    return found


def test_what_is_written_is_in_the_project_when_the_command_ends(ann: Work) -> None:
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    assert [line["data"]["content"] for line in ann.lines("trip")] == ["hello"]
    ann.cli.run("append", "demo/trip", given=HELLO)
    assert len(ann.lines("trip")) == 2
    ann.cli.run("chat", "rename", "demo/trip", "journey")
    assert ann.names() == ["journey"]
    ann.cli.run("chat", "archive", "demo/journey")
    (metadata,) = ann.chats.glob("*/chat.json")
    assert orjson.loads(metadata.read_bytes())["place"] == "archive"
    ann.cli.run("chat", "rm", "demo/journey")
    assert ann.names() == []
    ann.cli.run("chat", "restore", "demo/journey")
    assert ann.names() == ["journey"]
    assert len(ann.lines("journey")) == 2


def test_a_local_chat_is_never_in_the_project(ann: Work) -> None:
    made = ann.cli.json("chat", "new", "demo/secret", "--local")
    assert (made["projection"], made["presence"]) == ("local", "local")
    ann.cli.run("append", "demo/secret", given=HELLO)
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    assert ann.names() == ["trip"]
    assert ann.presence() == {"secret": "local", "trip": "projected"}
    ann.cli.run("chat", "local", "demo/trip")
    ann.cli.run("chat", "project", "demo/secret")
    assert ann.names() == ["secret"]
    assert ann.presence() == {"secret": "projected", "trip": "local"}
    assert len(ann.lines("secret")) == 1


def test_the_event_that_a_chat_is_local_comes_before_the_chat(ann: Work) -> None:
    ann.cli.run("chat", "new", "demo/secret", "--local")
    (first,) = ann.cli.entries("demo/secret")
    (made,) = [
        orjson.loads(line) for line in ann.cli.run("log", "demo").splitlines() if b"chat.created" in line.encode()
    ]
    assert orjson.loads(first.data) == {"type": "chat.changed", "projection": "local"}
    assert first.ts <= made["ts"]


def test_without_a_project_nothing_is_said_of_one(demo: Cli) -> None:
    assert "LOCAL" not in demo.run("chat", "ls", "demo")
    assert demo.json("chat", "ls", "demo")[0]["presence"] == "local"
    said = demo.run("chat", "project", "demo/trip")
    assert said.endswith("once the workspace has one: see chatfs project init --workspace demo\n")
    said = demo.fails("project", "sync")
    assert said == "no workspace has a project: see chatfs project init"


def test_the_table_says_where_the_copies_are(ben: Work) -> None:
    ben.cli.run("chat", "new", "demo/mine")
    ben.cli.run("chat", "new", "demo/secret", "--local")
    rows = [line.split()[:2] for line in ben.cli.run("chat", "ls", "demo").splitlines()]
    assert rows == [["NAME", "LOCAL"], ["mine", "N"], ["secret", "Y"], ["trip", "ext"]]
    master, slave = pty.openpty()
    try:
        subprocess.run(
            ben.cli.command("chat", "ls", "demo"), env=ben.cli.environment | {"NO_COLOR": ""}, stdout=slave, check=True
        )
        shown = os.read(master, 65536)
    finally:
        os.close(master)
        os.close(slave)
    assert b"\x1b[34mY\x1b[39m" in shown
    assert b"\x1b[35mext\x1b[39m" in shown
    assert b"mN\x1b" not in shown


def test_an_external_chat_can_be_read_and_isnt_imported_by_that(ben: Work) -> None:
    before = git(ben.directory, "status", "--porcelain")
    assert ben.presence() == {"trip": "external"}
    assert "hello" in ben.cli.run("cat", "demo/trip")
    seqs = [orjson.loads(line)["seq"] for line in ben.cli.run("log", "demo/trip").splitlines()]
    assert seqs == [1, 2]
    shown = ben.cli.json("chat", "show", "demo/trip")
    assert (shown["presence"], shown["messages"], shown["attachments"]) == ("external", 1, 1)
    assert ben.cli.json("chat", "ls", "demo", "-l")[0]["messages"] == 1
    assert ben.presence() == {"trip": "external"}
    assert git(ben.directory, "status", "--porcelain") == before == ""
    assert not list(ben.cli.store.glob("workspace/*/chats/*"))


@pytest.mark.parametrize("words", [["append", "demo/trip"], ["attach", "demo/trip", "FILE"]])
def test_writing_to_an_external_chat_imports_it(ben: Work, tmp_path: Path, words: list[str]) -> None:
    (path,) = ben.chats.iterdir()
    (path / "notes.org").write_bytes(b"somebody's")
    note = tmp_path / "more.txt"
    note.write_bytes(b"ben's")
    seqs = [orjson.loads(line)["crc"] for line in ben.cli.run("log", "demo/trip").splitlines()]
    ben.cli.run(*[str(note) if word == "FILE" else word for word in words], given=HELLO)
    assert ben.presence() == {"trip": "projected"}
    assert len(ben.cli.entries("demo/trip")) == 3
    assert len(seqs) == 2
    assert len(ben.lines("trip")) == 3
    (scratch,) = ben.cli.store.glob("workspace/*/chats/*/scratch/notes.org")
    assert scratch.read_bytes() == b"somebody's"
    assert (path / "notes.org").exists()
    assert (path / "attachments" / "note.txt").read_bytes() == b"ann's"


def test_removing_an_external_chat_imports_nothing(ben: Work) -> None:
    said = ben.cli.run("chat", "rm", "demo/trip")
    assert said == "removed chat demo/trip from the project: it was nowhere else\n"
    assert list(ben.chats.iterdir()) == []
    assert not list(ben.cli.store.glob("workspace/*/chats/*"))
    assert not [each for each in ben.cli.store.glob("objects/*/*") if each.is_file()]
    assert ben.presence() == {}
    assert "no chat demo/trip" in ben.cli.fails("cat", "demo/trip")
    assert "the trash has no demo/trip" in ben.cli.fails("chat", "restore", "demo/trip")


def test_two_people_share_a_chat(ann: Work, ben: Work) -> None:
    ben.cli.run("append", "demo/trip", given=HELLO)
    ben.push()
    ann.cli.run("append", "demo/trip", given=HELLO)
    git(ann.directory, "add", "-A")
    git(ann.directory, "commit", "-q", "-m", "mine")
    git(ann.directory, "pull", "-q", "--rebase", "origin", "main")
    said = ann.cli.run("project", "sync", ann.directory)
    assert said == f"{ann.directory}: 1 written, 1 taken in\n"
    ann.push()
    git(ben.directory, "pull", "-q", "origin", "main")
    ben.cli.run("project", "sync", ben.directory)
    assert ann.cli.run("cat", "demo/trip") == ben.cli.run("cat", "demo/trip")
    assert ann.cli.run("cat", "demo/trip").count("hello") == 3


def test_importing_all_that_is_only_in_the_project(ben: Work) -> None:
    said = ben.cli.run("project", "sync", ben.directory, "--import").splitlines()
    assert said[0] == "demo/trip was imported"
    assert ben.presence() == {"trip": "projected"}
    assert len(ben.cli.entries("demo/trip")) == 2


def test_status_says_what_is_wrong(ben: Work) -> None:
    ben.cli.run("append", "demo/mine", "--create", given=HELLO)
    found = ben.cli.json("project", "status", ben.directory)[0]
    assert (found["projected"], found["local"], found["external"]) == (1, 0, ["trip"])
    assert (found["behind"], found["problems"], found["kept_up_by"], found["git"]) == ([], [], None, None)
    (path,) = ben.chats.glob("*-mine/history.jsonl")
    path.write_bytes(path.read_bytes() + b"<<<<<<< ours\n")
    (ben.directory / ".git" / "MERGE_HEAD").write_bytes(b"")
    found = ben.cli.json("project", "status", ben.directory)[0]
    assert found["behind"] == ["mine"]
    assert found["git"] == "a merge isn't committed"
    assert found["problems"] == [f"{path} has a merge conflict at line 2: resolve it (both sides' lines belong there)"]
    assert "problem         " in ben.cli.run("project", "status", ben.directory)
    assert "a merge isn't committed: nothing is projected until then" in ben.cli.fails("project", "sync")
    (ben.directory / ".git" / "MERGE_HEAD").unlink()
    assert "has a merge conflict" in ben.cli.fails("project", "sync", ben.directory)
    shutil.rmtree(ben.directory)
    found = ben.cli.json("project", "status")[0]
    assert [line.partition(": ")[0] for line in found["problems"]] == [f"{ben.directory} isn't there"]


def test_a_command_waits_for_another_and_leaves_it_to_a_mount(ann: Work) -> None:
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    (lock,) = ann.cli.store.glob(f"workspace/*/{LOCK}")
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = ann.cli.begin("append", "demo/trip", stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(HELLO)
        process.stdin.close()
        wait_for(lambda: len(ann.cli.entries("demo/trip")) == 2)
        assert len(ann.lines("trip")) == 1
        fcntl.flock(file, fcntl.LOCK_UN)
        assert process.wait(20) == 0
        assert len(ann.lines("trip")) == 2
        fcntl.flock(file, fcntl.LOCK_EX)
        os.pwrite(file.fileno(), b"follows\n", 0)
        ann.cli.run("append", "demo/trip", given=HELLO)
        assert len(ann.lines("trip")) == 2
    ann.cli.run("append", "demo/trip", given=HELLO)
    assert len(ann.lines("trip")) == 4


def test_a_project_that_cant_follow_fails_no_command(ann: Work) -> None:
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    moved = ann.directory.with_name("moved")
    ann.directory.rename(moved)
    code, out, err = ann.cli.attempt("append", "demo/trip", given=HELLO)
    assert (code, out) == (0, "2\n")
    assert err == (
        f"chatfs: the change is in the store alone: {ann.directory} isn't there: if it was moved, run chatfs project "
        "init where it is now\n"
    )
    moved.rename(ann.directory)
    ann.cli.run("project", "sync", ann.directory)
    assert len(ann.lines("trip")) == 2


def test_a_project_that_lost_its_id_gets_it_back(ann: Work) -> None:
    ann.cli.run("append", "demo/trip", "--create", given=HELLO)
    shutil.rmtree(ann.chats.parent)
    code, _, err = ann.cli.attempt("project", "sync", ann.directory)
    assert (code, err) == (
        1,
        f"chatfs: {ann.directory}/.chatfs/id is missing: restore it, or run chatfs project init {ann.directory}\n",
    )
    code, out, err = ann.cli.attempt("project", "init", ann.directory)
    assert (code, out.startswith("the chats of workspace demo are in ")) == (0, True)
    assert err.startswith("chatfs: demo/trip was deleted in the project: ")
    assert ann.presence() == {"trip": "local"}
    ann.cli.run("chat", "project", "demo/trip")
    assert len(ann.lines("trip")) == 1


def test_binding(cli: Cli, tmp_path: Path) -> None:
    directory = tmp_path / "code"
    (directory / "src").mkdir(parents=True)
    cli.run("workspace", "create", "other")
    assert cli.fails("workspace", "create", "demo", "--project", tmp_path / "none").endswith(
        "none is no directory: make it first"
    )
    cli.run("project", "init", directory)
    assert [each["name"] for each in cli.json("workspace", "ls")] == ["code", "other"]
    assert cli.json("workspace", "show", "code")["project"] == str(directory)
    assert cli.fails("workspace", "create", "demo", "--project", directory) == (
        f"{directory} belongs to a workspace already: chatfs project init {directory} finds it"
    )
    cli.run("project", "init", directory)
    cli.run("workspace", "create", "demo")
    assert "belongs to the workspace code" in cli.fails("project", "init", directory, "--workspace", "demo")
    other = tmp_path / "elsewhere" / "code"
    other.mkdir(parents=True)
    assert cli.fails("project", "init", other) == (
        "there is a workspace 'code' already: if it is meant, add --workspace code, else name another"
    )
    code, _, err = cli.attempt("project", "init", other, "--workspace", "code")
    assert (code, err) == (0, f"chatfs: the project of workspace code was {directory}: that is left as it is\n")
    assert "isn't the project of a workspace here" in cli.fails("project", "status", directory / "src")


def test_the_first_start_of_ones_own_workspace_imports_what_is_there_once(ann: Work, ben: Work) -> None:
    """The project has a chat that the store lost."""
    workspace = ann.cli.json("workspace", "show", "demo")["id"]
    other = Cli(ann.cli.root / "new")
    other.root.mkdir()
    directory = ben.directory.with_name("third")
    git(directory.parent, "clone", "-q", str(directory.parent / "bare"), str(directory))
    other.run("workspace", "create", "demo")
    mine = other.json("workspace", "show", "demo")["id"]
    path = directory / ".chatfs" / "id"
    path.write_text(path.read_text().replace(workspace, mine))
    code, _, err = other.attempt("project", "init", directory)
    assert (code, err) == (0, "chatfs: demo/trip was only in the project: it is in the store now, too\n")
    assert len(other.entries("demo/trip")) == 2
    ann.cli.run("chat", "new", "demo/later")
    ann.push()
    git(directory, "pull", "-q", "origin", "main", "--rebase", "--autostash")
    assert other.run("project", "init", directory).startswith("the chats of workspace demo")
    assert Work(other, directory).presence() == {"trip": "projected", "later": "external"}
