"""A chat's copy in the project: reading it, and writing a chat out. Knows files and bytes, not the store.

Concurrency: blocking; in threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store import durability
from store.errors import InvalidName
from store.model import Attachment, ChatId, attachment_name
from store.projection import form, portable
from store.projection.tree import Directory, Stamp, Strange, is_temporary


@dataclass(frozen=True, slots=True)
class Copy:
    """What a chat's directory holds. `problem`: why its stream, or all of it, is left alone."""

    name: str
    text: bytes
    lines: list[bytes]
    metadata: form.Metadata | None
    files: dict[str, Stamp]
    attachments: dict[str, Stamp]
    attached_ns: int
    others: list[str]
    problem: str = ""


def read(chats: Directory, name: str, known: Collection[bytes] = (), expected: bytes | None = None) -> Copy:
    """All of it but the attachments' bytes. `expected` is what the file would be, had a write of ours been completed.

    Raises FileNotFoundError, Strange, OSError.
    """
    with chats.sub(name) as directory:
        files: dict[str, Stamp] = {}
        texts: dict[str, bytes] = {}
        for file in (form.HISTORY, form.METADATA, form.TEXT):
            stamp = directory.stamp(file)
            if stamp is None:
                if directory.exists(file):
                    raise Strange(f"{directory.shown}/{file} isn't a file: chatfs leaves it alone; move it elsewhere")
                continue
            files[file] = stamp
            if file != form.TEXT:
                found = directory.read(file)
                if found is not None:
                    texts[file], files[file] = found
        attachments, attached_ns = list_attachments(directory)
        others = [other for other in directory.names() if other not in form.OWN and not is_temporary(other)]
        text = texts.get(form.HISTORY, b"")
        stream = portable.read(text, known)
        problem = f"{directory.shown}/{form.HISTORY} {stream.problem}" if stream.problem else ""
        if stream.unfinished and (expected is None or not expected.startswith(text)):
            problem = f"{directory.shown}/{form.HISTORY} ends in the middle of a line: complete it, or remove that line"
        metadata = form.parse_chat_json(texts[form.METADATA]) if form.METADATA in texts else None
        if form.METADATA in texts and metadata is None:
            problem = problem or f"{directory.shown}/{form.METADATA} can't be read: resolve it, or restore it"
        return Copy(name, text, stream.lines, metadata, files, attachments, attached_ns, others, problem)


def list_attachments(directory: Directory) -> tuple[dict[str, Stamp], int]:
    """The files in attachments/ that can be attachments, and when a name came or went there."""
    if not directory.is_directory(form.ATTACHMENTS):
        return {}, 0
    found: dict[str, Stamp] = {}
    with directory.sub(form.ATTACHMENTS) as attachments:
        changed_ns = attachments.changed_ns
        for name in attachments.names():
            with contextlib.suppress(InvalidName):
                stamp = attachments.stamp(attachment_name(name))
                if stamp is not None:
                    found[name] = stamp
    return found, changed_ns


@dataclass(frozen=True, slots=True)
class Content:
    """What a chat's directory is to hold, but for the attachments."""

    chat: ChatId
    lines: Sequence[bytes]
    text: bytes
    fields: Mapping[str, Any]


def write_files(directory: Directory, content: Content) -> dict[str, Stamp]:
    """Bring the three files up to date; those that are touch nothing. Raises OSError, Strange."""
    return {
        form.HISTORY: write_history(directory, content.lines),
        form.TEXT: directory.put(form.TEXT, content.text),
        form.METADATA: directory.put(form.METADATA, form.chat_json(content.chat, content.fields)),
    }


def write_history(directory: Directory, lines: Iterable[bytes]) -> Stamp:
    """history.jsonl: what is there already and right stays, and the rest is added."""
    wanted = portable.join(lines)
    found = directory.read(form.HISTORY) if directory.exists(form.HISTORY) else None
    if found is not None and wanted.startswith(found[0]):
        text, stamp = found
        if text == wanted:
            return stamp
        after = directory.append(form.HISTORY, wanted[len(text) :], stamp)
        if after is None:
            raise Moved
        return after
    return directory.replace(form.HISTORY, [wanted], beside=directory)


def write_text(directory: Directory, at: int, text: bytes, stamp: Stamp) -> Stamp:
    """history.md, from byte `at` on; it looks as `stamp` says. Raises Moved."""
    if at == 0:
        return directory.put(form.TEXT, text)
    after = directory.append(form.TEXT, text, stamp) if text else stamp
    if after is None:
        raise Moved
    return after


def overwrite_history(directory: Directory, lines: Iterable[bytes]) -> Stamp:
    """history.jsonl anew, whatever is there; its lines are in the store by now."""
    return directory.put(form.HISTORY, portable.join(lines))


class Moved(Exception):
    """Somebody changed the file meanwhile."""


def write_attachment(directory: Directory, found: Attachment, pieces: Iterator[bytes]) -> Stamp:
    """One attachment's bytes."""
    with directory.make(form.ATTACHMENTS) as attachments:
        executable = found.mode is not None and found.mode & 0o111 != 0
        return attachments.replace(found.name, pieces, executable=executable, beside=directory)


def remove_attachment(directory: Directory, name: str, known: Stamp) -> None:
    """Remove one that nobody has changed; the directory too, when it was the last."""
    with directory.sub(form.ATTACHMENTS) as attachments:
        if attachments.stamp(name) == known:
            attachments.unlink(name)
        empty = not attachments.names()
    if empty:
        with contextlib.suppress(OSError):
            durability.system.rmdir("projection.rmdir", directory.path(form.ATTACHMENTS))


def free_name(chats: Directory, chat: ChatId, name: str, taken: str = "") -> str:
    """What the chat's directory is to be called; `taken` is what it is called now."""
    names = form.directories(chat, name)
    if taken in names:
        return taken
    return next((each for each in names if not chats.exists(each)), f"{names[0]}-{chat}")
