"""`chatfs search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fusefs.cli.arguments import number, workspace_name
from fusefs.cli.parser import MARK, Parser, Run, add_command, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands

KINDS: Final = {"messages": "message", "titles": "title", "labels": "label", "attachments": "attachment"}
"""What --in takes, and what the index calls it."""


def add(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "search",
        _work,
        "find messages, titles, labels and attachments by words",
        _search,
        details="All WORDS must occur in one message (or title and name, labels, or name of an attachment); case and "
        'accents don\'t matter. "two words" (in quotes that the shell leaves) stand side by side, begin* is the '
        "beginning of a word, -word must not occur. The best hits come first, each with where it is, as "
        "WORKSPACE/chats/CHAT/history.md:LINE. Exit code 1 if nothing is found.",
    )


def _work() -> Mapping[str, Run]:
    from fusefs.cli.searching import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _search(parser: Parser) -> None:
    parser.minus_words = True
    parser.add_argument("words", metavar="WORDS", nargs="+", type=lambda word: word.removeprefix(MARK))
    parser.add_argument("--workspace", metavar="WORKSPACE", type=workspace_name, help="only there")
    parser.add_argument("--role", metavar="ROLE", help="only messages of this role, such as user or assistant")
    parser.add_argument(
        "--in",
        dest="kinds",
        action="append",
        choices=list(KINDS),
        help="only there: messages, titles (with chats' names), labels or attachments; may be given several times",
    )
    parser.add_argument("--trash", action="store_true", help="also in chats that are in the trash")
    parser.add_argument("--limit", metavar="N", type=number, default=20, help="at most N hits (default: 20)")
    parser.add_argument("--rebuild", action="store_true", help="make the index anew before")
    add_json(parser)
