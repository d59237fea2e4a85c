"""Bounded polling, for conditions that nothing signals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float = 15.0, *, what: str = "") -> T:
    """The first true value of `condition`, asked 100 times a second; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            description = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"waited {timeout:g} s in vain for {description}")
        time.sleep(0.01)  # the poll's interval; the condition decides
