"""A store that isn't whole, mounted: what is broken is said once and read as far as it can be, all else works."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Chat, Mounted, Workspace
from tests.support.waiting import wait_for


def fill(workspace: Workspace, names: list[str]) -> dict[str, Chat]:
    found = {name: workspace.chat(name) for name in names}
    for chat in found.values():
        chat.say(*(f"message {number}" for number in range(30)))
        (chat.attachments / "a.txt").write_bytes(b"attached")
    return found


def flip(path: Path, what: bytes, to: bytes) -> None:
    content = path.read_bytes()
    assert content.count(what) == 1
    path.write_bytes(content.replace(what, to))


def refused(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def append(chat: Chat) -> None:
    with chat.jsonl.open("ab", buffering=0) as log:
        log.write(b'{"role":"user","content":"more"}\n')


def test_damage_in_the_middle_makes_one_chat_read_only(mounted: Mounted) -> None:
    chats = fill(mounted.workspace(), ["sound", "broken"])
    broken, sound = chats["broken"], chats["sound"]
    mounted.unmount()
    flip(broken.log_file, b"message 12", b"message 21")
    mounted.expected_trouble.append("broken|damaged")
    mounted.start()
    text = broken.md.read_bytes()
    assert b"message 11" in text
    assert b"message 13" not in text
    assert broken.jsonl.read_bytes() == broken.log_file.read_bytes()
    assert refused(lambda: append(broken)) == errno.EROFS
    assert refused(lambda: (broken.attachments / "b.txt").write_bytes(b"b")) == errno.EROFS
    assert refused(lambda: broken.md.write_bytes(text + b"\n## user\n\nmore\n")) == errno.EROFS
    for name in ("history.md", "chat.json"):
        assert refused(lambda name=name: os.open(broken.directory / name, os.O_WRONLY)) == errno.EROFS  # type: ignore[misc]
    assert not [name for name in os.listdir(broken.directory) if "recovered" in name]
    append(sound)
    assert sound.md.read_bytes().endswith(b"more\n")
    mounted.workspace("other").chat().say("hello")
    told = [line for line in mounted.stderr.splitlines() if "demo/broken is read-only: the log is damaged" in line]
    assert len(told) == 1

    assert mounted.cli("fsck", "--repair", check=False).returncode == 1
    wait_for(lambda: refused(lambda: append(broken)) is None, what="the repaired chat to take appends")
    assert b"message 13" in broken.md.read_bytes()
    assert broken.md.read_bytes().endswith(b"more\n")
    assert broken.jsonl.read_bytes() == broken.log_file.read_bytes()


def test_damage_in_the_last_batch_is_said(mounted: Mounted) -> None:
    broken = fill(mounted.workspace(), ["broken"])["broken"]
    mounted.unmount()
    shutil.rmtree(broken.log_file.parent / "snapshots", ignore_errors=True)
    flip(broken.log_file, b"attachment.put", b"attachment.pot")
    mounted.expected_trouble.append("broken|damaged")
    mounted.start()
    assert b"message 29" in broken.md.read_bytes()
    assert refused(lambda: append(broken)) == errno.EROFS
    assert "demo/broken is read-only: the log is damaged" in mounted.stderr
    failed = mounted.cli("cat", "demo/broken", check=False)
    assert failed.returncode == 1
    assert b"message 29" in failed.stdout
    assert mounted.cli("fsck", "--repair", check=False).returncode == 1
    wait_for(lambda: refused(lambda: append(broken)) is None, what="the repaired chat to take appends")


@pytest.mark.parametrize("how", ["base", "directory", "gone", "empty", "symlink"])
def test_a_chat_that_cant_be_opened_doesnt_take_others_with_it(mounted: Mounted, how: str, tmp_path: Path) -> None:
    chats = fill(mounted.workspace(), ["sound", "broken"])
    broken, sound = chats["broken"], chats["sound"]
    mounted.unmount()
    shutil.rmtree(broken.log_file.parent / "snapshots", ignore_errors=True)
    if how == "base":
        (broken.log_file.parent / "history.base").write_bytes(b"{nothing")
    else:
        aside = tmp_path / "aside"
        os.rename(broken.log_file, aside)
        if how == "directory":
            broken.log_file.mkdir()
        elif how == "empty":
            broken.log_file.touch()
        elif how == "symlink":
            broken.log_file.symlink_to(aside)
    mounted.expected_trouble.append(r"broken|can't be read|there is no log|Not a directory|Is a directory|symbolic")
    mounted.start()
    assert sorted(os.listdir(sound.directory.parent)) == ["broken", "sound"]
    refused(broken.md.read_bytes)
    refused(lambda: append(broken))
    append(sound)
    assert sound.md.read_bytes().endswith(b"more\n")
    assert (sound.attachments / "a.txt").read_bytes() == b"attached"
    if how == "symlink":
        assert aside.read_bytes().count(b"\n") == 31
    sound.directory.rename(sound.directory.with_name("renamed"))
    mounted.cli("chat", "ls", "demo")


def test_damaged_bytes_of_an_attachment_are_said_once_and_copied_back(mounted: Mounted, tmp_path: Path) -> None:
    chat = mounted.workspace().chat("trip")
    originals = {"small.txt": b"small\n", "long.bin": b"".join(b"%07d\n" % n for n in range(400_000))}
    for name, content in originals.items():
        (tmp_path / name).write_bytes(content)
        (chat.attachments / name).write_bytes(content)
    chat.events()
    mounted.unmount()
    small, *chunks = sorted((mounted.store / "objects").glob("??/*[0-9a-f]*"), key=lambda path: path.suffix)
    for path in (small, next(path for path in chunks if path.suffix == ".chunk")):
        content = path.read_bytes()
        path.write_bytes(content[:5] + b"?" + content[6:])
    mounted.expected_trouble.append("the bytes of demo/trip/attachments")
    mounted.start()

    def unreadable() -> set[str]:
        return {name for name in originals if refused((chat.attachments / name).read_bytes) == errno.EIO}

    assert unreadable() == set(originals)
    assert mounted.cli("fsck", "--repair", check=False).returncode == 4
    events = chat.events()
    assert [(event["type"], event["attachments"]) for event in events] == [
        ("blob.quarantined", [name]) for name in sorted(originals, reverse=True)
    ]
    assert unreadable() == set(originals)
    for name in originals:
        told = [
            line for line in mounted.stderr.splitlines() if f"read: the bytes of demo/trip/attachments/{name}" in line
        ]
        assert len(told) == 1
        assert told[0].endswith("are damaged: attach the same file again, or restore objects/ from a backup")
    assert mounted.cli("fsck", check=False).returncode == 4
    for name, content in originals.items():
        subprocess.run(["cp", tmp_path / name, chat.attachments / name], check=True)
        assert (chat.attachments / name).read_bytes() == content
    assert chat.events() == []
    mounted.cli("fsck")


def test_snapshots_and_index_can_be_deleted_under_a_store(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    chats = fill(workspace, ["one", "two"])
    mounted.cli("search", "message")
    tree = {
        path: path.read_bytes()
        for chat in chats.values()
        for path in (chat.md, chat.jsonl, chat.directory / "chat.json")
    }
    mounted.unmount()
    for index in mounted.store.glob("index.db*"):
        index.unlink()
    for directory in mounted.store.rglob("snapshots"):
        shutil.rmtree(directory)
    mounted.start()
    assert {path: path.read_bytes() for path in tree} == tree
    assert mounted.cli("search", "message").stdout.count(b"history.md:") >= 2
