"""`store.exporters.jp` and `store.importing_jp`: what comes from JP goes back as it was, and any chat goes there."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from store.compaction import compact
from store.errors import Conflict
from store.importers.jp import event_keys, value_of
from store.importers.jp_json import elements
from store.importers.jp_shown import Talk
from store.library import open_store
from store.workspace_state import Place
from tests.support.jp import (
    METADATA,
    METADATAS,
    TEXTS,
    VALUES,
    b64,
    directory,
    event_lists,
    events_in,
    export_all,
    import_all,
    only_chat,
    response,
    said,
    turn,
    write,
)
from tests.unit.strategies import examples


@pytest.fixture
async def workspace():
    async with open_store("memory:") as store:
        yield await store.create_workspace("demo", "test")


# ---- laws


@given(
    event_lists(),
    METADATAS,
    st.one_of(st.none(), st.dictionaries(TEXTS, VALUES, max_size=2)),
    st.booleans(),
    st.lists(VALUES, max_size=2),
)
@examples
def test_import_then_export_gives_the_same_json_values(events, metadata, config, archived, odd):
    async def check() -> None:
        with directory() as source, directory() as target:
            write(source, events + odd + events[:1], metadata=metadata, base_config=config, archived=archived)
            async with open_store("memory:") as store:
                workspace = await store.create_workspace("demo", "test")
                await import_all(workspace, source)
                before = (await (await only_chat(workspace)).head()).seq
                await export_all(workspace, target)
                (again,) = await import_all(workspace, source)
                assert said(target) == said(source)
                assert (await (await only_chat(workspace)).head()).seq == before
                assert again.record is not None
                assert again.record.place is (Place.ARCHIVE if archived else Place.CHATS)
                (exported,) = await export_all(workspace, source)
                assert not exported.written

    trio.run(check)


@given(event_lists(most=6), st.data())
@examples
def test_whatever_jp_has_rewritten_the_chat_follows(events, data):
    """The second version has some of the first one's events, in any order, and others."""
    second = data.draw(st.permutations(events + data.draw(event_lists(most=3).map(_later))))
    second = second[: data.draw(st.integers(0, len(second)))]
    third = data.draw(st.permutations(events))

    async def check() -> None:
        async with open_store("memory:") as store:
            workspace = await store.create_workspace("demo", "test")
            for version in (events, second, third, events):
                with directory() as source, directory() as target:
                    write(source, version)
                    await import_all(workspace, source)
                    await export_all(workspace, target)
                    assert said(target) == said(source)
                    talk = Talk()
                    found = [talk.shown(value_of(json.dumps(event).encode())) for event in version]
                    shown = [message.role for message in found if message is not None]
                    messages = await (await only_chat(workspace)).messages()
                    assert [message.role for message in messages] == shown

    trio.run(check)


def _later(events: list[Any]) -> list[Any]:
    return [{**event, "timestamp": event["timestamp"].replace("2023", "2024")} for event in events]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), TEXTS), max_size=6))
@examples
def test_any_chat_becomes_a_conversation_and_comes_back_as_it_is(messages):
    """Into another store; and into its own, where it adds nothing."""
    messages = [(role, text.replace("\ud83d", "")) for role, text in messages]

    async def check() -> None:
        with directory() as target:
            async with open_store("memory:") as store, open_store("memory:") as other:
                workspace = await store.create_workspace("demo", "test")
                chat = await workspace.create_chat("own", "test")
                await chat.append_events([{"role": role, "content": text} for role, text in messages], "test")
                await export_all(workspace, target)
                elsewhere = await other.create_workspace("demo", "test")
                await import_all(elsewhere, target)
                copied = await (await only_chat(elsewhere)).messages()
                own = [(found.role, found.content) for found in await chat.messages() if found.content.strip()]
                assert [(found.role, found.content) for found in copied] == own
                before = await chat.text()
                await import_all(workspace, target)
                assert await (await only_chat(workspace)).text() == before
                (again,) = await export_all(workspace, target)
                assert not again.written

    trio.run(check)


# ---- chats that didn't come from JP


async def test_a_chat_of_its_own_gets_an_id_from_its_creation_and_the_next_free_one(workspace, tmp_path):
    for name in ("one", "two", "three"):
        await workspace.create_chat(name, "test")
    records = list((await workspace.load()).chats.values())
    first, *_ = await export_all(workspace, tmp_path)
    assert first.conversation == records[0].created // 100
    conversations = [exported.conversation for exported in await export_all(workspace, tmp_path)]
    assert len(set(conversations)) == 3
    found = said(tmp_path)
    assert {int(name) for name in found} == set(conversations)
    for files in found.values():
        assert files["events.json"] == []
        assert files["base_config.json"]["assistant"]["model"]["id"].keys() == {"provider", "name"}
        assert files["base_config.json"]["conversation"] == {"tools": {"*": {"run": "ask"}}}
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", files["metadata.json"]["last_activated_at"])


async def test_tool_calls_and_thinking_become_the_events_that_jp_has_for_them(workspace, tmp_path):
    chat = await workspace.create_chat("tools", "test")
    use = {"type": "tool_use", "id": "t1", "name": "read", "input": {"path": "a.txt", "deep": [{"x": "é"}, 1]}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "ok"}], "is_error": True}
    await chat.append_events(
        [
            {"role": "user", "content": "read it"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Yes."}, use],
            },
            {"role": "user", "content": [result]},
        ],
        "test",
    )
    (exported,) = await export_all(workspace, tmp_path)
    events = [
        {key: value for key, value in event.items() if key != "timestamp"}
        for event in events_in(tmp_path, str(exported.conversation))
    ]
    assert events == [
        {"type": "turn_start"},
        {"type": "chat_request", "content": "read it"},
        {"type": "chat_response", "reasoning": "hm"},
        {"type": "chat_response", "message": "Yes."},
        {
            "type": "tool_call_request",
            "id": "t1",
            "name": "read",
            "arguments": {"path": b64("a.txt"), "deep": [{"x": b64("é")}, 1]},
        },
        {"type": "tool_call_response", "id": "t1", "content": b64("ok"), "is_error": True},
    ]


async def test_a_label_alone_makes_no_conversation_part_of_a_chat(workspace, tmp_path):
    """A file may name any chat; the chat must have been exported as that conversation."""
    chat = await workspace.create_chat("victim", "test")
    write(tmp_path, metadata={**METADATA, "labels": {"chatfs": chat.id}})
    (stored,) = await import_all(workspace, tmp_path)
    assert stored.record is not None
    assert stored.record.id != chat.id
    assert await chat.messages() == []


async def test_a_compacted_chat_says_so(workspace, tmp_path):
    write(tmp_path / "source")
    await import_all(workspace, tmp_path / "source")
    chat = await only_chat(workspace)
    await compact(chat, keep=0)
    with pytest.raises(Conflict, match="has 7 events there that the chat, which was compacted, has no more"):
        await export_all(workspace, tmp_path / "source")
    text = await chat.text()
    await import_all(workspace, tmp_path / "source")
    assert await chat.text() == text
    (exported,) = await export_all(workspace, tmp_path / "target")
    assert exported.notes == ["the chat was compacted: what JP had beside messages is there no more"]


# ---- odd logs


async def test_what_only_looks_like_a_record_does_no_harm(workspace, tmp_path):
    """Anybody may append anything to a log."""
    write(tmp_path / "source")
    await import_all(workspace, tmp_path / "source")
    chat = await only_chat(workspace)
    head = {"type": "import.record", "source": "jp"}
    for value in (
        {"import_key": "a", **head, "part": "event", "text": "{not json"},
        {"import_key": "b", **head, "part": "event", "file": {"attachment": 1}},
        {**head, "part": "event", "record": {}},
        {**head, "part": "stream", "at": -1, "drop": "x", "insert": 5},
        {**head, "part": "stream", "at": 10**9, "drop": 10**9, "insert": ["no such key"]},
        {**head, "part": 5},
        {"type": "export.record", "target": "jp", "conversation": "x" * 100, "made": {}, "omitted": [1]},
    ):
        await chat.append_events([value], "somebody")
    await export_all(workspace, tmp_path / "target")
    assert said(tmp_path / "target") == said(tmp_path / "source")


async def test_an_overlong_event_goes_through_an_attachment(workspace, tmp_path):
    long = response(1, "x" * (12 << 20))
    write(tmp_path / "source", [turn(0), long])
    await import_all(workspace, tmp_path / "source")
    await export_all(workspace, tmp_path / "target")
    assert said(tmp_path / "target") == said(tmp_path / "source")
    assert len((await (await only_chat(workspace)).load()).attachments) == 1


def test_the_keys_of_equal_events_differ():
    assert len(set(event_keys(elements(orjson.dumps([turn(0), turn(0), turn(0)]))))) == 3
