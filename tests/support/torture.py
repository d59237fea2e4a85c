"""The size of a proof: a quick form in every run, and a long one (`scripts/torture`).

The environment says which: `CHATFS_TORTURE=long`, `CHATFS_ROUNDS` (how many rounds exactly), `CHATFS_SEED`.
"""

from __future__ import annotations

import os
import random
from typing import Final

LONG: Final = os.environ.get("CHATFS_TORTURE") == "long"
"""Whether the long forms were asked for."""


def rounds(quick: int, long: int) -> int:
    """How many rounds to make."""
    given = os.environ.get("CHATFS_ROUNDS", "")
    return int(given) if LONG and given else long if LONG else quick


def seeded(what: str) -> random.Random:
    """A generator for the proof called `what`: the same choices for the same seed. Quick forms have a fixed one."""
    seed = os.environ.get("CHATFS_SEED", "1")
    print(f"{what}: CHATFS_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    return random.Random(f"{what} {seed}")


def either(quick: int, long: int) -> int:
    """A size or a pace, which doesn't depend on how many rounds were asked for."""
    return long if LONG else quick
