"""Drafts: what awaits a commit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fusefs.drafts import Draft
from store.errors import StoreFailed


class Staging:
    """Bytes that can't be read at first."""

    def __init__(self) -> None:
        self.data = b""
        self.fails = True

    @property
    def size(self) -> int:
        return len(self.data)

    def write(self, offset: int, data: bytes) -> int:
        self.data = self.data[:offset].ljust(offset, b"\0") + data
        return len(data)

    def truncate(self, size: int) -> None:
        self.data = self.data[:size].ljust(size, b"\0")

    def read(self, offset: int, size: int) -> bytes:
        if self.fails:
            self.fails = False
            raise StoreFailed("reading a draft: Too many open files")
        return self.data[offset : offset + size]


@pytest.mark.parametrize("emptied", [False, True])
def test_what_cant_be_read_still_awaits_a_commit(*, emptied: bool) -> None:
    staging: Any = Staging()
    caller: Any = SimpleNamespace(actor="uid:1/test", process=1)
    draft = Draft(staging, caller)
    if emptied:
        draft.truncate(3)
    else:
        draft.write(0, b"abc")
    with pytest.raises(StoreFailed):
        draft.take()
    assert draft.dirty
    assert (draft.written, draft.emptied) == (not emptied, emptied)
    assert draft.take() == staging.data
    assert not draft.dirty
