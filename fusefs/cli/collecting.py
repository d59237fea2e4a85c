"""`chatfs gc`: frees what nobody can get at any more."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fusefs.cli.output import Progress, complain, size_text, write_json, write_line
from fusefs.cli.parser import add_command, add_json
from fusefs.cli.targets import actor, in_store, number
from store.gc import RETENTION_DAYS
from store.library import Store

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands
    from store.gc.collect import Collected

_WHAT = {
    "chats": "chats from the trash",
    "workspaces": "removed workspaces",
    "blobs": "attachments' contents that nothing names",
    "scratch": "editors' stale files",
    "leftovers": "files that crashes left",
}


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "gc",
        _gc,
        "free what is in the trash for long, and what nothing uses",
        details="Deletes for good: chats and workspaces that have been in the trash for longer than the retention, "
        "editors' temporary files that nobody has touched for as long, and attachments' contents that no chat's log "
        "names. An attachment that was removed or replaced stays in its chat's log, and so do its contents. Safe "
        "beside running mounts.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be freed")
    parser.add_argument(
        "--retention",
        metavar="DAYS",
        type=number,
        default=RETENTION_DAYS,
        help=f"how long things stay in the trash (default: {RETENTION_DAYS})",
    )
    add_json(parser)


def _gc(args: Namespace) -> None:
    in_store(_collect, looks=args.dry_run)(args)


async def _collect(store: Store, args: Namespace) -> None:
    from store.gc.collect import collect  # noqa: PLC0415 - only this command needs it

    with Progress() as progress:
        done = await collect(store, actor(), retention_days=args.retention, dry_run=args.dry_run, say=progress.say)
    for note in done.notes:
        complain(note)
    if args.json:
        write_json(_fields(done) | {"bytes": done.bytes, "dry_run": args.dry_run, "notes": done.notes})
        return
    verb = "would free" if args.dry_run else "freed"
    for name, what in _WHAT.items():
        swept = getattr(done, name)
        if swept.count or swept.bytes:
            write_line(f"{verb} {swept.count} {what} ({size_text(swept.bytes)})")
    write_line(f"{verb} {size_text(done.bytes)}" if done.bytes else f"{verb} nothing")


def _fields(done: Collected) -> dict[str, Any]:
    return {name: {"count": getattr(done, name).count, "bytes": getattr(done, name).bytes} for name in _WHAT}
