"""What was changed in chatfs goes back to JP, and what JP changed comes: `store.exporters.jp`, `store.importing_jp`."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from store import durability
from store.errors import Conflict
from store.importers.jp_format import began
from store.library import open_store
from store.model import clock_ms
from store.workspace_state import Place
from tests.support.jp import (
    CONFIG,
    EVENTS,
    ID,
    METADATA,
    add,
    answer,
    at,
    edit,
    events_in,
    export_all,
    import_all,
    metadata_in,
    only_chat,
    pretty,
    request,
    said,
    write,
)


@pytest.fixture
async def workspace():
    async with open_store("memory:") as store:
        yield await store.create_workspace("demo", "test")


# ---- what was changed in chatfs


async def test_what_was_edited_goes_back_in_its_event_and_the_rest_of_it_stays(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    await edit(workspace, "in May?", "in June?")
    await export_all(workspace, tmp_path)
    expected = [*EVENTS[:1], {**EVENTS[1], "content": "Where to in June?"}, *EVENTS[2:]]
    assert events_in(tmp_path) == expected


async def test_what_was_written_in_chatfs_stands_where_it_stands_there(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    await edit(workspace, "Lisbon. Or Porto.", "Lisbon. Or Porto.\n\n## user\n\nWhich?\n\n## system\n\nHm.")
    await export_all(workspace, tmp_path)
    *old, begin, asked, foreign = [event for event in events_in(tmp_path) if event["type"] != "config_delta"]
    assert old == EVENTS[:-1]
    assert (begin["type"], asked["type"], asked["content"]) == ("turn_start", "chat_request", "Which?")
    assert (foreign["type"], foreign["role"], foreign["content"]) == ("chatfs_message", "system", "Hm.")


async def test_what_was_removed_in_chatfs_is_gone_and_does_not_come_back(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    chat = await only_chat(workspace)
    await chat.remove_message((await chat.messages())[-1].id, "vim")
    await export_all(workspace, tmp_path)
    assert events_in(tmp_path) == [*EVENTS[:5], EVENTS[6]]
    before = await chat.text()
    await import_all(workspace, tmp_path)
    assert await chat.text() == before


async def test_importing_what_was_exported_adds_nothing_and_exports_can_follow_each_other(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    for number in range(3):
        await edit(workspace, f"Where to in {number or 'May?'}", f"Where to in {number + 1}")
        await add(workspace, f"\n## user\n\nmore {number}\n")
        await export_all(workspace, tmp_path)
        chat = await only_chat(workspace)
        text = await chat.text()
        if number != 1:
            (stored,) = await import_all(workspace, tmp_path)
            assert await chat.text() == text
            assert stored.added <= 1  # the metadata: when it was last active
    assert events_in(tmp_path)[1] == {**EVENTS[1], "content": "Where to in 3"}  # it is still JP's event
    assert [event["content"] for event in events_in(tmp_path) if event["type"] == "chat_request"] == [
        "Where to in 3",
        "more 0",
        "more 1",
        "more 2",
    ]


async def test_jp_goes_on_with_what_was_exported(workspace, tmp_path):
    """JP appends to an exported conversation; the chat gets what it appended, behind what was written here."""
    path = write(tmp_path)
    await import_all(workspace, tmp_path)
    await add(workspace, "\n## user\n\nhere\n")
    await export_all(workspace, tmp_path)
    (path / "events.json").write_bytes(pretty([*events_in(tmp_path), answer(90, "there")]))
    with pytest.raises(Conflict, match="has 1 events there that the chat doesn't have: import it first"):
        await export_all(workspace, tmp_path)
    await import_all(workspace, tmp_path)
    chat = await only_chat(workspace)
    assert [message.content for message in await chat.messages()][-2:] == ["here", "there"]
    before = said(tmp_path)
    (exported,) = await export_all(workspace, tmp_path)
    assert (exported.written, said(tmp_path)) == (False, before)


async def test_an_edited_tool_response_stays_as_jp_had_it_and_that_is_said(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    await edit(workspace, "◂ fs_read_file", "◂ fs_read")
    (exported,) = await export_all(workspace, tmp_path)
    assert exported.notes == ["1 edited tool calls or responses stay as JP has them"]
    assert events_in(tmp_path) == EVENTS


async def test_a_structured_answer_is_edited_as_json(workspace, tmp_path):
    write(tmp_path, [request(0, "how many?"), {"timestamp": at(1), "type": "chat_response", "data": {"n": 1}}])
    await import_all(workspace, tmp_path)
    await edit(workspace, '"n": 1', '"n": 2')
    await export_all(workspace, tmp_path)
    assert events_in(tmp_path)[1] == {"timestamp": at(1), "type": "chat_response", "data": {"n": 2}}
    await edit(workspace, '"n": 2\n}', '"n": ?\n}')
    await export_all(workspace, tmp_path)
    assert events_in(tmp_path)[1]["message"] == '```json\n{\n  "n": ?\n}\n```'
    assert "data" not in events_in(tmp_path)[1]


async def test_title_and_labels_that_were_changed_go_into_the_metadata_and_the_name(workspace, tmp_path):
    write(tmp_path, metadata={**METADATA, "labels": {"kind": "travel"}, "x": 10**30})
    await import_all(workspace, tmp_path)
    chat = await only_chat(workspace)
    assert (await chat.load()).labels == ("kind=travel",)
    await chat.change("vim", title="Lisbon, in May", labels=["kind=city", "urgent", "two words"])
    (exported,) = await export_all(workspace, tmp_path)
    assert exported.notes == ["JP can't have these labels: two words"]
    assert exported.path.name == f"{ID}-lisbon--in-may"
    labels = {"kind": "city", "urgent": ""}
    assert metadata_in(tmp_path) == {**METADATA, "title": "Lisbon, in May", "labels": labels, "x": 10**30}


async def test_metadata_that_jp_changed_meanwhile_stays_where_nothing_was_changed_here(workspace, tmp_path):
    path = write(tmp_path)
    await import_all(workspace, tmp_path)
    await (await only_chat(workspace)).change("vim", labels=["urgent"])
    (path / "metadata.json").write_bytes(pretty({**METADATA, "title": "Trips", "pinned_at": at(1)}))
    (exported,) = await export_all(workspace, tmp_path)
    assert metadata_in(tmp_path) == {**METADATA, "title": "Trips", "pinned_at": at(1), "labels": {"urgent": ""}}
    assert exported.path == path


async def test_a_title_changed_here_stays_until_jp_changes_its_own(workspace, tmp_path):
    path = write(tmp_path)
    await import_all(workspace, tmp_path)
    chat = await only_chat(workspace)
    await chat.change("vim", title="Mine")
    (path / "metadata.json").write_bytes(pretty({**METADATA, "last_activated_at": at(50)}))
    await import_all(workspace, tmp_path)
    assert (await chat.load()).title == "Mine"
    (path / "metadata.json").write_bytes(pretty({**METADATA, "title": "Theirs"}))
    await import_all(workspace, tmp_path)
    assert (await chat.load()).title == "Theirs"


async def test_files_that_jp_has_gone_back_to_are_what_counts(workspace, tmp_path):
    """A -> B -> A: the third import brings no record that isn't there, and yet the files say A again."""
    for metadata, config in ((METADATA, CONFIG), ({**METADATA, "pinned_at": at(1)}, None), (METADATA, CONFIG)):
        write(tmp_path / "source", metadata=metadata, base_config=config)
        await import_all(workspace, tmp_path / "source")
        target = tmp_path / f"target-{len(list(tmp_path.iterdir()))}-{config is None}"
        await export_all(workspace, target)
        assert said(target) == said(tmp_path / "source")
        (target / ".jp" / "conversations").rename(tmp_path / f"done-{len(list(tmp_path.iterdir()))}")


async def test_a_message_edited_here_stays_when_jp_takes_its_event_back(workspace, tmp_path):
    write(tmp_path)
    await import_all(workspace, tmp_path)
    await edit(workspace, "Lisbon. Or Porto.", "Neither.")
    write(tmp_path, EVENTS[:-2])
    await import_all(workspace, tmp_path)
    chat = await only_chat(workspace)
    assert [message.content for message in await chat.messages()][-1] == "Neither."
    await export_all(workspace, tmp_path)
    assert events_in(tmp_path)[-1]["message"] == "Neither."


# ---- archive


async def test_chats_follow_jp_into_the_archive_and_out_of_it(workspace, tmp_path):
    path = write(tmp_path)
    chats = [
        (await import_all(workspace, tmp_path))[0].record,
    ]
    archive = path.parent / ".archive"
    archive.mkdir()
    path.rename(archive / path.name)
    chats += [(await import_all(workspace, tmp_path))[0].record]
    (archive / path.name).rename(path)
    chats += [(await import_all(workspace, tmp_path))[0].record]
    assert [record.place for record in chats] == [Place.CHATS, Place.ARCHIVE, Place.CHATS]


async def test_what_was_archived_here_is_archived_there_and_stays_archived_here(workspace, tmp_path):
    path = write(tmp_path)
    (path / "QUERY_MESSAGE.md").write_text("unsent")
    await import_all(workspace, tmp_path)
    record = next(iter((await workspace.load()).chats.values()))
    await workspace.move_chat(record.id, Place.ARCHIVE, record.name, "vim")
    (again,) = await import_all(workspace, tmp_path)
    assert again.record is not None
    assert again.record.place is Place.ARCHIVE
    (exported,) = await export_all(workspace, tmp_path)
    assert exported.path == path.parent / ".archive" / path.name
    assert (exported.path / "QUERY_MESSAGE.md").read_text() == "unsent"
    assert metadata_in(tmp_path).keys() == {*METADATA, "archived_at"}
    await workspace.move_chat(record.id, Place.CHATS, record.name, "vim")
    (exported,) = await export_all(workspace, tmp_path)
    assert exported.path == path
    assert metadata_in(tmp_path) == METADATA


async def test_the_copy_in_the_users_storage_is_moved_too(workspace, tmp_path, monkeypatch):
    """JP would show the conversation as a living one of the user's own else."""
    monkeypatch.setenv("JP_USER_DATA_DIR", str(tmp_path / "data"))
    path = write(tmp_path / "trips")
    (tmp_path / "trips" / ".jp" / ".id").write_text("otvo8\n")
    own = tmp_path / "data" / "workspace" / "trips-otvo8" / "conversations"
    shutil.copytree(path, own / str(ID))
    shutil.copytree(path, own / str(ID + 1))
    await import_all(workspace, tmp_path / "trips")
    record = next(iter((await workspace.load()).chats.values()))
    for place, where in ((Place.ARCHIVE, own / ".archive"), (Place.CHATS, own)):
        await workspace.move_chat(record.id, place, record.name, "vim")
        await export_all(workspace, tmp_path / "trips")
        assert (where / str(ID)).is_dir()
        assert sorted(path.name for path in own.rglob(f"{ID}*")) == [str(ID)]
        assert (own / str(ID + 1)).is_dir()


@pytest.mark.parametrize("failing", [1, 2])
async def test_an_export_that_failed_before_it_archived_takes_nothing_back(workspace, tmp_path, monkeypatch, failing):
    monkeypatch.setenv("JP_USER_DATA_DIR", str(tmp_path / "data"))
    path = write(tmp_path / "trips")
    (tmp_path / "trips" / ".jp" / ".id").write_text("otvo8\n")
    own = tmp_path / "data" / "workspace" / "trips-otvo8" / "conversations"
    shutil.copytree(path, own / path.name)
    await import_all(workspace, tmp_path / "trips")
    record = next(iter((await workspace.load()).chats.values()))
    await workspace.move_chat(record.id, Place.ARCHIVE, record.name, "vim")
    await edit(workspace, "in May?", "in June?")
    moves = 0
    rename = durability.system.rename

    def fail(label: str, *words: Any) -> None:
        nonlocal moves
        moves += label in {"jp.move", "jp.export"}
        if moves == failing:
            raise OSError(28, "No space left on device")
        rename(label, *words)

    monkeypatch.setattr(durability.system, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        await export_all(workspace, tmp_path / "trips")
    monkeypatch.setattr(durability.system, "rename", rename)
    (again,) = await import_all(workspace, tmp_path / "trips")
    assert again.record is not None
    assert again.record.place is Place.ARCHIVE
    (exported,) = await export_all(workspace, tmp_path / "trips")
    assert exported.path == path.parent / ".archive" / path.name
    assert events_in(tmp_path / "trips")[1]["content"] == "Where to in June?"
    assert sorted(found.parent.name for found in own.rglob(f"{ID}*")) == [".archive"]
    (again,) = await import_all(workspace, tmp_path / "trips")
    assert again.record is not None
    assert again.record.place is Place.ARCHIVE


# ---- times


async def test_a_conversation_began_when_it_began_and_changes_when_it_is_imported(workspace, tmp_path):
    write(tmp_path, archived=True)
    before = clock_ms()
    (stored,) = await import_all(workspace, tmp_path)
    assert stored.record is not None
    assert (stored.record.created, stored.record.place) == (began(ID), Place.ARCHIVE)
    assert stored.record.changed >= before
