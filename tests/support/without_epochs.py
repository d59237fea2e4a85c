"""`chatfs` as on a kernel before Linux 6.16, which can't count up the epoch of its entries."""

from __future__ import annotations

import sys

from fusefs.__main__ import main
from fusefs.notify import Notifier


def _no_epochs(_notifier: Notifier) -> bool:
    return False


if __name__ == "__main__":
    Notifier._next_epoch = _no_epochs  # type: ignore[method-assign]
    sys.exit(main())
