"""Dumped and loaded states: indistinguishable from folded ones, whatever comes next; and nothing is read too early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import events as ev
from store import history, snapshot, snapshot_items
from store.errors import CorruptSnapshot
from store.fold import ChatState, fold
from store.model import Entry, Millis, uuid7
from store.workspace_state import Place, WorkspaceState
from tests.unit.strategies import JSON, ODD, entry, examples, log

LOGS = st.lists(ODD, max_size=24).map(lambda values: log(*values))
SIZES = st.sampled_from([(1, 2, 1), (2, 3, 8), (3, 1 << 16, 3), (64, 1 << 16, 4096)])
"""How many messages are recent, how long a text stands inline, how many messages make a line."""
DIGEST = "sha256:" + "a" * 64
DELETED = "00000000-0000-7000-8000-000000000009"


class Kept:
    """A dump in memory, as a snapshot on a disk would hold it: `reads` says what was asked for."""

    def __init__(self, state: ChatState) -> None:
        dump = snapshot.dump(state)
        self.state = orjson.dumps(dump.state)
        self.data = dump.items
        self.rendered = history.render(state)
        self.reads: list[str] = []
        assert len(self.rendered) == dump.text_size

    def items(self) -> bytes:
        self.reads.append("items")
        return self.data

    def text(self, offset: int, size: int) -> bytes:
        self.reads.append("text")
        return self.rendered[offset : offset + size]

    def load(self) -> ChatState:
        return snapshot.load(orjson.loads(self.state), self)


@contextmanager
def sizes(recent: int, inline: int, line: int) -> Iterator[None]:
    with (
        patch.object(snapshot, "RECENT", recent),
        patch.object(snapshot, "INLINE", inline),
        patch.object(snapshot_items, "LINE", line),
    ):
        yield


def dumped(state: ChatState) -> tuple[bytes, bytes, int]:
    found = snapshot.dump(state)
    return orjson.dumps(found.state), found.items, found.text_size


def observed(state: ChatState) -> dict[str, Any]:
    """All that anybody can see of a state, texts and messages last: these load what isn't loaded."""
    return {
        "metadata": (state.seq, state.ts, state.created, state.title, state.labels, state.preamble_edited),
        "changed": (state.text_changed_ns, state.attachments_changed_ns),
        "attachments": list(state.attachments.items()),
        "removed": list(state.attachment_state.removed.items()),
        "counts": (state.size, state.message_count),
        "text": history.render(state),
        "messages": list(state.messages()),
        "places": [(item.lead, item.tail) for item in state.document.items()],
        "ends": (state.document.end.id, state.document.last.id),
    }


def told(count: int, make: Callable[[int], str] = uuid7, size: int = 20) -> list[Entry]:
    return log(*(ev.MessageAppended(make(n), "user", f"message {n} " * (size // 10)) for n in range(count)))


# ---- laws


@examples
@given(LOGS, SIZES, st.data())
def test_a_loaded_state_goes_on_like_the_folded_one(
    entries: list[Entry], limits: tuple[int, int, int], data: st.DataObject
):
    at = data.draw(st.integers(0, len(entries)))
    state = fold(entries[:at])
    with sizes(*limits):
        kept = Kept(state)
        other = kept.load()
        for item in entries[at:]:
            assert other.apply(item) == state.apply(item)
            assert (other.size, other.message_count) == (state.size, state.message_count)
            if data.draw(st.booleans()):
                assert history.render(other) == history.render(state)
        assert observed(other) == observed(state)
        assert other.whole
        assert dumped(other) == dumped(state)


@examples
@given(LOGS, SIZES, st.data())
def test_the_text_is_right_before_all_is_loaded(
    entries: list[Entry], limits: tuple[int, int, int], data: st.DataObject
):
    at = data.draw(st.integers(0, len(entries)))
    state = fold(entries[:at])
    with sizes(*limits):
        kept = Kept(state)
        other = kept.load()
        for item in entries[at:]:
            state.apply(item)
            other.apply(item)
        text = history.render(state)
        assert history.render(other) == text
        assert kept.rendered[: other.text_prefix] == text[: other.text_prefix]
        assert len(kept.rendered[: other.text_prefix]) == other.text_prefix
        start = data.draw(st.integers(0, len(text) + 1))
        assert b"".join(other.document.pieces(start)) == text[start:]
        assert b"".join(state.document.pieces(start)) == text[start:]


@examples
@given(LOGS, SIZES)
def test_equal_states_give_equal_dumps(entries: list[Entry], limits: tuple[int, int, int]):
    with sizes(*limits):
        state = fold(entries)
        kept = Kept(state)
        assert dumped(fold(entries)) == dumped(state) == dumped(kept.load()) == (kept.state, kept.data, state.size)
        assert observed(kept.load()) == observed(state)


# ---- what is read


def test_what_happens_at_the_end_reads_nothing_else():
    state = fold(told(500))
    kept = Kept(state)
    other = kept.load()
    last = other.document.last.id
    for event in (
        ev.MessageAppended(uuid7(), "assistant", "hi"),
        ev.MessageEdited(last, append=" and more"),
        ev.MessageEdited(last, content="new"),
        ev.MessageRemoved(last),
        ev.MessageAppended(uuid7(), "user", "hidden", hidden=True),
        ev.AttachmentPut("id", "a.png", DIGEST, 3, "image/png"),
        ev.AttachmentRemoved("a.png"),
        ev.ChatRestored(since=1),
        ev.ChatChanged(labels=["x"]),
        ev.MessageAppended(uuid7(), "user", "after", after=other.document.end.id),
    ):
        item = entry(other.seq + 1, event)
        assert other.apply(item) == state.apply(item)
        assert (other.size, other.message_count) == (state.size, state.message_count)
    assert history.diff_append(other, b"\n## user\n\ntyped\n", uuid7)
    assert kept.reads == []
    assert not other.whole
    assert other.text_prefix > 0
    assert observed(other) == observed(state)
    assert other.text_prefix == 0


def test_a_title_reads_nothing_and_moves_the_text():
    state = fold(told(200))
    kept = Kept(state)
    other = kept.load()
    item = entry(state.seq + 1, ev.ChatChanged(title="Late"))
    assert other.apply(item) == state.apply(item)
    assert (kept.reads, other.text_prefix) == ([], 0)
    assert b"".join(history.render_pieces(other, 5)) == history.render(state)[5:]
    assert not other.whole


def test_rendering_from_behind_what_is_there_reads_no_more():
    state = fold(told(200))
    kept = Kept(state)
    other = kept.load()
    prefix = other.text_prefix
    assert prefix > state.size // 2
    assert b"".join(history.render_pieces(other, prefix)) == kept.rendered[prefix:]
    assert kept.reads == []


@pytest.mark.parametrize("known", [True, False])
def test_an_id_of_another_kind_is_looked_up(known: bool):  # noqa: FBT001
    kept = Kept(fold(told(200, "msg-{}".format)))
    other = kept.load()
    other.apply(entry(201, ev.MessageAppended("msg-3" if known else "msg-200", "user", "hi")))
    assert "text" not in kept.reads or known
    assert other.whole == known
    assert other.message_count == 201
    assert other.message("msg-3~201" if known else "msg-200") is not None


def test_a_taken_uuid_is_found():
    entries = told(200)
    kept = Kept(fold(entries))
    other = kept.load()
    again = orjson.loads(entries[3].data)["id"]
    other.apply(entry(201, ev.MessageAppended(again, "user", "again")))
    assert other.document.end.id == f"{again}~201"
    older = kept.load()
    older.apply(entry(201, ev.MessageEdited(again, content="edited")))
    message = older.message(again)
    assert message is not None
    assert message.content == "edited"


def test_long_texts_are_not_in_the_object():
    state = fold(told(100, size=200_000))
    kept = Kept(state)
    assert len(kept.state) < 100_000
    assert observed(kept.load()) == observed(state)


def test_many_long_texts_are_older():
    state = fold(told(100, size=50_000))
    kept = Kept(state)
    assert 500_000 < len(kept.state) < 1_200_000
    assert observed(kept.load()) == observed(state)


def test_all_removed_but_the_older_ones():
    state = fold(told(100))
    kept = Kept(state)
    other, again = kept.load(), kept.load()
    for message in list(state.messages())[-snapshot.RECENT :]:
        item = entry(state.seq + 1, ev.MessageRemoved(message.id))
        assert other.apply(item) == again.apply(item) == state.apply(item)
    assert kept.reads == []
    assert observed(again) == observed(state)
    reads = [*kept.reads]
    item = entry(state.seq + 1, ev.MessageAppended(uuid7(), "user", "on"))
    assert other.apply(item) == state.apply(item)
    assert kept.reads == reads
    assert observed(other) == observed(state)


# ---- damage


def _spoiled(value: Any, data: st.DataObject) -> Any:
    """`value` with something else somewhere in it."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 9)) == 0:
            return {other: value[other] for other in value if other != key}
        return value | {key: _spoiled(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], _spoiled(value[index], data), *value[index + 1 :]]
    return data.draw(JSON | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.binary(max_size=3) | st.just("\udc80"))


def _use(make: Callable[[], ChatState]) -> None:
    """Load it and look at it: that works, or it is CorruptSnapshot."""
    try:
        state = make()
        state.apply(entry(99, ev.MessageAppended("m1", "user", "hi")))
        history.render(state)
        list(state.messages())
        state.complete()
    except CorruptSnapshot:
        pass


@examples
@given(LOGS, SIZES, st.data())
def test_a_spoiled_object_is_a_corrupt_snapshot(
    entries: list[Entry], limits: tuple[int, int, int], data: st.DataObject
):
    with sizes(*limits):
        kept = Kept(fold(entries))
        spoiled = _spoiled(orjson.loads(kept.state), data)
        _use(lambda: snapshot.load(spoiled, kept))


@examples
@given(LOGS, st.data())
def test_spoiled_items_are_a_corrupt_snapshot(entries: list[Entry], data: st.DataObject):
    with sizes(1, 5, 3):
        kept = Kept(fold(entries))
        at = data.draw(st.integers(0, len(kept.data)))
        kept.data = kept.data[:at] + data.draw(st.binary(max_size=3)) + kept.data[at + data.draw(st.integers(0, 5)) :]
        _use(kept.load)


@examples
@given(LOGS, st.data())
def test_a_spoiled_line_of_items_is_a_corrupt_snapshot(entries: list[Entry], data: st.DataObject):
    with sizes(1, 5, 100):
        kept = Kept(fold(entries))
        start = kept.data.find(b"{")
        for at in (at for at in range(0, len(kept.data), 8) if kept.data[at : at + 6] == b'{"id":'):
            start = at
        if start >= 0:
            spoiled = _spoiled(orjson.loads(kept.data[start:]), data)
            try:
                kept.data = kept.data[:start] + orjson.dumps(spoiled)
            except TypeError:
                return
        _use(kept.load)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_a_corrupt_snapshot(depth: int):
    kept = Kept(fold(told(3)))
    state = orjson.loads(kept.state)
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    for key in state:
        with pytest.raises(CorruptSnapshot):
            snapshot.load(state | {key: deep}, kept)


def test_missing_parts_are_a_corrupt_snapshot():
    kept = Kept(fold(told(100)))
    kept.rendered = kept.rendered[:1000]
    with pytest.raises(CorruptSnapshot):
        history.render(kept.load())
    state = kept.load()
    with pytest.raises(CorruptSnapshot):
        state.complete()
    assert not state.whole
    kept.data = b""
    with pytest.raises(CorruptSnapshot):
        kept.load().message("nobody")
    with pytest.raises(CorruptSnapshot):
        list(kept.load().messages())


# ---- workspaces

CHATS = st.sampled_from([f"0000000{n}-0000-7000-8000-000000000000" for n in range(5)])
CHAT_NAMES = st.sampled_from(["a", "b", "a~2", "c/d", ".x", "ü"])


def _event(kind: type[ev.Event], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(kind.TYPE), **fields})


WORKSPACE_EVENTS = (
    _event(ev.WorkspaceCreated, id=CHATS, name=CHAT_NAMES, user=st.none() | CHAT_NAMES)
    | _event(ev.WorkspaceChanged, name=st.none() | CHAT_NAMES, title=st.none() | st.just("T"))
    | _event(ev.WorkspaceChanged, labels=st.lists(CHAT_NAMES), quota_bytes=st.integers(0, 9))
    | _event(ev.WorkspaceTrashed)
    | _event(ev.ChatCreated, chat=CHATS, name=CHAT_NAMES)
    | _event(ev.ChatRenamed, chat=CHATS, name=CHAT_NAMES)
    | _event(ev.ChatArchived, chat=CHATS)
    | _event(ev.ChatUnarchived, chat=CHATS)
    | _event(ev.ChatTrashed, chat=CHATS, since=st.none() | st.integers(1, 9))
    | _event(ev.ChatRestored, chat=CHATS)
    | _event(ev.ChatDeleted, chat=CHATS)
    | JSON
)
WORKSPACE_LOGS = st.lists(WORKSPACE_EVENTS, max_size=40).map(lambda values: log(*values))


def workspace_of(entries: list[Entry]) -> WorkspaceState:
    state = WorkspaceState()
    for item in entries:
        state.apply(item)
    return state


def seen(state: WorkspaceState) -> dict[str, Any]:
    return {
        "own": (state.seq, state.ts, state.created, state.id, state.name, state.user, state.title, state.labels),
        "flags": (state.quota_bytes, state.trashed, state.places_changed),
        "chats": list(state.chats.items()),
        "places": {place: list(state.in_place(place)) for place in Place},
        "counts": {place: state.count(place) for place in Place},
        "names": {record.id: state.shown_name(record) for record in state.chats.values()},
    }


@examples
@given(WORKSPACE_LOGS, st.data())
def test_a_loaded_workspace_goes_on_like_the_folded_one(entries: list[Entry], data: st.DataObject):
    at = data.draw(st.integers(0, len(entries)))
    state = workspace_of(entries[:at])
    found = orjson.dumps(snapshot.dump_workspace(state))
    other = snapshot.load_workspace(orjson.loads(found))
    assert seen(other) == seen(state)
    for item in entries[at:]:
        assert other.apply(item) == state.apply(item)
    assert seen(other) == seen(state)
    assert orjson.dumps(snapshot.dump_workspace(other)) == orjson.dumps(snapshot.dump_workspace(state))


@examples
@given(WORKSPACE_LOGS, st.data())
def test_a_spoiled_workspace_is_a_corrupt_snapshot(entries: list[Entry], data: st.DataObject):
    spoiled = _spoiled(orjson.loads(orjson.dumps(snapshot.dump_workspace(workspace_of(entries)))), data)
    try:
        state = snapshot.load_workspace(spoiled)
    except CorruptSnapshot:
        return
    seen(state)


def test_a_deleted_chat_is_forgotten_and_only_from_the_trash():
    chat, other = ("00000000-0000-7000-8000-00000000000" + n for n in "12")
    state = workspace_of(log(ev.ChatCreated(chat, "a"), ev.ChatCreated(other, "b")))
    assert state.apply(entry(3, ev.ChatDeleted(chat))).moved == ()
    state.apply(entry(4, ev.ChatTrashed(chat)))
    assert state.apply(entry(5, ev.ChatDeleted(chat))).moved == ((Place.TRASH, "a"),)
    assert state.apply(entry(6, ev.ChatDeleted(chat))).moved == ()
    assert [*state.chats] == [other]
    assert state.count(Place.TRASH) == 0
    assert state.places_changed[Place.TRASH] == Millis(1_795_241_587_000) * 1_000_000 + 5


def test_the_order_of_names_is_kept():
    one, two, three = (f"00000000-0000-7000-8000-00000000000{n}" for n in range(3))
    events: list[ev.Event] = [ev.ChatCreated(one, "a"), ev.ChatCreated(two, "b"), ev.ChatCreated(three, "c")]
    events += [ev.ChatRenamed(one, "z"), ev.ChatTrashed(two), ev.ChatCreated(DELETED, "b"), ev.ChatTrashed(DELETED)]
    state = workspace_of(log(*events, ev.ChatTrashed(three, since=3), ev.ChatArchived(one)))
    other = snapshot.load_workspace(orjson.loads(orjson.dumps(snapshot.dump_workspace(state))))
    assert [name for name, _ in other.in_place(Place.TRASH)] == ["b", "b~2", "c"]
    assert seen(other) == seen(state)
    state = workspace_of(log(*events[:4]))
    other = snapshot.load_workspace(orjson.loads(orjson.dumps(snapshot.dump_workspace(state))))
    assert [name for name, _ in other.in_place(Place.CHATS)] == ["b", "c", "z"]
