"""`chatfs search`: where something was said."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusefs.cli.errors import CommandFailed
from fusefs.cli.output import Progress, escape, write_json
from fusefs.cli.parser import Run
from fusefs.cli.targets import in_store
from fusefs.cli.words.searching import KINDS
from store.errors import InvalidInput
from store.library import Store
from store.metadata import timestamp
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.index import Hit

_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[22m"


async def _search(store: Store, args: Namespace) -> None:
    from store.index import Kind, Search  # noqa: PLC0415 - SQLite, which other commands don't need

    search = Search(
        os.fsencode(" ".join(args.words)).decode(errors="replace"),
        workspace=args.workspace,
        role=args.role,
        kinds=frozenset(Kind(KINDS[name]) for name in args.kinds or ()),
        limit=args.limit,
        trash=args.trash,
    )
    if args.limit == 0:
        raise InvalidInput("--limit 0 finds nothing: leave it away, or give a higher one")
    if args.workspace is not None:
        await store.workspace(args.workspace)  # a mistyped name isn't one that has nothing
    if args.rebuild:
        await store.index.rebuild()
    with Progress() as progress:
        hits = await store.search(search, lambda done, total: progress.say(f"indexing: {done} of {total} chats"))
    if args.json:
        write_json([_fields(hit) for hit in hits])
    else:
        for hit in hits:
            _show(hit)
    if not hits:
        raise CommandFailed(f"nothing is found{_hint(args)}")


def _hint(args: Namespace) -> str:
    return "" if args.trash else ": --trash looks in the trash, too"


def _show(hit: Hit) -> None:
    """Where, in a form that editors and terminals understand, and the words."""
    if hit.kind == "message":
        said = f"message {hit.number}, {hit.role}, {timestamp(hit.ts)}" if hit.number else "before the first message"
        print(escape(f"{hit.path}:{hit.line}: {said}"))
    else:
        print(escape(f"{hit.path}: {hit.kind}"))
    print(f"    {_marked(hit)}")


def _marked(hit: Hit) -> str:
    if not sys.stdout.isatty():
        return escape(hit.snippet)
    shown, at = "", 0
    for start, end in hit.marks:
        shown += f"{escape(hit.snippet[at:start])}{_BOLD}{escape(hit.snippet[start:end])}{_PLAIN}"
        at = end
    return shown + escape(hit.snippet[at:])


def _fields(hit: Hit) -> dict[str, Any]:
    found = {
        "kind": hit.kind.value,
        "workspace": hit.workspace,
        "chat": hit.chat,
        "chat_id": hit.chat_id,
        "lifecycle": {Place.CHATS: "active", Place.ARCHIVE: "archived", Place.TRASH: "trashed"}[hit.place],
        "path": hit.path,
        "snippet": hit.snippet,
        "marks": hit.marks,
        "score": round(hit.score, 6),
    }
    if hit.kind == "message":
        found |= {
            "message": hit.message,
            "number": hit.number,
            "line": hit.line,
            "role": hit.role,
            "time": timestamp(hit.ts),
        }
    elif hit.kind == "attachment":
        found["attachment"] = hit.attachment
    return found


COMMANDS: Final[Mapping[str, Run]] = {
    "search": in_store(_search, looks=True),
}
