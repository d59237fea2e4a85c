"""From a URL to an opened driver: the only importer of `store.drivers`.

Concurrency: none of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from store.driver import Access, Clock, Driver, Progress
from store.errors import InvalidInput
from store.model import clock_ms

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def default_url() -> str:
    """`CHATFS_STORE`, or `user_url`."""
    return os.environ.get("CHATFS_STORE") or user_url()


def user_url() -> str:
    """The store in the user's data directory (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"file://{base}/chatfs"


async def open_driver(
    url: str, *, clock: Clock = clock_ms, access: Access = Access.MAKE, progress: Progress | None = None
) -> Driver:
    """Open the backend that `url` names.

    `memory:` is private to the caller, `memory:name` is shared by all who open that name in this process; they are made
    by being named. `file:///path` or a plain path is a directory; a store of an older format is migrated, which
    `progress` is told of. `git:///path` is a git repository, bare or a work tree's.

    Raises InvalidInput for another URL, StoreNotFound, FormatError, ReadOnly, BackendError.
    """
    path = directory_of(url)
    if path is not None and scheme_of(url) == "git":
        from store.drivers.git import open_git  # noqa: PLC0415 (only what is used is loaded)

        return await open_git(path, url, clock=clock, access=access)
    if path is not None:
        from store.drivers.file import open_file  # noqa: PLC0415 (as above)

        return await open_file(path, url, clock=clock, access=access, progress=progress)
    from store.drivers.memory import open_memory  # noqa: PLC0415 (as above)

    return await open_memory(url.partition(":")[2], url, clock=clock)


def scheme_of(url: str) -> str:
    """`file` (also of a plain path), `git` or `memory`. Raises InvalidInput."""
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme not in {"file", "git", "memory"}:
        raise InvalidInput(f"no driver for {url!r}: use file:///path, a path, git:///path, or memory:")
    return scheme


def absolute(url: str) -> str:
    """The same store's URL, whatever the current directory. Raises InvalidInput."""
    path = directory_of(url)
    return url if path is None else path.as_uri().replace("file:", f"{scheme_of(url)}:", 1)


def directory_of(url: str) -> Path | None:
    """The directory that a `file:` or `git:` URL or a path names; None for a `memory:` store. Raises InvalidInput."""
    scheme = scheme_of(url)
    if scheme == "memory":
        return None
    text = _path_in(url, scheme) if _SCHEME.match(url) else url
    if not text:
        raise InvalidInput("an empty path names no store: use file:///path, or a path")
    if "\0" in text:
        raise InvalidInput(f"{url!r} names no path: it has a NUL character")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise InvalidInput(f"{url!r} names no path: that user has no home directory") from None


def _path_in(url: str, scheme: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput(f"{url!r} is no URL: use {scheme}:///path") from None
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise InvalidInput(f"{url!r} names no path: use {scheme}:///path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
