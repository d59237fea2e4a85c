"""What a mount as a whole refuses: writing to a read-only one; and that a damaged chat leaves the others alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Mounted, message, mounting
from tests.support.ops import append, refused, say_elsewhere
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


def test_a_read_only_mount_refuses_every_change(tmp_path: Path) -> None:
    with mounting(tmp_path) as writable:
        workspace = writable.workspace()
        chat = workspace.chat()
        chat.say("hello")
        (chat.attachments / "a").write_bytes(b"a")
        (chat.directory / "scratch").write_bytes(b"s")
        text = chat.md.read_bytes()
    with mounting(tmp_path, "--read-only") as mounted:
        assert chat.md.read_bytes() == text
        assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
        assert (chat.attachments / "a").read_bytes() == b"a"
        changes: list[Callable[[], object]] = [
            lambda: append(chat.jsonl, message("x")),
            lambda: chat.md.write_bytes(b""),
            lambda: append(chat.md, b"x"),
            lambda: os.truncate(chat.md, 0),
            lambda: (chat.directory / "chat.json").write_text("{}"),
            lambda: (chat.directory / "new").write_bytes(b""),
            lambda: (chat.directory / "scratch").unlink(),
            lambda: (chat.attachments / "a").unlink(),
            lambda: (chat.attachments / "a").rename(chat.attachments / "b"),
            lambda: (chat.attachments / "new").touch(),
            lambda: os.chmod(chat.attachments / "a", 0o700),
            lambda: os.utime(chat.attachments / "a"),
            lambda: (chat.directory / "link").symlink_to("x"),
            lambda: chat.directory.rmdir(),
            lambda: chat.directory.rename(chat.directory.with_name("y")),
            lambda: chat.directory.with_name("new").mkdir(),
            lambda: (mounted.mountpoint / "new").mkdir(),
            lambda: chat.md.unlink(),
        ]
        for change in changes:
            with refused(errno.EROFS):
                change()
        before = chat.log_file.read_bytes()
        say_elsewhere(mounted, "demo", "trip", "from a writer elsewhere")
        wait_for(lambda: chat.jsonl.read_bytes() == chat.log_file.read_bytes() != before)
        assert b"from a writer elsewhere" in chat.md.read_bytes()


def test_damage_makes_one_chat_read_only(mounted: Mounted) -> None:
    workspace = mounted.workspace()
    damaged, sound = workspace.chat("damaged"), workspace.chat("sound")
    for chat in (damaged, sound):
        for text in ("one", "two", "three"):
            chat.say(text)
    mounted.unmount()
    log = bytearray(damaged.log_file.read_bytes())
    log[log.index(b"two")] ^= 1
    damaged.log_file.write_bytes(log)
    mounted.expected_trouble += [r"damaged", r"couldn't be saved", r"kept as"]
    mounted.start()

    assert sorted(os.listdir(workspace.directory / "chats")) == ["damaged", "sound"]
    assert b"one" in damaged.md.read_bytes()
    assert b"three" not in damaged.md.read_bytes()
    with refused(errno.EROFS):
        append(damaged.jsonl, message("four"))
    with refused(errno.EROFS):
        damaged.md.write_bytes(b"## user\n\nnew\n")
    assert "damaged" in mounted.stderr
    sound.say("four")
    assert b"four" in sound.md.read_bytes()


def test_a_torn_tail_is_cut_and_the_chat_goes_on(mounted: Mounted) -> None:
    chat = mounted.workspace().chat()
    chat.say("one", "two")
    mounted.unmount()
    sound = chat.log_file.read_bytes()
    with chat.log_file.open("ab") as log:
        log.write(b'{"seq":3,"ts":1,"actor":"x","da')
    mounted.expected_trouble.append("torn|quarantine|partial")
    mounted.start()
    assert chat.jsonl.read_bytes() == sound
    chat.say("three")
    assert [entry.seq for entry in chat.log()] == [1, 2, 3]
    assert b"three" in chat.md.read_bytes()
