"""The grants of a space, as files in its directory: `lease-<epoch>.json`, {"holder", "epoch", "expires"}.

The highest number is the present grant; it is never removed. Lower ones are removed only under the log's flock, and
before a grant counts: so an append, which has that flock, learns from one fstat of the file that it knows whether a
higher epoch has been granted. A file that is empty, or all NUL bytes (a power cut left it so), is an expired grant of
its number. `lease.json` is what versions before this wrote: the present grant where there is no other.

Concurrency: nothing here waits. What it reads may be replaced or removed meanwhile; then it looks again.
"""

# Plain strings and descriptors: a Path costs more than the system call.

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import orjson

from store.driver import Grant
from store.errors import FormatError
from store.model import Epoch, Millis, SpaceId

OLD_NAME: Final = "lease.json"
NAME: Final = re.compile(r"lease-([1-9][0-9]{0,17})\.json")
_TEMPORARY: Final = re.compile(r"\.lease-([1-9][0-9]{0,17})\.json\.[0-9a-f]+\.tmp")
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_SIZE: Final = 65536


def name_of(epoch: int) -> str:
    """The file of a grant."""
    return f"lease-{epoch}.json"


def names(directory: Path) -> dict[int, str]:
    """The files of grants by their epochs; that of an older version counts as 0. Raises OSError."""
    found = {}
    for name in os.listdir(directory):
        match = NAME.fullmatch(name)
        if match is not None:
            found[int(match[1])] = name
        elif name == OLD_NAME:
            found[0] = name
    return found


def temporaries(directory: Path, epoch: int) -> list[str]:
    """Files of grants up to an epoch that were being written: leftovers, or of no use any more. Raises OSError."""
    found = ((_TEMPORARY.fullmatch(name), name) for name in os.listdir(directory))
    return [name for match, name in found if match is not None and int(match[1]) <= epoch]


def decode(space: SpaceId, name: str, data: bytes) -> Grant:
    """Raises FormatError."""
    match = NAME.fullmatch(name)
    if match is not None and not data.strip(b"\0"):
        return Grant(space, "", Epoch(int(match[1])), Millis(0))
    try:
        found = orjson.loads(data)
        holder, epoch, expires = found["holder"], found["epoch"], found["expires"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        holder = epoch = expires = None
    fine = isinstance(holder, str) and type(epoch) is int and epoch > 0 and type(expires) is int
    if fine and (match is None or epoch == int(match[1])):
        return Grant(space, holder, Epoch(epoch), Millis(expires))
    raise FormatError(
        f"{name} of {space} isn't a lease: restore it from a backup, or remove it when no other chatfs runs"
    )


def encode(grant: Grant) -> bytes:
    """What a grant's file holds."""
    return orjson.dumps({"holder": grant.holder, "epoch": grant.epoch, "expires": grant.expires}) + b"\n"


def present(space: SpaceId, directory: Path) -> Grant | None:
    """The highest grant; None where there never was one. Raises FormatError, OSError."""
    found = _open(space, directory)
    if found is None:
        return None
    grant, fd = found
    os.close(fd)
    return grant


def _open(space: SpaceId, directory: Path) -> tuple[Grant, int] | None:
    """The same, with its file."""
    while True:
        found = names(directory)
        if not found:
            return None
        name = found[max(found)]
        try:
            fd = os.open(directory / name, _READ)
        except FileNotFoundError:
            continue
        try:
            return decode(space, name, os.pread(fd, _SIZE, 0)), fd
        except BaseException:
            os.close(fd)
            raise


class EpochRecord:
    """The highest granted epoch of a space, as cheap to ask as one fstat: a replaced file has no names left."""

    def __init__(self, space: SpaceId, directory: Path) -> None:
        self._space = space
        self._directory = directory
        self._fd = -1
        self._epoch = Epoch(0)

    def current(self) -> Epoch:
        """0 where none was granted. Under the log's flock. Raises FormatError, OSError."""
        if self._fd >= 0:
            if os.fstat(self._fd).st_nlink:
                return self._epoch
            self.close()
        found = _open(self._space, self._directory)
        if found is None:
            return Epoch(0)
        grant, fd = found
        if os.fstat(fd).st_nlink == 1:
            self._fd, self._epoch = fd, grant.epoch
        else:
            # It still has the name under which it was written, so losing the other one wouldn't show.
            os.close(fd)
        return grant.epoch

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
