"""How commands are declared: `--store` and `--debug` before or after the command's name, errors in one line.

Who asks for one command pays for that one: its arguments are declared when its name was read, and what does its work is
imported when they are right. So `fusefs.cli.words` imports nothing of the store.
"""

from __future__ import annotations

import argparse
import functools
import gc
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from fusefs.cli.output import escape

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    Commands = _SubParsersAction["Parser"]

Run = Callable[[Namespace], None]
Work = Callable[[], Mapping[str, Run]]
"""Imports what does the work of some commands, and returns it by their names."""

MARK: Final = "\0"
"""Before a word that argparse would take for an option; no argument of a program can have it."""


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line.

    With `declare`, which adds what it takes, it is made when it is needed first: argparse has one of all commands'
    parsers parse, and asks nothing of the others.
    """

    def __init__(self, *, declare: Callable[[Parser], None] | None = None, **settings: Any) -> None:
        self._declare, self._settings = declare, settings
        if declare is None:
            super().__init__(allow_abbrev=False, **settings)
        self.usage_code = 2
        """What it exits with where the words are wrong."""
        self.minus_words = False
        """Whether `-word` is a word, unless it is an option. Such words come with a MARK before them."""

    def declared(self) -> Self:
        """The parser with all that it takes."""
        declare, self._declare = self._declare, None
        if declare is not None:
            super().__init__(allow_abbrev=False, **self._settings)
            declare(self)
        return self

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """See argparse."""
        self.declared()
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


def add_command(
    commands: Commands, name: str, work: Work, summary: str, declare: Callable[[Parser], None], *, details: str = ""
) -> None:
    """Declare a command: `declare` adds what it takes, `work` has what does it."""

    def begin(parser: Parser) -> None:
        add_global(parser)
        parser.set_defaults(run=functools.partial(_run, work, name))
        declare(parser)

    commands.add_parser(name, help=summary, description=f"{_sentence(summary)} {details}".strip(), declare=begin)


def _run(work: Work, name: str, args: Namespace) -> None:
    run = work()[name]
    gc.freeze()  # what was imported stays: the garbage collector needn't go through it every time
    run(args)


def add_group(commands: Commands, name: str, summary: str, declare: Callable[[Commands], None]) -> None:
    """Declare a command that is a word before others."""

    def begin(parser: Parser) -> None:
        add_global(parser)
        declare(parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser))

    commands.add_parser(name, help=summary, description=_sentence(summary), declare=begin)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def add_json(parser: Parser) -> None:
    """`--json`: all that some commands take."""
    parser.add_argument("--json", action="store_true", help="print JSON")
