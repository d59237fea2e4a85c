"""What is measured side by side: trees of chats, on the native file system and behind a mount.

A Target shows chats as `chats/NAME/{history.md,history.jsonl,attachments/}`. The native one is a tree of plain files;
most peers (`tests.bench.peers`) pass it through, chatfs shows a store.

For one thread. A target can be entered many times, one after the other. No target outlives its with statement, and no
mount the program: should it be killed, the daemon gets SIGTERM and unmounts.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from pathlib import Path
from typing import IO, Final, Self

from tests.bench.measure import BenchError

ROOT: Final = Path(__file__).parents[2]
CHATFS: Final = "chatfs"
NATIVE: Final = "native"
LARGE_FILE: Final = 1 << 20
_PATIENCE: Final = 60.0
"""Seconds that a daemon may take to mount or to end."""
_QUIET: Final = 0.06
"""Seconds without any use of the processor, after which a daemon is idle. The kernel counts ticks of 10 ms or less."""


class Kind(Enum):
    """What a target is, as far as goals ask."""

    NATIVE = auto()
    CHATFS = auto()
    C = auto()
    """A pass-through file system in C or C++."""
    EXAMPLE = auto()
    """pyfuse3's own pass-through example."""
    OTHER = auto()


class Target(ABC):
    """A tree of chats. A context manager: the tree is there inside."""

    name: str
    kind: Kind = Kind.OTHER
    syncs_at_close: bool = False
    """Whether close(2) alone makes what was written durable."""
    lag: float = 0.0
    """Seconds for which it puts off what a write leaves to do."""
    options: str = ""
    """How it is mounted, for whoever reads the result."""

    @property
    @abstractmethod
    def chats(self) -> Path:
        """The directory of chats."""

    @property
    def daemon(self) -> int | None:
        """The process that serves it, where there is one."""
        return None

    @abstractmethod
    def new_chat(self, name: str) -> Path:
        """Make an empty chat; its directory."""

    @abstractmethod
    def stored(self) -> Iterable[Path]:
        """The files on disk that may hold what the tree shows, for `chill` and `warm_below`."""

    def chill(self, path: Path) -> None:
        """Drop the file's bytes from the page cache, and those of what it is stored in, as far as they are synced."""
        for file in [path, *self.stored()]:
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def warm_below(self) -> None:
        """Read the large files that the tree is stored in: what is cold then is the mount, not the disk."""
        buffer = bytearray(LARGE_FILE)
        for path in self.stored():
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size >= LARGE_FILE:
                    while file.readinto(buffer):
                        pass

    def settle(self) -> None:
        """Wait until the daemon has done what it put off, and uses no processor any more."""
        time.sleep(self.lag)
        if self.daemon is None:
            return
        until = time.monotonic() + _PATIENCE
        used = -1
        while used != (used := ticks(self.daemon)) and time.monotonic() < until:
            time.sleep(_QUIET)

    def abort(self) -> None:  # noqa: B027 - plain files have no daemon
        """End the daemon at once: whoever waits for it goes on with an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def ticks(pid: int) -> int:
    """The processor time that a process has used, in clock ticks (proc_pid_stat(5)); 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def make_chat(directory: Path) -> Path:
    """An empty chat of plain files."""
    (directory / "attachments").mkdir(parents=True)
    for file in ("history.md", "history.jsonl"):
        (directory / file).touch()
    return directory


class Native(Target):
    """Plain files, on the disk that the stores are on."""

    name = NATIVE
    kind = Kind.NATIVE
    options = "plain files"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.chats.mkdir(parents=True, exist_ok=True)

    @property
    def chats(self) -> Path:
        return self.directory / "chats"

    def new_chat(self, name: str) -> Path:
        return make_chat(self.chats / name)

    def stored(self) -> Iterable[Path]:
        return (path for path in self.chats.rglob("*") if path.is_file() and not path.is_symlink())


class Mounted(Target):
    """A mount by a daemon of its own, on a mount point of its own."""

    def __init__(self) -> None:
        self._daemon: subprocess.Popen[bytes] | None = None
        self._mountpoint = Path("/nonexistent")
        self._messages: IO[bytes] | None = None

    @abstractmethod
    def command(self, mountpoint: Path) -> list[str]:
        """What to run; it stays in the foreground."""

    def prepare(self) -> None:
        """Make what the command needs; before each mount."""

    def unmount(self, daemon: subprocess.Popen[bytes]) -> None:
        """Ask for an orderly end."""
        subprocess.run(["fusermount3", "-u", str(self.mountpoint)], check=False, capture_output=True)

    @property
    def mountpoint(self) -> Path:
        return self._mountpoint

    @property
    def daemon(self) -> int:
        assert self._daemon is not None, "enter the target first"
        return self._daemon.pid

    def new_chat(self, name: str) -> Path:
        return make_chat(self.chats / name)

    def __enter__(self) -> Self:
        self.prepare()
        # Not beside the store: whoever removes that recursively mustn't come through here.
        self._mountpoint = Path(tempfile.mkdtemp(prefix="chatfs-bench-mnt-"))
        self._messages = tempfile.TemporaryFile()
        try:
            # A session of its own: Ctrl-C is for the benchmark, which then ends the daemon.
            self._daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *self.command(self._mountpoint)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=self._messages,
                stderr=self._messages,
                start_new_session=True,
            )
            self._wait_until_it_answers(self._daemon)
        except BaseException as error:
            self._end(quiet=True)
            if isinstance(error, FileNotFoundError):
                raise BenchError(f"{self.name} can't be run: {error}") from None
            raise
        return self

    def _wait_until_it_answers(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            if daemon.poll() is not None:
                raise BenchError(f"{self.name} ended with status {daemon.returncode}: {self._said()}")
            with contextlib.suppress(OSError):
                # statvfs(2) always asks the daemon.
                if os.path.ismount(self._mountpoint) and os.statvfs(self._mountpoint):
                    return
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} wasn't mounted after {_PATIENCE:g} s: {self._said()}")
            time.sleep(0.002)

    def _said(self) -> str:
        assert self._messages is not None
        self._messages.seek(0)
        return " / ".join(self._messages.read().decode(errors="replace").split("\n")[-4:]).strip(" /")

    def abort(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()

    def __exit__(self, *exc_info: object) -> None:
        self._end(quiet=any(exc_info))

    def _end(self, *, quiet: bool) -> None:
        daemon, self._daemon = self._daemon, None
        try:
            if daemon is not None and daemon.poll() is None:
                self.unmount(daemon)
                _reap(daemon)
        finally:
            self._clear_mountpoint()
            said = self._said()
            if self._messages is not None:
                self._messages.close()
        if daemon is not None and daemon.returncode and not quiet:
            raise BenchError(f"{self.name} ended badly, with status {daemon.returncode}: {said}")

    def _clear_mountpoint(self) -> None:
        try:
            self._mountpoint.rmdir()
        except OSError:  # still mounted, or dead
            subprocess.run(["fusermount3", "-u", "-z", str(self._mountpoint)], check=False, capture_output=True)
            self._mountpoint.rmdir()


def _reap(daemon: subprocess.Popen[bytes]) -> None:
    """Wait for the end; hasten it where it doesn't come."""
    for hasten in (daemon.terminate, daemon.kill):
        try:
            daemon.wait(_PATIENCE / 4)
        except subprocess.TimeoutExpired:
            hasten()
        else:
            return
    daemon.wait()


class Chatfs(Mounted):
    """A mount of a `file:` store."""

    name = CHATFS
    kind = Kind.CHATFS

    def __init__(self, store: Path, workspace: str, durability: str) -> None:
        super().__init__()
        self.store = store
        self.syncs_at_close = durability == "strict"
        self.lag = 0.0 if self.syncs_at_close else 1.0
        self._workspace = workspace
        self._options = ["--foreground", "--durability", durability]
        self.options = shlex.join(["chatfs", "mount", *self._options])

    @property
    def chats(self) -> Path:
        return self.mountpoint / self._workspace / "chats"

    def new_chat(self, name: str) -> Path:
        made = self.chats / name
        made.mkdir()
        return made

    def stored(self) -> Iterator[Path]:
        return (path for path in self.store.rglob("*") if path.is_file() and not path.is_symlink())

    def command(self, mountpoint: Path) -> list[str]:
        command = [sys.executable, "-m", "fusefs", "--store", self.store.as_uri(), "mount", str(mountpoint)]
        return [*command, *self._options]

    def unmount(self, daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
