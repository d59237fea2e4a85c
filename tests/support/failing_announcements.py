"""`chatfs` on a store that can't be read the first time that names are announced, as on a disk that fails."""

from __future__ import annotations

import sys

from fusefs.__main__ import main
from fusefs.announce import Announcer
from store.errors import BackendError

_announce_names = Announcer._announce_names
_failed: list[Announcer] = []


async def _failing_once(announcer: Announcer) -> None:
    if announcer._names and not _failed:
        _failed.append(announcer)
        raise BackendError("the disk failed")
    await _announce_names(announcer)


if __name__ == "__main__":
    Announcer._announce_names = _failing_once  # type: ignore[method-assign]
    sys.exit(main())
