"""Workspaces and chats as streams of lines, there and back: `store.moving.exporting`, `store.moving.taking`."""

from __future__ import annotations

import io
import random
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.drivers.chunks import sha256
from store.errors import NameTaken, StoreFailed
from store.events import AttachmentPut, ChatCreated, Event, WorkspaceCreated
from store.library import open_store
from store.model import (
    BlobRef,
    ChatId,
    Millis,
    NewEntry,
    Origin,
    Seq,
    WorkspaceId,
    chat_space,
    uuid7,
    workspace_space,
)
from store.moving.exporting import export
from store.moving.migrating import migrate
from store.registry import open_driver
from tests.support.moved import (
    chat_id,
    exported,
    logs,
    of_workspace,
    spoil,
    take,
    taken,
)


async def test_a_workspace_comes_back_as_it_was(filled: Path) -> None:
    workspace, _ = await chat_id(filled / "a")
    stream = await exported(filled / "a", workspace)
    moved = await taken(filled / "b", stream)
    assert (moved.failures, moved.workspaces, moved.logs) == ([], 1, 6)
    assert of_workspace(filled / "b", workspace) == of_workspace(filled / "a", workspace)
    assert await exported(filled / "b", workspace) == stream
    assert (await taken(filled / "b", stream)).nothing_new
    async with open_store(str(filled / "b")) as store:
        assert [found.state.name for found in await store.workspaces()] == ["demo"]
        with pytest.raises(NameTaken):
            await store.create_workspace("demo", "test")


async def test_what_is_there_is_passed_over_and_the_rest_added(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    await taken(filled / "b", await exported(filled / "a", workspace))
    async with open_store(str(filled / "a")) as store:
        trip = await (await store.workspace("demo")).chat("trip")
        await trip.append_events([{"role": "user", "content": "later"}], "test")
        await trip.attach("late", b"late", "test")
    moved = await taken(filled / "b", await exported(filled / "a", workspace))
    assert (moved.entries, moved.blobs) == (2, 1)
    assert of_workspace(filled / "b", workspace) == of_workspace(filled / "a", workspace)
    # The older one once more, into a store that went on.
    assert (await taken(filled / "b", await exported(filled / "b", workspace, None))).nothing_new
    assert chat


async def test_one_chat(filled: Path) -> None:
    for name in ("trip", "packed"):
        workspace, chat = await chat_id(filled / "a", name)
        stream = await exported(filled / "a", workspace, chat)
        other = WorkspaceId(uuid7())
        driver = await open_driver(str(filled / "b"))
        assert (await take(driver, stream, other)).logs == 1
        assert (await take(driver, stream, other)).nothing_new
        with pytest.raises(NameTaken, match="has the chat"):
            await take(driver, stream, WorkspaceId(uuid7()))
        (there,) = (filled / "b").glob(f"workspace/{other}/chats/{chat}/history.jsonl")
        assert there.read_bytes() == (filled / "a" / chat_space(workspace, chat) / "history.jsonl").read_bytes()
        await driver.aclose()


async def test_a_damaged_chat_is_left_out_and_said_to_be(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    spoil(filled / "a", chat)
    driver = await open_driver(str(filled / "a"))
    out = io.BytesIO()
    moved = await export(driver, workspace, None, out.write)
    await driver.aclose()
    (failure,) = moved.failures
    assert failure.startswith("demo/trip: ")
    moved = await taken(filled / "b", out.getvalue())
    (failure,) = moved.failures
    assert failure.startswith(f"chat {chat} isn't in the stream: ")
    async with open_store(str(filled / "b")) as store:
        with pytest.raises(StoreFailed, match="demo/trip wasn't moved here"):
            await (await (await store.workspace("demo")).chat("trip")).text()


# ---- any logs, any way round

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def _events(blobs: list[BlobRef]) -> st.SearchStrategy[bytes]:
    def put(ref: BlobRef, name: str) -> Event:
        return AttachmentPut(uuid7(), name, ref.digest, ref.size, "text/plain")

    messages = st.builds(
        lambda text: orjson.dumps({"type": "message.appended", "role": "user", "content": text}), _TEXT
    )
    unknown = st.sampled_from(
        [b"null", b'{"type":"its.own","x":1.50}', b'"text"', b"[1, 2 ]", b'{"a":"sha256:\\u0030"}']
    )
    attached = st.builds(put, st.sampled_from(blobs), st.sampled_from(["a.txt", "b.txt"])).map(lambda e: e.encode())
    return st.one_of(messages, unknown, attached)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_any_logs_come_over_by_migrating_and_as_a_stream(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("moving")
    random.seed(0)
    source = await open_driver(str(path / "a"))
    blobs = [await source.blobs.put(bytes([number]) * (number * 700_000)) for number in range(3)]
    workspace, chats = WorkspaceId(uuid7()), [ChatId(uuid7()) for _ in range(data.draw(st.integers(0, 2)))]
    own = await source.open_log(workspace_space(workspace), create=True)
    await own.append([NewEntry(WorkspaceCreated(workspace, "demo", "me").encode(), "test")])
    origin = st.none() | st.builds(Origin, _TEXT, st.integers(0, 10**12).map(Millis))
    new = st.tuples(_events(blobs), _TEXT, origin).map(lambda found: NewEntry(*found))
    for number, chat in enumerate(chats):
        log = await source.open_log(chat_space(workspace, chat), create=True)
        for batch in data.draw(st.lists(st.lists(new, min_size=1, max_size=3), max_size=5)):
            await log.append(batch)
        await log.truncate_before(Seq(data.draw(st.integers(1, log.head.seq + 1))))
        await log.aclose()
        await own.append([NewEntry(ChatCreated(chat, f"chat {number}").encode(), "test")])
    await own.aclose()

    memory, back = await open_driver("memory:"), await open_driver(str(path / "b"))
    assert (await migrate(source, memory)).failures == []
    assert (await migrate(memory, back, verify=True)).failures == []
    named = {name for name in logs(path / "a") if not name.startswith("objects")}
    assert {name: logs(path / "a")[name] for name in named} == {name: logs(path / "b")[name] for name in named}
    assert {sha256(text) for text in logs(path / "b").values()} <= {sha256(text) for text in logs(path / "a").values()}

    out = io.BytesIO()
    assert (await export(back, workspace, None, out.write)).failures == []
    streamed = await open_driver(str(path / "c"))
    assert (await take(streamed, out.getvalue())).failures == []
    assert logs(path / "c") == logs(path / "b")
    for driver in (source, memory, back, streamed):
        await driver.aclose()
