"""`chatfs workspace …`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusefs.cli.arguments import size, workspace_name
from fusefs.cli.parser import Parser, Run, add_command, add_group, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_group(commands, "workspace", "make, list, change and remove workspaces", _workspace)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.workspace import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _workspace(group: Commands) -> None:
    add_command(group, "create", _work, "make a workspace", _create)
    add_command(group, "ls", _work, "list the workspaces", add_json)
    add_command(group, "show", _work, "show a workspace with its usage", _show)
    add_command(group, "quota", _work, "show or set how many bytes a workspace may use", _quota)
    add_command(group, "rename", _work, "give a workspace another name", _rename)
    add_command(group, "rm", _work, "remove a workspace that has no chats outside its trash", _named)


def _create(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--quota", type=size, default=0, metavar="SIZE", help="bytes that it may use, such as 10G")
    parser.add_argument("--project", metavar="DIR", help="have its chats in this directory, too: see chatfs project")
    add_json(parser)


def _named(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", type=workspace_name)


def _show(parser: Parser) -> None:
    _named(parser)
    add_json(parser)


def _quota(parser: Parser) -> None:
    _named(parser)
    parser.add_argument(
        "size", metavar="SIZE", nargs="?", type=size, help="such as 10G, 500M, 1024; none or 0 for none"
    )
    add_json(parser)


def _rename(parser: Parser) -> None:
    _named(parser)
    parser.add_argument("new", metavar="NEW")
