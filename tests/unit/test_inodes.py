"""Lookup counts: the kernel forgets a number's lookups all at once, so none may be lost, whichever object was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from pyfuse3 import FUSEError

from fusefs.inodes import InodeTable
from fusefs.nodes.base import Directory, Node

if TYPE_CHECKING:
    from fusefs.mount import Mount

MOUNT = cast("Mount", None)


@pytest.fixture
def root() -> Directory:
    return Directory(MOUNT, "root")


@pytest.fixture
def table(root: Directory) -> InodeTable:
    return InodeTable(root)


def test_lookups_of_two_objects_for_one_number_are_counted_together(table: InodeTable, root: Directory):
    held, kept = Node(MOUNT, "same", root, b"new"), Node(MOUNT, "same", root, b"old")
    for _ in range(4):
        assert table.looked_up(held) is held
    assert table.looked_up(kept) is held
    table.forget(held.ino, 4)
    assert table.get(held.ino) is held
    table.forget(held.ino, 1)
    assert table.known(held.ino) is None
    with pytest.raises(FUSEError):
        table.get(held.ino)
    assert table.looked_up(kept) is kept
    assert (held.lookups, kept.lookups) == (0, 1)


def test_another_sort_of_node_takes_over_what_was_counted(table: InodeTable, root: Directory):
    file, directory = Node(MOUNT, "same", root, b"a"), Directory(MOUNT, "same", root, b"a")
    table.looked_up(file)
    table.looked_up(file)
    assert table.looked_up(directory) is directory
    assert root.children == {b"a": directory}
    table.forget(file.ino, 2)
    assert table.get(file.ino) is directory
    table.forget(file.ino, 1)
    assert table.known(file.ino) is None
    assert not root.children


def test_what_stands_for_another_gives_its_count_to_a_new_one(table: InodeTable, root: Directory):
    replaced, other, fresh = (Node(MOUNT, name, root, b"a") for name in ("same", "other", "same"))
    table.looked_up(replaced)
    table.looked_up(other)
    replaced.became = other
    assert table.get(replaced.ino) is other
    assert table.looked_up(fresh) is fresh
    table.forget(fresh.ino, 1)
    assert table.get(fresh.ino) is fresh
