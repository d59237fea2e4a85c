"""Several chats and exports around one conversation of JP: `store.exporters.jp`."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from store.errors import Conflict
from store.exporters import jp as exporter
from store.exporters.jp import export_jp
from store.importers.jp import find_in
from store.importers.jp_json import compact
from store.library import open_store
from store.model import NewEntry
from store.workspace import Workspace
from tests.support.jp import (
    EVENTS,
    ID,
    METADATA,
    edit,
    events_in,
    export_all,
    import_all,
    metadata_in,
    only_chat,
    said,
    write,
)


@pytest.fixture
async def workspace():
    async with open_store("memory:") as store:
        yield await store.create_workspace("demo", "test")


async def export_one(workspace: Workspace, name: str, target: Path) -> str:
    """The conversation, as its directory's number."""
    record = (await workspace.load()).find(name)
    assert record is not None
    return str((await export_jp(workspace, record, target, "test", taken=set())).conversation)


async def copy_chat(workspace: Workspace, name: str) -> None:
    """As `cp -r` of the only chat does: the same events in another log."""
    chat = await only_chat(workspace)
    copy = await workspace.create_chat(name, "test")
    await copy.append([NewEntry(entry.data, "cp") async for entry in chat.log()])


async def test_files_that_nobody_changed_go_back_to_the_letter(workspace, tmp_path):
    """Keys that stand twice, escapes and numbers that no decoder keeps."""
    files = {
        "metadata": b'{"x":1E400,"title":"a","title":"Plan \\u0061 trip","\\ud83d":[-0.0,1.10],"x":-0}',
        "base_config": b'{"a":{"k":1,"k":2},"n":123456789012345678901234567890.10}',
        "events": b'[{"type":"x","type":"chat_request","content":"\\/","content":"hi","n":1e5},[0.0],"\\ud83d"]',
    }
    write(tmp_path / "source", files["events"], metadata=files["metadata"], base_config=files["base_config"])
    await import_all(workspace, tmp_path / "source")
    await export_all(workspace, tmp_path / "target")
    (path,) = (tmp_path / "target").glob(f".jp/conversations/{ID}*")
    assert {file.stem: compact(file.read_bytes()) for file in path.iterdir()} == files


# ---- whose conversation it is


async def test_a_conversation_of_another_chat_is_never_written_over(tmp_path):
    """Two chats of one moment get one id in two places; neither gets the other's place then."""
    async with open_store("memory:", clock=lambda: 1_700_000_000_000) as store:
        workspace = await store.create_workspace("demo", "test")
        for name in ("one", "two"):
            chat = await workspace.create_chat(name, "test")
            await chat.change("test", title=name)
        here, there = tmp_path / "here", tmp_path / "there"
        assert await export_one(workspace, "one", here) == "17000000000"
        assert await export_one(workspace, "two", there) == "17000000000"
        assert await export_one(workspace, "two", here) == "17000000001"
        assert metadata_in(here, "17000000000")["title"] == "one"
        assert metadata_in(here, "17000000001")["title"] == "two"
        before = len((await workspace.load()).chats)
        await import_all(workspace, here)
        assert len((await workspace.load()).chats) == before


async def test_a_copy_of_an_imported_chat_gets_a_conversation_of_its_own(workspace, tmp_path):
    write(tmp_path, metadata={**METADATA, "labels": {"kind": "travel"}})
    await import_all(workspace, tmp_path)
    await copy_chat(workspace, "copy")
    copy = await workspace.chat("copy")
    await copy.remove_message((await copy.messages())[-1].id, "vim")
    before = said(tmp_path)[str(ID)]
    own = await export_one(workspace, "copy", tmp_path)
    assert own != str(ID)
    assert said(tmp_path)[str(ID)] == before
    assert events_in(tmp_path, own) == [*EVENTS[:5], EVENTS[6]]
    assert metadata_in(tmp_path, own)["labels"] == {"kind": "travel", "chatfs": copy.id}
    # Each finds its own again.
    texts = [await workspace.chat_by_id(chat).text() for chat in (await workspace.load()).chats]
    await import_all(workspace, tmp_path)
    assert [await workspace.chat_by_id(chat).text() for chat in (await workspace.load()).chats] == texts
    assert await export_one(workspace, "copy", tmp_path) == own
    assert said(tmp_path)[str(ID)] == before


async def test_a_conversation_that_another_export_has_just_made_is_left_to_it(workspace, tmp_path, monkeypatch):
    await workspace.create_chat("mine", "test")
    made: list[int] = []

    def look(root: Path, conversation: int) -> list[exporter.JpChat]:
        found = find_in(root, conversation)
        if not made:
            made.append(conversation)
            write(tmp_path, conversation=conversation)
        return found

    monkeypatch.setattr(exporter, "find_in", look)
    assert await export_one(workspace, "mine", tmp_path) != str(made[0])
    assert events_in(tmp_path, str(made[0])) == EVENTS
    assert list((tmp_path / ".jp" / "locks").iterdir()) == []


async def test_of_two_exports_at_once_one_is_told_of_the_other_or_both_are_done(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    await edit(workspace, "in May?", "in June?")
    refused: list[str] = []

    async def export() -> None:
        try:
            await export_all(workspace, tmp_path)
        except Conflict as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(export)
    assert len(refused) < 4
    known = (f"jp-c{ID} is in use by ", "demo/Plan-a-trip was changed while it was exported")
    assert all(text.startswith(known) for text in refused)
    assert events_in(tmp_path)[1]["content"] == "Where to in June?"
    assert list((tmp_path / ".jp" / "locks").iterdir()) == []
