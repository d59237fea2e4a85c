"""What a projection's events do to a chat's state, its snapshot and its index."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import orjson
import pytest

from store import events as ev
from store.fold import ChatState, fold
from store.history import render
from store.index import Search
from store.library import Store, open_store
from store.model import Entries, Entry, Millis, NewEntry, Origin, Seq
from store.snapshot import dump, load
from store.workspace_state import Place

_names = itertools.count()
ME = "uid:1000/test"
RESET = ev.LogReset().encode()


def log(*rows: tuple[str, bytes] | tuple[str, bytes, Origin]) -> list[Entry]:
    return [Entry(Seq(seq), Millis(seq), row[0], row[1], 0, *row[2:]) for seq, row in enumerate(rows, 1)]


def message(id_: str, text: str) -> bytes:
    return orjson.dumps({"type": "message.appended", "id": id_, "role": "user", "content": text})


BEFORE = [
    (ME, message("a", "one")),
    (ME, ev.ChatChanged("Title", ["x"]).encode()),
    (ME, ev.AttachmentPut("i", "f", "sha256:" + "0" * 64, 1, "text/plain").encode()),
    (ME, ev.ChatChanged(projection="local").encode()),
]
AFTER = [(ev.PROJECTOR, message("b", "two"), Origin("x", Millis(5))), (ev.PROJECTOR, message("a", "one"))]


@pytest.mark.parametrize("replayed", [False, True])
def test_a_reset_begins_anew_but_for_whether_it_is_projected(*, replayed: bool) -> None:
    entries = log(*BEFORE, (ev.PROJECTOR, RESET), *AFTER)
    if replayed:
        state = ChatState()
        state.replay(Entries.of(entries))
    else:
        state = fold(entries)
    assert [message.id for message in state.messages()] == ["b", "a"]
    assert (state.title, state.labels, dict(state.attachments), state.projection) == ("", (), {}, "local")
    assert render(state) == render(fold(log(*AFTER)))
    assert state.size == len(render(state))


@pytest.mark.parametrize("row", [(ME, RESET), ("chatfs/fsck", RESET), (ev.PROJECTOR, RESET, Origin("x", Millis(1)))])
def test_nobody_elses_reset_means_anything(row: tuple[str, bytes]) -> None:
    assert [message.id for message in fold(log(*BEFORE, row)).messages()] == ["a"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ((ME, b'{"type":"chat.changed","projection":"local"}'), "local"),
        ((ME, b'{"type":"chat.changed","projection":"gone"}'), ""),
        ((ev.PROJECTOR, b'{"type":"chat.changed","projection":"gone"}'), "gone"),
        ((ME, b'{"type":"chat.changed","projection":"nonsense"}'), ""),
        ((ME, b'{"type":"chat.changed","projection":"local"}', Origin("x", Millis(1))), ""),
    ],
)
def test_only_this_copy_says_whether_it_is_projected(row: tuple[str, bytes], said: str) -> None:
    assert fold(log(row)).projection == said


def test_a_snapshot_keeps_what_a_projection_asks() -> None:
    state = fold(log(*BEFORE))
    dumped = dump(state)
    again = load(orjson.loads(orjson.dumps(dumped.state)), None)  # type: ignore[arg-type]
    assert (again.projection, again.metadata_changed) == ("local", 2)
    plain = dump(fold(log((ME, message("a", "one"))))).state
    assert plain.keys().isdisjoint({"projection", "metadata_changed"})


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store(f"memory:projection-{next(_names)}") as opened:
        yield opened


async def test_the_index_follows_a_reset(store: Store) -> None:
    workspace = await store.create_workspace("demo", ME)
    chat = await workspace.create_chat("a", ME)
    await chat.append([NewEntry(data, actor) for actor, data, *_ in BEFORE])
    assert len(await store.search(Search("one"))) == 1
    await chat.append([NewEntry(RESET, ev.PROJECTOR), NewEntry(message("b", "two"), ev.PROJECTOR)])
    assert await store.search(Search("one")) == []
    assert await store.search(Search("Title")) == []
    assert len(await store.search(Search("two"))) == 1
    assert (await chat.text()).endswith(b"two\n")


async def test_a_reset_shows_in_what_is_read_of_the_text(store: Store) -> None:
    workspace = await store.create_workspace("demo", ME)
    chat = await workspace.create_chat("a", ME)
    await chat.append([NewEntry(message("a", "one"), ME)])
    assert b"one" in await chat.read_text(0, 1000)
    await chat.append([NewEntry(RESET, ev.PROJECTOR), NewEntry(message("b", "two"), ev.PROJECTOR)])
    assert await chat.read_text(0, 1000) == await chat.text()


async def test_what_is_restored_is_put_again_so_that_it_can_be_copied(store: Store) -> None:
    workspace = await store.create_workspace("demo", ME)
    chat = await workspace.create_chat("a", ME)
    put = await chat.attach("f", b"bytes", ME)
    seq = await chat.remove_attachment("f", ME)
    await workspace.trash_chat(chat.id, ME, since=seq)
    await workspace.move_chat(chat.id, Place.CHATS, "a", ME)
    assert (await chat.load()).attachments == {"f": put}
    *_, last = [entry async for entry in chat.log()]
    event = ev.parse(last.data)
    assert isinstance(event, ev.AttachmentPut)
    assert (event.name, event.digest) == ("f", put.digest)
