"""Spaces that open from snapshots: the same state as from the log, whatever has become of the snapshot."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import trio

from store import library, snapshot_due, space
from store.chat import Chat
from store.errors import CorruptLog
from store.library import open_store
from store.model import Entry, Seq
from store.workspace_state import Place

ME = "test"


@pytest.fixture(autouse=True)
def _early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots already of short logs."""
    monkeypatch.setattr(snapshot_due, "CLOSING_EVENTS", 20)


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Chat]:
    """The chat `trip` of workspace `demo`, made where it isn't there yet."""
    async with open_store(f"file://{root}/store") as store:
        names = [workspace.state.name for workspace in await store.workspaces()]
        workspace = await store.workspace("demo") if names else await store.create_workspace("demo", ME)
        yield await workspace.chat("trip") if workspace.state.find("trip") else await workspace.create_chat("trip", ME)


async def fill(chat: Chat, count: int = 100, first: int = 0) -> None:
    """Messages, an edit, a removal, a hidden one, attachments, a title."""
    for number in range(first, first + count):
        event = {"type": "message.appended", "id": f"m{number}", "role": "user", "content": f"number {number}"}
        await chat.append_events([event | ({"hidden": True} if number % 7 == 3 else {})], ME)
    await chat.append_events([{"type": "message.edited", "id": f"m{first + 2}", "content": "edited"}], ME)
    await chat.remove_message(f"m{first + 1}", ME)
    await chat.change(ME, title=f"Title {first}", labels=["a", "b"])
    await chat.attach(f"kept-{first}.txt", b"kept", ME)
    await chat.attach(f"gone-{first}.txt", b"gone", ME)
    await chat.remove_attachment(f"gone-{first}.txt", ME)


async def view(chat: Chat) -> object:
    """All that a chat shows."""
    state = await chat.load()
    summary = (state.seq, state.title, state.labels, state.size, state.message_count, dict(state.attachments))
    return summary, await chat.read_text(0, 1 << 30), await chat.messages(), await chat.text()


def snapshots(chat: Chat) -> list[Path]:
    return sorted(chat.space.snapshots.directory.glob("*"))


@asynccontextmanager
async def replayed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Entry]]:
    """The entries that folds take in meanwhile."""
    seen: list[Entry] = []
    with monkeypatch.context() as patch:
        inner = space.replay

        async def replay(log, state) -> None:
            seen.extend([entry async for entry in log.read(state.seq)])
            await inner(log, state)

        patch.setattr(space, "replay", replay)
        yield seen


async def test_a_chat_opens_from_its_snapshot_and_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat)
        before = await view(chat)
    async with opened(tmp_path) as chat:
        assert snapshots(chat)
        async with replayed(monkeypatch) as seen:
            assert await view(chat) == before
        assert seen == []
        await chat.append_lines([b'{"role":"user","content":"one more"}'], ME)
        before = await view(chat)
    async with opened(tmp_path) as chat, replayed(monkeypatch) as seen:
        assert await view(chat) == before
        assert len(seen) == 1
    shutil.rmtree(chat.space.snapshots.directory)
    async with opened(tmp_path) as chat:
        assert await view(chat) == before


async def test_history_md_beside_the_log_is_the_snapshots_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat)
        text = await chat.text()
    published = chat.directory / "history.md"
    assert published.read_bytes() == text
    assert published.stat().st_nlink == 2
    note = orjson.loads((chat.directory / "history.md.json").read_bytes())
    assert (note["seq"], note["size"]) == (chat.space.head.seq, len(text))
    assert not list(chat.directory.glob(".*"))


async def test_snapshots_come_by_themselves_while_the_chat_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_due, "EVENTS", 50)
    monkeypatch.setattr(library, "MOVES_BETWEEN_LOOKS", 10)
    async with opened(tmp_path) as chat:
        await chat.load()
        await fill(chat, 200)
        with trio.fail_after(15):
            while not chat.space.snapshots.seqs():  # noqa: ASYNC110 - nothing signals it
                await trio.sleep(0.01)
        assert len(snapshots(chat)) <= 3 * 2


@pytest.mark.parametrize("suffix", [".json", ".items", ".md"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "symlink"])
async def test_a_damaged_snapshot_costs_time_not_data(
    tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat, 300)
        before = await view(chat)
    whole = next(path for path in snapshots(chat) if path.suffix == suffix)
    content = whole.read_bytes()
    places = [0, 1, len(content) // 3, len(content) // 2, len(content) - 2] if damage == "flip" else [len(content) // 2]
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "store", kept, symlinks=True)
    for place in places:
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(kept, tmp_path / "store", symlinks=True)
        whole.unlink()
        if damage == "flip":
            whole.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        elif damage == "cut":
            whole.write_bytes(content[:place])
        elif damage == "symlink":
            outside = tmp_path / "outside"
            outside.write_bytes(content)
            whole.symlink_to(outside)
        async with opened(tmp_path) as chat:
            assert await view(chat) == before
            await chat.append_lines([b'{"role":"user","content":"on it goes"}'], ME)
            assert (await chat.text()).endswith(b"on it goes\n")
        told = any("read from its log" in record.message for record in caplog.records)
        assert told is not (damage == "gone" and suffix == ".json")
        caplog.clear()


async def test_a_snapshot_of_another_past_doesnt_count(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat, 40)
        log = chat.directory / "history.jsonl"
        earlier = log.read_bytes()
        await fill(chat, 40, first=40)
    log.write_bytes(earlier)  # as a backup brings it back
    async with opened(tmp_path) as chat:
        await fill(chat, 60, first=200)
        assert b"number 70" not in await chat.text()
        before = await view(chat)
    async with opened(tmp_path) as chat:
        assert await view(chat) == before


async def test_what_a_crash_leaves_of_a_snapshot_is_no_harm(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat, 40)
        before = await view(chat)
    directory = chat.space.snapshots.directory
    (directory / "9.md").write_bytes(b"half")
    (directory / "9999.md").write_bytes(b"half")
    (directory / "9999.items").write_bytes(b"half")
    (directory / "x.json").write_bytes(b"{}")
    async with opened(tmp_path) as chat:
        assert await view(chat) == before
        await fill(chat, 40, first=50)
    assert not (directory / "9.md").exists()


async def test_a_snapshot_that_cant_be_written_is_done_without(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat, 40)
        before = await view(chat)
        chat.space.snapshots.directory.write_bytes(b"in the way")
    async with opened(tmp_path) as chat:
        assert await view(chat) == before


async def test_old_states_come_from_snapshots_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        texts = {}
        for number in range(60):
            await chat.append_lines([b'{"role":"user","content":"number %d"}' % number], ME)
            texts[number + 1] = await chat.text()
    async with opened(tmp_path) as chat:
        await fill(chat, 60, first=100)
    async with opened(tmp_path) as chat:
        assert len(chat.space.snapshots.seqs()) == 2
        for seq, text in texts.items():
            assert b"".join((await chat.state_at(Seq(seq))).document.pieces()) == text


async def test_damage_before_the_snapshot_leaves_the_text_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        await fill(chat)
        before = await view(chat)
    log = chat.directory / "history.jsonl"
    content = log.read_bytes()
    log.write_bytes(content.replace(b"number 5", b"number 6", 1))
    async with opened(tmp_path) as chat:
        assert await view(chat) == before
        with pytest.raises(CorruptLog):
            assert [entry async for entry in chat.log()]


async def test_a_repaired_log_is_read_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as chat:
        for number in range(10):
            await chat.append_lines([b'{"role":"user","content":"number %d"}' % number], ME)
        before = await view(chat)
        log = chat.directory / "history.jsonl"
        whole = log.read_bytes()
        log.write_bytes(whole.replace(b"number 5", b"number 6", 1))
    async with opened(tmp_path) as chat:
        assert b"number 4" in await chat.text()
        with pytest.raises(CorruptLog):
            await chat.append_lines([b"1"], ME)
        assert b"number 9" not in await chat.text()
        beside = log.with_name("beside")
        beside.write_bytes(whole)
        os.rename(beside, log)
        async with open_store(f"file://{tmp_path}/store") as other:
            twin = await (await other.workspace("demo")).chat("trip")
            await twin.append_lines([b'{"role":"user","content":"repaired"}'], ME)
        assert b"number 9" in await chat.text()
        await chat.append_lines([b'{"role":"user","content":"and more"}'], ME)
        assert await chat.text() != before


async def test_workspaces_open_from_snapshots(tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}/store") as store:
        workspace = await store.create_workspace("demo", ME, quota_bytes=1 << 30)
        made = [await workspace.create_chat(f"chat {number}", ME) for number in range(30)]
        await workspace.move_chat(made[3].id, Place.ARCHIVE, "archived", ME)
        await workspace.trash_chat(made[4].id, ME)
        await workspace.change(ME, title="T", labels=["l"])
        records, changed = dict(workspace.state.chats), dict(workspace.state.places_changed)
        listed = {place: list(workspace.state.in_place(place)) for place in Place}
    assert workspace.space.snapshots.seqs()
    log = store.driver.local_dir(workspace.space.id) / "history.jsonl"
    content = log.read_bytes()
    log.write_bytes(content.replace(b'"chat 1"', b'"chat X"'))
    async with open_store(f"file://{tmp_path}/store") as store:
        workspace = await store.workspace("demo")
        assert dict(workspace.state.chats) == records
        assert dict(workspace.state.places_changed) == changed
        assert {place: list(workspace.state.in_place(place)) for place in Place} == listed
        assert (workspace.state.title, workspace.state.quota_bytes) == ("T", 1 << 30)
        await workspace.create_chat("one more", ME)
