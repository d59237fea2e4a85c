"""`chatfs mount` and `chatfs umount`.

Concurrency: `mount --foreground` runs the mount's event loop; the others block.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import stat
import sys
import time
from argparse import SUPPRESS, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from fusefs.cli import background, mount_records
from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import LogFormatter, Progress, complain, write_line
from fusefs.cli.parser import add_command
from fusefs.cli.targets import making, migration_bar, number, say_made, store_url
from fusefs.options import Durability, MountOptions
from fusefs.unmount import mounts, unmount
from store import registry
from store.driver import Access
from store.errors import ReadOnly, StoreError, StoreNotFound

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands

FLUSH_SECONDS: Final = 60
_GONE_SECONDS: Final = 10
_OWNER_MAX: Final = (1 << 32) - 2
"""2³² - 1 is nobody's number: chown(2) takes it for "don't change"."""
_FUSE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")


def add(commands: Commands) -> None:
    """Declare the commands."""
    parser = add_command(
        commands,
        "mount",
        _mount,
        "show the store's chats as files under a directory",
        details="Returns when it is usable.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.add_argument("--foreground", action="store_true", help="don't return: serve until unmounted or interrupted")
    parser.add_argument("--allow-other", action="store_true", help="let other users in, as far as file modes do")
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument(
        "--append-only",
        action="store_true",
        help="refuse every change but new messages (and types that chatfs doesn't know) in history.jsonl",
    )
    parser.add_argument(
        "--root",
        default="",
        metavar="WORKSPACE[/CHAT]",
        help="show only that workspace or chat: nothing else has a name in the mount",
    )
    parser.add_argument("--uid", type=owner, default=os.getuid(), help="whom the files belong to (default: who mounts)")
    parser.add_argument("--gid", type=owner, default=os.getgid(), help="the same for the group")
    parser.add_argument(
        "--umask", type=umask, default=0o077, metavar="MASK", help="permission bits to leave out, octal (default: 077)"
    )
    parser.add_argument(
        "--durability",
        choices=[each.value for each in Durability],
        default=Durability.STRICT.value,
        help="strict (the default): what was written is on disk when close(2) returns; relaxed: a second later",
    )
    parser.add_argument(
        "--no-inotify",
        action="store_true",
        help="don't report to inotify watchers what other processes change in the store",
    )
    parser.add_argument(
        "--no-fast-loop",
        action="store_true",
        help="wait for requests with pyfuse3's own session loop: slower; to tell whether a fault is in the fast one",
    )
    parser.add_argument("--ready-fd", type=int, help=SUPPRESS)
    parser.add_argument("--while-fd", type=int, help=SUPPRESS)

    parser = add_command(commands, "umount", _umount, "unmount, and wait until everything is written")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)


def owner(text: str) -> int:
    """An argument that is a user's or a group's number. The kernel shows no file of one that there can't be."""
    if (found := number(text)) > _OWNER_MAX:
        raise ArgumentTypeError(f"{text!r} is no user or group: at most {_OWNER_MAX}")
    return found


def umask(text: str) -> int:
    """An argument of permission bits. The owner's own must stay: the kernel would keep even them out."""
    try:
        found = int(text, 8)
    except ValueError:
        found = -1
    if not 0 <= found <= 0o777 or found & 0o700:
        raise ArgumentTypeError(f"{text!r} is no mask for the group and others: write 077, 027, 022 or the like")
    return found


def _mount(args: Namespace) -> None:
    options = MountOptions(
        mountpoint=resolved(args.mountpoint),
        url=store_url(args),
        allow_other=args.allow_other,
        read_only=args.read_only,
        append_only=args.append_only,
        root=args.root,
        uid=args.uid,
        gid=args.gid,
        umask=args.umask,
        durability=Durability(args.durability),
        debug=args.debug,
        fast_loop=not args.no_fast_loop,
        inotify=not args.no_inotify,
    )
    if args.foreground:
        _serve(options, args.ready_fd, args.while_fd)
    else:
        start(options)


def start(options: MountOptions) -> None:
    """Mount in the background. Raises CommandFailed."""
    check(options)
    options = prepared(options)
    words = ["mount", str(options.mountpoint), "--store", options.url, "--durability", options.durability.value]
    words += ["--allow-other"] * options.allow_other + ["--read-only"] * options.read_only + ["--debug"] * options.debug
    words += ["--append-only"] * options.append_only + ["--root", options.root] * bool(options.root)
    words += ["--uid", str(options.uid), "--gid", str(options.gid), "--umask", f"{options.umask:o}"]
    words += ["--no-fast-loop"] * (not options.fast_loop) + ["--no-inotify"] * (not options.inotify)
    background.start(options.mountpoint, words)


def _serve(options: MountOptions, pipe: int | None, alive: int | None) -> None:
    for descriptor in (pipe, alive):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # else fusermount3 would hold it open
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING, handlers=[handler])
    try:
        check(options)
        options = prepared(options)
        from fusefs.mount import serve  # noqa: PLC0415 - pyfuse3 is only loaded by what mounts

        if pipe is not None:
            os.chdir("/")  # it must not keep the caller's directory busy

        def ready() -> None:
            nonlocal pipe
            write_line(f"mounted {options.url} on {options.mountpoint}")
            sys.stdout.flush()
            background.tell(pipe, background.READY)
            pipe = None

        with mount_records.recorded(options.mountpoint, options.url):
            trio.run(functools.partial(serve, options, ready, alive))
    except BaseException as error:
        told = error
        while isinstance(told, BaseExceptionGroup):
            told = told.exceptions[0]
        background.tell(pipe, f"{told}\n".encode(errors="backslashreplace"))
        raise


def prepared(options: MountOptions) -> MountOptions:
    """The mount that can be made: of a store that can't be written, a read-only one.

    Here the store is made or migrated, which may take long, and shows its progress. Raises StoreError.
    """
    try:
        trio.run(_open_once, options.url, Access.READ if options.read_only else making(options.url))
    except ReadOnly as error:
        try:
            trio.run(_open_once, options.url, Access.READ)
        except StoreNotFound:
            raise error from None
        complain(f"{error}: it is mounted read-only")
        return replace(options, read_only=True)
    return options


async def _open_once(url: str, access: Access) -> None:
    with Progress() as progress:
        driver = await registry.open_driver(url, access=access, progress=migration_bar(progress))
        progress.clear()
        say_made(driver)
        await driver.aclose()


def resolved(path: Path) -> Path:
    """The mount point as the kernel names it; what is mounted there isn't asked, it may be dead."""
    absolute = Path(os.path.abspath(path))  # `resolve` would ask
    if any(mounted.mountpoint == absolute for mounted in mounts()):
        return absolute
    return Path(os.path.realpath(path))


def check(options: MountOptions) -> None:
    """Raises CommandFailed for what would keep the mount from working."""
    mountpoint = options.mountpoint
    if not _FUSE.exists():
        raise CommandFailed(
            "/dev/fuse is missing: load the kernel's module (modprobe fuse), or give the container that device"
        )
    if shutil.which("fusermount3") is None:
        raise CommandFailed("fusermount3 isn't installed: install the fuse3 package")
    check_mountpoint(mountpoint)
    store = registry.directory_of(options.url)
    if store is not None and Path(os.path.realpath(store)).is_relative_to(mountpoint):
        raise CommandFailed(f"the store {store} is inside the mount point: mount somewhere else")
    if options.allow_other and os.getuid() != 0 and not _others_allowed():
        raise CommandFailed(
            "--allow-other needs the line user_allow_other in /etc/fuse.conf: ask the administrator for it"
        )


def check_mountpoint(mountpoint: Path) -> None:
    """Raises CommandFailed where nothing can be mounted on it. One that a crash left dead will do: it is taken over."""
    try:
        os.statvfs(mountpoint)  # the kernel may answer a stat(2) of a dead one from its cache
        mode = os.stat(mountpoint).st_mode
    except FileNotFoundError:
        raise CommandFailed(f"{mountpoint} doesn't exist: make it first: mkdir -p {mountpoint}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return
        raise
    if not stat.S_ISDIR(mode):
        raise CommandFailed(f"{mountpoint} is not a directory: mount on a directory")
    if any(mounted.mountpoint == mountpoint for mounted in mounts()):
        raise CommandFailed(f"{mountpoint} is a chatfs mount already: see chatfs status")


def _others_allowed() -> bool:
    try:
        lines = _FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _umount(args: Namespace) -> None:
    mountpoint = resolved(args.mountpoint)
    count = _count(mountpoint)
    if not count:
        raise CommandFailed(f"{mountpoint} is not a chatfs mount: see chatfs status")
    record = mount_records.find(mountpoint)
    unmount(mountpoint)
    deadline = time.monotonic() + _GONE_SECONDS
    while _count(mountpoint) >= count:
        if time.monotonic() > deadline:
            raise CommandFailed(f"{mountpoint} is still mounted: see chatfs status")
        time.sleep(0.02)
    if record is not None and not record.wait(FLUSH_SECONDS):
        raise StoreError(
            f"unmounted, but process {record.pid} is still writing: see {mount_records.log_path(mountpoint)}"
        )


def _count(mountpoint: Path) -> int:
    return sum(mounted.mountpoint == mountpoint for mounted in mounts())
