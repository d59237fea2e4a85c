"""What other programs wrote."""

from __future__ import annotations

import base64
import functools
import io
import tempfile
from pathlib import Path

import orjson

from store import codec, intake
from store import events as ev
from store.importers.claude_code import read_claude_code
from store.importers.imported import ImportedChat
from store.importers.messages import read_messages
from store.importers.payloads import RECORD_MAX
from store.model import LINE_MAX, attachment_name, directory_name
from tests.fuzz.support import NOW
from tests.support.imported import restored

FIXTURES = Path(__file__).parents[1] / "fixtures"


def imported_messages(data: bytes) -> None:
    """Any file is imported; nothing of it is lost; importing it again gives the same."""
    chat = read_messages(io.BytesIO(data))
    check_import(chat)
    again = read_messages(io.BytesIO(data))
    assert list(again.records) == list(chat.records)
    assert (again.suggested_name, again.title, again.problems) == (chat.suggested_name, chat.title, chat.problems)


def imported_sessions(data: bytes) -> None:
    """As `imported_messages`."""
    with tempfile.TemporaryDirectory(prefix="chatfs-fuzz-") as directory:
        path = Path(directory) / "session.jsonl"
        path.write_bytes(data)
        chats = read_claude_code(path)
        assert len(chats) <= 1
        for chat in chats:
            check_import(chat)
            assert without_blanks(b"".join(restored(list(chat.records)))) == without_blanks(data)
            assert [list(each.records) for each in read_claude_code(path)] == [list(chat.records)]


def without_blanks(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf").translate(None, b" \t\r\n")


def check_import(chat: ImportedChat) -> None:
    directory_name(chat.suggested_name)
    assert chat.source_id
    ev.check_metadata(chat.title, None, None)
    keys: set[str] = set()
    names: set[str] = set()
    for record in chat.records:
        assert record.key not in keys
        keys.add(record.key)
        assert b"\n" not in record.data
        assert len(record.data) <= RECORD_MAX
        assert record.actor is None or record.actor.encode()
        new = intake.accept(record.data, "uid:0/test", lambda: "an-id")
        line, _crc = codec.encode(new, 1, NOW, 0)
        assert codec.parse(line[:-1]) is not None
        assert len(line) <= LINE_MAX + 1024
        for attachment in record.attachments:
            assert attachment.name not in names
            names.add(attachment_name(attachment.name))


@functools.cache
def import_seeds(kind: str) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for path in sorted((FIXTURES / kind).iterdir()):
        text = path.read_bytes()
        found += [text, *[line for line in text.splitlines(keepends=True) if len(line) < 4000][:40]]
    picture = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"x" * 900).decode()},
    }
    found += [
        b"[" * 5000 + b"]" * 5000,
        b'{"role":"user","content":' * 900 + b"1" + b"}" * 900,
        b'{"role":"user","content":"a"}' * 5 + b"\n",
        b'{"role":"user","content":"\\ud83d cut"}\n',
        orjson.dumps({"role": "user", "content": [picture]}).replace(b"==", b"=%"),
        orjson.dumps({"type": "user", "uuid": "1", "message": {"role": "user", "content": [picture, picture]}}),
        b"\xef\xbb\xbf{}\r\n\r\n \n",
    ]
    return tuple(found)
