"""`chatfs sandbox run|ls|stop`."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from fusefs.cli.arguments import chat_path
from fusefs.cli.parser import Parser, Run, add_command, add_group, add_json

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands

_SETTING: Final = "[A-Za-z_][A-Za-z0-9_]*=.*"


def add(commands: Commands) -> None:
    """Declare the commands."""
    add_group(commands, "sandbox", "run commands that have one chat, as /chat, and nothing else of the store", _sandbox)


def _work() -> Mapping[str, Run]:
    from fusefs.cli.sandbox import COMMANDS  # noqa: PLC0415 - as `fusefs.cli.parser` says

    return COMMANDS


def _sandbox(group: Commands) -> None:
    add_command(
        group,
        "run",
        _work,
        "run a command with a chat as its /chat",
        _run,
        details="Exits as the command does (128 + N where signal N ended it). Meanwhile the chat can't be removed or "
        "archived.",
    )
    add_command(group, "ls", _work, "list the sandboxes that run", add_json)
    add_command(group, "stop", _work, "end a sandbox's command, and its session", _stop)


def _run(parser: Parser) -> None:
    from fusefs.sandbox.runtimes import Runtime  # noqa: PLC0415 - only this command needs it

    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
    parser.add_argument(
        "--runtime",
        choices=[each.value for each in Runtime],
        default=Runtime.BWRAP.value,
        help="bwrap (the default): this machine's /usr, or --image, and no network; podman: a container of --image; "
        "none: no isolation, the chat is the working directory",
    )
    parser.add_argument("--image", metavar="ROOTFS", default="", help="a root directory; with podman also an image")
    parser.add_argument("--network", action="store_true", help="let it use the network")
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--read-only", action="store_true", help="it can't change the chat")
    access.add_argument("--append-only", action="store_true", help="it can only append messages to history.jsonl")
    parser.add_argument(
        "--record", action="store_true", help="keep what it prints in the chat's log, as sandbox.output"
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        dest="settings",
        type=_setting,
        action="append",
        default=[],
        help="set a variable",
    )
    parser.add_argument("command", metavar="-- COMMAND", nargs="+")


def _setting(text: str) -> str:
    """An argument that sets a variable."""
    if re.fullmatch(_SETTING, text, re.DOTALL) is None:
        raise ArgumentTypeError(f"{text!r} sets nothing: write NAME=VALUE")
    return text


def _stop(parser: Parser) -> None:
    parser.add_argument("session", metavar="WORKSPACE/CHAT|SESSION")
    parser.add_argument("--kill", action="store_true", help="at once, without letting it end well")
