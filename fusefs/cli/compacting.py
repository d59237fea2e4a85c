"""`chatfs compact`: drop a chat's old events, and keep what they led to."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING

from fusefs.cli.output import size_text, write_json, write_line
from fusefs.cli.parser import add_command, add_json
from fusefs.cli.targets import ANYWHERE, chat_path, find_chat, in_store
from store.compaction import KEPT, compact
from store.library import Store

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "compact",
        _run,
        "drop a chat's old events, keeping its text",
        details="history.md, the metadata and the attachments stay as they are; who wrote what when, and earlier "
        "texts of edited messages, are gone for good. Blobs that nothing names any more are freed by chatfs gc.",
    )
    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
    parser.add_argument(
        "--keep", metavar="N", type=_count, default=KEPT, help=f"leave the last N events in the log (default: {KEPT})"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be dropped")
    add_json(parser)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of events")
    return int(text)


def _run(args: Namespace) -> None:
    in_store(_compact, looks=args.dry_run)(args)


async def _compact(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat, ANYWHERE)
    done = await compact(workspace.chat_by_id(record.id), keep=args.keep, dry_run=args.dry_run)
    if args.json:
        fields = {"events": done.events, "bytes": done.size, "state_bytes": done.state_size, "through": done.through}
        write_json(fields | {"dry_run": args.dry_run})
    elif not done.events:
        write_line(f"{args.chat}: nothing to drop beyond the last {args.keep} events")
    else:
        verb = "would drop" if args.dry_run else "dropped"
        write_line(
            f"{args.chat}: {verb} {done.events} events ({size_text(done.size)}), up to entry {done.through}, "
            f"for a state of {size_text(done.state_size)}"
        )
