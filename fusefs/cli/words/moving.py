"""`chatfs migrate` and `chatfs export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusefs.cli.parser import Parser, Run, add_command, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands

_PARTS = "the logs as they are (entries, times, actors, checksums), attachments"


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_command(
        commands,
        "migrate",
        _work,
        "copy a store, or a workspace of it, to another store",
        _migrate,
        details=f"{_PARTS[0].upper()}{_PARTS[1:]}, and scratch files (such as history.md.rejected-N) come along; ids "
        "stay. Not so: what isn't saved yet (drafts; end the mounts of FROM-URL first), where projects are, "
        "quarantine/, backup/, and what can be made anew. It can be interrupted and run again: what is there already "
        "is compared, and only the rest is copied. FROM-URL isn't changed.",
    )
    add_command(
        commands,
        "export",
        _work,
        "write a workspace or a chat as a file that can be imported",
        _export,
        details=f"With --jsonl: one stream of JSON lines that chatfs import --jsonl takes back: {_PARTS} (as base64). "
        "Scratch files and what isn't saved yet stay. chatfs export jp WORKSPACE[/CHAT] DIR writes conversations of "
        "JP.",
    )


def _work() -> Mapping[str, Run]:
    from fusefs.cli.moving import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _migrate(parser: Parser) -> None:
    parser.add_argument("source", metavar="FROM-URL", help="as --store names one")
    parser.add_argument("target", metavar="TO-URL", help="likewise; it is made if the directory above is there")
    parser.add_argument("--workspace", metavar="W", default="", help="only this one: a name or an id")
    parser.add_argument(
        "--verify", action="store_true", help="compare what was there already, too, and read every attachment back"
    )
    add_json(parser)


def _export(parser: Parser) -> None:
    parser.add_argument(
        "words", metavar="WORKSPACE[/CHAT]", nargs="+", help="what to export (or: jp WORKSPACE[/CHAT] DIR)"
    )
    parser.add_argument("--jsonl", action="store_true", help="as JSON lines")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where to (default: -, standard output)")
