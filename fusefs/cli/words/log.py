"""`chatfs append`, `log`, `cat` and `attach`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusefs.cli.arguments import chat_path, number, space_path
from fusefs.cli.parser import Parser, Run, add_command, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_command(
        commands,
        "append",
        _work,
        "append JSON lines to a chat and print the last seq",
        _append,
        details="One JSON value per line: a message (role, content), a typed event, an entry copied from a log, or any "
        "other. Up to 10,000 lines or 8 MiB are one batch, which is appended whole or not at all.",
    )
    add_command(
        commands,
        "log",
        _work,
        "print the entries of a chat's log, or a workspace's",
        _log,
        details="As in history.jsonl.",
    )
    add_command(commands, "cat", _work, "print a chat's history.md", _chat)
    add_command(commands, "attach", _work, "put files into a chat's attachments", _attach)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.log import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _chat(parser: Parser) -> None:
    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)


def _append(parser: Parser) -> None:
    _chat(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="- or nothing: standard input")
    parser.add_argument("--create", action="store_true", help="make the chat if there is none")
    add_json(parser)


def _log(parser: Parser) -> None:
    parser.add_argument("space", metavar="WORKSPACE[/CHAT]", type=space_path)
    parser.add_argument("--since", type=number, default=0, metavar="N", help="only entries after seq N")
    parser.add_argument("--limit", type=number, metavar="N", help="at most N entries")
    parser.add_argument("--reverse", action="store_true", help="newest first")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new entries as they come")


def _attach(parser: Parser) -> None:
    _chat(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    add_json(parser)
