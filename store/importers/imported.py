"""What an importer hands over: chats as records that are ready to be appended, with their attachments.

Plain values: nothing here reads a file or knows a store. Whoever stores them puts a record's attachments first, then
appends its data, skips keys that it has stored before, and remembers the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from store.model import Millis


@dataclass(frozen=True, slots=True)
class ImportedAttachment:
    """A file of the chat. `name` is unique within the chat, and the same every time that the source is read."""

    name: str
    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class ImportedRecord:
    """One JSON value for the chat's log.

    `key` names it within the chat: the same source read again, or grown, gives the same keys for what it had before.
    `data` has no newline and is at most `store.importers.payloads.RECORD_MAX` bytes. `ts` and `actor` are the source's
    word (an entry's origin); None where it says nothing. `attachments` must exist before the record is appended.
    """

    key: str
    data: bytes
    ts: Millis | None
    actor: str | None
    attachments: tuple[ImportedAttachment, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportedChat:
    """One chat of the source.

    `source_id` is stable: it says into which chat a second import goes. `suggested_name` is a valid directory name of
    at most 80 characters, not checked against others. `title` is "" where the source has none. `records` can be
    iterated more than once; a long source is read anew each time. `problems` has one line for each line of the source
    that couldn't be understood as it stands; what they say is kept as a record all the same.
    """

    source_id: str
    suggested_name: str
    title: str
    records: Iterable[ImportedRecord]
    problems: list[str]
