"""Directories of an older layout, which had a chat as `<id>` or `<name>-<id>`: they become today's.

In those the log was history.jsonl as the store writes it, or lines as `chatfs append` takes them, and nothing else had
the chat. One step after the other, each repeatable, so that the next start finishes what a crash has left:

1. bytes of attachments into the store, 2. the lines into the log (the commit point), 3. the newest directory gets them
in today's form, what it had before being kept beside, 4. the others go to `.chatfs/quarantine/`, 5. the newest gets the
name that it is to have. From then on it is a copy as any other. Nothing of the project is deleted.

Concurrency: trio; one task per project.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import trio

from store import codec
from store.errors import InvalidName, StoreError
from store.events import is_labels
from store.fold import fold
from store.intake import accept
from store.model import ChatId, Entry, Millis, Seq, created_ms, directory_name, is_title, is_uuid
from store.projection import compare, copies, form, portable, take_in
from store.projection.tree import Directory
from store.workspace_state import Place

if TYPE_CHECKING:
    from store.projection.chat_sync import Report
    from store.workspace import Workspace

QUARANTINE: Final = "quarantine"
_ID: Final = re.compile(r"(?:(.+)-)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z", re.DOTALL)
_TODAYS: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-")
_ACTOR: Final = "chatfs/older"
"""Who wrote a line that doesn't say it."""


def chat_of(name: str) -> ChatId | None:
    """The chat that a directory of that name had in the older layout; None where it is of today's, or of nobody."""
    match = _ID.fullmatch(name)
    return None if match is None or _TODAYS.match(name) else ChatId(match[2])


@dataclass(frozen=True, slots=True)
class Older:
    """One such directory: its log as portable lines, what its chat.json says, and when its log was written.

    `begun`: the log has today's form already, since a crash came in between: this one was the newest.
    """

    name: str
    lines: list[bytes]
    fields: dict[str, Any]
    attachments: list[str]
    mtime_ns: int
    begun: bool = False


class Unreadable(StoreError):
    """Such a directory has something that nothing can be made of: it stays as it is until somebody mends that."""


async def move(workspace: Workspace, root: Directory, chats: Directory, names: Iterable[str], report: Report) -> None:
    """Bring directories of the older layout into today's, and their chats into the store.

    What can't be is among the report's problems, and stays as it is.
    """
    by_chat: dict[ChatId, list[str]] = {}
    for name in names:
        chat = chat_of(name)
        assert chat is not None, "these are of the older layout"
        by_chat.setdefault(chat, []).append(name)
    for chat, found in sorted(by_chat.items()):
        try:
            report.done += await _Moving(workspace, root, chats, chat, report.problems).move(found)
        except (StoreError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            report.problems.append(f"{chats.shown}/{found[0]} is of an older layout, and stays so: {why}")


class _Moving:
    """One chat."""

    def __init__(
        self, workspace: Workspace, root: Directory, chats: Directory, chat: ChatId, problems: list[str]
    ) -> None:
        self._workspace = workspace
        self._root = root
        self._chats = chats
        self._chat = chat
        self._problems = problems

    async def move(self, names: Sequence[str]) -> list[str]:
        """Returns what was done, in words."""
        found = [await trio.to_thread.run_sync(read, self._chats, self._chat, name) for name in names]
        found.sort(key=lambda one: (one.begun, one.mtime_ns, one.name), reverse=True)
        newest, *others = found
        lines = newest.lines
        for other in others:
            # Where each has something of its own, the newest wins: the other is kept, whole.
            lines = compare.combine(lines, other.lines, None) or lines
        for one in found:
            with self._chats.sub(one.name) as directory:
                for attachment in one.attachments:
                    await take_in.put_file(self._workspace, directory, attachment)
        fields = _fields(self._chat, [one.fields for one in found], lines)
        with self._chats.sub(newest.name) as directory:
            await take_in.bring_bytes(self._workspace, lines, directory, self._problems.append)
            if self._chat not in self._workspace.state.chats:
                place = Place(fields["place"])
                made = await take_in.new_chat(self._workspace, self._chat, fields["name"], lines, place=place)
                await take_in.say(made, fields)
        name = await trio.to_thread.run_sync(self._settle, newest, others, lines, fields)
        said = [f"{newest.name} was of an older layout: it is {name} now, and in the store"]
        said += [f"{one.name} is the same chat as {name}, and older: it is in {QUARANTINE}/ now" for one in others]
        return said

    def _settle(self, newest: Older, others: Sequence[Older], lines: Sequence[bytes], fields: Mapping[str, Any]) -> str:
        wanted = {form.HISTORY: portable.join(lines), form.METADATA: form.chat_json(self._chat, fields)}
        with self._chats.sub(newest.name) as directory, self._root.make(QUARANTINE) as quarantine:
            for file, text in wanted.items():
                there = directory.read(file)
                if there is not None and there[0] != text:
                    with quarantine.make(newest.name) as kept:
                        if not kept.exists(file):
                            kept.put(file, there[0])
                directory.put(file, text)
            for other in others:
                self._chats.move(other.name, quarantine, _free(quarantine, other.name))
        name = copies.free_name(self._chats, self._chat, fields["name"])
        self._chats.rename(newest.name, name)
        return name


def _free(directory: Directory, name: str) -> str:
    number, found = 1, name
    while directory.exists(found):
        number += 1
        found = f"{name[:200]}-{number}"
    return found


# ---- reading


def read(chats: Directory, chat: ChatId, name: str) -> Older:
    """One such directory. Raises Unreadable, Strange, OSError."""
    with chats.sub(name) as directory:
        log, metadata = directory.read(form.HISTORY), directory.read(form.METADATA)
        attachments, _ = copies.list_attachments(directory)
        if log is None:
            # A chat that nobody has written to had no log, maybe.
            if metadata is None and directory.names():
                raise Unreadable(f"it has neither {form.HISTORY} nor {form.METADATA}")
            return Older(name, [], _said(name, metadata), list(attachments), 0 if metadata is None else metadata[1][1])
        text, stamp = log
        lines = _lines(chat, text)
        begun = bool(lines) and text == portable.join(lines)
        return Older(name, lines, _said(name, metadata), list(attachments), stamp.mtime_ns, begun)


def _lines(chat: ChatId, text: bytes) -> list[bytes]:
    """The log as portable lines; a last line that was cut off stays where it is kept."""
    whole, _, torn = text.rpartition(b"\n")
    raw = [*whole.split(b"\n"), *([torn] if _is_json(torn) else [])]
    entries: list[Entry] = []
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        found = portable.decode(line.strip())
        if found is not None:
            entries.append(Entry(Seq(number), found.ts, found.actor, found.data, 0))
            continue
        identity = functools.partial(_identity, chat, number, line)
        try:
            new = accept(line, _ACTOR, identity, number=number)
        except StoreError as error:
            raise Unreadable(f"{form.HISTORY}: {error}") from error
        stored = codec.parse(line.strip())
        origin = new.origin if stored is None or stored.origin is None else stored.origin
        ts, actor = (created_ms(chat), _ACTOR) if origin is None else (origin.ts, origin.actor)
        entries.append(Entry(Seq(number), Millis(ts), actor, new.data, 0))
    return portable.stream(entries)


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _identity(chat: ChatId, number: int, line: bytes) -> str:
    """The id of a message that has none: the same whenever, and by whomever, it is read."""
    digest = hashlib.sha256(b"%b %d %b" % (chat.encode(), number, line)).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def _said(name: str, metadata: tuple[bytes, Any] | None) -> dict[str, Any]:
    """What the directory's name and its chat.json say, as far as it is valid."""
    found: dict[str, Any] = {}
    match = _ID.fullmatch(name)
    if match is not None and match[1] and _is_name(match[1]):
        found["name"] = match[1]
    try:
        value = orjson.loads(metadata[0]) if metadata is not None else {}
    except orjson.JSONDecodeError:
        raise Unreadable(f"{form.METADATA} isn't JSON: restore it from version control, or remove it") from None
    if not isinstance(value, dict):
        return found
    if isinstance(value.get("id"), str) and is_uuid(value["id"]) and match is not None and value["id"] != match[2]:
        raise Unreadable(f"{form.METADATA} is another chat's: restore it from version control, or remove it")
    if isinstance(value.get("name"), str) and _is_name(value["name"]):
        found["name"] = value["name"]
    if is_title(value.get("title")):
        found["title"] = value["title"]
    if is_labels(value.get("labels")):
        found["labels"] = value["labels"]
    away = value.get("place") == Place.ARCHIVE.value or value.get("lifecycle") in {"archived", "trashed"}
    return found | ({"place": Place.ARCHIVE.value} if away else {})


def _is_name(name: str) -> bool:
    try:
        directory_name(name)
    except InvalidName:
        return False
    return True


def _fields(chat: ChatId, said: Sequence[Mapping[str, Any]], lines: Sequence[bytes]) -> dict[str, Any]:
    """What chat.json is to say: the newest that says something has it, then the log."""
    state = fold(portable.entries_of(lines))
    found = {
        "name": state.title if _is_name(state.title) else f"chat-{chat[-6:]}",
        "title": state.title,
        "labels": list(state.labels),
        "place": Place.CHATS.value,
    }
    for one in reversed(said):
        found |= one
    return found
