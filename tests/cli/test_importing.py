"""`store.importing`, and `chatfs import …` around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from store import importing
from store.importers.claude_code import read_claude_code
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importing import keyed, store_chat
from store.library import Store, open_store
from store.model import ChatId, Entry, Millis, Origin, is_uuid
from store.workspace import Workspace
from store.workspace_state import Place
from tests.cli.conftest import Cli

FIXTURES = Path(__file__).parents[1] / "fixtures"
SESSION = FIXTURES / "claude_code" / "conversation.jsonl"
MESSAGES = FIXTURES / "messages" / "chat.jsonl"


def record(number: int, *attachments: ImportedAttachment) -> ImportedRecord:
    event = {"type": "message.appended", "id": f"m{number}", "role": "user", "content": f"text {number}"}
    return ImportedRecord(f"k{number}", orjson.dumps(event), Millis(1_700_000_000_000 + number), "them", attachments)


def source(*records: ImportedRecord, identity: str = "s1", name: str = "talk") -> ImportedChat:
    return ImportedChat(identity, name, "", records, [])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
async def workspace(store: Store) -> Workspace:
    return await store.create_workspace("demo", "test")


async def log_of(workspace: Workspace, chat: ChatId) -> list[Entry]:
    return [entry async for entry in workspace.chat_by_id(chat).log()]


async def keys_of(workspace: Workspace, chat: ChatId) -> list[str]:
    values = [orjson.loads(entry.data) for entry in await log_of(workspace, chat)]
    return [value["import_key"] for value in values if "import_key" in value]


# ---- storing


async def test_records_come_in_once_and_in_order(workspace: Workspace) -> None:
    first = await store_chat(workspace, "test", source(record(1), record(2)), "me")
    assert first.record is not None
    assert (first.record.name, first.added, first.present) == ("talk", 2, 0)
    again = await store_chat(workspace, "test", source(record(1), record(2)), "me")
    assert (again.record, again.added, again.present) == (first.record, 0, 2)
    grown = await store_chat(workspace, "test", source(*map(record, range(1, 5))), "me")
    assert (grown.record, grown.added, grown.present) == (first.record, 2, 2)
    assert await keys_of(workspace, first.record.id) == ["k1", "k2", "k3", "k4"]
    entries = await log_of(workspace, first.record.id)
    assert [entry.origin for entry in entries] == [
        Origin("them", Millis(1_700_000_000_000 + number)) for number in range(1, 5)
    ]
    assert {entry.actor for entry in entries} == {"me"}


async def test_the_id_is_a_uuid7_of_the_first_time_and_the_same_in_every_store(workspace: Workspace) -> None:
    done = await store_chat(workspace, "test", source(record(1)), "me")
    assert done.record is not None
    assert is_uuid(done.record.id)
    assert int(done.record.id.replace("-", "")[:12], 16) == 1_700_000_000_001
    assert (done.record.id[14], done.record.id[19] in "89ab") == ("7", True)
    others = [
        await store_chat(workspace, "test", source(record(1), identity="s2"), "me"),
        await store_chat(workspace, "other", source(record(1)), "me"),
    ]
    assert len({other.record.id for other in others if other.record} | {done.record.id}) == 3
    assert [other.record.name for other in others if other.record] == ["talk (2)", "talk (3)"]


async def test_the_chat_is_found_whatever_its_name_and_place_and_first_time(workspace: Workspace) -> None:
    timeless = replace(record(1), ts=None)
    first = await store_chat(workspace, "test", source(timeless), "me")
    assert first.record is not None
    await workspace.move_chat(first.record.id, Place.ARCHIVE, "renamed", "me")
    again = await store_chat(workspace, "test", source(timeless, record(2), name="other"), "me")
    assert again.record is not None
    assert (again.record.id, again.record.name, again.added) == (first.record.id, "renamed", 1)


async def test_a_chat_in_the_trash_is_left_alone(workspace: Workspace) -> None:
    first = await store_chat(workspace, "test", source(record(1)), "me")
    assert first.record is not None
    await workspace.trash_chat(first.record.id, "me")
    again = await store_chat(workspace, "test", source(record(1), record(2)), "me")
    assert again.record is not None
    assert (again.record.place, again.added) == (Place.TRASH, 0)
    assert await keys_of(workspace, first.record.id) == ["k1"]


async def test_a_source_without_records_makes_no_chat(workspace: Workspace) -> None:
    assert (await store_chat(workspace, "test", source(), "me")).record is None
    assert workspace.state.chats == {}


async def test_attachments_come_in_the_batch_of_their_record(workspace: Workspace) -> None:
    picture = ImportedAttachment("image-1.png", b"\x89PNG", "image/png")
    done = await store_chat(workspace, "test", source(record(1, picture)), "me")
    assert done.record is not None
    put, _message = entries = await log_of(workspace, done.record.id)
    assert [entry.more for entry in entries] == [1, 0]
    assert orjson.loads(put.data)["content_type"] == "image/png"
    chat = workspace.chat_by_id(done.record.id)
    assert b"".join([piece async for piece in chat.read_attachment("image-1.png")]) == b"\x89PNG"


class Interrupted(Exception):
    pass


async def test_what_somebody_else_attached_under_the_name_makes_room(workspace: Workspace) -> None:
    stored = await store_chat(workspace, "test", source(record(1)), "me")
    assert stored.record is not None
    chat = workspace.chat_by_id(stored.record.id)
    await chat.attach("image-1.png", b"mine", "me")
    picture = ImportedAttachment("image-1.png", b"\x89PNG", "image/png")
    await store_chat(workspace, "test", source(record(1), record(2, picture)), "me")
    assert b"".join([piece async for piece in chat.read_attachment("image-1.png")]) == b"\x89PNG"
    assert b"".join([piece async for piece in chat.read_attachment("image-1 (2).png")]) == b"mine"


async def test_an_interrupted_import_is_completed_by_the_next(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_RECORDS", 3)

    class Breaking:
        passes = 0

        def __iter__(self) -> Iterator[ImportedRecord]:
            # The first pass looks for the first time alone.
            self.passes += 1
            yield from map(record, range(1, 8))
            raise Interrupted

    with pytest.raises(Interrupted):
        await store_chat(workspace, "test", replace(source(), records=Breaking()), "me")
    (chat,) = workspace.state.chats
    assert await keys_of(workspace, chat) == [f"k{number}" for number in range(1, 7)], "whole batches"
    done = await store_chat(workspace, "test", source(*map(record, range(1, 10))), "me")
    assert (done.added, done.present) == (3, 6)
    assert await keys_of(workspace, chat) == [f"k{number}" for number in range(1, 10)]


async def test_two_imports_at_once_store_each_record_once(
    workspace: Workspace, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_RECORDS", 2)
    added: list[int] = []

    async def run(into: Workspace) -> None:
        added.append((await store_chat(into, "test", source(*map(record, range(40))), "me")).added)

    async with open_store(str(tmp_path / "store")) as second, trio.open_nursery() as nursery:
        other = await second.workspace("demo")
        nursery.start_soon(run, workspace)
        nursery.start_soon(run, other)
    assert sum(added) == 40
    (chat,) = (await workspace.load()).chats
    assert sorted(await keys_of(workspace, chat)) == sorted(f"k{number}" for number in range(40))


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (b'{"a": 1.0,"b":[]}', b'{"import_key":"k","a": 1.0,"b":[]}'),
        (b"{ }", b'{"import_key":"k"}'),
        (b'{"a":"import_key"}', b'{"import_key":"k","a":"import_key"}'),
        (b'{"a":{"import_key":1}}', b'{"import_key":"k","a":{"import_key":1}}'),
        (b'{"a":1,"import_key":"old"}', b'{"import_key":"k","a":1}'),
        (b"[1, 2.50]", b'{"import_key":"k","type":"import.record","source":"s","record":[1, 2.50]}'),
        (b'"x"', b'{"import_key":"k","type":"import.record","source":"s","record":"x"}'),
    ],
)
def test_every_record_begins_with_its_key(data: bytes, stored: bytes) -> None:
    assert keyed("k", data, "s") == stored
    orjson.loads(stored)


def test_what_is_nested_too_deep_to_be_wrapped_is_kept_as_text() -> None:
    deep = b"[" * 1024 + b"]" * 1024
    orjson.loads(deep)
    assert orjson.loads(keyed("k", deep, "s"))["text"].encode() == deep


# ---- the commands


def chats(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(each["chat"], each["added"], each["present"]) for each in report["chats"]]


def test_sessions_are_imported_into_a_workspace_that_is_made(cli: Cli) -> None:
    words = ["import", "claude-code", FIXTURES / "claude_code", "--workspace", "sessions"]
    report = cli.json(*words)
    total = {Path(name).stem: len(list(chat.records)) for name in (SESSION,) for chat in read_claude_code(name)}
    assert len(report["chats"]) == 2
    assert total["conversation"] in [each["added"] for each in report["chats"]]
    assert all(each["present"] == 0 for each in report["chats"])
    again = cli.json(*words)
    assert chats(again) == [(chat, 0, added) for chat, added, _ in chats(report)]
    (shown,) = [each["chat"] for each in report["chats"] if each["added"] == total["conversation"]]
    assert "Why does the build fail?" in cli.run("cat", shown)


def test_messages_come_from_files_and_from_standard_input(cli: Cli) -> None:
    report = cli.json("import", "messages", MESSAGES, "--workspace", "w", "--chat", "sums")
    ((name, added, _),) = chats(report)
    assert name == "w/sums"
    assert sum(entry.data.startswith(b'{"import_key":') for entry in cli.entries("w/sums")) == added
    given = b'{"role":"user","content":"piped"}\n'
    ((name, added, present),) = chats(cli.json("import", "messages", "-", "--workspace", "w", given=given))
    assert (name, added, present) == ("w/piped", 1, 0)
    ((_, added, present),) = chats(cli.json("import", "messages", "-", "--workspace", "w", given=given * 2))
    assert (added, present) == (1, 1)


def test_problems_are_told_and_what_has_them_is_kept(cli: Cli, tmp_path: Path) -> None:
    cli.run("workspace", "create", "w")
    (tmp_path / "chat.jsonl").write_bytes(b'{"role":"user","content":"fine"}\nnot json\n')
    code, out, err = cli.attempt("import", "messages", tmp_path / "chat.jsonl", "--workspace", "w")
    assert code == 0
    heading, row = out.splitlines()
    assert heading.split() == ["CHAT", "ADDED", "PRESENT", "PROBLEMS", "SOURCE"]
    assert row.split()[:4] == ["w/fine", "2", "0", "1"]
    assert err.startswith("chatfs: chat-")
    assert "line 2: not JSON" in err


def test_a_trashed_chat_is_skipped_and_said(cli: Cli) -> None:
    words = ["import", "messages", MESSAGES, "--workspace", "w", "--chat", "sums"]
    cli.json(*words)
    cli.run("chat", "rm", "w/sums")
    (row,) = cli.json(*words)["chats"]
    assert (row["skipped"], row["added"]) == ("in the trash", 0)


def test_a_path_that_is_not_there_stops_it_before_it_begins(cli: Cli, tmp_path: Path) -> None:
    cli.run("workspace", "create", "other")
    said = cli.fails("import", "messages", MESSAGES, tmp_path / "none", "--workspace", "w")
    assert said == f"{tmp_path}/none: No such file or directory"
    assert [each["name"] for each in cli.json("workspace", "ls")] == ["other"]
    assert "--chat names one chat" in cli.fails(
        "import", "messages", MESSAGES, MESSAGES, "--chat", "x", "--workspace", "w", code=2
    )


def test_what_fails_does_not_keep_the_rest_from_coming_in(cli: Cli, tmp_path: Path) -> None:
    cli.run("workspace", "create", "w")
    (tmp_path / "empty").mkdir()
    words = ["import", "claude-code", tmp_path / "empty", SESSION, "--workspace", "w", "--json"]
    code, out, err = cli.attempt(*words)
    assert code == 1
    report = orjson.loads(out)
    assert report["failed"] == [f"{tmp_path}/empty: there is nothing to import in it"]
    assert len(report["chats"]) == 1
    assert err == "chatfs: 1 of the sources couldn't be imported: import them again when that is mended\n"
