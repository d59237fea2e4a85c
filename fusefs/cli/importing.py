"""`chatfs import …`: chats that other programs wrote.

Concurrency: sources are read in threads, one chat at a time.
"""

from __future__ import annotations

import functools
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from fusefs.cli.errors import CommandFailed, UsageError
from fusefs.cli.moving import import_jsonl
from fusefs.cli.output import Progress, complain, write_json, write_table
from fusefs.cli.parser import Run
from fusefs.cli.targets import actor, in_store, readable, standard_input
from store.errors import StoreError, WorkspaceNotFound
from store.importing import Stored, store_chat
from store.library import Store
from store.workspace import Workspace
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.importers.imported import ImportedChat


def _jsonl(args: Namespace) -> None:
    if args.jsonl is None:
        raise UsageError("say what to import: --jsonl FILE, or a COMMAND: see chatfs import -h")
    if args.jsonl != Path("-"):
        readable(args.jsonl)  # a name that is mistyped makes no store
    in_store(import_jsonl, makes=True)(args)


@dataclass(frozen=True, slots=True)
class _Result:
    path: Path
    imported: ImportedChat
    stored: Stored

    @property
    def skipped(self) -> str:
        """Why nothing was done; "" where something was, or was there already."""
        if self.stored.record is None:
            return "empty"
        return "in the trash" if self.stored.record.place is Place.TRASH else ""


async def _claude_code(store: Store, args: Namespace) -> None:
    from store.importers.claude_code import read_claude_code  # noqa: PLC0415 - only imports need it

    await _import(store, args, "claude-code", read_claude_code)


async def _messages(store: Store, args: Namespace) -> None:
    from store.importers.messages import read_messages  # noqa: PLC0415 - as above

    if args.chat is not None and len(args.paths) > 1:
        raise UsageError("--chat names one chat: give one FILE with it")
    await _import(
        store,
        args,
        "messages",
        lambda path: [read_messages(standard_input() if path == Path("-") else path)],
        name=args.chat or "",
    )


async def _jp(store: Store, args: Namespace) -> None:
    from store.importers.jp import JpChat, find_conversations  # noqa: PLC0415 - as above
    from store.importing_jp import store_jp  # noqa: PLC0415 - as above

    def put(workspace: Workspace, imported: ImportedChat, told: Callable[[int], None]) -> Awaitable[Stored]:
        assert isinstance(imported, JpChat)
        return store_jp(workspace, imported, actor(), told=told)

    await _import(store, args, "jp", find_conversations, put=put)


Put = Callable[[Workspace, "ImportedChat", Callable[[int], None]], Awaitable[Stored]]
"""Stores one chat of the source."""


async def _import(
    store: Store,
    args: Namespace,
    source: str,
    read: Callable[[Path], Sequence[ImportedChat]],
    *,
    name: str = "",
    put: Put | None = None,
) -> None:
    def store_it(workspace: Workspace, imported: ImportedChat, told: Callable[[int], None]) -> Awaitable[Stored]:
        return store_chat(workspace, source, imported, actor(), name=name, told=told)

    for path in args.paths:
        if path != Path("-"):
            path.stat()  # a name that is mistyped stops it all before it begins
    workspace = await _found_or_made(store, args.workspace)
    results: list[_Result] = []
    failures: list[str] = []
    with Progress() as progress:
        async for path, imported in _chats(args.paths, read, progress, failures):
            try:
                told = functools.partial(_say, progress, f"{path}: {imported.suggested_name}")
                stored = await (put or store_it)(workspace, imported, told)
            except (OSError, StoreError) as error:
                why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
                failures.append(f"{path}: {imported.source_id}: {why}")
                continue
            results.append(_Result(path, imported, stored))
    _report(args, workspace, results, failures)


def _say(progress: Progress, what: str, records: int) -> None:
    progress.say(f"{what}: {records} records")


async def _found_or_made(store: Store, name: str) -> Workspace:
    try:
        return await store.workspace(name)
    except WorkspaceNotFound:
        return await store.create_workspace(name, actor())


async def _chats(
    paths: list[Path], read: Callable[[Path], Sequence[ImportedChat]], progress: Progress, failures: list[str]
) -> AsyncIterator[tuple[Path, ImportedChat]]:
    for path in paths:
        progress.say(f"reading {path}")
        try:
            found = await trio.to_thread.run_sync(read, path, abandon_on_cancel=True)
        except OSError as error:
            failures.append(f"{error.filename or path}: {error.strerror}")
            continue
        if not found:
            failures.append(f"{path}: there is nothing to import in it")
        for imported in found:
            yield path, imported


def _report(args: Namespace, workspace: Workspace, results: list[_Result], failures: list[str]) -> None:
    rows = [_row(workspace, result) for result in results]
    if args.json:
        write_json({"chats": rows, "failed": [_printable(failure) for failure in failures]})
    else:
        write_table(
            ("CHAT", "ADDED", "PRESENT", "PROBLEMS", "SOURCE"),
            [
                (
                    row["chat"] + (f" ({row['skipped']}: skipped)" if row["skipped"] else ""),
                    str(row["added"]),
                    str(row["present"]),
                    str(len(row["problems"])),
                    row["source_id"],
                )
                for row in rows
            ],
        )
        for row in rows:
            for problem in row["problems"]:
                complain(f"{row['source_id']}: {problem}")
        for failure in failures:
            complain(failure)
    if failures:
        raise CommandFailed(
            f"{len(failures)} of the sources couldn't be imported: import them again when that is mended"
        )


def _row(workspace: Workspace, result: _Result) -> dict[str, Any]:
    record = result.stored.record
    return {
        "chat": "" if record is None else f"{workspace.state.name}/{record.name}",
        "id": None if record is None else record.id,
        "path": _printable(str(result.path)),
        "source_id": _printable(result.imported.source_id),
        "added": result.stored.added,
        "present": result.stored.present,
        "skipped": result.skipped,
        "problems": [_printable(problem) for problem in result.imported.problems],
    }


def _printable(text: str) -> str:
    """File names may be other than UTF-8."""
    return os.fsencode(text).decode(errors="backslashreplace")


COMMANDS: Final[Mapping[str, Run]] = {
    "import": _jsonl,
    "claude-code": in_store(_claude_code, makes=True),
    "messages": in_store(_messages, makes=True),
    "jp": in_store(_jp, makes=True),
}
