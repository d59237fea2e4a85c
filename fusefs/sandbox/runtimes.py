"""What starts a command in a sandbox: the words of bubblewrap, podman, or of nothing at all.

Nothing is started here; this machine is asked which directories and programs it has.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from fusefs.cli.errors import CommandFailed, UsageError

CHAT: Final = "/chat"
"""Where the chat is, inside."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_FROM_ETC: Final = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "ssl", "ca-certificates")
_FOR_NETWORK: Final = ("resolv.conf", "hosts", "nsswitch.conf")
_OF_THE_MACHINE: Final = (
    "sys",
    "sysrq-trigger",
    "irq",
    "bus",
    "fs",
    "driver",
    "dynamic_debug",
    "mtrr",
    "pressure",
    "tty",
)
"""What in /proc isn't about processes, but about the machine, and can be read."""
_HIDDEN: Final = (
    *(
        "acpi",
        "asound",
        "config.gz",
        "iomem",
        "ioports",
        "kallsyms",
        "kcore",
        "key-users",
        "keys",
        "kmsg",
        "kpagecgroup",
    ),
    *("kpagecount", "kpageflags", "latency_stats", "pagetypeinfo", "sched_debug", "scsi", "slabinfo", "timer_list"),
    *("timer_stats", "vmallocinfo"),
)
"""The same, and can't: what tells of the kernel's memory, its keys and the disks."""
_ROOM: Final = 1 << 30
"""Bytes of memory that files in /tmp, and in /dev/shm, may take: else half of the machine's."""
_KEPT: Final = ("TERM", "COLORTERM", "LANG", "LC_ALL", "TZ")


class Runtime(StrEnum):
    """What isolates the command."""

    BWRAP = "bwrap"
    PODMAN = "podman"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. `chat` is the mount of the chat, and its only name outside."""

    runtime: Runtime
    chat: Path
    command: Sequence[str]
    image: str = ""
    network: bool = False
    terminal: bool = False
    settings: Sequence[str] = ()
    """NAME=VALUE, for the environment inside."""
    session: str = ""
    info: int = -1
    """The descriptor that bubblewrap tells of its first process."""


def words(wanted: Wanted) -> list[str]:
    """The command line. Raises UsageError, CommandFailed where the runtime isn't installed."""
    if wanted.runtime is Runtime.NONE:
        if wanted.image:
            raise UsageError("--image needs a runtime: bwrap or podman")
        return list(wanted.command)
    return _bubblewrap(wanted) if wanted.runtime is Runtime.BWRAP else _podman(wanted)


def environment(wanted: Wanted) -> dict[str, str] | None:
    """That of the command, where the runtime passes on its own; None: the caller's."""
    if wanted.runtime is Runtime.PODMAN:
        return None
    pairs = dict(each.split("=", 1) for each in wanted.settings)
    if wanted.runtime is Runtime.NONE:
        return {**os.environ, "CHATFS_CHAT": str(wanted.chat), **pairs}
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": _PATH, "HOME": CHAT, "CHATFS_CHAT": CHAT, **kept, **pairs}


def _bubblewrap(wanted: Wanted) -> list[str]:
    program = _installed("bwrap", "bubblewrap")
    found = [program, "--unshare-all", "--die-with-parent", "--hostname", "sandbox"]
    # Else it could type into the caller's terminal. One of its own is the sandbox's to control, with Ctrl-C.
    found += ["--new-session"] * (not wanted.terminal)
    found += ["--cap-drop", "ALL"]  # else root would keep its capabilities, and could mount
    found += ["--share-net"] * wanted.network
    found += ["--info-fd", str(wanted.info)] * (wanted.info >= 0)
    if wanted.image:
        root = Path(wanted.image)
        if not root.is_dir():
            raise UsageError(f"{wanted.image} is no directory: bwrap takes a root directory as its image")
        found += ["--ro-bind", str(root.resolve()), "/"]
        if not (root / CHAT[1:]).is_dir():
            raise UsageError(f"{wanted.image} has no directory {CHAT}: make one, for the chat to be mounted on")
    else:
        found += _host_programs(network=wanted.network)
    found += ["--dev", "/dev", "--size", str(_ROOM), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    found += ["--proc", "/proc"]
    for name in _OF_THE_MACHINE:
        # Who is the machine's root may write them without any capability.
        found += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    for name in _HIDDEN:
        path = f"/proc/{name}"
        if os.path.isdir(path):
            found += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            found += ["--ro-bind", "/dev/null", path]
    if not wanted.image or (Path(wanted.image) / "tmp").is_dir():
        found += ["--size", str(_ROOM), "--tmpfs", "/tmp"]  # noqa: S108 - its own
    found += ["--bind", str(wanted.chat), CHAT]
    found += ["--remount-ro", "/"] * (not wanted.image)  # when all is there that stands on it
    return [*found, "--chdir", CHAT, "--", *wanted.command]


def _host_programs(*, network: bool) -> list[str]:
    """The machine's programs and libraries, read-only; nothing of its users' and of its configuration."""
    found = ["--ro-bind", "/usr", "/usr"]
    for name in _MERGED:
        path = Path("/") / name
        if path.is_symlink():
            found += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    for name in (*_FROM_ETC, *(_FOR_NETWORK if network else ())):
        found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return found


def _podman(wanted: Wanted) -> list[str]:
    if not wanted.image:
        raise UsageError("podman needs --image: a root directory, or the name of an image")
    if wanted.image.startswith("-"):
        raise UsageError(f"{wanted.image!r} is no image: write ./{wanted.image} for a directory of that name")
    found = [*podman(), "run", "--rm", "--interactive", "--name", container(wanted.session)]
    found += ["--cap-drop", "all", "--security-opt", "no-new-privileges"]
    found += ["--tty"] * wanted.terminal
    found += [] if wanted.network else ["--network", "none"]
    found += shlex.split(os.environ.get("CHATFS_PODMAN_RUN", ""))
    for setting in (f"HOME={CHAT}", f"CHATFS_CHAT={CHAT}", *wanted.settings):
        found += ["--env", setting]
    found += ["--volume", f"{wanted.chat}:{CHAT}", "--workdir", CHAT]
    if os.path.isdir(wanted.image):
        # Beneath /chat it needs a directory, which podman would make in the image's own: that stays as it is.
        return [*found, "--read-only", "--rootfs", str(Path(wanted.image).resolve()), *wanted.command]
    return [*found, wanted.image, *wanted.command]


def hidden(command: Sequence[str]) -> tuple[int, list[str]]:
    """Bubblewrap's options as a file, and the words that are left: inside, those can be read, and name directories."""
    end = command.index("--")
    options = os.memfd_create("options", os.MFD_CLOEXEC)
    os.write(options, b"".join(os.fsencode(word) + b"\0" for word in command[1:end]))
    os.lseek(options, 0, os.SEEK_SET)
    return options, [command[0], "--args", str(options), *command[end:]]


def podman() -> list[str]:
    """The program, with its global options: `CHATFS_PODMAN` may have other words for them. Raises CommandFailed."""
    return shlex.split(os.environ.get("CHATFS_PODMAN", "")) or [_installed("podman", "podman")]


def container(session: str) -> str:
    """What podman calls the container of a session."""
    return f"chatfs-{session}"


def _installed(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise CommandFailed(f"{program} isn't installed: install the {package} package, or choose another --runtime")
    return path
