"""`chatfs status`: the store, who appends to what, and the mounts. Makes no store where there is none."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

import orjson
import trio

from fusefs import __version__
from fusefs.cli import mount_records
from fusefs.cli.output import size_text, write_fields, write_json, write_line, write_table
from fusefs.cli.parser import Run
from fusefs.cli.stores import store_url
from fusefs.unmount import mounts
from store.driver import Access, Driver
from store.errors import StoreNotFound
from store.library import open_store
from store.model import SpaceId, clock_ms
from store.standing import InUse, in_use
from store.workspace_state import Place


def _status(args: Namespace) -> None:
    url = store_url(args)
    found: dict[str, Any] = {"version": __version__, "store": url, "exists": False, "format": None}
    with contextlib.suppress(StoreNotFound):
        found |= trio.run(_contents, url)
        found["exists"] = True
    found["mounts"] = [_mounted(each.mountpoint, each.options) for each in mounts()]
    if args.json:
        write_json(found)
    else:
        write_fields(_lines(found))
        if found.get("in_use"):
            write_line("")
            write_table(("IN USE", "HOLDER", "EPOCH", "EXPIRES", "LAG"), map(_row, found["in_use"]))


async def _contents(url: str) -> dict[str, Any]:
    async with open_store(url, access=Access.LOOK) as store:
        workspaces = await store.workspaces()
        block, blocks, _free, available = store.driver.usage()
        return {
            "format": _format(store.driver),
            "in_use": [_in_use(one) for one in await in_use(store)],
            "workspaces": len(workspaces),
            "chats": {place.value: sum(each.state.count(place) for each in workspaces) for place in Place},
            "size_bytes": block * blocks,
            "free_bytes": block * available,
        }


def _format(driver: Driver) -> int | None:
    """As the store's description says; None where it has none: in memory, or in a repository that was only fetched."""
    root = driver.local_dir(SpaceId("workspace/any")).parents[1]
    try:
        found = orjson.loads((root / "store.json").read_bytes())["format"]
    except FileNotFoundError:
        return None
    return found if type(found) is int else None


def _in_use(one: InUse) -> dict[str, Any]:
    info = one.info
    return {
        "name": one.name,
        "space": one.space,
        "holder": one.holder,
        "program": info.program if info is not None else None,
        "pid": info.pid if info is not None else None,
        "uid": info.uid if info is not None else None,
        "alive": one.alive,
        "answers": one.answers,
        "epoch": one.epoch,
        "expires_ms": one.expires - clock_ms(),
        "seq": one.last,
        "lag": None if one.seen is None or one.last is None else max(0, one.last - one.seen),
    }


def _mounted(mountpoint: Any, options: str) -> dict[str, Any]:
    record = mount_records.find(mountpoint)
    return {
        "mountpoint": str(mountpoint),
        "read_only": "ro" in options.split(","),
        "store": record.store if record is not None else None,
        "pid": record.pid if record is not None else None,
    }


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    who = "unknown" if one["pid"] is None else f"{one['program']} (pid {one['pid']}, uid {one['uid']})"
    if one["alive"] is False:
        who = "dead"
    elif one["alive"] and not one["answers"]:
        who += ", doesn't answer"
    left = one["expires_ms"] / 1000
    expires = f"in {left:.1f} s" if left > 0 else f"lapsed {duration(-left)} ago"
    return one["name"], who, str(one["epoch"]), expires, "" if one["lag"] is None else str(one["lag"])


def duration(seconds: float) -> str:
    """A time for reading, in the largest unit that it fills."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


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


COMMANDS: Final[Mapping[str, Run]] = {
    "status": _status,
}
