"""`chatfs` with leases of a second, so that nobody waits long in a test for a daemon that has stopped."""

from __future__ import annotations

import functools
import sys
from typing import Final

from store import library

LEASE_MS: Final = 1000

if __name__ == "__main__":
    library.open_store = functools.partial(library.open_store, lease_ms=LEASE_MS)  # type: ignore[assignment]
    # Only now: whoever imports it gets that one.
    from fusefs.__main__ import main

    sys.exit(main())
