"""`chatfs chat …`: making, listing and moving chats."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fusefs.cli.output import Progress, write_fields, write_json, write_line, write_table
from fusefs.cli.parser import add_command, add_group, add_json
from fusefs.cli.targets import ANYWHERE, LIVING, actor, chat_path, find_chat, in_store, workspace_name
from store.library import Store
from store.metadata import chat_summary, timestamp
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands, Parser

_LIFECYCLE = {Place.CHATS: "active", Place.ARCHIVE: "archived", Place.TRASH: "trashed"}


def add(commands: Commands) -> None:
    """Declare the commands."""
    group = add_group(commands, "chat", "make, list, rename, archive and remove chats")

    parser = _on_chat(group, "new", _new, "make an empty chat")
    add_json(parser)

    parser = add_command(
        group, "ls", in_store(_ls, looks=True), "list a workspace's chats", details="Those in the trash only if asked."
    )
    parser.add_argument("workspace", metavar="WORKSPACE", type=workspace_name)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--archived", action="store_const", dest="places", const=(Place.ARCHIVE,), help="only archived ones"
    )
    which.add_argument(
        "--trash", action="store_const", dest="places", const=(Place.TRASH,), help="only those in the trash"
    )
    which.add_argument("--all", action="store_const", dest="places", const=ANYWHERE, help="all, the trash included")
    parser.set_defaults(places=LIVING)
    parser.add_argument("-l", "--long", action="store_true", help="open each: title, messages, last update")
    add_json(parser)

    parser = _on_chat(group, "show", _show, "show a chat's metadata", looks=True)
    add_json(parser)

    parser = _on_chat(group, "rename", _rename, "give a chat another name in its workspace")
    parser.add_argument("name", metavar="NAME")

    _on_chat(group, "archive", _archive, "move a chat to archive/")
    _on_chat(group, "unarchive", _unarchive, "move a chat from archive/ back to chats/")
    _on_chat(group, "rm", _rm, "move a chat to the trash")

    parser = _on_chat(group, "restore", _restore, "move a chat from the trash back to chats/")
    parser.add_argument("--name", metavar="NAME", help="under another name than it had")


def _on_chat(
    group: Commands,
    name: str,
    run: Callable[[Store, Namespace], Awaitable[None]],
    summary: str,
    *,
    looks: bool = False,
) -> Parser:
    parser = add_command(group, name, in_store(run, looks=looks), summary)
    parser.add_argument("chat", metavar="WORKSPACE/CHAT", type=chat_path)
    return parser


async def _new(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.chat.workspace)
    chat = await workspace.create_chat(args.chat.chat, actor())
    await chat.sync()
    await workspace.space.sync()
    if args.json:
        write_json(chat_summary(workspace.state, workspace.state.chats[chat.id], await chat.load()))
    else:
        write_line(f"made chat {args.chat}")


async def _ls(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.workspace)
    shown = [found for place in args.places for found in workspace.state.in_place(place)]
    shown.sort()
    if args.long:
        with Progress() as progress:
            rows: list[dict[str, Any]] = []
            for name, record in shown:
                progress.say(f"opening {len(rows)} of {len(shown)}: {name}")
                rows.append(await _summary(workspace, record) | {"name": name})
        columns: tuple[str, ...] = ("name", "lifecycle", "title", "messages", "updated")
    else:
        rows = [_brief(name, record) for name, record in shown]
        columns = ("name", "lifecycle", "created", "changed")
    if args.json:
        write_json(rows)
    else:
        write_table([column.upper() for column in columns], ([str(row[column]) for column in columns] for row in rows))


def _brief(name: str, record: ChatRecord) -> dict[str, Any]:
    """What the workspace's own log says of a chat, without opening the chat's."""
    return {
        "id": record.id,
        "name": name,
        "lifecycle": _LIFECYCLE[record.place],
        "created": timestamp(record.created),
        "changed": timestamp(record.changed),
    }


async def _summary(workspace: Workspace, record: ChatRecord) -> dict[str, Any]:
    return chat_summary(workspace.state, record, await workspace.chat_by_id(record.id).load())


async def _show(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat, ANYWHERE)
    found = await _summary(workspace, record)
    if args.json:
        write_json(found)
    else:
        found["labels"] = ", ".join(found["labels"])
        write_fields((name.replace("_", " "), str(value)) for name, value in found.items())


async def _move(workspace: Workspace, record: ChatRecord, place: Place, name: str | None = None) -> None:
    await workspace.move_chat(record.id, place, record.name if name is None else name, actor())
    await workspace.space.sync()


async def _rename(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat)
    await _move(workspace, record, record.place, args.name)
    write_line(f"renamed chat {args.chat} to {args.name}")


async def _archive(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat)
    await _move(workspace, record, Place.ARCHIVE)
    write_line(f"archived chat {args.chat}")


async def _unarchive(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat)
    await _move(workspace, record, Place.CHATS)
    write_line(f"chat {args.chat} is in chats/ again")


async def _rm(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat)
    await _move(workspace, record, Place.TRASH)
    write_line(f"moved chat {args.chat} to the trash: chatfs chat restore brings it back")


async def _restore(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat, (Place.TRASH,))
    await _move(workspace, record, Place.CHATS, args.name)
    write_line(f"restored chat {args.chat.workspace}/{args.name or record.name}")
