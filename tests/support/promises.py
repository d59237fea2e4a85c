"""What must be found after a crash, by what was acknowledged before it: operations against what a chat shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from store.model import Entry
from tests.support.ledger import Operation
from tests.support.mounts import data
from tests.support.writers import content_of

_WORD = re.compile(rb"\b[a-z]+[0-9]*-[0-9]+[abc]\b")


def check_words(entries: list[Entry], text: bytes, operations: Iterable[Operation]) -> None:
    """Every acknowledged message is in the log and in the text once; an unacknowledged batch as a whole or not at all.

    Nothing else is there, and the log's seqs have no gap.
    """
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    shown = Counter(word.decode() for word in _WORD.findall(text))
    logged = Counter(str(event.get("content")) for event in data(entries) if event["type"] == "message.appended")
    known: set[str] = set()
    for operation in operations:
        words = operation.what.get("words", [])
        known.update(words)
        found = {shown[word] for word in words}
        assert found <= ({1} if operation.acknowledged else {0, 1}), (operation, found)
        assert len(found) <= 1, f"{operation} is there in part"
        if operation.what["kind"] == "lines":
            assert {logged[word] for word in words} == found, operation
    assert set(shown) <= known


def check_texts(text: bytes, name: str, operations: Iterable[Operation]) -> None:
    """The text says what `name`'s last acknowledged save said, or one that was in flight after it."""
    possible: set[int | None] = {None}
    for operation in operations:
        if operation.what["kind"] == "texts":
            number = operation.what["number"]
            possible = {number} if operation.acknowledged else possible | {number}
    said = re.findall(rb"\b%b saved ([0-9]+) times" % name.encode(), text)
    assert len(said) <= 1
    assert (int(said[0]) if said else None) in possible, (said, possible)


def check_files(names: Collection[str], read: Callable[[str], bytes], operations: Iterable[Operation]) -> None:
    """Every attachment has the bytes that were acknowledged last, or those of an operation in flight after that."""
    possible: dict[str, set[str | None]] = {}
    for operation in operations:
        if operation.what["kind"] in {"put", "remove"}:
            name, word = operation.what["name"], operation.what.get("word")
            possible[name] = {word} if operation.acknowledged else possible.get(name, {None}) | {word}
    assert set(names) <= set(possible)
    for name, words in possible.items():
        if name not in names:
            assert None in words, f"{name} is missing: {words}"
            continue
        content = read(name)
        word = content.partition(b"\n")[0].decode(errors="replace")
        assert word in words, f"{name} has {word}: {words}"
        assert content == content_of(word)
