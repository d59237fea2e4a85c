"""A chat's copy in the project: reading it, and writing a chat out. Knows files and bytes, not the store.

Concurrency: blocking; in threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from store import durability
from store.driver import CHUNK
from store.drivers.chunks import manifest_of, sha256
from store.errors import InvalidName
from store.model import Attachment, BlobRef, ChatId, attachment_name
from store.projection import form, portable
from store.projection.tree import READ_MAX, Directory, Moved, Stamp, Strange, is_temporary

_PAGE: Final = 4096
_EXTENDED_MAX: Final = 1 << 17
"""Up to which size a file is replaced by a longer one where adding to it might be seen half done."""


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
                found = directory.read(file, form.METADATA_MAX if file == form.METADATA else READ_MAX)
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
            why = form.why_unreadable(texts[form.METADATA])
            problem = problem or f"{directory.shown}/{form.METADATA} {why}"
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


def blob_of(directory: Directory, name: str) -> BlobRef:
    """Of the blob that a file's bytes are. Raises FileNotFoundError, Strange."""
    fd = directory.open(name)
    try:
        return blob_of_open(fd)
    finally:
        os.close(fd)


def blob_of_open(fd: int) -> BlobRef:
    """The same of a file that was opened just now."""
    size = 0
    found: list[str] = []
    with open(fd, "rb", closefd=False) as file:
        while piece := file.read(CHUNK):
            size += len(piece)
            found.append(sha256(piece))
    return manifest_of(size, found or [sha256(b"")]).ref


@dataclass(frozen=True, slots=True)
class Content:
    """What a chat's directory is to hold, but for the attachments."""

    chat: ChatId
    lines: Sequence[bytes]
    text: bytes
    fields: Mapping[str, Any]


def write_files(directory: Directory, content: Content, there: Mapping[str, Stamp], text: bytes) -> dict[str, Stamp]:
    """Bring the three files up to date; those that are touch nothing. Raises OSError, Strange, Moved.

    `there` is how they look, `text` what history.jsonl has.
    """
    metadata = form.chat_json(content.chat, content.fields)
    return {
        form.HISTORY: write_history(directory, content.lines, there.get(form.HISTORY), text),
        form.TEXT: directory.put(form.TEXT, content.text),
        form.METADATA: directory.put(form.METADATA, metadata, there.get(form.METADATA)),
    }


def write_history(directory: Directory, lines: Iterable[bytes], stamp: Stamp | None, text: bytes) -> Stamp:
    """history.jsonl, which has that text: what is right of it stays, and the rest is added. Raises Moved."""
    wanted = portable.join(lines)
    if stamp is None or not wanted.startswith(text):
        return directory.replace(form.HISTORY, [wanted], beside=directory, expected=stamp)
    return append_history(directory, wanted[len(text) :], stamp)


def append_history(directory: Directory, added: bytes, stamp: Stamp) -> Stamp:
    """Whole lines behind history.jsonl, which looks as `stamp` says. Raises Moved."""
    append = directory.extend if stamp.size <= _EXTENDED_MAX and _may_tear(stamp.size, added) else directory.append
    after = append(form.HISTORY, added, stamp)
    if after is None:
        raise Moved
    return after


def _may_tear(at: int, added: bytes) -> bool:
    """Whether who reads the file meanwhile, as `git add` may, can find half of a line: a file grows page by page."""
    for line in added.split(b"\n"):
        if at // _PAGE != (at + len(line)) // _PAGE:
            return True
        at += len(line) + 1
    return False


def write_text(directory: Directory, at: int, text: bytes, stamp: Stamp) -> Stamp:
    """history.md, from byte `at` on; it looks as `stamp` says. Raises Moved."""
    if at == 0:
        return directory.put(form.TEXT, text)
    after = directory.append(form.TEXT, text, stamp) if text else stamp
    if after is None:
        raise Moved
    return after


def write_attachment(directory: Directory, found: Attachment, pieces: Iterator[bytes], there: Stamp | None) -> Stamp:
    """One attachment's bytes; its file looks as `there` says. Raises Moved."""
    with directory.make(form.ATTACHMENTS) as attachments:
        executable = found.mode is not None and found.mode & 0o111 != 0
        return attachments.replace(found.name, pieces, executable=executable, beside=directory, expected=there)


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
