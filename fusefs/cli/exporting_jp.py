"""`chatfs export jp`: chats as conversations of JP."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from fusefs.cli.arguments import space_path
from fusefs.cli.errors import CommandFailed, UsageError
from fusefs.cli.output import Progress, complain, write_table
from fusefs.cli.projecting import say_left_out
from fusefs.cli.targets import actor, find_chat, in_store
from store.errors import StoreError
from store.library import Store
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

if TYPE_CHECKING:
    from store.exporters.jp import Exported


def export_jp(args: Namespace) -> None:
    """`args.words` are `jp`, WORKSPACE or WORKSPACE/CHAT, and a directory."""
    # What is exported is recorded in the chat's log, where that can be written.
    in_store(_export, looks=True)(args)


async def _export(store: Store, args: Namespace) -> None:
    from store.exporters import jp  # noqa: PLC0415 - only exports need it

    _, what, directory = args.words
    workspace, chats = await _chats(store, what)
    done: list[tuple[ChatRecord, Exported]] = []
    failures: list[str] = []
    taken: set[int] = set()
    with Progress() as progress:
        for record in chats:
            progress.say(f"writing {workspace.called}/{record.name}")
            try:
                exported = await jp.export_jp(workspace, record, Path(directory), actor(), taken=taken)
            except OSError as error:
                failures.append(f"{workspace.called}/{record.name}: {error.filename or directory}: {error.strerror}")
            except StoreError as error:
                failures.append(f"{workspace.called}/{record.name}: {error}")
            else:
                done.append((record, exported))
    _report(workspace, done)
    if len(failures) == 1 and not done:
        raise CommandFailed(failures[0])
    for failure in failures:
        complain(failure)
    if failures:
        raise CommandFailed(f"{len(failures)} of the chats couldn't be exported: export them again when that is mended")


def _report(workspace: Workspace, done: list[tuple[ChatRecord, Exported]]) -> None:
    if done:
        write_table(
            ("CHAT", "EVENTS", "", "CONVERSATION"),
            [
                (
                    f"{workspace.called}/{record.name}",
                    str(exported.events),
                    "written" if exported.written else "unchanged",
                    str(exported.path),
                )
                for record, exported in done
            ],
        )
    for record, exported in done:
        for note in exported.notes:
            complain(f"{workspace.called}/{record.name}: {note}")


async def _chats(store: Store, what: str) -> tuple[Workspace, list[ChatRecord]]:
    """The chat that is named, or all of a workspace outside its trash."""
    try:
        path = space_path(what)
    except ArgumentTypeError as error:
        raise UsageError(str(error)) from None
    if path.chat:
        workspace, record = await find_chat(store, path)
        return workspace, [record]
    workspace = await store.workspace(path.workspace)
    await say_left_out(store, workspace)
    state = await workspace.load()
    return workspace, [state.chats[chat] for chat in state.names.values() if state.chats[chat].place is not Place.TRASH]
