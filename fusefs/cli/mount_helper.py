"""`mount.fuse.chatfs`: what mount(8) calls for `mount -t fuse.chatfs SOURCE MOUNTPOINT` and lines of /etc/fstab.

SOURCE is a store's URL or absolute path, or the word `chatfs` for the default store. Exit codes are mount(8)'s: 1 for
wrong usage, 32 for a mount that failed.
"""

from __future__ import annotations

import getopt
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fusefs.cli.arguments import owner, umask
from fusefs.cli.errors import UsageError
from fusefs.cli.mounting import resolved, start
from fusefs.cli.output import complain
from fusefs.cli.stores import absolute_url
from fusefs.options import Durability, MountOptions
from store.errors import StoreError
from store.registry import default_url

USAGE: Final = 1
FAILED: Final = 32

_OF_MOUNT: Final = re.compile(
    "defaults|rw|(no)?auto|(no)?user|users|owner|group|nofail|_netdev|(no)?suid|(no)?dev|(no)?exec|async"
    "|(no)?(dir|rel|strict)?atime|(no)?lazytime|comment=.*|[xX]-.*"
)
"""Options that mount(8) deals with, or that mean nothing here."""
_WORDS: Final[dict[str, dict[str, bool]]] = {
    "ro": {"read_only": True},
    "append_only": {"append_only": True},
    "allow_other": {"allow_other": True},
    "no_inotify": {"inotify": False},
    "no_fast_loop": {"fast_loop": False},
}
_VALUES: Final[dict[str, Callable[[str], Any]]] = {
    "durability": Durability,
    "root": str,
    "uid": owner,
    "gid": owner,
    "umask": umask,
}


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
    name, equals, value = option.partition("=")
    if option in _WORDS:
        changes: dict[str, Any] = _WORDS[option]
    elif equals and name in _VALUES:
        try:
            changes = {name: _VALUES[name](value)}
        except ValueError:
            raise UsageError(f"durability is strict or relaxed, not {value!r}") from None
        except ArgumentTypeError as error:
            raise UsageError(f"{name}: {error}") from None
    elif sloppy or _OF_MOUNT.fullmatch(option):
        return options
    else:
        known = ", ".join([*_WORDS, *(f"{each}=" for each in _VALUES)])
        raise UsageError(f"unknown option {option!r}: chatfs knows {known}")
    return replace(options, **changes)


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
