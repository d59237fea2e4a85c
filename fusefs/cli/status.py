"""`chatfs status`: the store and the mounts. Makes no store where there is none."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import orjson
import trio

from fusefs.cli import mount_records
from fusefs.cli.output import size_text, write_fields, write_json
from fusefs.cli.parser import add_command, add_json
from fusefs.cli.targets import store_url
from fusefs.cli.version import version
from fusefs.unmount import mounts
from store import registry
from store.driver import Access
from store.errors import StoreNotFound
from store.library import open_store
from store.workspace_state import Place

if TYPE_CHECKING:
    from fusefs.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(commands, "status", _status, "show the store and what is mounted")
    add_json(parser)


def _status(args: Namespace) -> None:
    url = store_url(args)
    found: dict[str, Any] = {"version": version(), "store": url, "exists": False, "format": None}
    with contextlib.suppress(StoreNotFound):
        found |= trio.run(_contents, url)
        found["exists"] = True
        path = registry.directory_of(url)
        if path is not None:
            found["format"] = orjson.loads((path / "store.json").read_bytes())["format"]
    found["mounts"] = [_mounted(each.mountpoint, each.options) for each in mounts()]
    if args.json:
        write_json(found)
    else:
        write_fields(_lines(found))


async def _contents(url: str) -> dict[str, Any]:
    async with open_store(url, access=Access.LOOK) as store:
        workspaces = await store.workspaces()
        block, blocks, _free, available = store.driver.usage()
        return {
            "workspaces": len(workspaces),
            "chats": {place.value: sum(each.state.count(place) for each in workspaces) for place in Place},
            "size_bytes": block * blocks,
            "free_bytes": block * available,
        }


def _mounted(mountpoint: Any, options: str) -> dict[str, Any]:
    record = mount_records.find(mountpoint)
    return {
        "mountpoint": str(mountpoint),
        "read_only": "ro" in options.split(","),
        "store": record.store if record is not None else None,
        "pid": record.pid if record is not None else None,
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("version", found["version"]), ("store", found["store"])]
    if found["exists"]:
        chats = found["chats"]
        lines += [
            ("format", str(found["format"] or "")),
            ("workspaces", str(found["workspaces"])),
            ("chats", f"{chats['chats']}, {chats['archive']} archived, {chats['trash']} in the trash"),
            ("free", f"{size_text(found['free_bytes'])} of {size_text(found['size_bytes'])}"),
        ]
    else:
        lines.append(("", "nothing is there yet: chatfs workspace create NAME makes it"))
    for each in found["mounts"]:
        about = [each["store"] or "store unknown", *(["read-only"] if each["read_only"] else [])]
        lines.append(("mount", f"{each['mountpoint']}  ({', '.join(about)})"))
    return lines
