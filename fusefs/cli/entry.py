"""`chatfs`: the words, the command, and what becomes of its errors.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. An error is one line on stderr. A reader that closes the pipe
has had enough: that is no error.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from argparse import Action, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fusefs import __version__
from fusefs.cli.errors import UsageError
from fusefs.cli.output import complain, escape_lines
from fusefs.cli.parser import Parser, add_global
from fusefs.cli.words import chat, importing, log, mounting, moving, project, sandbox, searching, storing, workspace
from store.errors import StoreError

if TYPE_CHECKING:
    from fusefs.cli.logged import Complaints

INTERRUPTED: Final = 130


class _Version(Action):
    def __call__(self, parser: object, *_rest: object) -> None:
        assert isinstance(parser, Parser)
        print(f"chatfs {__version__}")
        parser.exit()


def build() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="chatfs",
        description="AI-agent chats as ordinary files, on an append-only log.",
        epilog="WORKSPACE/CHAT names a chat. Exit codes: 0 done, 1 failed, 2 wrong usage. More: chatfs COMMAND -h",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    add_global(parser, top=True)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (
        mounting.add,
        workspace.add,
        project.add,
        chat.add,
        log.add,
        importing.add,
        moving.add,
        storing.add_compact,
        searching.add,
        storing.add_fsck,
        storing.add_gc,
        sandbox.add,
        storing.add_status,
    ):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    # A long chat is tens of thousands of objects that stay: looking through them all again and again stops everything.
    gc.set_threshold(50_000, 20, 100)
    _open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return _run(build().parse_args(argv))


def _run(args: Namespace) -> int:
    import logging  # noqa: PLC0415 - nothing is logged where only help is printed

    from fusefs.cli.logged import Complaints  # noqa: PLC0415 - as above

    complaints = Complaints()
    logging.lastResort = complaints  # a mount logs in its own way
    try:
        args.run(args)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the user gets one line
        return _failed(_cause(error), args, complaints)
    return 0


def _open_standard_files() -> None:
    """Where the caller closed one of them, /dev/null stands in: else a log would be opened under its number."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", encoding="utf-8", closefd=False))


def _cause(error: BaseException) -> BaseException:
    """What a nursery's group is about."""
    while isinstance(error, BaseExceptionGroup):
        interrupts = error.subgroup(KeyboardInterrupt)
        error = (interrupts or error).exceptions[0]
    return error


def _failed(error: BaseException, args: Namespace, complaints: Complaints) -> int:
    if args.debug:
        import traceback  # noqa: PLC0415 - it isn't wanted otherwise

        print(escape_lines("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    match error:
        case BrokenPipeError():
            # What is still buffered must not fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        case KeyboardInterrupt():
            return INTERRUPTED
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case UsageError():
            complain(str(error))
            return 2
        case StoreError():
            if not complaints.has(error):
                complain(str(error) or type(error).__name__)
        case OSError() if error.strerror:
            complain(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)
        case _:
            hint = "" if args.debug else "; run with --debug for the traceback"
            complain(f"internal error: {type(error).__name__}: {error}{hint}")
    return 1
