"""`chatfs compact`: drop a chat's old events, and keep what they led to."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Final

from fusefs.cli.output import size_text, write_json, write_line
from fusefs.cli.parser import Run
from fusefs.cli.targets import ANYWHERE, find_chat, in_store
from store.compaction import KEPT, compact
from store.library import Store


def _run(args: Namespace) -> None:
    in_store(_compact, looks=args.dry_run)(args)


async def _compact(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat, ANYWHERE)
    keep = KEPT if args.keep is None else args.keep
    done = await compact(workspace.chat_by_id(record.id), keep=keep, dry_run=args.dry_run)
    if args.json:
        fields = {"events": done.events, "bytes": done.size, "state_bytes": done.state_size, "through": done.through}
        write_json(fields | {"dry_run": args.dry_run})
    elif not done.events:
        write_line(f"{args.chat}: nothing to drop beyond the last {keep} events")
    else:
        verb = "would drop" if args.dry_run else "dropped"
        write_line(
            f"{args.chat}: {verb} {done.events} events ({size_text(done.size)}), up to entry {done.through}, "
            f"for a state of {size_text(done.state_size)}"
        )


COMMANDS: Final[Mapping[str, Run]] = {
    "compact": _run,
}
