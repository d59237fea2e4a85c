"""`chatfs mount` and `chatfs umount`."""

from __future__ import annotations

import os
from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusefs.cli.arguments import owner, umask
from fusefs.cli.parser import Parser, Run, add_command

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_command(
        commands,
        "mount",
        _work,
        "show the store's chats as files under a directory",
        _mount,
        details="Returns when it is usable.",
    )
    add_command(commands, "umount", _work, "unmount, and wait until everything is written", _umount)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.mounting import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _mount(parser: Parser) -> None:
    from fusefs.options import Durability  # noqa: PLC0415 - only this command needs it

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


def _umount(parser: Parser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
