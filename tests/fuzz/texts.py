"""The lens and names: what people type."""

from __future__ import annotations

import contextlib
import os

from store import markdown
from store.drivers.file.kv import file_name
from store.drivers.keys import check_key
from store.errors import InvalidName, InvalidText
from store.fold import ChatState
from store.history import diff, diff_append, merge, render
from store.importers.source import name_of, title_of
from store.model import NAME_MAX, attachment_name, directory_name
from tests.fuzz.support import TALK, apply, conversation, is_text, new_ids

# ---- the lens


def lens(data: bytes) -> None:
    """PutGet, GetPut and appending in pieces, from an empty chat or one with messages; not UTF-8 is InvalidText."""
    start, saved = data[:1], data[1:]
    state = conversation() if start > b"\x7f" else ChatState()
    try:
        events = diff(state, saved, new_ids())
    except InvalidText:
        assert not is_text(saved)
        return
    assert is_text(saved)
    before = render(state)
    apply(state, events)
    assert render(state) == saved
    assert state.size == len(saved)
    assert diff(state, saved, new_ids()) == []
    apply(state, diff(state, before, new_ids("back")))
    assert render(state) == before
    cut = len(saved) // 2
    pieces = [piece for piece in (saved[:cut], saved[cut:]) if piece]
    if all(map(is_text, pieces)):
        written = before
        for number, piece in enumerate(pieces):
            apply(state, diff_append(state, piece, new_ids(f"piece-{number}")))
            written += piece
            assert render(state) == written


def merging(data: bytes) -> None:
    """Three texts: what was opened, what is there now, what is saved. Whatever they are, the result is a text."""
    texts = [*data.split(b"\x1e"), b"", b""][:3]
    if not all(map(is_text, texts)):
        return
    opened, present, saved = texts
    base = ChatState()
    apply(base, diff(base, opened, new_ids("base")))
    current = ChatState()
    apply(current, diff(current, opened, new_ids("base")))
    apply(current, diff(current, present, new_ids("now")))
    assert render(current) == present
    found = merge(base, current, saved, new_ids())
    apply(current, found.events)
    text = render(current)
    assert text.decode().encode() == text
    assert current.size == len(text)
    assert diff(current, text, new_ids()) == []
    if present == opened:
        assert (text, found.conflict) == (saved, None)
    if saved == opened:
        assert (text, found.conflict) == (present, None)
    kept = set(text.split(b"\n")) | set((found.conflict or b"").split(b"\n"))
    kept = {line.rstrip(b"\r") for line in kept}
    for line in set(saved.split(b"\n")) - set(opened.split(b"\n")):
        assert line.rstrip(b"\r") in kept, line


def escaping(data: bytes) -> None:
    """What is escaped comes back, and holds no heading."""
    if not is_text(data):
        return
    escaped = markdown.escape(data)
    assert markdown.unescape(escaped) == data
    assert not markdown.headings(escaped)
    markdown.scan(data)


def lens_seeds() -> list[bytes]:
    texts = [
        b"",
        TALK,
        render(conversation()),
        b"```\n" * 9,
        b"## user\n" * 9,
        b"\\" * 9 + b"## user",
        b"\xff",
        "🙂".encode(),
    ]
    return [start + text for text in texts for start in (b"\0", b"\xff")]


def merge_seeds() -> list[bytes]:
    other = TALK.replace(b"hello", b"bye").replace(b"# A title", b"# Another")
    return [
        b"\x1e".join([TALK, TALK, other]),
        b"\x1e".join([TALK, other, TALK]),
        b"\x1e".join([TALK, other, TALK + b"\n## user\n\nmore\n"]),
        b"\x1e".join([TALK, TALK.replace(b"words", b"w"), TALK.replace(b"words", b"v")]),
    ]


# ---- names


def names(data: bytes) -> None:
    """What is accepted is one visible component of a path that any file system takes; a file name means one key."""
    text = data.decode(errors="surrogateescape")
    for accept in (directory_name, attachment_name):
        try:
            name = accept(text)
        except InvalidName:
            continue
        assert name == text
        encoded = name.encode()
        assert 0 < len(encoded) <= NAME_MAX
        assert os.path.basename(name) == name
        assert name not in {".", ".."}
        assert not name.startswith(".")
        assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u2028\u2029" for char in name)
    directory_name(name_of(text) or "x")
    title = title_of(text)
    assert len(title.splitlines()) <= 1
    with contextlib.suppress(InvalidName):
        check_key(text)
        file = file_name(text)
        assert os.path.basename(file) == file
        assert len(file.encode()) <= NAME_MAX
        assert not file.startswith(".")
        for other in (text + "/", text.upper(), text + ".", text.replace("/", ",")):
            assert (file_name(other) == file) == (other == text)


def name_seeds() -> list[bytes]:
    return [
        b"trip",
        b".",
        b"..",
        b"a/b",
        b"\x1b[31m",
        b"\xff\xfe",
        "\u202egnp.exe\u2066".encode(),
        b"x" * 256,
        "é".encode() * 128,
        b" a\n",
        b"history.md",
        b"\xed\xa0\x80",
    ]
