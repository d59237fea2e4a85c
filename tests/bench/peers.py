"""The peers: other FUSE file systems that show the native target's tree, or one like it, through mounts of their own.

All that can be told how long the kernel may keep names and attributes are told the same, all keep pages where they
can, and none has the kernel's writeback cache, which would leave appends in the kernel. `options` says the rest. For
one thread.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.example import Unavailable, example
from tests.bench.measure import BenchError
from tests.bench.target import Kind, Mounted, Native

TIMEOUT: Final = 300
"""Seconds that the kernel may keep names and attributes."""
PACKAGES: Final = ("bindfs", "mergerfs", "rclone", "gocryptfs")
"""Debian packages, each with a program of its name."""
EXAMPLE: Final = "pyfuse3-example"
NAMES: Final = (*PACKAGES, EXAMPLE)


class PassThrough(Mounted):
    """Shows the native target's tree."""

    kind = Kind.C

    def __init__(self, below: Native) -> None:
        super().__init__()
        self.below = below
        self.options = shlex.join(self.command(Path("MOUNTPOINT"))).replace(str(below.directory), "DIRECTORY")

    @property
    def chats(self) -> Path:
        return self.mountpoint / "chats"

    def stored(self) -> Iterable[Path]:
        return self.below.stored()


class Bindfs(PassThrough):
    """bindfs: C, libfuse's high-level interface. It must be told to take writes of more than 4 KiB."""

    name = "bindfs"

    def command(self, mountpoint: Path) -> list[str]:
        options = f"big_writes,kernel_cache,entry_timeout={TIMEOUT},attr_timeout={TIMEOUT}"
        return ["bindfs", "-f", "--xattr-none", "-o", options, str(self.below.directory), str(mountpoint)]


class Mergerfs(PassThrough):
    """mergerfs: C++, a libfuse of its own."""

    name = "mergerfs"

    def command(self, mountpoint: Path) -> list[str]:
        options = f"cache.files=full,cache.readdir=true,cache.entry={TIMEOUT},cache.attr={TIMEOUT}"
        options += ",xattr=nosys,security_capability=false,minfreespace=0"
        return ["mergerfs", "-f", "-o", options, str(self.below.directory), str(mountpoint)]


class PassthroughLl(PassThrough):
    """libfuse's low-level example."""

    name = "passthrough_ll"

    def __init__(self, below: Native, program: Path) -> None:
        self._program = program
        super().__init__(below)

    def command(self, mountpoint: Path) -> list[str]:
        options = f"source={self.below.directory},cache=always,timeout={TIMEOUT},no_xattr"
        return [str(self._program), "-f", "-o", options, str(mountpoint)]


class Example(PassThrough):
    """pyfuse3's pass-through example, as it is: it keeps no names and attributes."""

    name = EXAMPLE
    kind = Kind.EXAMPLE

    def __init__(self, below: Native, script: Path) -> None:
        self._script = script
        super().__init__(below)
        self.options = "passthroughfs.py DIRECTORY MOUNTPOINT"

    def command(self, mountpoint: Path) -> list[str]:
        return [sys.executable, str(self._script), str(self.below.directory), str(mountpoint)]


class Rclone(PassThrough):
    """rclone mount of a local directory; each mount begins with an empty cache of its own."""

    name = "rclone"
    kind = Kind.OTHER
    lag = 0.3

    def __init__(self, below: Native, cache: Path) -> None:
        self._cache = cache
        super().__init__(below)
        self.options = self.options.replace(str(cache), "CACHE")

    def prepare(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)

    def command(self, mountpoint: Path) -> list[str]:
        # Its documentation: "full" supports all normal file system operations.
        options = f"--vfs-cache-mode full --vfs-write-back 100ms --dir-cache-time 1h --attr-timeout {TIMEOUT}s"
        where = ["--config", "/dev/null", "--cache-dir", str(self._cache)]
        return ["rclone", "mount", *where, *options.split(), str(self.below.directory), str(mountpoint)]


class Gocryptfs(Mounted):
    """gocryptfs: Go, encrypting; a tree of its own."""

    name = "gocryptfs"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._cipher = directory / "cipher"
        self._password = directory / "password"
        self.options = "gocryptfs -fg -q -kernel_cache CIPHERDIR MOUNTPOINT (timeouts 1 s)"

    @property
    def chats(self) -> Path:
        return self.mountpoint / "chats"

    def stored(self) -> Iterator[Path]:
        return (path for path in self._cipher.rglob("*") if path.is_file() and not path.is_symlink())

    def prepare(self) -> None:
        if self._cipher.exists():
            return
        self._cipher.mkdir(parents=True)
        self._password.write_text("bench\n")
        command = ["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", str(self._password), str(self._cipher)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"gocryptfs -init: {(done.stderr or done.stdout).strip()}")

    def command(self, mountpoint: Path) -> list[str]:
        where = ["-passfile", str(self._password), str(self._cipher), str(mountpoint)]
        return ["gocryptfs", "-fg", "-q", "-kernel_cache", *where]


def install(tell: Callable[[str], None]) -> None:
    """Install the peers' Debian packages that are missing, as root. BenchError where that can't be done."""
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if not missing:
        return
    tell(f"installing {' '.join(missing)}")
    apt = [*(["sudo"] if os.geteuid() else []), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run([*apt, *command], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(
            f"apt-get could not install {' '.join(missing)}: run as root: apt-get install {' '.join(missing)}"
        ) from error


@dataclass(frozen=True, slots=True)
class Cast:
    """Which peers are wanted."""

    passthrough_ll: Path | None = None
    """Where libfuse's example program is."""
    names: Sequence[str] | None = None
    """Those of NAMES, instead of all."""

    def wants(self, name: str) -> bool:
        return self.names is None or name in self.names


def peers(native: Native, directory: Path, cast: Cast, tell: Callable[[str], None]) -> list[Mounted]:
    """Those that are wanted and installed; what is missing is told, in one line each."""
    found: list[Mounted] = []
    if cast.passthrough_ll is not None:
        found.append(PassthroughLl(native, cast.passthrough_ll))
    makers: dict[str, Callable[[], Mounted]] = {
        "bindfs": lambda: Bindfs(native),
        "mergerfs": lambda: Mergerfs(native),
        "rclone": lambda: Rclone(native, directory / "rclone"),
        "gocryptfs": lambda: Gocryptfs(directory / "gocryptfs"),
    }
    for name, make in makers.items():
        if not cast.wants(name):
            continue
        if shutil.which(name) is not None:
            found.append(make())
        else:
            tell(f"{name} is left out: it isn't installed (scripts/bench --install-peers)")
    if not cast.wants(EXAMPLE):
        return found
    try:
        found.append(Example(native, example()))
    except Unavailable as error:
        tell(f"pyfuse3's example is left out: {error}")
    return found
