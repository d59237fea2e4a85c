"""Every error that the store raises on purpose.

No errno here: `fusefs.errno_map` translates, in one table. Messages are one line and say what to do next.

::

    StoreError
    ├── NotFound
    │   ├── WorkspaceNotFound
    │   ├── ChatNotFound
    │   ├── AttachmentNotFound
    │   ├── MessageNotFound
    │   ├── SpaceNotFound
    │   ├── StoreNotFound
    │   └── BlobNotFound
    ├── InvalidInput
    │   ├── InvalidName
    │   │   └── NameTooLong
    │   ├── InvalidEvent
    │   ├── InvalidText
    │   └── LineTooLong
    ├── Conflict
    │   ├── NameTaken
    │   ├── NotEmpty
    │   ├── ChatBusy
    │   ├── SeqConflict
    │   ├── Diverged
    │   └── LeaseHeld
    ├── Refused
    │   ├── QuotaExceeded
    │   ├── ReadOnly
    │   ├── AppendOnly
    │   ├── StaleEpoch
    │   └── NotHolder
    ├── Damage
    │   ├── CorruptLog
    │   ├── CorruptBlob
    │   └── CorruptSnapshot
    ├── Truncated
    └── BackendError
        ├── StoreFull
        ├── StoreFailed
        ├── StoreUnreachable
        │   └── Unreachable
        └── FormatError
"""

from __future__ import annotations


class StoreError(Exception):
    """The root: anything the store refuses or can't do."""


class NotFound(StoreError):
    """What was named isn't there."""


class WorkspaceNotFound(NotFound):
    """No workspace has this name or id."""


class ChatNotFound(NotFound):
    """No chat has this name or id in the workspace."""


class AttachmentNotFound(NotFound):
    """The chat has no attachment of this name."""


class MessageNotFound(NotFound):
    """The chat has no message of this id."""


class SpaceNotFound(NotFound):
    """The driver has no log for this space."""


class StoreNotFound(NotFound):
    """Nothing is where the store was named."""


class BlobNotFound(NotFound):
    """The blob store has no bytes under this digest."""


class InvalidInput(StoreError):
    """The caller's bytes or words can't be accepted."""


class InvalidName(InvalidInput):
    """A workspace, chat or attachment can't have this name."""


class NameTooLong(InvalidName):
    """More than 255 bytes of UTF-8."""


class InvalidEvent(InvalidInput):
    """A line isn't one JSON value, or a known type has the wrong shape.

    `line` counts from 1 within what was given; `accepted` is how many bytes before it were appended.
    """

    def __init__(self, message: str, *, line: int = 1, accepted: int = 0) -> None:
        super().__init__(message)
        self.line = line
        self.accepted = accepted


class InvalidText(InvalidInput):
    """Text that must be UTF-8 isn't."""


class LineTooLong(InvalidInput):
    """One log line would be longer than 16 MiB."""


class Conflict(StoreError):
    """Somebody else was there first."""


class NameTaken(Conflict):
    """The name is in use in this workspace (or store)."""


class NotEmpty(Conflict):
    """A workspace that still has chats can't be removed."""


class ChatBusy(Conflict):
    """A sandbox session is active on the chat."""


class SeqConflict(Conflict):
    """`expected_seq` isn't the log's last seq; `current` is."""

    def __init__(self, message: str, *, current: int) -> None:
        super().__init__(message)
        self.current = current


class Diverged(Conflict):
    """Two copies of a log have different entries under one seq: neither is changed."""


class LeaseHeld(Conflict):
    """Another holder has an unexpired lease."""

    def __init__(self, message: str, *, holder: str, expires: int) -> None:
        super().__init__(message)
        self.holder = holder
        self.expires = expires


class Refused(StoreError):
    """Well-formed, but not allowed here and now."""


class QuotaExceeded(Refused):
    """The workspace's quota would be exceeded."""


class ReadOnly(Refused):
    """The store, the mount or the chat can't be written."""


class AppendOnly(Refused):
    """The change would rewrite or drop what a log already holds."""


class StaleEpoch(Refused):
    """The lease under which this append was made has been granted to somebody else."""

    def __init__(self, message: str, *, current: int) -> None:
        super().__init__(message)
        self.current = current


class NotHolder(Refused):
    """A lease was renewed or released by one who doesn't hold it."""


class Damage(StoreError):
    """Stored bytes aren't what was written."""


class CorruptLog(Damage):
    """A line in the middle of a log fails its checksum, its seq or its form.

    The message is "the log of LOG " and `how`: a driver knows a log by its space, people know it by its names. `seq` is
    the last good one before the damage; `offset` is where in the log's text the damage starts.
    """

    def __init__(self, how: str, *, seq: int, offset: int, log: str = "") -> None:
        super().__init__(f"the log of {log} {how}" if log else f"the log {how}")
        self.how = how
        self.log = log
        self.seq = seq
        self.offset = offset

    def again(self, log: str = "") -> CorruptLog:
        """The same anew, so that tracebacks don't pile up; said of `log`, if that is given."""
        return CorruptLog(self.how, seq=self.seq, offset=self.offset, log=log or self.log)


class CorruptBlob(Damage):
    """A blob's bytes don't hash to its digest."""


class CorruptSnapshot(Damage):
    """A snapshot isn't what was dumped. Whoever meets it folds the log instead; what it was met in is to be dropped."""


class Truncated(StoreError):
    """The entries that were asked for have been truncated away; `first_seq` is the oldest left."""

    def __init__(self, message: str, *, first_seq: int) -> None:
        super().__init__(message)
        self.first_seq = first_seq


class BackendError(StoreError):
    """The backing store itself failed."""


class StoreFull(BackendError):
    """No space left (or the backing store's own quota is reached)."""


class StoreFailed(BackendError):
    """An input/output error; after one in an append or a sync the log refuses appends until it is reopened."""


class StoreUnreachable(BackendError):
    """The backing store can't be reached."""


class Unreachable(StoreUnreachable):
    """Another instance of the store gives no answer, or its answer was lost: what was asked for may have been done."""


class FormatError(BackendError):
    """Not a chatfs store, or one of a newer format."""
