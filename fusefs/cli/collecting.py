"""`chatfs gc`: frees what nobody can get at any more."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusefs.cli.output import Progress, complain, size_text, write_json, write_line
from fusefs.cli.parser import Run
from fusefs.cli.targets import actor, in_store
from store.gc.collect import collect
from store.library import Store

if TYPE_CHECKING:
    from store.gc.collect import Collected

_WHAT = {
    "chats": "chats from the trash",
    "workspaces": "removed workspaces",
    "blobs": "attachments' contents that nothing names",
    "scratch": "editors' stale files",
    "leftovers": "files that crashes left",
}


def _gc(args: Namespace) -> None:
    in_store(_collect, looks=args.dry_run)(args)


async def _collect(store: Store, args: Namespace) -> None:
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


COMMANDS: Final[Mapping[str, Run]] = {
    "gc": _gc,
}
