"""What is measured side by side: trees of chats, on the native file system and behind a mount.

A Target shows chats as `chats/NAME/{history.md,history.jsonl,attachments/}`. A peer (another FUSE file system) is one
more subclass that passes the native target's tree through; `workloads.Bench.targets` is where it joins in.

For one thread. No target outlives its with statement, and no mount the program: should it be killed, the daemon gets
SIGTERM and unmounts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from tests.bench.measure import BenchError

ROOT: Final = Path(__file__).parents[2]
_PATIENCE: Final = 60.0
"""Seconds that a daemon may take to mount or to end."""


class Target(ABC):
    """A tree of chats. A context manager: the tree is there inside."""

    name: str
    syncs_at_close: bool
    """Whether close(2) alone makes what was written durable."""

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
        """The files on disk that may hold what the tree shows, for `chill`."""

    def chill(self, path: Path) -> None:
        """Drop the file's bytes from the page cache, and those of what it is stored in, as far as they are synced."""
        for file in [path, *self.stored()]:
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


class Native(Target):
    """Plain files, on the disk that the stores are on."""

    name = "native"
    syncs_at_close = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.chats.mkdir(parents=True, exist_ok=True)

    @property
    def chats(self) -> Path:
        return self._directory / "chats"

    def new_chat(self, name: str) -> Path:
        made = self.chats / name
        (made / "attachments").mkdir(parents=True)
        for file in ("history.md", "history.jsonl"):
            (made / file).touch()
        return made

    def stored(self) -> Iterable[Path]:
        return ()


class Chatfs(Target):
    """A mount of a `file:` store: a daemon of its own, on a mount point of its own."""

    name = "chatfs"

    def __init__(self, store: Path, workspace: str, durability: str) -> None:
        self.store = store
        self.syncs_at_close = durability == "strict"
        self._workspace = workspace
        self._durability = durability
        self._daemon: subprocess.Popen[bytes] | None = None
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        # Not beside the store: whoever removes that recursively mustn't come through here.
        self._mountpoint = Path(tempfile.mkdtemp(prefix="chatfs-bench-mnt-"))

    @property
    def daemon(self) -> int:
        assert self._daemon is not None, "enter the target first"
        return self._daemon.pid

    @property
    def chats(self) -> Path:
        return self._mountpoint / self._workspace / "chats"

    def new_chat(self, name: str) -> Path:
        made = self.chats / name
        made.mkdir()
        return made

    def stored(self) -> Iterable[Path]:
        return (path for path in self.store.rglob("*") if path.is_file() and not path.is_symlink())

    def __enter__(self) -> Self:
        try:
            # A session of its own: Ctrl-C is for the benchmark, which then ends the daemon.
            self._daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *self._command()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=self._messages,
                stderr=self._messages,
                start_new_session=True,
            )
            self._wait_until_it_answers(self._daemon)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "fusefs", "--store", self.store.as_uri(), "mount", str(self._mountpoint)]
        return [*command, "--foreground", "--durability", self._durability]

    def _wait_until_it_answers(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            if daemon.poll() is not None:
                raise BenchError(f"chatfs mount ended with status {daemon.returncode}: {self._said()}")
            with contextlib.suppress(OSError):
                # statvfs(2) always asks the daemon.
                if os.path.ismount(self._mountpoint) and os.statvfs(self._mountpoint).f_namemax:
                    return
            if time.monotonic() > deadline:
                raise BenchError(f"chatfs wasn't mounted after {_PATIENCE:g} s: {self._said()}")
            time.sleep(0.002)

    def _said(self) -> str:
        self._messages.seek(0)
        return self._messages.read().decode(errors="replace").strip()

    def __exit__(self, *exc_info: object) -> None:
        try:
            if self._daemon is not None and self._daemon.poll() is None:
                self._daemon.terminate()
                try:
                    self._daemon.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    self._daemon.kill()
                    self._daemon.wait()
        finally:
            self._clear_mountpoint()
        failed = self._daemon is not None and self._daemon.returncode != 0
        said = self._said()
        self._messages.close()
        if failed and not any(exc_info):
            raise BenchError(f"chatfs ended badly: {said}")

    def _clear_mountpoint(self) -> None:
        try:
            self._mountpoint.rmdir()
        except OSError:  # still mounted, or dead
            subprocess.run(["fusermount3", "-u", "-z", str(self._mountpoint)], check=False, capture_output=True)
            self._mountpoint.rmdir()
