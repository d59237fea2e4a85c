"""What a dumped state may consist of: checks that raise CorruptSnapshot. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from store.errors import CorruptSnapshot


@contextmanager
def shaped() -> Iterator[None]:
    """Whatever goes wrong within because a value has the wrong shape is CorruptSnapshot."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise CorruptSnapshot("not the form of a snapshot") from error


def number(value: object, *, negative: bool = False) -> int:
    """`value`, a whole number."""
    if type(value) is int and (value >= 0 or negative):
        return value
    raise CorruptSnapshot("a snapshot that has something else in place of a number")


def flag(value: object) -> bool:
    """`value`, true or false."""
    if isinstance(value, bool):
        return value
    raise CorruptSnapshot("a snapshot that has something else in place of true or false")


def text(value: object) -> str:
    """`value`, a string."""
    if isinstance(value, str):
        return value
    raise CorruptSnapshot("a snapshot that has something else in place of a string")


def array(value: object) -> list[Any]:
    """`value`, a list."""
    if isinstance(value, list):
        return value
    raise CorruptSnapshot("a snapshot that has something else in place of a list")


def texts(value: object) -> list[str]:
    """`value`, a list of strings."""
    if all(isinstance(item, str) for item in array(value)):
        return array(value)
    raise CorruptSnapshot("a snapshot that has something else in place of a list of strings")


def numbers(value: object, *, negative: bool = False) -> list[int]:
    """`value`, a list of whole numbers. Made for long ones."""
    found = array(value)
    if not found or (set(map(type, found)) == {int} and (negative or min(found) >= 0)):
        return found
    raise CorruptSnapshot("a snapshot that has something else in place of a list of numbers")


def rows(value: object, width: int) -> list[list[Any]]:
    """`value`, a list of lists of that length."""
    found = array(value)
    if all(isinstance(row, list) and len(row) == width for row in found):
        return found
    raise CorruptSnapshot("a snapshot that has something else in place of a table")


def encoded(value: object) -> bytes | None:
    """The bytes of `value`, a string or None."""
    return None if value is None else text(value).encode()
