"""`mount.fuse.chatfs`: what mount(8) calls for `mount -t fuse.chatfs SOURCE MOUNTPOINT` and lines of /etc/fstab.

SOURCE is a store's URL or absolute path, or the word `chatfs` for the default store. Exit codes are mount(8)'s: 1 for
wrong usage, 32 for a mount that failed.
"""

from __future__ import annotations

import getopt
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from fusefs.cli.errors import UsageError
from fusefs.cli.mounting import resolved, start
from fusefs.cli.output import complain
from fusefs.cli.targets import absolute_url
from fusefs.options import Durability, MountOptions
from store.errors import StoreError
from store.library import default_url

USAGE: Final = 1
FAILED: Final = 32

_OF_MOUNT: Final = re.compile(
    "defaults|rw|(no)?auto|(no)?user|users|owner|group|nofail|_netdev|(no)?suid|(no)?dev|(no)?exec|async"
    "|(no)?(dir|rel|strict)?atime|(no)?lazytime|comment=.*|[xX]-.*"
)
"""Options that mount(8) deals with, or that mean nothing here."""


def parse(words: Sequence[str]) -> tuple[MountOptions, bool]:
    """The mount that is asked for, and whether it is only pretended (-f). Raises UsageError."""
    try:
        flags, rest = getopt.gnu_getopt(list(words), "sfnvo:t:")
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from None
    if len(rest) != 2:
        raise UsageError("usage: mount.fuse.chatfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]")
    source, mountpoint = rest
    url = default_url() if source == "chatfs" else source
    options = MountOptions(mountpoint=resolved(Path(mountpoint)), url=absolute_url(url))
    sloppy = ("-s", "") in flags
    for given in (value for flag, value in flags if flag == "-o"):
        for option in filter(None, given.split(",")):
            options = _with(options, option, sloppy=sloppy)
    return options, ("-f", "") in flags


def _with(options: MountOptions, option: str, *, sloppy: bool) -> MountOptions:
    name, _, value = option.partition("=")
    match name:
        case "ro":
            return replace(options, read_only=True)
        case "allow_other":
            return replace(options, allow_other=True)
        case "no_inotify":
            return replace(options, inotify=False)
        case "no_fast_loop":
            return replace(options, fast_loop=False)
        case "durability":
            if value not in set(Durability):
                raise UsageError(f"durability is strict or relaxed, not {value!r}")
            return replace(options, durability=Durability(value))
    if sloppy or _OF_MOUNT.fullmatch(option):
        return options
    raise UsageError(
        f"unknown option {option!r}: chatfs knows ro, allow_other, durability=strict|relaxed, no_inotify, no_fast_loop"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Mount; mount(8)'s exit code."""
    try:
        options, pretended = parse(sys.argv[1:] if argv is None else argv)
        if not pretended:
            start(options)
    except UsageError as error:
        complain(str(error))
        return USAGE
    except (StoreError, OSError) as error:
        complain(str(error))
        return FAILED
    return 0
