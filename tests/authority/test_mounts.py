"""Two mounts of one store: when the daemon of one is stopped or killed, the other goes on, and both show everything."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import torture
from tests.support.mounts import Chat, Mounted, data, message, mounting
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


class Writer:
    """A thread that appends to history.jsonl through a mount until it is told to end."""

    def __init__(self, name: str, chat: Chat) -> None:
        self.done: list[str] = []
        self.refused: list[str] = []
        """With EROFS: nothing was written."""
        self.unknown: list[str] = []
        """Its daemon was killed."""
        self.errors: list[OSError] = []
        self._name = name
        self._chat = chat
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            word = f"{self._name}-{number}"
            try:
                self._append(word)
                self.done.append(word)
            except OSError as error:
                if error.errno == errno.EROFS:
                    self.refused.append(word)
                    continue
                self.unknown.append(word)
                self.errors.append(error)
                if error.errno not in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT}:
                    return
                self._end.wait(0.01)  # until it is mounted again

    def _append(self, word: str) -> None:
        descriptor = os.open(self._chat.jsonl, os.O_WRONLY | os.O_APPEND)
        try:
            line = message(word)
            assert os.write(descriptor, line) == len(line)
        finally:
            os.close(descriptor)

    def more(self, count: int = 5) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.done) + count
        wait_for(lambda: len(self.done) >= wanted, 30, what=f"{self._name} to go on: {self.errors[-1:]}")

    def end(self) -> None:
        self._end.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def two_mounts(root: Path) -> Iterator[tuple[tuple[Mounted, Chat], tuple[Mounted, Chat]]]:
    """Both of one store, and the same chat in each."""
    other = root / "other"
    other.mkdir()
    program = "tests.authority.short_leases"
    with mounting(root, program=program) as first:
        chat = first.workspace().chat()
        (other / "store").symlink_to(first.store)
        with mounting(other, program=program) as second:
            yield (first, chat), (second, replace(chat, directory=second.mountpoint / "demo" / "chats" / "trip"))


def check(chats: list[Chat], all_writers: list[Writer]) -> None:
    """What was acknowledged is there once and in order, what was refused isn't, and every mount shows the log."""
    entries = chats[0].log()
    said = [event["content"] for event in data(entries)]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len(said) == len(set(said))
    known: set[str] = set()
    for writer in all_writers:
        assert writer.done
        own = [word for word in said if word in {*writer.done}]
        assert own == writer.done
        assert not {*writer.refused} & {*said}
        known |= {*writer.done, *writer.unknown}
    assert {*said} <= known
    for chat in chats:
        text = chat.log_file.read_bytes()
        wait_for(lambda chat=chat, text=text: chat.jsonl.read_bytes() == text, what=f"{chat.jsonl} to be the log")
        assert said[-1].encode() in chat.md.read_bytes()


def stand(mounted: Mounted) -> None:
    """SIGSTOP the daemon."""
    assert mounted.process is not None
    mounted.process.send_signal(signal.SIGSTOP)
    status = Path(f"/proc/{mounted.process.pid}/stat")
    wait_for(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", what="the daemon to stand")


def go_on(mounted: Mounted) -> None:
    assert mounted.process is not None
    mounted.process.send_signal(signal.SIGCONT)


def stop_or_kill(victim: Mounted, other: Writer, *, stop: bool) -> None:
    """The daemon of one mount stands, or is killed, until the writer through the other one has gone on."""
    if not stop:
        victim.expected_trouble.append("unfinished save")
        victim.kill()
        other.more()
        victim.start()
        return
    stand(victim)
    try:
        other.more()
    finally:
        go_on(victim)


@pytest.mark.timeout(3600 if torture.LONG else 120)
def test_one_goes_on_while_the_other_is_stopped_or_killed(tmp_path: Path) -> None:
    choose = torture.seeded("authority of mounts")
    with two_mounts(tmp_path) as both:
        all_writers = [Writer(name, chat) for name, (_, chat) in zip("abc", [*both, both[0]], strict=True)]
        try:
            for number in range(torture.rounds(3, 40)):
                for writer in all_writers:
                    writer.more()
                # One of the first two is the holder.
                at = number if number < 2 else choose.randrange(2)
                stop_or_kill(both[at][0], all_writers[1 - at], stop=number < 2 or choose.random() < 0.5)
            for writer in all_writers:
                writer.more()
        finally:
            for writer in all_writers:
                writer.end()
        check([chat for _, chat in both], all_writers)
