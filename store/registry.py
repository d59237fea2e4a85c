"""From a URL to an opened driver: the only importer of `store.drivers`.

Concurrency: none of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from store.driver import Clock, Driver
from store.errors import InvalidInput
from store.model import clock_ms

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


async def open_driver(url: str, *, clock: Clock = clock_ms) -> Driver:
    """Open the backend that `url` names, making the store where there is none.

    `memory:` is private to the caller, `memory:name` is shared by all who open that name in this process;
    `file:///path` or a plain path is a directory. Raises InvalidInput for another URL, FormatError, BackendError.
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme == "memory":
        from store.drivers.memory import open_memory  # noqa: PLC0415 (only what is used is loaded)

        return await open_memory(url.partition(":")[2], url, clock=clock)
    if scheme == "file":
        from store.drivers.file import open_file  # noqa: PLC0415 (as above)

        return await open_file(_path(url if match else None, url), url, clock=clock)
    raise InvalidInput(f"no driver for {url!r}: use file:///path, a path, or memory:")


def _path(file_url: str | None, text: str) -> Path:
    if file_url is not None:
        parts = urlsplit(file_url)
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise InvalidInput(f"{text!r} names no path: use file:///path")
        text = unquote(parts.path)
    if not text:
        raise InvalidInput("an empty path names no store")
    return Path(text).expanduser().absolute()
