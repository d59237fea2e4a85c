"""`chatfs import …`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusefs.cli.arguments import workspace_name
from fusefs.cli.parser import Parser, Run, add_command, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_command(
        commands,
        "import",
        _work,
        "bring in chats that other programs wrote, or chatfs export",
        _import,
        details="With --jsonl, it takes what chatfs export --jsonl wrote: the logs as they are. Of that, what is there "
        "already is compared, and only the rest is added.",
    )


def _work() -> Mapping[str, Run]:
    from fusefs.cli.importing import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _import(parser: Parser) -> None:
    parser.add_argument(
        "--jsonl", metavar="FILE", type=Path, help="what chatfs export --jsonl wrote; - is standard input"
    )
    parser.add_argument(
        "--workspace",
        metavar="WORKSPACE",
        type=workspace_name,
        help="with --jsonl of one chat: where it comes to (default: the name of the one it was in)",
    )
    parser.add_argument("--chat", metavar="NAME", help="with --jsonl of one chat: its name, if it is new")
    add_json(parser)
    group = parser.add_subparsers(metavar="COMMAND", required=False, parser_class=Parser)
    again = "Importing again adds only what is new."
    add_command(group, "claude-code", _work, "import sessions of Claude Code", _claude_code, details=again)
    add_command(group, "messages", _work, "import files of JSON lines, each a message", _messages, details=again)
    add_command(
        group,
        "jp",
        _work,
        "import conversations of JP",
        _jp,
        details=f"{again} What JP has rewritten since is followed: events that it took back are removed from sight, "
        "and stay in the log. Archived conversations become archived chats. Changes made in chatfs stay; chatfs "
        "export jp writes them back. Symbolic links aren't followed; a conversation that JP is writing is left out.",
    )


def _claude_code(parser: Parser) -> None:
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="a session's file, or a directory such as ~/.claude"
    )
    _target(parser)


def _messages(parser: Parser) -> None:
    parser.add_argument("paths", metavar="FILE", nargs="+", type=Path, help="- is standard input")
    parser.add_argument("--chat", metavar="NAME", help="the name of the chat that is made, with one FILE")
    _target(parser)


def _jp(parser: Parser) -> None:
    parser.add_argument(
        "paths", metavar="DIR", nargs="+", type=Path, help="a project, its .jp/conversations, or one conversation in it"
    )
    _target(parser)


def _target(parser: Parser) -> None:
    parser.add_argument(
        "--workspace", metavar="WORKSPACE", type=workspace_name, required=True, help="it is made if there is none"
    )
    add_json(parser)
