"""JP's conversations (`.jp/conversations/`) as chats; what the files are, is in `store.importers.jp_format`.

Each event of a conversation becomes one record of the chat's log, in the same order. One that shows as a message is
that event (`store.importers.jp_shown`), every other one an `import.record`; all carry the source:

* `{"type":"message.appended","id","role","content","source":"jp","part":"event","record":{…}}`;
* `{"type":"chat.changed","title","labels","source":"jp","part":"metadata","conversation","archived","record":{…}}`:
  metadata.json, and where the conversation is. Title and labels stand there where they are others than before;
* `{"type":"import.record","source":"jp","part":"base_config","record":{…}}`: base_config.json, if there is one;
* "record" is the source's value to the letter, but for blanks between its tokens. Where a log's line with it couldn't
  be read (half a surrogate pair, deep nesting) it stands as text under "text"; one longer than 15 MiB is an attachment,
  with `{"attachment","sha256","size"}` under "file".

No store, no writes. `find_conversations` looks at names; a conversation is read when it is its turn, by `load`, which
holds JP's lock if there is one, and reads again where a file was replaced meanwhile. Symbolic links aren't followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from store.errors import InvalidInput
from store.events import is_labels
from store.importers.imported import ImportedChat, ImportedRecord
from store.importers.jp_format import (
    ARCHIVE,
    BASE_CONFIG,
    CHAT_LABEL,
    CONVERSATIONS,
    EVENTS,
    METADATA,
    PROJECT,
    SOURCE,
    began,
    conversation_id,
    display_id,
    labels_of,
)
from store.importers.jp_json import NotJson, compact, elements, members
from store.importers.jp_lock import readable
from store.importers.jp_shown import Talk
from store.importers.payloads import RECORD_MAX, Payloads, sealed
from store.importers.source import Keys, Parsed, name_of, read, time_of, title_of
from store.model import Millis

EVENTS_MAX: Final = 512 * 1024 * 1024
"""Bytes of events.json: it is read at once."""
FILE_MAX: Final = 8 * 1024 * 1024
"""Bytes of the other files: they fit into a line of a log."""
_TRIES: Final = 5
_FILES: Final = (METADATA, BASE_CONFIG, EVENTS)


@dataclass(frozen=True, slots=True)
class JpChat(ImportedChat):
    """One conversation, to be read by `load`; it has no records yet. `damage` says why it can't be read."""

    path: Path = Path()
    conversation: int = 0
    archived: bool = False
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the files of a conversation say, each value to the letter, compact; None: there is no such file."""

    id: int
    archived: bool
    metadata: bytes | None
    base_config: bytes | None
    events: list[bytes] = field(default_factory=list)

    @property
    def fields(self) -> dict[str, Any]:
        """metadata.json, decoded as far as it can be."""
        found = value_of(self.metadata) if self.metadata is not None else None
        return found if type(found) is dict else {}

    @property
    def title(self) -> str:
        """The title, as a chat can have it."""
        title = self.fields.get("title")
        return title_of(title) if isinstance(title, str) else ""

    @property
    def labels(self) -> list[str]:
        """The labels, as a chat can have them."""
        found = labels_of(self.fields)
        return found if is_labels(found) else []

    @property
    def chat(self) -> str:
        """The chat that chatfs made the conversation of; "" where it says nothing like that."""
        labels = self.fields.get("labels")
        found = labels.get(CHAT_LABEL) if type(labels) is dict else None
        return found if isinstance(found, str) else ""

    @property
    def metadata_key(self) -> str:
        """Names what `metadata` says, and the place."""
        return f"metadata:{_digest(b'%d' % self.archived + (self.metadata or b''))}"

    @property
    def base_config_key(self) -> str:
        """Names what `base_config` says; "" where there is none."""
        return "" if self.base_config is None else f"base_config:{_digest(self.base_config)}"


def value_of(raw: bytes) -> Any:
    """A JSON value, with U+FFFD for halves of surrogate pairs; None where it is nested too deep to be read."""
    found = list(read(io.BytesIO(raw)))
    return found[0].value if len(found) == 1 and isinstance(found[0], Parsed) else None


def event_keys(events: Collection[bytes]) -> list[str]:
    """The keys of a conversation's events."""
    keys = Keys()
    return [keys.of(event)[0] for event in events]


# ---- where conversations are


def find_conversations(path: Path) -> list[JpChat]:
    """The conversations of `path`: a project, its `.jp`, `conversations` or `.archive` in it, or one of them.

    Raises OSError for what can't be read.
    """
    if not stat.S_ISDIR(path.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory: name a project of JP, or a conversation", str(path))
    named = _named(path)
    if _looks_like_one(named):
        return [_chat(named, archived=named.parent.name == ARCHIVE)]
    root = conversations_in(path)
    if root is None:
        return []
    living = [] if root == named.parent else _scan(root, archived=False)
    found = {False: living, True: _scan(root / ARCHIVE, archived=True)}
    chats: dict[str, JpChat] = {}
    for chat in (*found[False], *found[True]):
        first = chats.setdefault(chat.source_id, chat)
        if first is not chat:
            first.problems.append(f"stands in {chat.path} a second time: that one is left out")
    return list(chats.values())


def find_in(root: Path, conversation: int) -> list[JpChat]:
    """What a `conversations` directory has of one conversation."""
    found = [*_scan(root, archived=False), *_scan(root / ARCHIVE, archived=True)]
    return [chat for chat in found if chat.conversation == conversation]


def conversations_in(path: Path) -> Path | None:
    """The `conversations` directory of what a user named; None where there is none. Raises OSError for a link."""
    for candidate in (path / PROJECT / CONVERSATIONS, path / CONVERSATIONS):
        for part in (candidate.parent, candidate):
            if part != path and part.is_symlink():
                raise OSError(errno.ELOOP, "a symbolic link, which isn't followed: name what it points to", str(part))
        if candidate.is_dir():
            return candidate
    named = _named(path)
    if named.name == ARCHIVE:
        return named.parent
    return named if named.name == CONVERSATIONS or any(map(_looks_like_one, path.iterdir())) else None


def _named(path: Path) -> Path:
    """`path` with the names that it and the directory above really have: `.` has none, and they say what it is."""
    return path.resolve() if path.name in {"", ".."} else path.parent.resolve() / path.name


def _looks_like_one(path: Path) -> bool:
    return conversation_id(path.name) is not None and any(os.path.lexists(path / name) for name in _FILES)


def _scan(directory: Path, *, archived: bool) -> list[JpChat]:
    """The conversations right below it."""
    if archived and not (directory.is_dir() and not directory.is_symlink()):
        return []
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    chats: list[JpChat] = []
    for entry in found:
        if entry.name.startswith(".") or conversation_id(entry.name) is None:
            continue
        if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
            chats.append(_chat(directory / entry.name, archived=archived))
    return chats


def _chat(path: Path, *, archived: bool) -> JpChat:
    conversation = conversation_id(path.name)
    assert conversation is not None
    damage = "a symbolic link, which isn't followed" if path.is_symlink() else ""
    slug = path.name.partition("-")[2]
    name = name_of(os.fsencode(slug).decode(errors="replace")) or str(conversation)
    return JpChat(display_id(conversation), name, "", (), [], path, conversation, archived, damage)


# ---- what a conversation says


def load(chat: JpChat) -> Conversation:
    """Read a conversation. Raises InvalidInput where it is damaged, Conflict while JP writes it, OSError."""
    parent = chat.path.parent
    with readable(parent.parent if parent.name == ARCHIVE else parent, chat.conversation):
        return load_locked(chat)


def load_locked(chat: JpChat) -> Conversation:
    """`load` for who has the lock."""
    if chat.damage:
        raise InvalidInput(chat.damage)
    files = _read_files(chat.path)
    chat.problems.extend(f"no {name}" for name in (METADATA, EVENTS) if name not in files)
    if METADATA not in files and EVENTS not in files:
        raise InvalidInput(f"neither {METADATA} nor {EVENTS} is in it: there is nothing to import")
    metadata = _parsed(files, METADATA, _object)
    return Conversation(
        chat.conversation,
        chat.archived,
        metadata,
        _parsed(files, BASE_CONFIG, compact),
        _parsed(files, EVENTS, elements) or [],
    )


def _parsed(files: dict[str, bytes], name: str, parse: Any) -> Any:
    if name not in files:
        return None
    try:
        return parse(files[name])
    except NotJson as error:
        raise InvalidInput(f"damaged: {name}: {error}") from None


def _object(text: bytes) -> bytes:
    members(text)
    return compact(text)


def _read_files(directory: Path) -> dict[str, bytes]:
    """The files as they stood at one moment."""
    fd = _opened(directory)
    try:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                before = _signature(fd)
                found = {name: _read_file(fd, directory, name) for name in before}
                if _signature(fd) == before:
                    return found
    finally:
        os.close(fd)
    raise OSError(errno.EBUSY, "its files change all the time: import it again later", str(directory))


def _opened(directory: Path) -> int:
    """A descriptor of it. Of the directories that are JP's none is a link, also none that was put there just now."""
    names, above = [directory.name], directory.parent
    while above.name in {ARCHIVE, CONVERSATIONS, PROJECT}:
        names.append(above.name)
        above = above.parent
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(above, flags)
    for name in reversed(names):
        try:
            inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=fd)
        except OSError as error:
            error.filename = str(directory)
            raise
        finally:
            os.close(fd)
        fd = inner
    return fd


def _signature(fd: int) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def _read_file(directory_fd: int, directory: Path, name: str) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidInput(f"{name} is a symbolic link, which isn't followed") from None
        error.filename = str(directory / name)
        raise
    with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInput(f"{name} is no ordinary file")
        most = EVENTS_MAX if name == EVENTS else FILE_MAX
        text = file.read(most + 1)
    if len(text) > most:
        raise InvalidInput(f"{name} is longer than {most >> 20} MiB")
    return text


# ---- as records


def records(
    conversation: Conversation,
    *,
    title: str = "",
    labels: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> Iterator[ImportedRecord]:
    """The conversation as records. `title`, `labels`: what JP's metadata said before; `leave_out`: events' keys."""
    if conversation.base_config is not None:
        yield base_config_record(conversation)
    yield metadata_record(conversation, title=title, labels=labels)
    talk, payloads = Talk(), Payloads()
    for key, raw in zip(event_keys(conversation.events), conversation.events, strict=True):
        event = value_of(raw)
        shown = talk.shown(event)
        if key in leave_out:
            continue
        head: dict[str, Any] = {"type": "import.record"}
        if shown is not None:
            head = {"type": "message.appended", "id": message_id(conversation.id, key)}
            head |= {"role": shown.role, "content": shown.content}
        head |= {"source": SOURCE, "part": "event"}
        fields = event if type(event) is dict else {}
        kind = fields.get("type")
        yield _record(
            key,
            head,
            raw,
            time_of(fields.get("timestamp")),
            kind if isinstance(kind, str) and kind.isprintable() and len(kind) <= 64 else "",
            payloads,
        )


def message_id(conversation: int, key: str) -> str:
    """The id of the message that an event is."""
    return f"{display_id(conversation)}-{key[:32]}{key[64:]}"


def metadata_record(conversation: Conversation, *, title: str, labels: Collection[str]) -> ImportedRecord:
    """The record of metadata.json; `title` and `labels` as `records` has them."""
    head: dict[str, Any] = {"type": "import.record"}
    if conversation.title != title:
        head |= {"type": "chat.changed", "title": conversation.title}
    if conversation.labels != list(labels):
        head |= {"type": "chat.changed", "labels": conversation.labels}
    head |= {"source": SOURCE, "part": "metadata", "conversation": str(conversation.id)}
    head["archived"] = conversation.archived
    return _file_record(conversation.metadata_key, head, conversation.metadata, began(conversation.id))


def base_config_record(conversation: Conversation) -> ImportedRecord:
    """The record of base_config.json; it says so where there is none."""
    head = {"type": "import.record", "source": SOURCE, "part": "base_config"}
    return _file_record(conversation.base_config_key, head, conversation.base_config, began(conversation.id))


def _file_record(key: str, head: dict[str, Any], raw: bytes | None, ts: Millis) -> ImportedRecord:
    if raw is None:
        return ImportedRecord(key, orjson.dumps(head), ts, SOURCE)
    return _record(key, head, raw, ts, "", Payloads())


def _record(
    key: str, head: dict[str, Any], raw: bytes, ts: Millis | None, kind: str, payloads: Payloads
) -> ImportedRecord:
    actor = f"{SOURCE}/{kind}" if kind else SOURCE
    if len(raw) > RECORD_MAX - len(orjson.dumps(head)):
        pointer, new = payloads.attach(raw, "application/json", "record")
        return ImportedRecord(key, orjson.dumps(head | {"file": pointer}), ts, actor, tuple(new))
    data = sealed(head, raw) if value_is_plain(raw) else None
    return ImportedRecord(key, data or orjson.dumps(head | {"text": raw.decode()}), ts, actor)


def value_is_plain(raw: bytes) -> bool:
    """Whether strict readers can read it."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
