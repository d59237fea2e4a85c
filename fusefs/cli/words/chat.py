"""`chatfs chat …`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fusefs.cli.arguments import chat_path, workspace_name
from fusefs.cli.parser import Parser, Run, add_command, add_group, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_group(commands, "chat", "make, list, rename, archive and remove chats", _chat)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.chat import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _chat(group: Commands) -> None:
    _on_chat(group, "new", "make an empty chat", _new)
    add_command(
        group,
        "ls",
        _work,
        "list a workspace's chats",
        _ls,
        details="Those in the trash only if asked. Where the workspace has a project, LOCAL says N of chats that are "
        "in the project, Y of those that are in the store alone, and ext of those that are in the project alone.",
    )
    _on_chat(group, "show", "show a chat's metadata", add_json)
    _on_chat(group, "rename", "give a chat another name in its workspace", _rename)
    _on_chat(group, "archive", "move a chat to archive/")
    _on_chat(group, "unarchive", "move a chat from archive/ back to chats/")
    _on_chat(group, "local", "keep a chat out of the workspace's project")
    _on_chat(group, "project", "have a chat in the workspace's project, too")
    _on_chat(
        group,
        "rm",
        "move a chat to the trash",
        details="One that is in the project alone has no trash: it is removed from the project.",
    )
    _on_chat(group, "restore", "move a chat from the trash back to chats/", _restore)


def _on_chat(
    group: Commands, name: str, summary: str, more: Callable[[Parser], None] | None = None, *, details: str = ""
) -> None:
    def declare(parser: Parser) -> None:
        parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
        if more is not None:
            more(parser)

    add_command(group, name, _work, summary, declare, details=details)


def _new(parser: Parser) -> None:
    parser.add_argument("--local", action="store_true", help="keep it out of the workspace's project")
    add_json(parser)


def _ls(parser: Parser) -> None:
    parser.add_argument("workspace", metavar="WORKSPACE", type=workspace_name)
    which = parser.add_mutually_exclusive_group()
    for name, summary in (("archived", "only archived ones"), ("trash", "only those in the trash")):
        which.add_argument(f"--{name}", action="store_const", dest="which", const=name, help=summary)
    which.add_argument("--all", action="store_const", dest="which", const="all", help="all, the trash included")
    parser.set_defaults(which="living")
    parser.add_argument("-l", "--long", action="store_true", help="open each: title, messages, last update")
    add_json(parser)


def _rename(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME")


def _restore(parser: Parser) -> None:
    parser.add_argument("--name", metavar="NAME", help="under another name than it had")
