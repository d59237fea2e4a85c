"""`chatfs`, also as `python -m fusefs`."""

from __future__ import annotations

import sys

from fusefs.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
