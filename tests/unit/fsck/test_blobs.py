"""Damaged and missing blobs are found; a damaged one is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from store.library import open_store
from tests.support.checked import LONG, Made, events_in, fails, flip


@pytest.mark.parametrize(("suffix", "name"), [("", "small.txt"), (".chunk", "long.bin"), (".chunks", "long.bin")])
async def test_a_damaged_blob_is_set_aside_for_the_right_bytes_to_come(made: Made, suffix: str, name: str):
    path = made.object(suffix, b"small" if not suffix else None)
    flip(path, 3)
    found = [each for each in made.problems() if each.kind == "blob-damaged"]
    assert any(f"demo/trip/attachments/{name}" in each.what for each in found)
    assert made.check(repair=True).exit_code == 4
    assert not path.exists()
    (kept,) = (made.root / "quarantine").glob("*.object")
    assert set(made.kinds()) <= {"blob-missing", "blob-damaged"}
    for chat, said in (("trip", [kept.name]), ("cut", []), ("old", [])):
        told = [event for event in events_in(made, chat) if event.get("type") == "blob.quarantined"]
        assert [event["quarantine"] for event in told] == said
        assert all(event["attachments"] == [name] for event in told)
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        await chat.attach(name, b"small" if name == "small.txt" else LONG, "test")
    assert made.problems() == []


@pytest.mark.parametrize("content", [b"kept by the state", None])
async def test_what_a_compacted_log_needs_is_known(made: Made, content: bytes | None):
    """An attachment that only the compacted state has, and that state."""
    path = made.object("", content) if content else max(made.root.glob("objects/??/*"), key=_is_state)
    flip(path, 3)
    (found,) = [each for each in made.problems() if each.kind == "blob-damaged"]
    assert ("demo/cut/attachments/kept.txt" if content else "the compacted log of demo/cut") in found.what
    assert found.left
    assert made.check(repair=True).exit_code == made.check().exit_code == 4
    told = events_in(made, "cut")[-1]
    assert (told["type"], told["attachments"]) == ("blob.quarantined", ["kept.txt"] if content else [])


def _is_state(path: Path) -> bool:
    return path.read_bytes().startswith(b'{"snapshot"')


async def test_a_blob_stays_where_a_log_cant_take_that_it_went(made: Made):
    path = made.object("", b"small")
    flip(path, 3)
    with fails("log.salvage"):
        (found,) = [each for each in made.check(repair=True).findings if each.kind == "blob-damaged"]
    assert "couldn't be repaired: the log of demo/trip can't take the event that says so" in found.advice
    assert path.exists()
    assert made.check(repair=True).exit_code == 4
    assert not path.exists()
    assert [event["type"] for event in events_in(made, "trip")[-2:]] == ["message.appended", "blob.quarantined"]


async def test_events_of_any_shape_are_in_nobodys_way(made: Made):
    async with open_store(f"file://{made.root}") as store:
        chat = await (await store.workspace("demo")).chat("trip")
        digest = (await chat.attachment("small.txt")).digest
        name = digest.partition(":")[2]
        shapes: list[dict[str, Any]] = [
            {"type": ["attachment.put"], "digest": digest},
            {"type": {"type": "log.compacted"}, "state": digest},
            {"type": "attachment.put", "id": "x", "name": [], "digest": [digest], "size": 5},
            {"type": "attachment.put", "id": "x", "name": "y", "digest": digest, "size": [5]},
            {"type": "log.compacted", "through": [], "state": {digest: 1}},
            {"type": "chat.deleted", "chat": [digest]},
        ]
        await chat.append_events(shapes, "test")
    assert made.problems(full=True) == []
    flip(made.root / "objects" / name[:2] / name, 0)
    (found,) = made.problems(repair=True)
    assert found.kind == "blob-damaged"
    assert found.done
    assert "trip/attachments/small.txt" in found.what


def test_a_missing_blob_names_the_attachment(made: Made):
    made.object("", b"small").unlink()
    (found,) = made.problems(repair=True)
    assert (found.kind, found.where, found.left) == ("blob-missing", "demo/trip", True)
    assert "'small.txt'" in found.what


def test_a_damaged_blob_that_nobody_needs_is_repaired_by_setting_it_aside(made: Made):
    path = made.root / "objects" / "ab" / ("ab" * 32)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_bytes(b"other")
    path.chmod(0o600)
    assert made.check().exit_code == 4
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
