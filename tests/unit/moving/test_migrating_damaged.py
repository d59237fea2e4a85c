"""What is damaged or missing in one store is named, and the rest comes to the other: `store.moving.migrating`."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.errors import StoreFailed
from store.library import open_store
from store.model import chat_space, workspace_space
from store.moving import spaces
from tests.support.moved import (
    chat_id,
    logs,
    move,
    moving,
    say,
    spoil,
)


async def test_a_damaged_chat_is_named_and_the_others_come(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    whole = logs(filled / "a")
    path = spoil(filled / "a", chat)
    for _ in range(2):
        moved = await move(filled)
        (failure,) = moved.failures
        assert failure.startswith("demo/trip: the log ")
        assert "after entry 1" in failure
        assert not list((filled / "b").glob(f"**/{chat}"))
        async with open_store(str(filled / "b")) as store:
            demo = await store.workspace("demo")
            assert len(await say(demo, "packed")) == 36
            with pytest.raises(StoreFailed, match=r"demo/trip wasn't moved here: the log .*damaged after entry 1"):
                await (await demo.chat("trip")).text()
            with pytest.raises(StoreFailed, match="wasn't moved here"):
                await say(demo, "trip", "not an empty chat")
    path.write_bytes(whole[f"{chat_space(workspace, chat)}/history.jsonl"])
    assert (await move(filled)).failures == []
    assert logs(filled / "b") == whole
    async with open_store(str(filled / "b")) as store:
        await say(await store.workspace("demo"), "trip", "an ordinary chat")
        assert await store.driver.kv.list("absent/") == []


async def test_what_was_brought_of_a_chat_that_is_damaged_now_is_not_shown(filled: Path) -> None:
    """An earlier run was interrupted within the chat."""
    workspace, chat = await chat_id(filled / "a")
    space = chat_space(workspace, chat)
    async with moving(filled) as (source, target):
        log, copy = await source.open_log(space), await target.open_log(space, create=True)
        await copy.adopt([entry async for entry in log.read(limit=3)])
        await log.aclose()
        await copy.aclose()
    spoil(filled / "a", chat)
    assert len((await move(filled)).failures) == 1
    assert not list((filled / "b").glob(f"**/{chat}"))


async def test_a_damaged_workspace_does_not_come(filled: Path) -> None:
    workspace, _ = await chat_id(filled / "a")
    path = filled / "a" / workspace_space(workspace) / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b"packed", b"PACKED", 1))
    moved = await move(filled)
    (failure,) = moved.failures
    assert failure.startswith(f"workspace {workspace}: the log ")
    assert not (filled / "b" / workspace_space(workspace)).exists()
    path.unlink()
    moved = await move(filled)
    assert "its log is missing" in moved.failures[0]


@pytest.mark.parametrize("how", ["missing", "damaged"])
async def test_a_lost_attachment_is_named(filled: Path, how: str) -> None:
    for path in (filled / "a" / "objects").glob("??/*.chunk"):
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(b"x" * path.stat().st_size)
    moved = await move(filled, workspace="demo")
    assert [failure.partition(" (")[0] for failure in moved.failures] == [
        f"demo/{chat}: the bytes of attachment '{name}' are {how}"
        for chat, name in (("trip", "long.bin"), ("packed", "kept.bin"))
    ]


async def test_a_state_that_is_lost(filled: Path) -> None:
    _, chat = await chat_id(filled / "a", "packed")
    (log,) = (filled / "a").glob(f"workspace/*/chats/{chat}/history.jsonl")
    digest = log.read_bytes().partition(b'"state":"sha256:')[2][:64].decode()
    (filled / "a" / "objects" / digest[:2] / digest).unlink()
    moved = await move(filled, workspace="demo")
    assert [failure[:12] for failure in moved.failures] == ["demo/packed:"]
    assert "was compacted" in moved.failures[0]


async def test_verify_reads_every_blob_back(filled: Path) -> None:
    await move(filled)
    small = next(path for path in (filled / "b" / "objects").glob("??/*") if path.read_bytes() == b"first")
    small.write_bytes(b"spoil")
    assert (await move(filled)).failures == []
    moved = await move(filled, verify=True)
    assert [failure.partition(" (")[0] for failure in moved.failures] == [
        "demo/trip in the other store: the bytes of attachment 'small.txt' are damaged"
    ]


async def test_a_copy_that_says_something_else_is_noticed(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await move(filled)
    usual = spaces.state_digest
    told: list[str] = []
    monkeypatch.setattr(
        spaces, "state_digest", lambda kind, state: told.append("") or usual(kind, state) + str(len(told))
    )
    moved = await move(filled, workspace="second", verify=True)
    assert all("isn't the same in both stores" in failure for failure in moved.failures)
    assert moved.failures


async def test_a_log_too_long_to_be_folded_is_compared_by_its_text(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces.check, "__kwdefaults__", {"fold_max": 100})
    assert (await move(filled)).failures == []
    assert logs(filled / "a") == logs(filled / "b")
    assert (await move(filled, verify=True)).failures == []
