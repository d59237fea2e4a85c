"""What a user sees of a store, as small files that can be compared: through a mount, or through the library.

Keys are paths as in a mount, the trash included; `chat.json` and `workspace.json` are cut down to the fields that the
format promises, and a chat's attachments and editors' files are listed as `attachments.json` and `files.json`.

Run as a program, it writes what the chatfs that it runs with shows of a store:
`python -m tests.golden.seen MOUNTPOINT DIRECTORY`. The files in `v1/expected` were made so, with the last chatfs that
wrote format 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from store import history, metadata
from store.library import Store
from store.model import Digest
from store.workspace_state import Place

CHAT_FIELDS = (
    "id",
    "name",
    "workspace",
    "title",
    "labels",
    "lifecycle",
    "created",
    "updated",
    "messages",
    "attachments",
    "last_seq",
)
WORKSPACE_FIELDS = (
    "id",
    "name",
    "user",
    "title",
    "labels",
    "created",
    "updated",
    "chats",
    "last_seq",
    "quota_bytes",
)
OWN_FILES = {"history.md", "history.jsonl", "chat.json", "attachments"}


def text(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def chosen(value: dict[str, Any], fields: tuple[str, ...]) -> bytes:
    return text({field: value[field] for field in fields})


def listed(name: str, content: bytes, mode: int, mtime_ns: int) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "sha256": digest, "size": len(content), "mode": f"{mode & 0o7777:o}", "mtime_ns": mtime_ns}


def in_mount(mountpoint: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for workspace in sorted(mountpoint.iterdir()):
        at = workspace.name
        found[f"{at}/workspace.json"] = chosen(
            json.loads((workspace / "workspace.json").read_bytes()), WORKSPACE_FIELDS
        )
        found[f"{at}/history.jsonl"] = (workspace / "history.jsonl").read_bytes()
        for place in Place:
            for chat in sorted((workspace / place.value).iterdir()):
                key = f"{at}/{place.value}/{chat.name}"
                for name in ("history.md", "history.jsonl"):
                    found[f"{key}/{name}"] = (chat / name).read_bytes()
                found[f"{key}/chat.json"] = chosen(json.loads((chat / "chat.json").read_bytes()), CHAT_FIELDS)
                found[f"{key}/attachments.json"] = text(
                    [
                        listed(path.name, path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
                        for path in sorted((chat / "attachments").iterdir())
                    ]
                )
                found[f"{key}/files.json"] = text(
                    [
                        {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                        for path in sorted(chat.iterdir())
                        if path.name not in OWN_FILES
                    ]
                )
    return found


async def by_library(store: Store) -> dict[str, bytes]:
    """All but the editors' files."""
    found: dict[str, bytes] = {}
    for workspace in await store.workspaces():
        state = workspace.state
        at = state.name
        log = await workspace.space.log()
        found[f"{at}/workspace.json"] = chosen(metadata.workspace_summary(state, log.head), WORKSPACE_FIELDS)
        found[f"{at}/history.jsonl"] = log.read_text(0, log.head.size)
        for place in Place:
            for name, record in sorted(state.in_place(place)):
                key = f"{at}/{place.value}/{name}"
                chat = workspace.chat_by_id(record.id)
                with chat.hold():
                    folded = await chat.load()
                    log = await chat.space.log()
                    found[f"{key}/history.md"] = history.render(folded)
                    found[f"{key}/history.jsonl"] = log.read_text(0, log.head.size)
                    summary = metadata.chat_summary(state, record, folded)
                    found[f"{key}/chat.json"] = chosen(summary | {"name": name}, CHAT_FIELDS)
                    found[f"{key}/attachments.json"] = text(
                        [
                            listed(
                                each.name,
                                await content(store, each.digest),
                                each.mode or 0o600,
                                each.mtime_ns,
                            )
                            for each in sorted(folded.attachments.values(), key=lambda each: each.name)
                        ]
                    )
    return found


async def content(store: Store, digest: Digest) -> bytes:
    return b"".join([piece async for piece in store.driver.blobs.get(digest)])


def written(directory: Path) -> dict[str, bytes]:
    """What `write` wrote."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def write(found: dict[str, bytes], directory: Path) -> None:
    for key, data in found.items():
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    write(in_mount(Path(sys.argv[1])), Path(sys.argv[2]))
