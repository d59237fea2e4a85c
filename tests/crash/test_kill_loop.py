"""SIGKILL at random moments, again and again: what was acknowledged is there, once, after every one.

Writers of all kinds (`tests.support.writers`) work on one chat at the same time, through a mount, the library and the
command line. The daemon, and sometimes a process with the library, is killed among them.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from store import history
from store.fold import fold
from tests.support import promises, torture, writers
from tests.support.ledger import operations
from tests.support.mounts import Chat, Mounted, mounting
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount


class Writer:
    """A writer's process and its ledger."""

    def __init__(self, kind: str, name: str, chat: Chat, mounted: Mounted) -> None:
        self.kind = kind
        self.name = name
        self.ledger = mounted.root / f"{name}.ledger"
        self._complaints = mounted.root / f"{name}.stderr"
        self._command = [sys.executable, writers.__file__, kind, name, str(chat.directory), str(self.ledger)]
        if kind in {"library", "command"}:
            self._command += [mounted.url, "demo", chat.directory.name]
        self._environment = mounted.environment()
        self._start()

    def _start(self) -> None:
        with self._complaints.open("ab") as complaints:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=self._environment,
                bufsize=0,
            )

    def tell(self, command: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command)

    def stopped(self) -> None:
        """Wait for the answer to `STOP`."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        assert ready, f"{self.name} doesn't stop"
        assert self.process.stdout.readline() == b"stopped\n", self._complaints.read_text()

    def kill(self) -> None:
        """SIGKILL, and start another in its place."""
        self.process.kill()
        self.end()
        self._start()

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def in_flight(begun: Iterable[Writer]) -> int:
    return sum(not operation.acknowledged for writer in begun for operation in operations(writer.ledger))


def check_nothing_is_left(chat: Chat, mounted: Mounted, most: int) -> None:
    """After a mount: no draft of a dead process; what came back is at most what was in flight."""
    for label in (mounted.store / "drafts").glob("*.json"):
        with label.open("rb") as file:
            # Those of a killed library have no label, and are swept when they are old, as one without bytes is.
            text = file.read()
            if list(label.parent.glob(f"{label.stem}.*.*")) and json.loads(text)["label"] is not None:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    recovered = list(chat.directory.glob("*.recovered-*"))
    assert len(recovered) <= most
    for path in recovered:
        path.unlink()


def check(chat: Chat, all_writers: list[Writer]) -> None:
    entries = chat.log()
    text = history.render(fold(entries))
    assert chat.md.read_bytes() == text
    assert chat.jsonl.read_bytes() == chat.log_file.read_bytes()
    done = {writer: operations(writer.ledger) for writer in all_writers}
    everything = [operation for those in done.values() for operation in those]
    promises.check_words(entries, text, everything)
    for writer, those in done.items():
        if writer.kind == "texts":
            promises.check_texts(text, writer.name, those)
    names = [name for name in os.listdir(chat.attachments) if not name.startswith(".")]
    promises.check_files(names, lambda name: (chat.attachments / name).read_bytes(), everything)


@pytest.fixture
def working(tmp_path: Path) -> Iterator[tuple[Mounted, Chat, list[Writer]]]:
    """A mount, a chat, and one writer of each kind or two, which wait."""
    started: list[Writer] = []
    with mounting(tmp_path) as mounted:
        chat = mounted.workspace().chat()
        mounted.expected_trouble.append("unfinished save")
        kinds = ["lines", "lines", "texts", "additions", "files", "library", "command"]
        try:
            started += [Writer(kind, f"{kind}{number}", chat, mounted) for number, kind in enumerate(kinds)]
            yield mounted, chat, started
        finally:
            for writer in started:
                writer.end()


def size(all_writers: list[Writer]) -> int:
    return sum(writer.ledger.stat().st_size for writer in all_writers if writer.ledger.exists())


@pytest.mark.slow
@pytest.mark.timeout(7200 if torture.LONG else 180)
def test_what_was_acknowledged_is_there_whenever_it_is_killed(working: tuple[Mounted, Chat, list[Writer]]) -> None:
    mounted, chat, all_writers = working
    choose = torture.seeded("kill")
    unfinished = 0
    for number in range(torture.rounds(10, 200)):
        print(f"round {number}")  # noqa: T201 - shown with a failure
        before = size(all_writers)
        for writer in all_writers:
            writer.tell(writers.GO)
        target = before + choose.randrange(20, 4000)
        wait_for(lambda target=target: size(all_writers) >= target, 60, what="work")
        victims = [writer for writer in all_writers if writer.kind == "library" and choose.random() < 0.3]
        if not victims or choose.random() < 0.7:
            mounted.kill()
        for writer in victims:
            writer.kill()
        living = [writer for writer in all_writers if writer not in victims]
        for writer in living:
            writer.tell(writers.STOP)
        for writer in living:
            writer.stopped()
        if mounted.process is None:
            mounted.start()
            check_nothing_is_left(chat, mounted, in_flight(all_writers) - unfinished)
            unfinished = in_flight(all_writers)
        check(chat, all_writers)
    for writer in all_writers:
        done = [operation for operation in operations(writer.ledger) if operation.acknowledged]
        assert done, f"{writer.name} has done nothing"
