"""How commands are declared: `--store` and `--debug` before or after the command's name, errors in one line."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fusefs.cli.output import escape

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    Commands = _SubParsersAction["Parser"]

Run = Callable[[Namespace], None]


MARK: Final = "\0"
"""Before a word that argparse would take for an option; no argument of a program can have it."""


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.usage_code = 2
        """What it exits with where the words are wrong."""
        self.minus_words = False
        """Whether `-word` is a word, unless it is an option. Such words come with a MARK before them."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """See argparse."""
        if args is not None and self.minus_words:
            args = [MARK + word if self._is_minus_word(word) else word for word in args]
        found, rest = super().parse_known_args(args, namespace)
        if rest and self.usage_code != 2:
            self.error(f"unrecognized arguments: {' '.join(rest)}")  # else the whole program's parser says so
        return found, rest

    def _is_minus_word(self, word: str) -> bool:
        return len(word) > 1 and word[0] == "-" != word[1] and word not in self._option_string_actions

    def error(self, message: str) -> NoReturn:
        """One line; exit code 2, or what the command says instead."""
        self.exit(self.usage_code, f"chatfs: {escape(message)}: see {self.prog} -h\n")


def add_global(parser: Parser, *, top: bool = False) -> None:
    """The options that every command has; a command's own namespace must not undo what stood before its name."""
    parser.add_argument(
        "--store",
        metavar="URL",
        default=None if top else SUPPRESS,
        help="file:///path or a path (default: $CHATFS_STORE, or chatfs in the user's data directory); mount, "
        "workspace create and import make it, if the directory above is there",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=False if top else SUPPRESS,
        help="show tracebacks; with mount, log every request",
    )


def add_command(commands: Commands, name: str, run: Run, summary: str, *, details: str = "") -> Parser:
    """Declare a command that `run` does."""
    text = f"{summary[0].upper()}{summary[1:]}. {details}".strip()
    parser = commands.add_parser(name, help=summary, description=text)
    add_global(parser)
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Commands, name: str, summary: str) -> Commands:
    """Declare a command that is a word before others."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    add_global(parser)
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)


def add_json(parser: Parser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
