"""Collecting garbage and checking beside a mount that is being written."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import orjson

from tests.support.mounts import Mounted, message
from tests.support.waiting import wait_for

CONTENTS = [b"the same bytes again\n" * 10, b"".join(b"%07d\n" % n for n in range(200_000))]


def make_old(store: Path) -> None:
    """As if all attachments' contents had been there for hours."""
    then = time.time() - 7200
    for path in store.glob("objects/??/*"):
        try:
            os.utime(path, (then, then))
        except FileNotFoundError:
            continue


def test_what_is_attached_at_that_moment_survives(mounted: Mounted):
    """Chats come with the same attachments and go for good, again and again, while the garbage is collected."""
    workspace = mounted.workspace()
    kept: list[Path] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def attach() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                chat = workspace.directory / "chats" / f"c{number}"
                chat.mkdir()
                for index, content in enumerate(CONTENTS):
                    (chat / "attachments" / f"{index}.bin").write_bytes(content)
                if number % 3:
                    for path in (chat / "attachments").iterdir():
                        path.unlink()
                    chat.rmdir()
                else:
                    kept.append(chat)
        except BaseException as error:  # noqa: BLE001 - for the test's thread
            errors.append(error)

    thread = threading.Thread(target=attach)
    thread.start()
    try:
        freed = 0
        for _ in range(4):
            count = len(kept)
            wait_for(lambda count=count: len(kept) > count or errors, 30, what="more chats")
            make_old(mounted.store)
            done = orjson.loads(mounted.cli("gc", "--retention", "0", "--json").stdout)
            freed += done["chats"]["count"]
            assert done["notes"] == []
    finally:
        stop.set()
        thread.join(60)
    assert not errors
    assert freed
    mounted.remount()
    for chat in kept:
        for index, content in enumerate(CONTENTS):
            assert (chat / "attachments" / f"{index}.bin").read_bytes() == content
    found = orjson.loads(mounted.cli("fsck", "--json").stdout)
    assert (found["summary"]["errors"], found["summary"]["warnings"]) == (0, 0), found["findings"]


def test_a_mount_shows_a_log_that_was_repaired_beneath_it(mounted: Mounted):
    mounted.expected_trouble.append("damaged")
    chat = mounted.workspace().chat()
    chat.say("one", "two", "three")
    mounted.unmount()
    chat.log_file.write_bytes(chat.log_file.read_bytes().replace(b'"two"', b'"tWo"'))
    mounted.start()
    assert b"three" not in chat.md.read_bytes()
    assert mounted.cli("fsck", "--repair", check=False).returncode == 1
    wait_for(lambda: b"three" in chat.md.read_bytes(), what="what follows the damage")
    assert b"two" not in chat.md.read_bytes()
    with chat.jsonl.open("ab", buffering=0) as log:
        log.write(message("and on"))
    assert chat.md.read_bytes().endswith(b"and on\n")
    assert mounted.cli("fsck").returncode == 0


def test_a_chat_that_is_collected_vanishes_from_the_mount(mounted: Mounted):
    workspace = mounted.workspace()
    chat = workspace.chat()
    chat.say("bye")
    mounted.cli("chat", "rm", "demo/trip")
    trash = workspace.directory / "trash"
    wait_for(lambda: "trip" in os.listdir(trash), what="the chat in the trash")
    mounted.cli("gc", "--retention", "0")
    wait_for(lambda: "trip" not in os.listdir(trash), what="an empty trash")
    assert not (workspace.directory / "by-id" / chat.id).is_symlink()
    assert not chat.log_file.parent.exists()
