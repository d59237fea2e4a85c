"""Sessions to import, and what a log of imported records says, by the event vocabulary alone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import orjson

from store import events as ev
from store.importers.claude_code import read_claude_code
from store.importers.imported import ImportedChat, ImportedRecord

SESSION = "0b7e5801-4345-4bd6-8f32-fd9b8429b130"
UUID = "00000001-0000-4000-8000-000000000000"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def shown(records: list[ImportedRecord]) -> list[tuple[str, str]]:
    """The messages as (role, text), by the event vocabulary alone."""
    found: dict[str, tuple[str, str]] = {}
    for record in records:
        event = ev.parse(record.data)
        if isinstance(event, ev.MessageAppended):
            assert event.id not in found
            assert isinstance(event.content, str)
            found[event.id] = (event.role, event.content)
        elif isinstance(event, ev.MessageEdited):
            role, text = found[event.id]
            assert event.append
            found[event.id] = (role, text + event.append)
    return list(found.values())


def restored(records: list[ImportedRecord]) -> list[bytes]:
    """The source's lines, out of the log and the attachments alone."""
    files: dict[str, bytes] = {}
    found: list[bytes] = []
    for record in records:
        files.update({item.name: item.data for item in record.attachments})
        value = orjson.loads(record.data)
        if isinstance(value.get("base64"), str):
            found.append(base64.b64decode(value["base64"]))
            continue
        kept = value.get("record", value.get("text"))
        if type(kept) is dict and kept.keys() == {"attachment", "sha256", "size"}:
            raw = files[kept["attachment"]]
        elif "record" in value:
            raw = record.data.split(b',"record":', 1)[1][:-1]
        elif isinstance(kept, str):
            raw = kept.encode()
        else:
            continue  # The second message of a record that stands before it.
        for name, data in files.items():
            pointer = b'null,"attachment":"%b","sha256":"%b"' % (
                name.encode(),
                hashlib.sha256(data).hexdigest().encode(),
            )
            raw = raw.replace(pointer, b'"%b"' % base64.b64encode(data))
        found.append(raw)
    return found


def one(path: Path) -> ImportedChat:
    (chat,) = read_claude_code(path)
    return chat


def written(tmp_path: Path, *lines: object, name: str = "session.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines))
    return path


def user(content: object, number: int = 1, **more: object) -> dict[str, object]:
    uuid = f"{number:08x}-0000-4000-8000-000000000000"
    return {"type": "user", "uuid": uuid, "sessionId": SESSION, "message": {"role": "user", "content": content}, **more}


def assistant(message: str, number: int, *blocks: dict[str, object]) -> dict[str, object]:
    uuid = f"{number:08x}-0000-4000-8000-000000000000"
    content = {"role": "assistant", "id": message, "content": blocks}
    return {"type": "assistant", "uuid": uuid, "sessionId": SESSION, "message": content}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


def picture(data: bytes = PNG, media: str = "image/png") -> dict[str, object]:
    source = {"type": "base64", "media_type": media, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}
