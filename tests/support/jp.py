"""Conversations of JP to import, and what a directory of them says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st

from store.chat import Chat
from store.exporters.jp import Exported, export_jp
from store.importers.jp import find_conversations
from store.importing import Stored
from store.importing_jp import store_jp
from store.workspace import Workspace

FILES = ("metadata.json", "events.json", "base_config.json")
ID = 17_000_000_001
METADATA: dict[str, Any] = {"title": "Plan a trip", "last_activated_at": "2023-11-14 22:13:20.5"}
CONFIG = {"assistant": {"model": {"id": {"provider": "anthropic", "name": "test"}}}}


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def at(number: int) -> str:
    """A time in JP's form, another for each number."""
    return f"2023-11-14 22:{number // 60 % 60:02}:{number % 60:02}.{number + 1:06}".rstrip("0")


def request(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": at(number), "type": "chat_request", "content": text, **more}


def answer(number: int, text: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": at(number), "type": "chat_response", "message": text, **more}


def turn(number: int) -> dict[str, Any]:
    return {"timestamp": at(number), "type": "turn_start"}


def call(number: int, arguments: dict[str, Any], identity: str = "call_1") -> dict[str, Any]:
    head = {"timestamp": at(number), "type": "tool_call_request", "id": identity, "name": "fs_read_file"}
    return {**head, "arguments": arguments}


def response(number: int, content: str, identity: str = "call_1", *, failed: bool = False) -> dict[str, Any]:
    head = {"timestamp": at(number), "type": "tool_call_response", "id": identity}
    return {**head, "content": b64(content), "is_error": failed}


EVENTS: list[Any] = [
    turn(0),
    request(1, "Where to in May?", author="Ada"),
    {"timestamp": at(2), "type": "chat_response", "reasoning": "Somewhere warm.", "metadata": {"sig": b64("\0")}},
    call(3, {"path": b64("notes/trips.md"), "lines": [1, 2]}),
    response(4, "Lisbon\nPorto\n"),
    answer(5, "Lisbon. Or Porto."),
    {"timestamp": at(6), "type": "config_delta", "delta": {"inherit": True}},
]


def write(
    project: Path,
    events: Any = EVENTS,
    *,
    conversation: int = ID,
    slug: str = "-plan-a-trip",
    metadata: Any = METADATA,
    base_config: Any = CONFIG,
    archived: bool = False,
) -> Path:
    """A conversation's directory; bytes are written as they are, None isn't written."""
    root = project / ".jp" / "conversations"
    path = (root / ".archive" if archived else root) / f"{conversation}{slug}"
    path.mkdir(parents=True, exist_ok=True)
    for name, value in zip(FILES, (metadata, events, base_config), strict=True):
        if value is not None:
            (path / name).write_bytes(value if isinstance(value, bytes) else pretty(value))
        else:
            (path / name).unlink(missing_ok=True)
    return path


def pretty(value: Any) -> bytes:
    """As JP writes it; escapes where a text isn't Unicode."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, indent=2).encode() + b"\n"


def exact(text: bytes) -> Any:
    """A JSON value whose numbers are told apart to the digit."""
    return json.loads(text, parse_int=lambda word: ("number", word), parse_float=lambda word: ("number", word))


def said(project: Path) -> dict[str, dict[str, Any]]:
    """What the files of a project's conversations say, by conversation (`.archive/` in front of an archived one)."""
    root = project / ".jp" / "conversations"
    found: dict[str, dict[str, Any]] = {}
    for path in (*root.glob("[0-9]*"), *root.glob(".archive/[0-9]*")):
        place = ".archive/" if path.parent != root else ""
        conversation = place + path.name.partition("-")[0]
        assert conversation not in found
        found[conversation] = {file.name: exact(file.read_bytes()) for file in path.iterdir()}
    return found


async def import_all(workspace: Workspace, project: Path) -> list[Stored]:
    return [await store_jp(workspace, chat, "test") for chat in find_conversations(project)]


async def export_all(workspace: Workspace, project: Path) -> list[Exported]:
    taken: set[int] = set()
    chats = list((await workspace.load()).chats.values())
    return [await export_jp(workspace, record, project, "test", taken=taken) for record in chats]


async def only_chat(workspace: Workspace) -> Chat:
    (record,) = (await workspace.load()).chats.values()
    return workspace.chat_by_id(record.id)


async def edit(workspace: Workspace, old: str, new: str) -> None:
    """Save the only chat's history.md with `new` in the place of `old`."""
    chat = await only_chat(workspace)
    text = (await chat.text()).decode()
    assert old in text
    await chat.save_text(text.replace(old, new).encode(), "vim")


async def add(workspace: Workspace, text: str) -> None:
    chat = await only_chat(workspace)
    await chat.save_text(await chat.text() + text.encode(), "vim")


def events_in(project: Path, conversation: str = str(ID)) -> list[Any]:
    (path,) = (project / ".jp" / "conversations").glob(f"**/{conversation}*/events.json")
    return json.loads(path.read_bytes())


def metadata_in(project: Path, conversation: str = str(ID)) -> dict[str, Any]:
    (path,) = (project / ".jp" / "conversations").glob(f"**/{conversation}*/metadata.json")
    return json.loads(path.read_bytes())


@contextmanager
def directory() -> Iterator[Path]:
    """For tests that have many examples: in memory, where there is such a place, since exports sync what they write."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


# ---- any conversation

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "## user", "```\nx\n```", "a\r\nb", "\x00\x1b", "\u2028", "é" * 70, "\U0001f600", "\ud83d!"]
    ),
)
_NUMBERS = st.one_of(
    st.integers(),
    st.integers(10**20, 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.1, -0.0, 1e300, 5e-324]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
_BASE64 = st.one_of(st.binary(max_size=12).map(b64), TEXTS.filter(lambda text: "\ud83d" not in text).map(b64), TEXTS)
_ARGUMENTS = st.dictionaries(TEXTS, st.one_of(_BASE64, st.lists(_BASE64, max_size=2), _NUMBERS), max_size=3)
_KINDS = st.one_of(
    st.just({"type": "turn_start"}),
    st.fixed_dictionaries(
        {"type": st.just("chat_request"), "content": TEXTS}, optional={"author": TEXTS, "schema": VALUES, "x": VALUES}
    ),
    st.fixed_dictionaries({"type": st.just("chat_response"), "message": TEXTS}, optional={"metadata": _ARGUMENTS}),
    st.fixed_dictionaries({"type": st.just("chat_response"), "reasoning": TEXTS}, optional={"metadata": _ARGUMENTS}),
    st.fixed_dictionaries({"type": st.just("chat_response"), "data": VALUES}),
    st.fixed_dictionaries(
        {"type": st.just("tool_call_request"), "id": TEXTS, "name": TEXTS, "arguments": st.one_of(_ARGUMENTS, VALUES)}
    ),
    st.fixed_dictionaries(
        {"type": st.just("tool_call_response"), "id": TEXTS, "content": _BASE64, "is_error": st.booleans()}
    ),
    st.fixed_dictionaries({"type": st.just("inquiry_request"), "id": TEXTS, "question": VALUES}),
    st.fixed_dictionaries({"type": st.just("config_delta"), "delta": VALUES}),
    st.fixed_dictionaries({"type": TEXTS}, optional={"content": VALUES, "import_key": TEXTS, "source": st.just("jp")}),
    st.fixed_dictionaries({"type": VALUES, "attachment": TEXTS, "record": VALUES}),
)


@st.composite
def event_lists(draw: st.DrawFn, *, most: int = 8) -> list[Any]:
    """Events of every kind, no two with the same time."""
    times = count(draw(st.integers(0, 1000)))
    kinds = draw(st.lists(_KINDS, max_size=most))
    return [{"timestamp": at(next(times)), **kind} for kind in kinds]


METADATAS = st.fixed_dictionaries(
    {},
    optional={
        "last_activated_at": st.one_of(st.just(at(7)), VALUES),
        "title": st.one_of(TEXTS, VALUES),
        "archived_at": st.just(at(8)),
        "labels": st.one_of(st.dictionaries(st.from_regex(r"[a-z_-]{1,4}", fullmatch=True), TEXTS, max_size=3), VALUES),
        "x": VALUES,
    },
)
