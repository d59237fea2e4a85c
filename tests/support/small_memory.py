"""`chatfs` that keeps few bytes of unfinished lines: `python -m tests.support.small_memory WORDS…`."""

from __future__ import annotations

import sys
from typing import Final

from fusefs.cli.entry import main
from fusefs.nodes import log_file

UNFINISHED_MAX: Final = 100_000

if __name__ == "__main__":
    log_file.UNFINISHED_MAX = UNFINISHED_MAX  # type: ignore[misc]
    sys.exit(main())
