"""A mount keeps the projects of its workspaces up to date, and hears of what git does there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.projection.project import git
from tests.support.mounts import Mounted, message, mounting
from tests.support.projects import WORKSPACE, bind, copies, make_repository, publish
from tests.support.waiting import wait_for


class Ann:
    """A mount on a store of her own, whose workspace is bound to her clone."""

    def __init__(self, root: Path, *, bare: Path | None = None) -> None:
        self.root = root
        if bare is None:
            self.bare, self.project = make_repository(root)
        else:
            root.mkdir()
            self.bare, self.project = bare, root / "project"
            git(root, "clone", "-q", str(bare), "project")
        self.workspace = bind(root / "store", self.project)
        if bare is None:
            publish(self.project)
        self.mounted = Mounted(root)

    @property
    def chats(self) -> Path:
        (name,) = [name for name in os.listdir(self.mounted.mountpoint) if not name.startswith(".")]
        return self.mounted.mountpoint / name / "chats"

    def new(self, name: str, *texts: str) -> Path:
        directory = self.chats / name
        directory.mkdir()
        for text in texts:
            self.say(directory, text)
        return directory

    def say(self, chat: Path, text: str) -> None:
        with (chat / "history.jsonl").open("ab", buffering=0) as log:
            log.write(message(text))

    def copy(self, name: str) -> Path:
        """The chat's directory in the project."""
        (found,) = wait_for(lambda: copies(self.project, name), what=f"the copy of {name}")
        return found

    def copied(self, name: str) -> str:
        return "".join((each / "history.jsonl").read_text() for each in copies(self.project, name))

    def status(self) -> str:
        return git(self.project, "status", "--porcelain")


@pytest.fixture
def ann(tmp_path: Path) -> Iterator[Ann]:
    found = Ann(tmp_path)
    with found.mounted:
        yield found
        if found.mounted.process is not None:
            found.mounted.unmount()
    assert found.mounted.trouble() == []


def test_what_is_written_follows_and_nothing_else_is_touched(ann: Ann) -> None:
    trip, other = ann.new("trip", "hello"), ann.new("other", "something else")
    wait_for(lambda: "hello" in ann.copied("trip") and "something" in ann.copied("other"), what="both copies")
    publish(ann.project)
    assert ann.status() == ""
    ann.say(trip, "once more")
    wait_for(lambda: "once more" in ann.copied("trip"), what="the copy")
    wait_for(lambda: len(ann.status().splitlines()) == 2, what="the text and the log")
    where = f".chatfs/chats/{ann.copy('trip').name}"
    assert ann.status() == f" M {where}/history.jsonl\n M {where}/history.md\n"
    assert (other / "history.md").read_text()


def test_fsync_projects_at_once(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    ann.copy("trip")
    with (trip / "history.jsonl").open("ab", buffering=0) as log:
        for number in range(5):
            log.write(message(f"number {number}"))
            os.fsync(log.fileno())
            assert f"number {number}" in ann.copied("trip")


def test_an_unmount_projects_what_is_left(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    ann.copy("trip")
    ann.say(trip, "the last word")
    ann.mounted.unmount()
    assert "the last word" in ann.copied("trip")
    publish(ann.project)
    ann.mounted.start()
    assert "the last word" in (ann.chats / "trip/history.md").read_text()
    ann.mounted.unmount()
    assert ann.status() == ""


def test_a_workspace_that_is_bound_while_it_is_mounted(tmp_path: Path) -> None:
    with mounting(tmp_path) as mounted:
        mounted.workspace().chat().say("hello")
        _, project = make_repository(tmp_path)
        mounted.cli("project", "init", project, "--workspace", WORKSPACE)
        wait_for(lambda: copies(project, "trip"), what="the copy")
        shown = mounted.mountpoint / WORKSPACE / "chats/trip/chat.json"
        wait_for(lambda: orjson.loads(shown.read_bytes()).get("presence") == "projected", what="the presence")


def test_a_chat_is_made_local_and_projected_by_its_chat_json(ann: Ann) -> None:
    shown = ann.new("trip", "hello") / "chat.json"
    ann.copy("trip")
    wait_for(lambda: orjson.loads(shown.read_bytes())["presence"] == "projected", what="the presence")

    def make(intent: str) -> None:
        shown.write_bytes(orjson.dumps(orjson.loads(shown.read_bytes()) | {"projection": intent}))
        wait_for(lambda: bool(copies(ann.project, "trip")) == (intent == "projected"), what=f"the chat to be {intent}")
        wait_for(lambda: orjson.loads(shown.read_bytes())["presence"] == intent, what="the presence")
        assert orjson.loads(shown.read_bytes())["projection"] == intent
        assert os.stat(shown).st_size == len(shown.read_bytes())

    make("local")
    make("projected")


def test_a_pull_is_seen_by_readers_and_watchers(ann: Ann, tmp_path: Path) -> None:
    trip = ann.new("trip", "hello")
    wait_for(lambda: "hello" in ann.copied("trip"), what="the copy")
    publish(ann.project)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(ann.bare), "clone")
    (theirs,) = copies(clone, "trip")
    line = {"ts": 1, "actor": "uid:7/other", "data": orjson.loads(message("from elsewhere", id="0198c0de"))}
    with (theirs / "history.jsonl").open("ab") as log:
        log.write(orjson.dumps(line | {"data": line["data"] | {"type": "message.appended"}}) + b"\n")  # type: ignore[operator]
    publish(clone)
    with subprocess.Popen(
        ["inotifywait", "-q", "-e", "modify", "-t", "20", str(trip)], stdout=subprocess.PIPE, text=True
    ) as watcher:
        wait_for(lambda: _watches(watcher.pid), what="the watcher")
        git(ann.project, "pull", "-q", "origin", "main")
        assert watcher.stdout is not None
        assert "MODIFY" in watcher.stdout.read()
    wait_for(lambda: "from elsewhere" in (trip / "history.md").read_text(), what="what was pulled")


def _watches(process: int) -> bool:
    for number in os.listdir(f"/proc/{process}/fdinfo"):
        if "inotify wd:" in Path(f"/proc/{process}/fdinfo/{number}").read_text():
            return True
    return False


def test_a_checkout_of_an_older_commit_takes_nothing_away(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    wait_for(lambda: "hello" in ann.copied("trip"), what="the copy")
    publish(ann.project)
    ann.say(trip, "later")
    wait_for(lambda: "later" in ann.copied("trip"), what="the copy")
    publish(ann.project)
    git(ann.project, "checkout", "-q", "HEAD~1")
    wait_for(lambda: "later" in ann.copied("trip"), what="the longer one to win")
    assert "later" in (trip / "history.md").read_text()


def test_a_killed_daemon_leaves_nothing_that_the_next_doesnt_finish(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    (trip / "attachments/a.bin").write_bytes(os.urandom(300_000))
    dice = random.Random(6)
    said = []
    for round_ in range(4):
        for number in range(dice.randrange(5, 40)):
            said.append(f"word {round_}.{number}")
            ann.say(trip, said[-1])
        (trip / f"attachments/{round_}.txt").write_text(f"attached in round {round_}")
        before = ann.copied("trip")
        if dice.random() < 0.5:
            wait_for(lambda: ann.copied("trip") != before, what="the projection to begin")  # noqa: B023 - at once
        assert ann.mounted.process is not None
        ann.mounted.process.send_signal(signal.SIGKILL)
        ann.mounted.process.wait(30)
        ann.mounted.start()
        trip = ann.chats / "trip"
    wait_for(lambda: said[-1] in ann.copied("trip"), what="the copy")
    ann.mounted.unmount()
    lines = [orjson.loads(line)["data"] for line in ann.copied("trip").splitlines()]
    assert [line["content"] for line in lines if line["type"] == "message.appended"] == ["hello", *said]
    assert sorted(os.listdir(ann.copy("trip") / "attachments")) == ["0.txt", "1.txt", "2.txt", "3.txt", "a.bin"]
    assert not list((ann.project / ".chatfs").rglob(".*.tmp"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files immutable")
def test_a_read_only_project_fails_no_write(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    wait_for(lambda: "hello" in ann.copied("trip"), what="the copy")
    place = str(ann.project / ".chatfs")
    subprocess.run(["chattr", "-R", "+i", place], check=True)
    ann.mounted.expected_trouble.append("isn't projected|Operation not permitted|not permitted")
    try:
        for number in range(3):
            with (trip / "history.jsonl").open("ab", buffering=0) as log:
                log.write(message(f"more {number}"))
                os.fsync(log.fileno())
        wait_for(lambda: "permitted" in ann.mounted.stderr, what="the report")
        assert "more 2" in (trip / "history.md").read_text()
    finally:
        subprocess.run(["chattr", "-R", "-i", place], check=True)
    wait_for(lambda: "more 2" in ann.copied("trip"), what="the copy to follow")
    said = [line for line in ann.mounted.stderr.splitlines() if "permitted" in line]
    assert len(said) == len(set(said))


def test_a_project_that_is_moved_away_and_back(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    wait_for(lambda: "hello" in ann.copied("trip"), what="the copy")
    ann.mounted.expected_trouble.append("isn't there")
    elsewhere = ann.project.with_name("elsewhere")
    ann.project.rename(elsewhere)
    ann.say(trip, "while it was away")
    wait_for(lambda: "isn't there" in ann.mounted.stderr, what="the report")
    assert not ann.project.exists()
    elsewhere.rename(ann.project)
    wait_for(lambda: "while it was away" in ann.copied("trip"), what="the copy to follow")
    assert orjson.loads((trip / "chat.json").read_bytes())["projection"] == "projected"


def test_two_mounts_push_and_pull_while_agents_append(ann: Ann, tmp_path: Path) -> None:
    first = ann.new("trip", "begun")
    wait_for(lambda: "begun" in ann.copied("trip"), what="the copy")
    publish(ann.project)
    ben = Ann(tmp_path / "ben", bare=ann.bare)
    with ben.mounted:
        second = ben.chats / "trip"
        wait_for(second.exists, what="the chat")
        failed: list[BaseException] = []

        def agent(who: Ann, chat: Path, name: str) -> None:
            try:
                for number in range(40):
                    who.say(chat, f"{name} {number}")
            except BaseException as error:  # noqa: BLE001 - told to the test
                failed.append(error)

        agents = [threading.Thread(target=agent, args=args) for args in ((ann, first, "ann"), (ben, second, "ben"))]
        for each in agents:
            each.start()
        for _ in range(2):
            for who in (ann, ben):
                share(who)
        for each in agents:
            each.join()
        assert not failed
        for who, name in ((ann, "ann"), (ben, "ben")):
            wait_for(lambda who=who, name=name: f'"{name} 39"' in who.copied("trip"), what="the copy")
        for who in (ann, ben, ann, ben):
            share(who)
        wanted = {f"{name} {number}" for name in ("ann", "ben") for number in range(40)} | {"begun"}
        texts = wait_for(lambda: _agree(first, second, wanted), what="both to say the same")
        assert len(texts) == len(wanted)
        ben.mounted.unmount()
    assert ben.mounted.trouble() == []


def _said(chat: Path) -> list[str]:
    text = (chat / "history.md").read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _agree(first: Path, second: Path, wanted: set[str]) -> list[str]:
    mine, theirs = _said(first), _said(second)
    return mine if mine == theirs and set(mine) == wanted else []


def share(who: Ann) -> None:
    """Commit, merge and push, as somebody does beside a running mount: what git is in the way of is tried again."""

    def attempt() -> bool:
        git(who.project, "add", "-A", check=False)
        git(who.project, "commit", "-q", "-m", "chats", check=False)
        git(who.project, "pull", "-q", "--no-rebase", "--no-edit", "origin", "main", check=False)
        if (who.project / ".git/MERGE_HEAD").exists():
            git(who.project, "add", "-A")
            git(who.project, "commit", "-q", "--no-edit")
        git(who.project, "push", "-q", "origin", "HEAD:main", check=False)
        return git(who.project, "rev-parse", "HEAD").strip() in git(who.project, "ls-remote", "origin", "main")

    wait_for(attempt, 30, what="a push")


def test_another_mount_goes_on_when_the_one_that_projects_has_ended(ann: Ann, tmp_path: Path) -> None:
    trip = ann.new("trip", "hello")
    ann.copy("trip")
    second = tmp_path / "second"
    second.mkdir()
    (second / "store").symlink_to(ann.mounted.store)
    with mounting(second) as other:
        shown = other.mountpoint / WORKSPACE / "chats/trip"
        wait_for(lambda: orjson.loads((shown / "chat.json").read_bytes()).get("presence") == "projected", what="it")
        ann.say(trip, "by the first")
        ann.mounted.unmount()
        assert "by the first" in ann.copied("trip")
        ann.say(shown, "by the second")
        wait_for(lambda: "by the second" in ann.copied("trip"), what="the second to project")


def test_a_mount_of_one_chat_projects_it(ann: Ann, tmp_path: Path) -> None:
    ann.new("trip", "hello")
    ann.copy("trip")
    ann.mounted.unmount()
    part = Mounted(tmp_path, ("--root", f"{WORKSPACE}/trip"))
    with part:
        ann.say(part.mountpoint, "only this one")
        wait_for(lambda: "only this one" in ann.copied("trip"), what="the copy")
        part.unmount()
    assert part.trouble() == []


def test_a_deleted_directory_leaves_the_chat_in_the_store(ann: Ann) -> None:
    trip = ann.new("trip", "hello")
    wait_for(lambda: "hello" in ann.copied("trip"), what="the copy")
    subprocess.run(["rm", "-r", str(ann.copy("trip"))], check=True)
    wait_for(lambda: orjson.loads((trip / "chat.json").read_bytes())["presence"] == "local", what="the presence")
    assert "hello" in (trip / "history.md").read_text()
