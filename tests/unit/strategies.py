"""What the lens laws are checked over: logs that make sense, logs that don't, and texts that people might save."""

from __future__ import annotations

from itertools import count
from typing import Any

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from store import events as ev
from store.fold import ChatState, fold
from store.history import render
from store.model import Entry, Millis, Origin, Seq
from tests.support import torture

examples = settings(
    max_examples=torture.rounds(50, 1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""How hard each law is tried. Nearly all of the time goes into drawing: few draws per example are what counts below."""

HEADING = "## user · 2026-11-21T06:13:02Z"
_LINES = [
    "",
    " ",
    "\t",
    "hello",
    "foo  ",
    "# title",
    "#",
    "## user",
    "## assistant ",
    "## tool\r",
    "## User",
    "## Section",
    HEADING,
    HEADING + "\r",
    "## my-agent · 2026-11-21T06:13:02.5Z",
    "## a·b · 2026-11-21T06:13:02Z",
    "\\## user",
    "\\\\## user",
    "\\" + HEADING,
    "```",
    "```python",
    "````",
    "~~~",
    "~~~ x`y",
    "   ```",
    "    ```",
    "\\```",
    " \\~~~",
    "```a```",
    "a\rb",
    "\r",
    "x\r",
    "\x00",
    "\v",
    "\f\u2028\x85",
    "🙂é",
    "> quote",
    "![a](attachments/a.png)",
]
LINES = st.sampled_from(_LINES)
ENDED = st.sampled_from([line + end for line in _LINES for end in ("\n", "\n", "\n", "\n\n", "\r\n")])
TYPED = st.text(max_size=6).map("{}\n".format)


@st.composite
def texts(draw: st.DrawFn, max_lines: int = 8) -> str:
    """Lines that matter to the format, with all sorts of line ends; often without the last one."""
    joined = "".join(draw(st.lists(ENDED | ENDED | TYPED, max_size=max_lines)))
    return joined.rstrip("\n") if draw(st.booleans()) else joined


IDS = st.sampled_from(["m1", "m2", "m3", "m4", "m5", "m6"])
ROLES = st.sampled_from(["user", "assistant", "tool", "system", "my agent", "é", "##"])
BLANK = st.sampled_from(["", "\n", "\n\n", "\n\n\n", "\r\n", " ", "\n \n", "\r\n\r\n", "x", "x\n"])
NAMES = st.sampled_from(["a.png", "b.txt", "ü x.md", ".hidden", "history.md", "c"])
DIGESTS = st.sampled_from(["sha256:" + "0" * 64, "sha256-chunks:" + "f" * 64, "sha256:00", "md5:1"])
_SCALARS = st.sampled_from([None, True, False, 0, -5, 5, 0.5, "", "a", "text", "## user\n", "\0", "🙂é"]) | texts(2)
_KEYS = st.sampled_from(["type", "text", "id", "content"])
_FEW = _SCALARS | st.lists(_SCALARS, max_size=3)
JSON = _FEW | st.lists(_FEW, max_size=2) | st.dictionaries(_KEYS, _FEW | st.dictionaries(_KEYS, _SCALARS, max_size=2))
BLOCKS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts()})
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": texts()})
    | st.fixed_dictionaries({"type": st.just("tool_use"), "name": texts(1), "input": JSON})
    | st.fixed_dictionaries({"type": st.just("tool_result"), "content": texts() | st.lists(JSON, max_size=2)})
    | st.fixed_dictionaries({"type": st.just("image"), "attachment": NAMES})
    | JSON,
    max_size=3,
)


def optional(**fields: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """Each field, or None, which is as good as absent."""
    return {name: st.none() | strategy for name, strategy in fields.items()}


def _event(kind: type[ev.Event], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(kind.TYPE), **fields})


PLAIN = _event(ev.MessageAppended, id=IDS, role=ROLES, content=texts())
"""What an agent appends."""
AFTER = IDS | st.just("")
ODD = (
    PLAIN
    | _event(
        ev.MessageAppended,
        id=IDS,
        role=ROLES,
        content=texts() | BLOCKS,
        **optional(after=AFTER, md=texts(), lead=BLANK, tail=BLANK, hidden=st.booleans(), attachments=st.lists(NAMES)),
    )
    | _event(
        ev.MessageEdited,
        id=IDS,
        **optional(
            role=ROLES, content=texts() | BLOCKS, after=AFTER, md=texts(), append=texts(3), lead=BLANK, tail=BLANK
        ),
    )
    | _event(ev.MessageEdited, id=IDS, append=texts(3))
    | _event(ev.MessageRemoved, id=IDS)
    | _event(ev.PreambleEdited, **optional(text=texts(3), append=texts(2), tail=BLANK))
    | _event(
        ev.ChatChanged, **optional(title=st.sampled_from(["", "A title", "x"]), labels=st.lists(NAMES, max_size=2))
    )
    | _event(ev.AttachmentPut, id=IDS, name=NAMES, digest=DIGESTS, size=st.just(3), content_type=st.just("text/plain"))
    | _event(ev.AttachmentRemoved, name=NAMES)
    | _event(ev.AttachmentRenamed, name=NAMES, to=NAMES)
    | _event(ev.AttachmentChanged, name=NAMES, **optional(mode=st.just(0o600), mtime_ns=st.just(7)))
    | _event(ev.ChatRestored, **optional(since=st.integers(0, 9)))
    | JSON
)


def entry(seq: int, value: Any, *, origin: Origin | None = None) -> Entry:
    """An entry of a log whose clock ticks once per entry."""
    data = value.encode() if isinstance(value, ev.Event) else orjson.dumps(value)
    return Entry(Seq(seq), Millis(1_795_241_582_000 + seq * 1000), "test", data, 0, origin)


def log(*values: Any) -> list[Entry]:
    """A log of these events or JSON values."""
    return [entry(seq, value) for seq, value in enumerate(values, 1)]


def said(*values: tuple[str, str]) -> list[Entry]:
    """A log of (role, content), with the ids m1, m2, …."""
    return log(*(ev.MessageAppended(f"m{n}", role, content) for n, (role, content) in enumerate(values, 1)))


def apply(state: ChatState, events: list[ev.Event]) -> None:
    """Append events to the state's log."""
    for event in events:
        state.apply(entry(state.seq + 1, event))


def new_ids(prefix: str = "new") -> Any:
    """Ids that weren't there before."""
    return map("{}-{}".format, iter(lambda: prefix, None), count()).__next__


LOGS = st.builds(lambda values: log(*values), st.lists(ODD, max_size=9))
SOBER_LOGS = st.builds(lambda pairs: said(*pairs), st.lists(st.tuples(ROLES, texts()), max_size=6))


@st.composite
def saves(draw: st.DrawFn, entries: list[Entry]) -> bytes:
    """What somebody might save over the text of `entries`: anything, or the text with a few changes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(texts(12)).encode()
    state = fold(entries)
    text = render(state).decode()
    for _ in range(draw(st.integers(1, 3))):
        text = draw(_changes(text))
    return text.encode()


@st.composite
def _changes(draw: st.DrawFn, text: str) -> str:
    lines = text.splitlines(keepends=True) if draw(st.booleans()) else text.split("\n\n")
    glue = "" if lines and lines[0].endswith("\n") else "\n\n"
    start = draw(st.integers(0, len(lines)))
    stop = draw(st.integers(start, min(len(lines), start + 3)))
    kind = draw(
        st.sampled_from(["replace", "insert", "delete", "swap", "double", "crlf", "strip", "append", "cut", "sed"])
    )
    if kind == "replace":
        lines[start:stop] = [draw(texts(3))]
    elif kind == "insert":
        lines[start:start] = [draw(texts(3))]
    elif kind == "delete":
        del lines[start:stop]
    elif kind == "swap":
        lines = lines[:start] + lines[stop:] + lines[start:stop]
    elif kind == "double":
        lines[stop:stop] = lines[start:stop]
    elif kind == "sed":
        return text.replace("o", "oo").replace("## user", draw(LINES))
    elif kind == "crlf":
        return text.replace("\n", "\r\n")
    elif kind == "strip":
        return text.rstrip("\n")
    elif kind == "append":
        return text + draw(texts(4))
    else:
        return text[: draw(st.integers(0, len(text)))]
    return glue.join(lines)
