"""Power cuts at the level of the disk: what was acknowledged as durable is in every image that a cut may leave.

A session runs on ext4 on a disk that records its writes and flushes (`tests.support.disks`). From the records, images
are built as the disk may be found after a cut at any point; each is mounted, which replays ext4's journal, and its
store is opened and looked through. Durable is what a close(2) or an fsync(2) of a mount has acknowledged, and what was
synced through the library.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from store.chat import Chat as StoreChat
from store.errors import NotFound
from store.library import Store, open_store
from tests.support import ops, promises, torture
from tests.support.disks import RecordedDisk, image_after_cut, loop_device, mounted_device, recorded_disk
from tests.support.ledger import Operation
from tests.support.mounts import Mounted, message
from tests.support.ops import EVERYWHERE
from tests.support.writers import content_of

pytestmark = pytest.mark.mount

SIZE = 48 << 20


@dataclass
class Promised:
    """An operation on a chat, and how many records the disk had when it was acknowledged; None: it never was."""

    chat: str
    what: dict[str, Any]
    position: int | None = None


@dataclass
class OnDisk(Mounted):
    """A mount of a store that lies elsewhere."""

    where: Path = Path()

    @property
    def store(self) -> Path:
        return self.where


@dataclass
class Session:
    """Does things on a chat, and notes what was promised."""

    disk: RecordedDisk
    mounted: Mounted
    promised: list[Promised] = field(default_factory=list)
    names: dict[str, set[str]] = field(default_factory=dict)
    """Chat -> the names that it may have from now on."""

    @contextlib.contextmanager
    def operation(self, chat: str, **what: Any) -> Iterator[None]:
        """An operation that is durable once the block has ended."""
        made = Promised(chat, what)
        self.promised.append(made)
        yield
        made.position = self.disk.position()

    def path(self, chat: str) -> Path:
        return self.mounted.mountpoint / "demo" / "chats" / chat

    def lines(self, chat: str, *words: str) -> None:
        with self.operation(chat, kind="lines", words=words):
            ops.append(self.path(chat) / "history.jsonl", b"".join(map(message, words)))

    def text(self, chat: str, number: int) -> None:
        path = self.path(chat) / "history.md"
        before, now = f"me saved {number - 1} times".encode(), f"me saved {number} times".encode()
        text = path.read_bytes()
        text = text.replace(before, now) if before in text else b"## user\n\n" + now + b"\n\n" + text
        with self.operation(chat, kind="texts", number=number):
            if number % 2:
                path.write_bytes(text)
            else:
                beside = path.with_name("beside")
                beside.write_bytes(text)
                beside.replace(path)
                with ops.opened(path, os.O_RDONLY) as descriptor:
                    os.fsync(descriptor)

    def addition(self, chat: str, word: str) -> None:
        with self.operation(chat, kind="additions", words=[word]):
            ops.append(self.path(chat) / "history.md", f"\n## assistant\n\n{word}\n".encode())

    def file(self, chat: str, name: str, word: str) -> None:
        with self.operation(chat, kind="put", name=name, word=word):
            (self.path(chat) / "attachments" / name).write_bytes(content_of(word))

    def elsewhere(self, chat: str, *words: str) -> None:
        async def work(_: object, found: StoreChat) -> None:
            await found.append_events([{"role": "user", "content": word} for word in words], "elsewhere")
            await found.sync()

        with self.operation(chat, kind="lines", words=words):
            ops.with_chat(self.mounted, "demo", chat, work)


def play(session: Session, rounds: int) -> None:
    """The script: every kind of operation, in a few chats."""
    (session.mounted.mountpoint / "demo").mkdir()
    for number in range(rounds):
        chat = f"chat {number % 3}"
        if not session.path(chat).exists():
            session.path(chat).mkdir()
        one = f"w-{number}"
        session.lines(chat, f"{one}a", f"{one}b", f"{one}c")
        session.text(chat, number // 3 + 1)
        session.addition(chat, f"x-{number}a")
        session.file(chat, f"f{number % 2}", one)
        waiting = os.open(session.path(chat) / "history.jsonl", os.O_WRONLY | os.O_APPEND)
        with session.operation(chat, kind="lines", words=[f"y-{number}a"]):
            os.write(waiting, message(f"y-{number}a"))
            session.file(chat, "another", f"y-{number}")
            os.fsync(waiting)
        os.close(waiting)
        session.elsewhere(chat, f"z-{number}a", f"z-{number}b")
        with session.operation(chat, kind="remove", name="another"):
            (session.path(chat) / "attachments" / "another").unlink()
            with ops.opened(session.path(chat) / "history.jsonl", os.O_RDONLY) as descriptor:
                os.fsync(descriptor)
        if number == rounds // 2:
            session.mounted.remount()


def check(store: Path, promised: list[Promised], position: int) -> None:
    """Whatever was durable by then is in the store, which can be worked with."""

    async def look(opened: Store) -> None:
        try:
            workspace = await opened.workspace("demo")
        except NotFound:
            assert not any(made.position is not None and made.position <= position for made in promised)
            return
        for name in {made.chat for made in promised}:
            operations = [
                Operation(made.what, acknowledged=made.position is not None and made.position <= position)
                for made in promised
                if made.chat == name
            ]
            try:
                chat = await workspace.chat(name, EVERYWHERE)
            except NotFound:
                assert not any(operation.acknowledged for operation in operations)
                continue
            state = await chat.load()
            assert chat.space.damage is None
            entries = [entry async for entry in chat.log()]
            text = await chat.text()
            promises.check_words(entries, text, operations)
            promises.check_texts(text, "me", operations)
            contents = {
                attachment: b"".join([piece async for piece in chat.read_attachment(attachment)])
                for attachment in state.attachments
            }
            promises.check_files(contents.keys(), contents.__getitem__, operations)
            last = await chat.append_events([{"role": "user", "content": "and on"}], "test")
            await chat.sync()
            assert last == len(entries) + 1

    async def run() -> None:
        async with open_store(f"file://{store}") as opened:
            await look(opened)

    trio.run(run)


@pytest.mark.timeout(7200 if torture.LONG else 120)
@pytest.mark.parametrize("mode", ["ordered", "writeback"])
def test_what_was_durable_outlives_a_power_cut(tmp_path: Path, mode: str) -> None:
    """In ext4's mode `writeback`, a file may have its new length and not its new bytes."""
    choose = torture.seeded(f"power cut {mode}")
    options = [f"data={mode}"]
    with (
        recorded_disk(tmp_path, SIZE, *options) as disk,
        OnDisk(tmp_path / "mounted", where=disk.directory / "store") as mounted,
    ):
        session = Session(disk, mounted)
        play(session, 12 if torture.LONG else 3)
        mounted.unmount()
    recorded, before = disk.records(), disk.before.read_bytes()
    assert sum(record.is_flush for record in recorded) > 20
    acknowledged = [made.position for made in session.promised if made.position is not None]
    for number in range(torture.rounds(8, 300)):
        # Just when something was promised, or anywhere.
        position = choose.choice(acknowledged) if number % 2 else choose.randrange(len(recorded) + 1)
        print(f"cut {number} after {position} of {len(recorded)} records")  # noqa: T201 - shown with a failure
        image = tmp_path / "after.img"
        image.write_bytes(image_after_cut(before, recorded, position, choose))
        with loop_device(image) as device, mounted_device(device, tmp_path / "after", *options) as directory:
            check(directory / "store", session.promised, position)
