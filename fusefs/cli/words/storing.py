"""`chatfs compact`, `fsck`, `gc` and `status`: what is about the store itself."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fusefs.cli.arguments import chat_path, number, space_path
from fusefs.cli.parser import Parser, Run, add_command, add_json
from store.gc import RETENTION_DAYS

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands

FSCK_USAGE: Final = 16
"""fsck(8)'s exit code for wrong words."""


# ---- compact


def add_compact(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "compact",
        _compacting,
        "drop a chat's old events, keeping its text",
        _compact,
        details="history.md, the metadata and the attachments stay as they are; who wrote what when, and earlier "
        "texts of edited messages, are gone for good. Blobs that nothing names any more are freed by chatfs gc.",
    )


def _compacting() -> Mapping[str, Run]:
    from fusefs.cli.compacting import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _compact(parser: Parser) -> None:
    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
    parser.add_argument(
        "--keep", metavar="N", type=_count, default=None, help="leave the last N events in the log (default: 1000)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be dropped")
    add_json(parser)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"{text!r} isn't a number of events")
    return int(text)


# ---- fsck


def add_fsck(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "fsck",
        _checking,
        "check the store",
        _fsck,
        details="Reads everything: logs, attachments, and what was made from them; safe beside running mounts. An "
        "error is about data that is lost or damaged, a warning about something odd, or that can be made again. Exit "
        "codes as fsck(8) has them: 0 no errors, 1 all that was wrong is corrected, 4 errors are left, 8 it can't be "
        "checked, 16 wrong usage, 32 interrupted.",
    )


def _checking() -> Mapping[str, Run]:
    from fusefs.cli.checking import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _fsck(parser: Parser) -> None:
    parser.usage_code = FSCK_USAGE
    parser.add_argument(
        "space", metavar="WORKSPACE[/CHAT]", nargs="?", type=space_path, help="check only that (default: everything)"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="repair what can be repaired without losing anything; damaged bytes are kept in the store's quarantine/",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="also replay every log, and compare snapshots and history.md with the outcome: slower",
    )
    add_json(parser)


# ---- gc


def add_gc(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "gc",
        _collecting,
        "free what is in the trash for long, and what nothing uses",
        _gc,
        details="Deletes for good: chats and workspaces that have been in the trash for longer than the retention, "
        "editors' temporary files that nobody has touched for as long, and attachments' contents that no chat's log "
        "names. An attachment that was removed or replaced stays in its chat's log, and so do its contents. Safe "
        "beside running mounts.",
    )


def _collecting() -> Mapping[str, Run]:
    from fusefs.cli.collecting import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _gc(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    parser.add_argument(
        "--retention",
        metavar="DAYS",
        type=number,
        default=RETENTION_DAYS,
        help=f"how long things stay in the trash (default: {RETENTION_DAYS})",
    )
    add_json(parser)


# ---- status


def add_status(commands: Commands) -> None:
    """Declare the command."""
    add_command(commands, "status", _status, "show the store, who appends to it, and what is mounted", add_json)


def _status() -> Mapping[str, Run]:
    from fusefs.cli.status import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS
