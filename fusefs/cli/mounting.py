"""`chatfs mount` and `chatfs umount`, as far as they are the caller's process; `fusefs.cli.serving` serves.

Concurrency: both block, and need no event loop.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fusefs.cli import background, mount_records
from fusefs.cli.errors import CommandFailed
from fusefs.cli.parser import Run
from fusefs.cli.stores import store_url
from fusefs.options import Durability, MountOptions
from fusefs.unmount import mounts, unmount
from store import registry
from store.errors import StoreError

FLUSH_SECONDS: Final = 60
_GONE_SECONDS: Final = 10
_FUSE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")


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
        from fusefs.cli.serving import serve  # noqa: PLC0415 - trio, the store and pyfuse3: only what serves needs them

        serve(options, args.ready_fd, args.while_fd)
    else:
        start(options)


def start(options: MountOptions) -> None:
    """Mount in the background. Raises CommandFailed."""
    check(options)
    words = ["mount", str(options.mountpoint), "--store", options.url, "--durability", options.durability.value]
    words += ["--allow-other"] * options.allow_other + ["--read-only"] * options.read_only + ["--debug"] * options.debug
    words += ["--append-only"] * options.append_only + ["--root", options.root] * bool(options.root)
    words += ["--uid", str(options.uid), "--gid", str(options.gid), "--umask", f"{options.umask:o}"]
    words += ["--no-fast-loop"] * (not options.fast_loop) + ["--no-inotify"] * (not options.inotify)
    background.start(options.mountpoint, words)


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


COMMANDS: Final[Mapping[str, Run]] = {
    "mount": _mount,
    "umount": _umount,
}
