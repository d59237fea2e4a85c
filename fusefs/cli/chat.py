"""`chatfs chat …`: making, listing and moving chats."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusefs.cli.output import Progress, complain, write_fields, write_json, write_line, write_table
from fusefs.cli.parser import Run
from fusefs.cli.projecting import named, opened_external, project_of
from fusefs.cli.targets import (
    ANYWHERE,
    LIVING,
    actor,
    find_chat,
    in_store,
    readable_chat,
)
from store import events as ev
from store.errors import StoreError
from store.library import Store
from store.metadata import chat_summary, timestamp
from store.projection import binding as bindings
from store.workspace import Workspace
from store.workspace_state import ChatRecord, Place

if TYPE_CHECKING:
    from store.projection.project import External, Project

_LIFECYCLE = {Place.CHATS: "active", Place.ARCHIVE: "archived", Place.TRASH: "trashed"}
_WHICH = {"living": LIVING, "archived": (Place.ARCHIVE,), "trash": (Place.TRASH,), "all": ANYWHERE}
_LOCAL = {"projected": "N", "local": "Y", "external": "ext"}
_COLOURS = {"LOCAL": {"Y": 34, "ext": 35}}
"""Blue and magenta."""


async def _new(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.chat.workspace)
    chat = await workspace.create_chat(args.chat.chat, actor(), projection=ev.LOCAL if args.local else None)
    await chat.sync()
    await workspace.space.sync()
    if args.json:
        write_json(await _summary(workspace, workspace.state.chats[chat.id]))
    else:
        write_line(f"made chat {args.chat}")


async def _ls(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.workspace)
    places = _WHICH[args.which]
    async with project_of(store, workspace) as project:
        shown = [found for place in places for found in workspace.state.in_place(place)]
        if project is not None:
            shown += [(each.name, _record(each)) for each in project.externals.values() if each.place in places]
        shown.sort(key=lambda found: found[0])
        if args.long:
            with Progress() as progress:
                rows: list[dict[str, Any]] = []
                for name, record in shown:
                    progress.say(f"opening {len(rows)} of {len(shown)}: {name}")
                    rows.append(await _opened(workspace, project, record) | {"name": name})
        else:
            rows = [_brief(name, record, _presence(project, record)) for name, record in shown]
    if args.json:
        write_json(rows)
        return
    columns = ["name", *([] if project is None else ["local"]), "lifecycle"]
    columns += ["title", "messages", "updated"] if args.long else ["created", "changed"]
    for row in rows:
        row["local"] = _LOCAL[row["presence"]]
    write_table(
        [column.upper() for column in columns], ([str(row[column]) for column in columns] for row in rows), _COLOURS
    )


def _record(there: External) -> ChatRecord:
    return ChatRecord(there.id, there.name, there.place, there.created, there.created)


def _presence(project: Project | None, record: ChatRecord) -> str:
    """As of the last look. Without a project all chats are local."""
    return "local" if project is None else project.presence(record.id)


async def _opened(workspace: Workspace, project: Project | None, record: ChatRecord) -> dict[str, Any]:
    """A chat's metadata, wherever it is; what can't be read is left out."""
    presence = _presence(project, record)
    if presence != "external":
        return await _summary(workspace, record, presence)
    try:
        async with opened_external(project, record.id, (record.place,)) as found:
            if found is not None:
                return chat_summary(workspace.state, record, await found[1].load(), presence=presence)
    except StoreError as error:
        complain(f"{workspace.called}/{record.name}: {error}")
    return _brief(record.name, record, presence) | {"title": "", "messages": "?", "updated": timestamp(record.changed)}


def _brief(name: str, record: ChatRecord, presence: str) -> dict[str, Any]:
    """What the workspace's own log says of a chat, without opening the chat's."""
    return {
        "id": record.id,
        "name": name,
        "lifecycle": _LIFECYCLE[record.place],
        "presence": presence,
        "created": timestamp(record.created),
        "changed": timestamp(record.changed),
    }


async def _summary(workspace: Workspace, record: ChatRecord, presence: str = "local") -> dict[str, Any]:
    state = await workspace.chat_by_id(record.id).load()
    return chat_summary(workspace.state, record, state, presence=presence)


async def _show(store: Store, args: Namespace) -> None:
    async with readable_chat(store, args.chat) as (workspace, record, chat), project_of(store, workspace) as project:
        presence = _presence(project, record)
        found = chat_summary(workspace.state, record, await chat.load(), presence=presence)
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


async def _local(store: Store, args: Namespace) -> None:
    await _intend(store, args, ev.LOCAL)
    write_line(f"chat {args.chat} is local: it stays out of the workspace's project")


async def _project(store: Store, args: Namespace) -> None:
    workspace = await _intend(store, args, ev.PROJECTED)
    unbound = await bindings.remembered(store, workspace.id) is None
    hint = f", once the workspace has one: see chatfs project init --workspace {workspace.called}" if unbound else ""
    write_line(f"chat {args.chat} is in the workspace's project, too{hint}")


async def _intend(store: Store, args: Namespace, projection: str) -> Workspace:
    workspace, record = await find_chat(store, args.chat)
    chat = workspace.chat_by_id(record.id)
    await chat.change(actor(), projection=projection)
    await chat.sync()
    return workspace


async def _rm(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.chat.workspace)
    async with project_of(store, workspace) as project:
        there = named(project, args.chat.chat, LIVING)
        if project is not None and there is not None:
            await project.remove_external(there.id)
            write_line(f"removed chat {args.chat} from the project: it was nowhere else")
            return
    workspace, record = await find_chat(store, args.chat)
    await _move(workspace, record, Place.TRASH)
    write_line(f"moved chat {args.chat} to the trash: chatfs chat restore brings it back")


async def _restore(store: Store, args: Namespace) -> None:
    workspace, record = await find_chat(store, args.chat, (Place.TRASH,))
    await _move(workspace, record, Place.CHATS, args.name)
    write_line(f"restored chat {args.chat.workspace}/{args.name or record.name}")


COMMANDS: Final[Mapping[str, Run]] = {
    "new": in_store(_new),
    "ls": in_store(_ls, looks=True),
    "show": in_store(_show, looks=True),
    "rename": in_store(_rename),
    "archive": in_store(_archive),
    "unarchive": in_store(_unarchive),
    "local": in_store(_local),
    "project": in_store(_project),
    "rm": in_store(_rm),
    "restore": in_store(_restore),
}
