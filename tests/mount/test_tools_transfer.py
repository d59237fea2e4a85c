"""Copying whole trees: rsync, tar, git."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Workspace
from tests.support.programs import attempt, run

pytestmark = [pytest.mark.mount, pytest.mark.tools]

GIT = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "test"), ("EMAIL", "test@example.org"))
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory of three files, one of them several chunks long, with odd times and modes."""
    directory = tmp_path / "files"
    directory.mkdir()
    contents = {"a.txt": b"a\n", "b.bin": os.urandom(3_000_000), "with space é.md": b"# x\n"}
    for number, (name, content) in enumerate(contents.items(), start=1):
        path = directory / name
        path.write_bytes(content)
        path.chmod(0o600 + number)
        os.utime(path, ns=(10**18, 10**18 + number))
    return directory


@pytest.fixture
def full(chat: Chat, files: Path, tmp_path: Path) -> Chat:
    """The chat, with the three files attached."""
    run(tmp_path, "cp", "-p", *sorted(files.iterdir()), chat.attachments)
    assert chat.types() == ["attachment.put"] * 3
    return chat


def same_trees(one: Path, other: Path) -> None:
    """Both have the same names, and the files the same bytes, modes and times."""
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*"))
    for name in names:
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
            a, b = (one / name).stat(), (other / name).stat()
            assert (a.st_size, a.st_mode, a.st_mtime_ns) == (b.st_size, b.st_mode, b.st_mtime_ns), name


# ---- rsync


def test_rsync_out_of_the_mount_is_complete_the_first_time(full: Chat, tmp_path: Path) -> None:
    # By default rsync compares whole seconds, and misses a change of the same size within one.
    words = ["rsync", "-a", "--modify-window=-1", "--itemize-changes", f"{full.directory}/", tmp_path / "out"]
    first = run(tmp_path, *words)
    assert len(first.splitlines()) >= 7
    same_trees(full.directory, tmp_path / "out")
    assert run(tmp_path, *words) == b""
    full.say("more")
    again = run(tmp_path, *words).decode()
    assert sorted(line.split()[-1] for line in again.splitlines() if line.startswith(">f")) == [
        "chat.json",
        "history.jsonl",
        "history.md",
    ]


@pytest.mark.parametrize("option", ["--times", "--checksum", "--inplace"])
def test_rsync_into_attachments_the_second_time_transfers_nothing(
    chat: Chat, files: Path, tmp_path: Path, option: str
) -> None:
    words = ["rsync", "-a", "--itemize-changes", option, *sorted(files.iterdir()), f"{chat.attachments}/"]
    run(tmp_path, *words)
    same_trees(files, chat.attachments)
    events = chat.events()
    if option == "--inplace":  # sets times and modes after it has closed the file
        events = [event for event in events if event["type"] != "attachment.changed"]
    assert sorted((event["type"], event["name"]) for event in events) == [
        ("attachment.put", name) for name in sorted(os.listdir(files))
    ]
    assert run(tmp_path, *words) == b""
    assert chat.events() == []


def test_rsync_sends_only_the_file_that_changed(full: Chat, files: Path, tmp_path: Path) -> None:
    with (files / "b.bin").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"changed")
    words = ["rsync", "-a", "--no-whole-file", "--itemize-changes", *sorted(files.iterdir()), f"{full.attachments}/"]
    assert [line.split()[-1] for line in run(tmp_path, *words).decode().splitlines()] == ["b.bin"]
    [event] = full.events()
    assert (event["type"], event["name"]) == ("attachment.put", "b.bin")
    same_trees(files, full.attachments)


def test_rsync_mirrors_a_directory_with_delete(full: Chat, files: Path, tmp_path: Path) -> None:
    (files / "a.txt").unlink()
    # The directory has a time and a mode of its own.
    options = ["-a", "--delete", "--omit-dir-times", "--no-perms", "--itemize-changes"]
    words = ["rsync", *options, f"{files}/", f"{full.attachments}/"]
    assert run(tmp_path, *words) == b"*deleting   a.txt\n"
    assert full.events() == [{"type": "attachment.removed", "name": "a.txt"}]
    assert run(tmp_path, *words) == b""


# ---- tar


def test_tar_out_of_the_mount(full: Chat, workspace: Workspace, tmp_path: Path) -> None:
    run(tmp_path, "tar", "-cf", tmp_path / "trip.tar", "--format=posix", "-C", workspace.directory / "chats", "trip")
    run(tmp_path, "tar", "-xpf", tmp_path / "trip.tar")
    same_trees(full.directory, tmp_path / "trip")


def test_tar_into_a_new_chat(full: Chat, workspace: Workspace, tmp_path: Path) -> None:
    chats = workspace.directory / "chats"
    run(tmp_path, "tar", "-cf", tmp_path / "trip.tar", "--format=posix", "-C", chats, "trip")
    run(tmp_path, "tar", "-xpf", tmp_path / "trip.tar", "--transform=s/^trip/copy/", "-C", chats)
    copy = workspace.found("copy")
    assert [entry.data for entry in copy.log()] == [entry.data for entry in full.log()]
    assert copy.md.read_bytes() == full.md.read_bytes()
    same_trees(full.attachments, copy.attachments)


# ---- git


def test_git_diffs_two_chats(workspace: Workspace, chat: Chat, tmp_path: Path) -> None:
    words = ["git", "diff", "--no-index", "--exit-code", "trip/history.md", "copy/history.md"]
    chats = workspace.directory / "chats"
    run(tmp_path, "cp", "-r", "trip", "copy", cwd=chats)
    run(tmp_path, *words, cwd=chats)
    run(tmp_path, "sed", "-i", "s/hi there/good evening/", chats / "copy" / "history.md")
    done = attempt(tmp_path, *words, cwd=chats)
    assert (done.status, done.stderr) == (1, "")
    changed = [
        line for line in done.stdout.decode().splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert changed == ["-hi there", "+good evening"]


def test_git_tracks_a_chat_from_outside(full: Chat, tmp_path: Path) -> None:
    variables = {**GIT, "GIT_DIR": str(tmp_path / "repository"), "GIT_WORK_TREE": str(full.directory)}

    def git(*words: str) -> str:
        return run(tmp_path, "git", *words, cwd=full.directory, variables=variables).decode()

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "-m", "one")
    tracked = git("-c", "core.quotePath=false", "ls-files").splitlines()
    attached = [f"attachments/{name}" for name in os.listdir(full.attachments)]
    assert sorted(tracked) == sorted(["chat.json", "history.jsonl", "history.md", *attached])
    assert git("status", "--porcelain") == ""
    full.say("one more")
    assert git("status", "--porcelain").splitlines() == [" M chat.json", " M history.jsonl", " M history.md"]
    assert "+one more" in git("diff", "history.md").splitlines()
