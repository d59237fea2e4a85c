"""Claude Code's session files (`~/.claude/projects/<project>/<session>.jsonl`) as chats.

Each record of a session becomes one record of the chat's log, in the same order, with the source's own bytes in it, so
that nothing is lost and nothing large is there twice:

* a record that shows as a message is that event, and carries the source: `{"type":"message.appended", "id", "role",
  "content", "source":"claude-code", "record":{…}}`. What is shown, and how, is in `store.importers.conversation`;
* further parts of an assistant's message (they share its `message.id`) are `message.edited` events that `append`: each
  part has its own key, so a session that has grown in the middle of a message adds just its new parts;
* a record that names the session is a `chat.changed` event. A custom title wins over one that the program chose, that
  over a summary; a summary counts only where it is of a record in the same file;
* every other record is `{"type":"import.record","source":"claude-code","record":{…}}`, which shows nowhere but in the
  log; also the second of two records with one UUID;
* a line that isn't JSON is `{"type":"import.unparsed","source":"claude-code","line":N,"why":"…","text":"…"}` (`base64`
  instead of `text` where it isn't UTF-8; a line beyond 64 MiB in pieces), and a problem;
* "record" is the source's bytes, but for pictures and documents in base64: they become attachments, and where the
  base64 stood is null, with `"attachment"` and `"sha256"` beside it. Where it has halves of surrogate pairs, which
  can't be read back, its text stands under "text" instead. A record that would be longer than 15 MiB becomes an
  attachment of its own: then "record" (or "text") is `{"attachment","sha256","size"}`.

Sub-agents: a file that has only their records (`agent-….jsonl`) is a chat of its own; within a session they aren't
shown. A file is read twice, for its title and problems, then for its records, up to where it ended at first. No store,
no writes; every pass has its own state, so chats may be iterated from several threads.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from store import regular
from store.events import ChatChanged, Event, MessageAppended
from store.importers.conversation import Conversation
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importers.payloads import RECORD_MAX, Payloads, sealed
from store.importers.source import Keys, Parsed, Unparsed, is_uuid, name_of, read, time_of, title_of

_log = logging.getLogger(__name__)

SOURCE: Final = "claude-code"
_LINK: Final = "is a symbolic link, which isn't followed"
_TITLES: Final = {"summary": ("summary", 1), "ai-title": ("aiTitle", 2), "custom-title": ("customTitle", 3)}
"""Where a title stands in a record of each type, and its rank: a lower one doesn't replace a higher one."""
_MESSAGES: Final = frozenset({"user", "assistant"})


def read_claude_code(path: Path) -> list[ImportedChat]:
    """The chats in `path`: a session's file, or a directory with sessions anywhere below it.

    A directory named `.claude` stands for its `projects`. Files in a directory that have no records of a session are
    passed over. Symbolic links in it aren't followed, also not those that come meanwhile: whoever may write there would
    have files read that only the caller may read. Raises OSError for what can't be read.
    """
    if not path.is_dir():
        return [_chat(path, _survey(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))]
    root = path / "projects" if path.name == ".claude" else path.resolve()
    if root.is_symlink():
        raise OSError(errno.ELOOP, f"{_LINK}: name {root.resolve()} itself", str(root))
    found: list[tuple[Path, ImportedChat]] = []
    for directory, _below, names, fd in os.fwalk(root, onerror=_passed_over):
        for name in names:
            file = Path(directory) / name
            opened = _opened(file, fd) if name.endswith(".jsonl") else None
            if opened is not None and (survey := _survey(opened)).typed:
                found.append((file, _chat(file, survey)))
    return [chat for _, chat in sorted(found, key=lambda each: each[0])]


def _passed_over(error: OSError) -> None:
    _log.warning("%s: %s", error.filename, error.strerror)


def _opened(path: Path, directory: int) -> int | None:
    """A descriptor of a regular file; None where something else stands there, or nothing any more."""
    try:
        fd = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in regular.REFUSED:
            if error.errno == errno.ELOOP:
                _log.warning("%s %s", path, _LINK)
            return None
        error.filename = str(path)
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


@dataclass(slots=True)
class _Survey:
    """What must be known of a whole file before its first record can be handed over."""

    size: int
    identity: tuple[int, int]
    """The device and the inode."""
    session: str | None = None
    typed: bool = False
    chains: set[bool] = field(default_factory=set)
    """Whether messages are of a sub-agent: {True} alone in a sub-agent's own file."""
    openings: dict[bool, str] = field(default_factory=dict)
    """By chain: what was typed first."""
    uuids: set[str] = field(default_factory=set)
    namings: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def sidechains(self) -> bool:
        """Whether this is a sub-agent's own file."""
        return self.chains == {True}

    def leaves(self) -> set[str]:
        """The records of this file that its summaries are of."""
        leaves = (naming.get("leafUuid") for naming in self.namings)
        return {leaf for leaf in leaves if isinstance(leaf, str) and leaf in self.uuids}

    def note(self, record: dict[str, Any]) -> None:
        """Take in one record."""
        kind = record.get("type")
        if not isinstance(kind, str):
            return
        self.typed = True
        if self.session is None and is_uuid(record.get("sessionId")):
            self.session = str(record["sessionId"]).lower()
        if isinstance(record.get("uuid"), str):
            self.uuids.add(record["uuid"])
        if kind in _TITLES:
            self.namings.append(record)
        if kind in _MESSAGES:
            chain = bool(record.get("isSidechain"))
            self.chains.add(chain)
            if kind == "user" and not self.openings.get(chain):
                self.openings[chain] = _typed_first(record)


def _typed_first(record: dict[str, Any]) -> str:
    """What a person typed in this record, if it says what the session is about."""
    for event in Conversation(Payloads(), sidechains=True).events(record, "opening"):
        if isinstance(event, MessageAppended) and event.role == "user" and isinstance(event.content, str):
            return "" if event.content.startswith(("/", "!", "[")) else event.content[:1000]
    return ""


def _survey(fd: int) -> _Survey:
    with open(fd, "rb") as stream:
        status = os.fstat(fd)
        survey = _Survey(status.st_size, (status.st_dev, status.st_ino))
        for item in read(stream, survey.size):
            if item.note is not None:
                survey.problems.append(item.note)
            if isinstance(item, Parsed) and type(item.value) is dict:
                survey.note(item.value)
    return survey


def _chat(path: Path, survey: _Survey) -> ImportedChat:
    leaves = survey.leaves()
    titles = _Titles(leaves)
    for naming in survey.namings:
        titles.event(naming)
    source = path.stem.lower() if is_uuid(path.stem) else survey.session or path.stem
    if survey.session is not None and path.stem.startswith("agent-"):
        source = f"{survey.session}.{path.stem}"
    opening = survey.openings.get(survey.sidechains, "")
    name = name_of(titles.title) or name_of(opening) or name_of(source[:8]) or "session"
    records = _Records(path, survey.size, survey.identity, leaves, survey.sidechains)
    return ImportedChat(source, name, titles.title, records, survey.problems)


class _Titles:
    """The title as the records of a session change it."""

    def __init__(self, leaves: set[str]) -> None:
        self.title = ""
        self._leaves = leaves
        self._rank = 0

    def event(self, record: dict[str, Any]) -> list[Event]:
        """The change of title that `record` makes, if it makes one."""
        kind = record.get("type")
        if not isinstance(kind, str) or kind not in _TITLES:
            return []
        name, rank = _TITLES[kind]
        text = record.get(name)
        if not isinstance(text, str) or rank < self._rank or (kind == "summary" and not self._ours(record)):
            return []
        title = title_of(text)
        if not title or title == self.title:
            return []
        self.title, self._rank = title, rank
        return [ChatChanged(title=title)]

    def _ours(self, summary: dict[str, Any]) -> bool:
        # Old versions wrote summaries of a project's other sessions at the head of a new one.
        leaf = summary.get("leafUuid")
        return isinstance(leaf, str) and leaf in self._leaves


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of one file; each iteration reads it anew, and raises OSError where another has taken its place."""

    path: Path
    size: int
    identity: tuple[int, int]
    leaves: set[str]
    sidechains: bool

    def __iter__(self) -> Iterator[ImportedRecord]:
        chat = _Pass(self)
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:  # noqa: PTH123 - a descriptor
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self.identity:
                raise OSError(errno.ESTALE, "was replaced while it was read: import it again", str(self.path))
            for item in read(stream, self.size):
                if isinstance(item, Unparsed):
                    yield chat.unparsed(item)
                else:
                    yield from chat.records(item)


class _Pass:
    """What goes from record to record while one file is read once."""

    def __init__(self, source: _Records) -> None:
        self._keys = Keys()
        self._payloads = Payloads()
        self._titles = _Titles(source.leaves)
        self._talk = Conversation(self._payloads, sidechains=source.sidechains)

    def unparsed(self, line: Unparsed) -> ImportedRecord:
        """A line as text."""
        key, _ = self._keys.of(line.raw)
        data, new = self._payloads.unparsed(SOURCE, line)
        return ImportedRecord(key, data, None, None, tuple(new))

    def records(self, line: Parsed) -> Iterator[ImportedRecord]:
        """The record of a line; a second one where it makes two messages."""
        record = line.value if type(line.value) is dict else {}
        key, repeated = self._keys.of(line.raw, record.get("uuid"))
        raw, new = self._payloads.extract(line.raw, line.value)
        events = [] if repeated else self._titles.event(record) + self._talk.events(record, key)
        head: dict[str, Any] = events[0].to_json() if events else {"type": "import.record"}
        data, moved = self._with_source(head | {"source": SOURCE}, raw, line)
        ts = time_of(record.get("timestamp"))
        kind = record.get("type")
        actor = f"{SOURCE}/{kind}" if isinstance(kind, str) and kind.isprintable() and len(kind) <= 64 else SOURCE
        yield ImportedRecord(key, data, ts, actor, (*new, *moved))
        for number, event in enumerate(events[1:], 2):
            yield ImportedRecord(f"{key}/{number}", event.encode(), ts, actor)

    def _with_source(self, head: dict[str, Any], raw: bytes, line: Parsed) -> tuple[bytes, list[ImportedAttachment]]:
        field_name = "record" if line.exact else "text"
        if len(raw) <= RECORD_MAX:
            data = sealed(head, raw) if line.exact else orjson.dumps(head | {"text": raw.decode()})
            if data is None:
                data = orjson.dumps(head | {"text": raw.decode()})
            if len(data) <= RECORD_MAX:
                return data, []
        pointer, moved = self._payloads.attach(raw, "application/json", "record")
        return orjson.dumps(head | {field_name: pointer}), moved
