"""Real mounts: chatfs as a process of its own on a fresh `file:` store, and what its logs say on the store's side.

Nothing here reads a log through the mount: `Chat.log` decodes the store's own file, checksums and all, so what a test
says about events holds independently of what the mount shows. For one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from store.codec import decode_lines
from store.model import Entry, Seq
from tests.support.waiting import wait_for

_TROUBLE = re.compile(r"Traceback|Warning|Error|\berror\b|never awaited")
"""What a daemon's stderr must not say, unless the test expects it."""


def read_log(path: Path) -> list[Entry]:
    """All entries of a log file; AssertionError (by way of CorruptLog) unless every line checks."""
    text = path.read_bytes() if path.exists() else b""
    return [entry for entry, _end in decode_lines(text, after=Seq(0), previous_crc=0)]


def data(entries: Iterable[Entry]) -> list[Any]:
    """What the entries say, parsed."""
    return [orjson.loads(entry.data) for entry in entries]


def message(content: str, role: str = "user", **more: object) -> bytes:
    """One line to append to history.jsonl."""
    return orjson.dumps({"role": role, "content": content, **more}) + b"\n"


@dataclass
class Chat:
    """One chat: its directory in the mount, and its log in the store."""

    directory: Path
    id: str
    log_file: Path
    _seen: int = 0

    @property
    def md(self) -> Path:
        return self.directory / "history.md"

    @property
    def jsonl(self) -> Path:
        return self.directory / "history.jsonl"

    @property
    def attachments(self) -> Path:
        return self.directory / "attachments"

    def log(self) -> list[Entry]:
        """Every entry."""
        return read_log(self.log_file)

    def events(self) -> list[Any]:
        """What was logged since the last call (or since the chat was made), parsed."""
        fresh = data(self.log()[self._seen :])
        self._seen += len(fresh)
        return fresh

    def types(self) -> list[str]:
        """The types of `events`."""
        return [event["type"] for event in self.events()]

    def say(self, *contents: str) -> list[str]:
        """Append messages, by user and assistant in turn, through the mount; their ids. `events` won't tell of them."""
        lines = b"".join(message(text, role) for text, role in zip(contents, itertools.cycle(["user", "assistant"])))
        with self.jsonl.open("ab", buffering=0) as log:
            assert log.write(lines) == len(lines)
        return [event["id"] for event in self.events()]


@dataclass
class Workspace:
    """One workspace: its directory in the mount, and its log in the store."""

    directory: Path
    id: str
    store: Path

    @property
    def log_file(self) -> Path:
        return self.store / "workspace" / self.id / "history.jsonl"

    def events(self) -> list[Any]:
        """All that its log says, parsed."""
        return data(read_log(self.log_file))

    def chat(self, name: str = "trip") -> Chat:
        """Make a chat with mkdir(2)."""
        (self.directory / "chats" / name).mkdir()
        return self.found(name)

    def found(self, name: str, where: str = "chats") -> Chat:
        """The chat that the log last gave this name, seen in `where`."""
        named: dict[str, str] = {}
        for event in self.events():
            if event["type"] in {"chat.created", "chat.renamed"}:
                named[event["chat"]] = event["name"]
        chat_id = [chat for chat, its_name in named.items() if its_name == name][-1]
        log_file = self.store / "workspace" / self.id / "chats" / chat_id / "history.jsonl"
        return Chat(self.directory / where / name, chat_id, log_file)


@dataclass
class Mounted:
    """`chatfs mount --foreground` on a store and a mount point under `root`; a context manager that leaves no mount."""

    root: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    expected_trouble: list[str] = field(default_factory=list)
    """Regular expressions of stderr lines that the test provokes."""
    program: str = "fusefs"
    """The module that is run to mount: another one may prepare what the daemon stands on."""

    @property
    def mountpoint(self) -> Path:
        return self.root / "mnt"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def url(self) -> str:
        return f"file://{self.store}"

    @property
    def stderr(self) -> str:
        """All that the daemons of this mount have said."""
        path = self.root / "stderr"
        return path.read_text(errors="replace") if path.exists() else ""

    def environment(self) -> dict[str, str]:
        """The caller's, with all of chatfs's own state under `root`."""
        own = {
            f"XDG_{kind}_HOME": str(self.root / "home" / kind.lower()) for kind in ("DATA", "CONFIG", "CACHE", "STATE")
        }
        own |= {"CHATFS_STORE": self.url, "CHATFS_FAULT": str(self.root / "fault")}
        python = {"PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        return {**os.environ, **own, **python}

    def __enter__(self) -> Self:
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Mount, and return when it answers."""
        command = [sys.executable, "-m", self.program, "--store", self.url]
        command += ["mount", str(self.mountpoint), "--foreground"]
        with (self.root / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=self.environment(),
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        try:
            wait_for(self._up_or_gone, 30, what="the mount")
        except AssertionError as error:
            self._aborted()
            self.stop()
            raise AssertionError(f"{error}: {self.stderr}") from None
        if self.process.poll() is not None:
            raise AssertionError(f"chatfs mount ended with {self.process.returncode}: {self.stderr}")

    def _up_or_gone(self) -> bool:
        assert self.process is not None
        # In this order: a dead mount, which doesn't answer, may be taken away between the two, and the directory
        # beneath it answers.
        return self.process.poll() is not None or (self._answers() and os.path.ismount(self.mountpoint))

    def _answers(self) -> bool:
        # statvfs(2) is never answered from the kernel's cache, as stat(2) is, even when the daemon is dead.
        try:
            os.statvfs(self.mountpoint)
        except OSError:
            return False
        return True

    def unmount(self) -> None:
        """Unmount as a user does, and see the daemon end well."""
        assert self.process is not None
        wait_for(self._fusermount, what=f"fusermount3 -u (is something open in it?): {self.stderr}")
        assert self._ended() == 0, self.stderr
        self.process = None

    def _ended(self) -> int:
        """The daemon's exit code. One that doesn't end is aborted, and says where each of its threads was."""
        assert self.process is not None
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            return self._aborted()

    def _aborted(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGABRT)
        return self.process.wait(30)

    def _fusermount(self, *flags: str) -> bool:
        command = ["fusermount3", "-u", *flags, str(self.mountpoint)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def remount(self) -> None:
        """Unmount, and mount again: another process on the same store."""
        self.unmount()
        self.start()

    def kill(self) -> None:
        """SIGKILL, as a crash; the dead mount is left for the next `start` to take over."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def stop(self) -> None:
        """Leave neither mount nor process, whatever has happened. Idempotent."""
        if self.process is not None and self.process.poll() is None:
            if self._fusermount():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(15)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(15)
        self.process = None
        while self._in_mount_table():
            assert self._fusermount("-z"), f"{self.mountpoint} can't be unmounted"

    def _in_mount_table(self) -> bool:
        # Names in it may have what else ends lines; blanks and the like are escaped.
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
        return os.fsencode(self.mountpoint) in (line.split(b" ")[4] for line in lines if line)

    def trouble(self) -> list[str]:
        """Lines of stderr that tell of something going wrong and that no test said it expects."""
        lines = [line for line in self.stderr.splitlines() if _TROUBLE.search(line)]
        return [line for line in lines if not any(re.search(expected, line) for expected in self.expected_trouble)]

    def cli(self, *words: str | Path, given: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run `chatfs WORDS…` on this store."""
        command = [sys.executable, "-m", "fusefs", *map(str, words)]
        cwd = Path(__file__).parents[2]
        done = subprocess.run(
            command, check=False, input=given, capture_output=True, env=self.environment(), cwd=cwd, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr.decode()
        return done

    def workspace(self, name: str = "demo") -> Workspace:
        """Make a workspace with mkdir(2)."""
        directory = self.mountpoint / name
        directory.mkdir()
        for log in (self.store / "workspace").glob("*/history.jsonl"):
            first = data(read_log(log)[:1])
            if first and first[0]["type"] == "workspace.created" and first[0]["name"] == name:
                return Workspace(directory, first[0]["id"], self.store)
        raise AssertionError(f"the store has no log of workspace {name}")


@contextlib.contextmanager
def mounting(root: Path, *options: str, program: str = "fusefs") -> Iterator[Mounted]:
    """A mount for a with statement. When the block ends without an error, its daemon must have had none either."""
    with Mounted(root, options, program=program) as mounted:
        yield mounted
        if mounted.process is not None:
            mounted.unmount()
    assert mounted.trouble() == []
