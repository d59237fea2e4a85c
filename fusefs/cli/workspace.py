"""`chatfs workspace …`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from fusefs.cli import project
from fusefs.cli.output import complain, size_text, write_fields, write_json, write_line, write_table
from fusefs.cli.parser import Run
from fusefs.cli.targets import actor, in_store
from store.library import Store
from store.metadata import workspace_summary
from store.projection import binding as bindings
from store.workspace import Workspace


def _summary(workspace: Workspace) -> dict[str, Any]:
    return workspace_summary(workspace.state, workspace.space.head)


async def _create(store: Store, args: Namespace) -> None:
    directory = None if args.project is None else project.free_directory(args.project)
    workspace = await store.create_workspace(args.name, actor(), quota_bytes=args.quota)
    if directory is not None:
        await project.bind(store, workspace, directory)
    if args.json:
        write_json(_summary(workspace))
    else:
        write_line(f"made workspace {args.name}")


async def _ls(store: Store, args: Namespace) -> None:
    found = [_summary(workspace) for workspace in await store.workspaces()]
    if args.json:
        write_json(found)
        return
    rows = [
        (
            each["name"],
            each["title"],
            str(each["chats"]["chats"]),
            str(each["chats"]["archive"]),
            _quota_text(each["quota_bytes"]),
            each["updated"],
        )
        for each in found
    ]
    write_table(("NAME", "TITLE", "CHATS", "ARCHIVED", "QUOTA", "UPDATED"), rows)


async def _show(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.name)
    binding = await bindings.remembered(store, workspace.id)
    found = _summary(workspace) | {"usage_bytes": await workspace.usage()}
    if binding is not None:
        found["project"] = binding.directory
    if args.json:
        write_json(found)
        return
    chats = found["chats"]
    write_fields(
        [
            ("name", found["name"]),
            ("id", found["id"]),
            ("title", found["title"]),
            ("labels", ", ".join(found["labels"])),
            ("user", found["user"]),
            ("created", found["created"]),
            ("updated", found["updated"]),
            ("chats", f"{chats['chats']}, {chats['archive']} archived, {chats['trash']} in the trash"),
            ("usage", size_text(found["usage_bytes"])),
            ("quota", _quota_text(found["quota_bytes"])),
            *([] if binding is None else [("project", binding.directory)]),
        ]
    )


def _quota_text(quota: int) -> str:
    return size_text(quota) if quota else "none"


def _show_or_set_quota(args: Namespace) -> None:
    in_store(_quota, looks=args.size is None)(args)


async def _quota(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.name)
    if args.size is not None:
        await workspace.change(actor(), quota_bytes=args.size)
        await workspace.space.sync()
    quota = (await workspace.load()).quota_bytes
    usage = await workspace.usage()
    if args.json:
        write_json({"quota_bytes": quota, "usage_bytes": usage})
    else:
        write_fields([("quota", _quota_text(quota)), ("usage", size_text(usage))])
    if quota and usage > quota:
        complain(f"{args.name} uses more than its quota: what is there can be read and removed, and nothing be added")


async def _rename(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.name)
    await store.rename_workspace(workspace, args.new, actor())
    await workspace.space.sync()
    write_line(f"renamed workspace {args.name} to {args.new}")


async def _rm(store: Store, args: Namespace) -> None:
    workspace = await store.workspace(args.name)
    await workspace.trash(actor())
    await workspace.space.sync()
    write_line(f"removed workspace {args.name}")


COMMANDS: Final[Mapping[str, Run]] = {
    "create": in_store(_create, makes=True),
    "ls": in_store(_ls, looks=True),
    "show": in_store(_show, looks=True),
    "quota": _show_or_set_quota,
    "rename": in_store(_rename),
    "rm": in_store(_rm),
}
