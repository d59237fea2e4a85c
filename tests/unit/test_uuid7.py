"""Ids are UUIDv7: their form, their time, and that no two are the same, in threads and after a fork."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from store.model import is_uuid, uuid7


@given(st.integers(0, 2**48 - 1))
def test_the_form_is_that_of_the_rfc(ms: int):
    text = uuid7(ms)
    found = uuid.UUID(text)
    assert str(found) == text
    assert is_uuid(text)
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == ms


def test_every_random_bit_varies():
    """A bit that never changes in 2,000 ids is none (one that does has a chance of 2**-1999)."""
    ids = [uuid.UUID(uuid7(0)).int for _ in range(2000)]
    ever, always = 0, -1
    for number in ids:
        ever, always = ever | number, always & number
    assert (ever & ~always).bit_count() == 74


def test_threads_get_different_ones():
    with ThreadPoolExecutor(8) as pool:
        found = [id_ for ids in pool.map(lambda _: [uuid7(0) for _ in range(2000)], range(8)) for id_ in ids]
    assert len(set(found)) == len(found)


def test_a_forked_child_gets_other_ones():
    uuid7()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, " ".join(uuid7(0) for _ in range(40)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as pipe:
        theirs = pipe.read().split()
    assert len(theirs) == 40
    assert not set(theirs) & {uuid7(0) for _ in range(40)}
