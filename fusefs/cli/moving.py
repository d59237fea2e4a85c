"""`chatfs migrate`, `chatfs export` and `chatfs import --jsonl`: workspaces and chats from one store to another.

Concurrency: `_run` opens both stores' drivers; nothing else is open.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import trio

from fusefs.cli.arguments import space_path
from fusefs.cli.errors import CommandFailed, UsageError
from fusefs.cli.output import Progress, complain, escape, size_text, write_json, write_line
from fusefs.cli.parser import Run
from fusefs.cli.projecting import say_left_out
from fusefs.cli.stores import absolute_url, making, migration_bar, say_made
from fusefs.cli.targets import ANYWHERE, actor, find_chat, in_store, readable, standard_input
from store import durability
from store.driver import Access, Driver
from store.errors import CorruptLog, NameTaken, QuotaExceeded, WorkspaceNotFound
from store.library import Store
from store.model import directory_name
from store.registry import open_driver
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.moving.report import Moved
    from store.moving.taking import Stream, StreamedChat, Taking


# ---- migrate


def _migrate(args: Namespace) -> None:
    trio.run(_migrate_stores, args)


@asynccontextmanager
async def _driver(url: str, access: Access, progress: Progress) -> AsyncIterator[Driver]:
    driver = await open_driver(url, access=access, progress=migration_bar(progress))
    try:
        yield driver
    finally:
        with trio.CancelScope(shield=True):
            await driver.aclose()


async def _migrate_stores(args: Namespace) -> None:
    from store.moving.migrating import migrate  # noqa: PLC0415 - only this needs it

    source, target = absolute_url(args.source), absolute_url(args.target)
    if source == target:
        raise UsageError(f"{args.source} and {args.target} are the same store: name another to move to")
    with Progress() as progress:
        async with _driver(source, Access.READ, progress) as opened, _driver(target, making(target), progress) as other:
            progress.clear()
            say_made(other)
            moved = await migrate(opened, other, workspace=args.workspace, verify=args.verify, told=progress.say)
            drafts = _drafts(opened)
    if drafts:
        moved.notes.append(
            f"unsaved files ({drafts}) stay in {args.source}: save what is being edited, or mount it once, and run "
            "this again"
        )
    _report(args, moved, "copied")


def _drafts(driver: Driver) -> int:
    """How many drafts a store has that belong to something."""
    return sum(bool(label) for label, _ in driver.blobs.drafts())


def _report(args: Namespace, moved: Moved, verb: str) -> None:
    if args.json:
        write_json(
            {
                "workspaces": moved.workspaces,
                "logs": moved.logs,
                "entries": moved.entries,
                "blobs": moved.blobs,
                "blob_bytes": moved.blob_bytes,
                "files": moved.files,
                "failed": [escape(failure) for failure in moved.failures],
                "notes": [escape(note) for note in moved.notes],
            }
        )
    elif moved.nothing_new:
        write_line(f"nothing new in {moved.logs} logs")
    else:
        write_line(_sentence(moved, verb))
    _complain(moved)


def _sentence(moved: Moved, verb: str) -> str:
    files = f", {moved.files} scratch files" if moved.files else ""
    return (
        f"{verb} {moved.entries} entries of {moved.logs} logs, {moved.blobs} attachments' bytes "
        f"({size_text(moved.blob_bytes)}){files}"
    )


def _complain(moved: Moved) -> None:
    for note in moved.notes:
        complain(note)
    for failure in moved.failures:
        complain(failure)
    if moved.failures:
        count = len(moved.failures)
        raise CommandFailed(
            f"{count} thing{'s' * (count > 1)} couldn't be moved, the rest was: mend that (see chatfs fsck), then "
            "run this again"
        )


# ---- export


def _export(args: Namespace) -> None:
    if args.jsonl:
        if len(args.words) != 1:
            raise UsageError("export --jsonl takes one WORKSPACE or WORKSPACE/CHAT")
        if args.output == "-" and sys.stdout.isatty():
            raise UsageError("this would fill the terminal: name a file with -o FILE")
        in_store(_export_jsonl, looks=True)(args)
    elif args.words[0] == "jp" and len(args.words) == 3:
        from fusefs.cli.exporting_jp import export_jp  # noqa: PLC0415 - as above

        export_jp(args)
    else:
        raise UsageError("say in which form: chatfs export WORKSPACE[/CHAT] --jsonl, or chatfs export jp W[/C] DIR")


async def _export_jsonl(store: Store, args: Namespace) -> None:
    from store.moving.exporting import export  # noqa: PLC0415 - as above

    try:
        path = space_path(args.words[0])
    except ArgumentTypeError as error:
        raise UsageError(str(error)) from None
    chat, name = None, ""
    if path.chat:
        workspace, record = await find_chat(store, path, ANYWHERE)
        chat, name = record.id, f"/{record.name}"
    else:
        workspace = await store.workspace(path.workspace)
        await say_left_out(store, workspace)
    try:
        with Progress() as progress, _output(args.output) as write:
            moved = await export(store.driver, workspace.id, chat, write, told=progress.say)
    except CorruptLog as damage:
        raise damage.again(workspace.called + name) from damage
    _complain(moved)


@contextmanager
def _output(name: str) -> Iterator[Callable[[bytes], object]]:
    """Where a stream goes: a file appears under its name when it is whole."""
    if name == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:  # a pipe, or /dev/null
            yield file.write
        return
    beside = durability.temporary(path)
    try:
        with beside.open("xb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


# ---- import


async def import_jsonl(store: Store, args: Namespace) -> None:
    """`chatfs import --jsonl FILE`."""
    from store.moving.taking import Taking  # noqa: PLC0415 - as above

    with _input(args.jsonl) as file, Progress() as progress:
        taking = Taking(file, store.driver, progress.say)
        stream = await taking.begin()
        if stream.chat is None:
            if args.workspace not in {None, stream.name, stream.workspace} or args.chat is not None:
                raise UsageError(f"the stream is workspace {stream.name!r}: it can't get another name")
            moved = await taking.take(stream, stream.workspace)
        else:
            moved = await _take_chat(store, args, taking, stream, stream.chat)
    _report(args, moved, "imported")


@contextmanager
def _input(path: Path) -> Iterator[IO[bytes]]:
    if path == Path("-"):
        yield standard_input()
        return
    with readable(path).open("rb") as file:
        yield file


async def _take_chat(store: Store, args: Namespace, taking: Taking, stream: Stream, chat: StreamedChat) -> Moved:
    """One chat comes into the workspace that is named, or one that is called as that where it comes from.

    It is listed when all of it is there.
    """
    name, chat_name = args.workspace or stream.name, directory_name(args.chat or chat.name)
    try:
        workspace = await store.workspace(name)
    except WorkspaceNotFound:
        await taking.check_chat(chat.id, None)
        workspace = await store.create_workspace(name, actor())
    taken = workspace.state.find(chat_name)
    if chat.id not in workspace.state.chats and taken is not None:
        raise NameTaken(f"{name}/{chat_name} is another chat ({taken.id}): choose another name with --chat")
    listed = chat.id in workspace.state.chats
    try:
        moved = await taking.take(stream, workspace.id, workspace.quota)
        if chat.id not in (await workspace.load()).chats:
            await workspace.create_chat(chat_name, actor(), chat=chat.id)
    except QuotaExceeded:
        if not listed:
            await taking.take_back()
        raise
    if not listed and chat.place is Place.ARCHIVE:
        await workspace.move_chat(chat.id, Place.ARCHIVE, chat_name, actor())
    await workspace.space.sync()
    return moved


COMMANDS: Final[Mapping[str, Run]] = {
    "migrate": _migrate,
    "export": _export,
}
