"""The one table from the store's errors to errno."""

from __future__ import annotations

import errno
from typing import Final

from store import errors as e

TABLE: Final[tuple[tuple[type[e.StoreError], int], ...]] = (
    (e.BlobNotFound, errno.EIO),
    (e.NotFound, errno.ENOENT),
    (e.NameTooLong, errno.ENAMETOOLONG),
    (e.LineTooLong, errno.EFBIG),
    (e.InvalidText, errno.EILSEQ),
    (e.InvalidInput, errno.EINVAL),
    (e.NameTaken, errno.EEXIST),
    (e.NotEmpty, errno.ENOTEMPTY),
    (e.ChatBusy, errno.EBUSY),
    (e.Conflict, errno.EAGAIN),
    (e.QuotaExceeded, errno.EDQUOT),
    (e.AppendOnly, errno.EPERM),
    (e.Refused, errno.EROFS),
    (e.CorruptLog, errno.EROFS),
    (e.Damage, errno.EIO),
    (e.Truncated, errno.ESTALE),
    (e.StoreFull, errno.ENOSPC),
    (e.StoreUnreachable, errno.EHOSTDOWN),
    (e.StoreError, errno.EIO),
)
"""First match wins. CorruptLog is EROFS: what is readable is shown, and only writing to that chat is refused."""

LOGGED: Final = (e.Damage, e.BackendError, e.BlobNotFound)
"""Errors that a person must hear of: one line in the log, besides the errno."""


def errno_of(error: e.StoreError) -> int:
    """The errno for `error`."""
    return next(code for kind, code in TABLE if isinstance(error, kind))
