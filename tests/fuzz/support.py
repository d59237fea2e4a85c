"""What the targets share: a chat to work on, ids, entries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import orjson

from store import events as ev
from store.fold import ChatState, fold
from store.model import Entry, Millis, Seq

NOW = Millis(1_795_241_582_000)


def new_ids(prefix: str = "new") -> Callable[[], str]:
    return map(f"{prefix}-{{}}".format, itertools.count()).__next__


def said(error: Exception) -> str:
    """What a user reads of it: one line."""
    text = str(error)
    assert text
    assert "\n" not in text
    return text


TALK = (
    b"# A title\n\nSome words.\n\n## user \xc2\xb7 2026-11-21T06:13:02Z\n\nhello\n\n"
    b"## assistant\n\n```\n## user\n```\n\n\\## user\n\n## tool \xc2\xb7 2026-11-21T06:13:02Z\nx\r\n\r\n\n\n##  user\n"
)
ENTRIES = [
    {"type": "chat.changed", "title": "A title"},
    {"type": "message.appended", "id": "m1", "role": "user", "content": "one\ntwo\n\n## user\n\nthree"},
    {"type": "message.appended", "id": "m2", "role": "my agent", "content": [{"type": "text", "text": "hello\n```"}]},
    {"type": "message.appended", "id": "m3", "role": "tool", "content": "bye", "after": "m1"},
    {"type": "message.edited", "id": "m2", "append": "\n\n## assistant"},
]


def entry(seq: int, data: bytes) -> Entry:
    return Entry(Seq(seq), Millis(NOW + seq * 1000), "test", data, 0)


def conversation() -> ChatState:
    return fold([entry(seq, orjson.dumps(value)) for seq, value in enumerate(ENTRIES, 1)])


def apply(state: ChatState, events: Sequence[ev.Event]) -> None:
    for event in events:
        state.apply(entry(state.seq + 1, event.encode()))


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
