"""A file of JSON lines, each a message (`role` and `content`, as chat APIs have them), as one chat.

A message becomes `message.appended` with all its other keys; without an id of its own it gets one that is the same
every time. `content` null with `tool_calls` becomes a line for each call. An entry in envelope form gives its data,
and its actor and ts as the record's. Any other JSON value is kept byte for byte. Base64 in a message's blocks becomes
an attachment: where it stood is null, with `"attachment"` and `"sha256"` beside it. A line that isn't JSON is kept as
`import.unparsed`, and is a problem. What would be longer than 15 MiB becomes an attachment, with a pointer in the
log, where of a message the beginning of its text is shown.

Reads the whole file at once, since a pipe can't be read again. No store, no writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import orjson

from store.errors import InvalidEvent
from store.events import MessageAppended, is_role
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importers.payloads import RECORD_MAX, Payloads
from store.importers.source import Keys, Parsed, Unparsed, clip, name_of, one_line, read, time_of
from store.intake import accept, fits
from store.model import Millis

SOURCE: Final = "messages"
_TIMES: Final = ("timestamp", "ts", "created_at", "create_time", "created", "date")
_SHOWN_MAX: Final = 1024 * 1024
_CALL_LENGTH: Final = 120
_ID_MAX: Final = 256


def read_messages(source: Path | IO[bytes]) -> ImportedChat:
    """The chat in `source`, a file or an open stream. Raises OSError for what can't be read.

    `source_id` is the file's name with a digest of its first record, so that it stays while the file grows.
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return _chat(stream, source.stem)
    name = getattr(source, "name", None)
    return _chat(source, Path(name).stem if isinstance(name, str) and not name.startswith("<") else SOURCE)


def _chat(stream: IO[bytes], stem: str) -> ImportedChat:
    made = _Pass()
    for item in read(stream):
        if item.note is not None:
            made.problems.append(item.note)
        if isinstance(item, Unparsed):
            made.unparsed(item)
        else:
            made.parsed(item)
    first = made.records[0].key[:12] if made.records else "empty"
    name = name_of(made.opening) or name_of(stem) or SOURCE
    return ImportedChat(f"{stem}-{first}", name, "", made.records, made.problems)


@dataclass(slots=True)
class _Pass:
    """What goes from line to line."""

    keys: Keys = field(default_factory=Keys)
    payloads: Payloads = field(default_factory=Payloads)
    records: list[ImportedRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    opening: str = ""
    """The first message of a user."""

    def unparsed(self, line: Unparsed) -> None:
        """A line as text."""
        key, _ = self.keys.of(line.raw)
        data, new = self.payloads.unparsed(SOURCE, line)
        self.records.append(ImportedRecord(key, data, None, None, tuple(new)))

    def parsed(self, line: Parsed) -> None:
        """A value, as what it is."""
        key, _ = self.keys.of(line.raw)
        raw, value, new = line.raw, line.value, list[ImportedAttachment]()
        message = _message_in(value)
        if message is not None:
            raw, new = self.payloads.extract(raw, value)
            if message.get("content") is None:
                message["content"] = _calls(message["tool_calls"])
                raw = _encoded(value) or raw
            if not self.opening and message["role"] == "user":
                self.opening = _text(message["content"])[:1000]
        ts, actor = _origin(value, message)
        data = raw
        if not line.exact or not fits(raw):
            data = _repaired(message, key, raw.decode())
        elif len(raw) <= RECORD_MAX and (message is not None or _is_envelope(value)):
            try:
                entry = accept(raw, actor, lambda: f"import-{key}")
            except (InvalidEvent, orjson.JSONEncodeError):
                pass  # Nested too deep to be written with an id: kept as it is.
            else:
                data = entry.data
                if entry.origin is not None:
                    ts, actor = entry.origin.ts, entry.origin.actor
        if len(data) > RECORD_MAX:
            pointer, moved = self.payloads.attach(raw, "application/json", "record")
            new += moved
            data = orjson.dumps(_shown(message, key, pointer["attachment"]) | {"source": SOURCE, "record": pointer})
        self.records.append(ImportedRecord(key, data, ts, actor, tuple(new)))


def _is_message(value: object) -> bool:
    if type(value) is not dict or not is_role(value.get("role")):
        return False
    kind, content = value.get("type"), value.get("content")
    if kind is not None and not (isinstance(kind, str) and kind in {"message", MessageAppended.TYPE}):
        return False
    return isinstance(content, str | list) or (content is None and type(value.get("tool_calls")) is list)


def _is_envelope(value: Any) -> bool:
    if type(value) is not dict or not {"seq", "ts", "actor", "data"} <= value.keys():
        return False
    inner = value["data"]
    return type(inner) is dict and isinstance(inner.get("type", ""), str)


def _message_in(value: Any) -> dict[str, Any] | None:
    """The message that `value` is, or that it is the envelope of."""
    inner = value["data"] if _is_envelope(value) else value
    return inner if _is_message(inner) else None


def _encoded(value: Any) -> bytes | None:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # Nested too deep for orjson to write.
        return None


def _origin(value: Any, message: dict[str, Any] | None) -> tuple[Millis | None, str]:
    if type(value) is not dict:
        return None, SOURCE
    ts = next((found for name in _TIMES if (found := time_of(value.get(name))) is not None), None)
    return ts, SOURCE if message is None else f"{SOURCE}/{message['role']}"


def _repaired(message: dict[str, Any] | None, key: str, line: str) -> bytes:
    """A line that strict readers refuse, as text; of a message, what can be read is shown."""
    return orjson.dumps(_shown(message, key) | {"source": SOURCE, "text": line})


def _shown(message: dict[str, Any] | None, key: str, rest: str | None = None) -> dict[str, Any]:
    """A message with its text alone, where it can't stand in the log as it is; the file `rest` has all of it."""
    if message is None:
        return {"type": "import.record"}
    text = _text(message["content"])[:_SHOWN_MAX]
    if rest is not None:
        text = f"{text}\n\n… the rest is in [{rest}](attachments/{rest})".lstrip()
    identity = message.get("id")
    if not (isinstance(identity, str) and 0 < len(identity) <= _ID_MAX and identity.isprintable()):
        identity = f"import-{key}"
    return MessageAppended(identity, message["role"], text).to_json()


def _text(content: object) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    if type(content) is not list:
        return ""
    texts = [block.get("text") for block in content if type(block) is dict and block.get("type") == "text"]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _calls(calls: list[Any]) -> str:
    """A line for each call of a function; its arguments are JSON in a string."""
    lines: list[str] = []
    for call in calls:
        function = call.get("function") if type(call) is dict else None
        if type(function) is dict:
            name, arguments = function.get("name"), function.get("arguments")
            if not isinstance(name, str):
                continue
            arguments = arguments[:1000] if isinstance(arguments, str) else ""
            lines.append(clip(one_line(f"▸ {name}: {arguments}"), _CALL_LENGTH))
    return "\n\n".join(lines)
