"""`chatfs project …`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusefs.cli.arguments import workspace_name
from fusefs.cli.parser import Parser, Run, add_command, add_group, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_group(commands, "project", "keep a workspace's chats beside the code, in version control", _project)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.project import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _project(group: Commands) -> None:
    add_command(
        group,
        "init",
        _work,
        "let a directory have a workspace's chats",
        _init,
        details="A clone says in .chatfs/id which workspace that is: one that the store hasn't is made with that id. "
        "Without one a workspace is made that is called as the directory is, unless --workspace names another.",
    )
    add_command(
        group,
        "sync",
        _work,
        "bring the chats and their copies in the project together, as a mount does within a second",
        _sync,
    )
    add_command(group, "status", _work, "show where the chats are, and what is wrong with copies", _status)


def _init(parser: Parser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="default: the project that this directory is in")
    parser.add_argument("--workspace", metavar="NAME", type=workspace_name, help="the workspace, which may be new")


def _directory(parser: Parser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="default: the project that this directory is in, or else all"
    )


def _sync(parser: Parser) -> None:
    _directory(parser)
    parser.add_argument(
        "--import", dest="imports", action="store_true", help="import also the chats that are in the project alone"
    )
    add_json(parser)


def _status(parser: Parser) -> None:
    _directory(parser)
    add_json(parser)
