"""What else a store has: drafts, documents, leases, modes; and a check of one chat alone."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from store import durability
from store.errors import NameTaken
from store.fsck import Scope, Severity
from store.library import open_store
from store.locks import blocking_lock
from store.model import NewEntry
from tests.support.checked import Made, flip


async def test_drafts_are_looked_at(made: Made):
    drafts = made.root / "drafts"
    drafts.mkdir(exist_ok=True, mode=0o700)
    label = {"label": {"name": "history.md"}, "base": None, "limit": 0, "size": 3}
    path = drafts / "01a1fe0b-8677-74da-8806-a09cf48c7ada.json"
    durability.write_new("test", path, orjson.dumps(label))
    report = made.check()
    assert [found.kind for found in report.findings if found.path.startswith("drafts")] == ["draft"]
    assert report.exit_code == 0
    path.write_bytes(orjson.dumps(label | {"base": "sha256:" + "0" * 64}))
    assert made.kinds() == ["draft"]
    with blocking_lock(path, lambda: -1):
        assert made.problems() == []  # its process lives


def test_documents_leases_modes_and_strangers(made: Made, tmp_path: Path):
    (made.root / "kv" / "sandboxes,x.json").write_bytes(b"{")
    lease = made.chats["trip"] / "lease-12.json"
    lease.write_bytes(b'{"holder":"x","epoch":0,"expires":1}')
    lease.chmod(0o600)
    made.log("trip").chmod(0o644)
    (made.root / "notes.txt").write_text("mine")
    (made.chats["trip"] / "link").symlink_to(tmp_path)
    assert sorted(made.kinds()) == ["document", "lease-damaged", "mode", "stranger", "stranger"]
    made.check(repair=True)
    assert made.log("trip").stat().st_mode & 0o777 == 0o600
    assert sorted(made.kinds()) == ["document", "lease-damaged", "stranger", "stranger"]
    assert (made.root / "notes.txt").exists()


def test_the_present_lease_is_looked_at(made: Made):
    directory = made.chats["trip"]
    for name, content in (
        ("lease.json", b"{"),
        ("lease-9.json", b"{"),
        ("lease-10.json", b'{"holder":"x","epoch":10,"expires":1}'),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    assert made.problems() == []
    (directory / "lease-11.json").write_bytes(b'{"holder":"x","epoch":11,"expires":99999999999999}')
    (directory / "lease-11.json").chmod(0o600)
    assert made.kinds() == ["lease-odd"]


def test_an_interrupted_takeover_is_finished(made: Made):
    path = made.log("trip")
    whole = path.read_bytes()
    path.rename(path.with_name("history.taken"))
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    path.chmod(0o600)
    assert "takeover" in made.kinds()
    assert path.read_bytes() != whole
    made.check(repair=True)
    assert path.read_bytes() == whole
    assert not path.with_name("history.taken").exists()
    assert made.problems() == []


@pytest.mark.parametrize("content", [b"{", b'{"key":"names/demo","etag":"1","value":{}}'])
@pytest.mark.parametrize("name", ["demo", "\N{SNOWMAN}" * 80], ids=["short", "long"])
async def test_a_damaged_document_of_a_name_is_set_aside(made: Made, name: str, content: bytes):
    async with open_store(f"file://{made.root}") as store:
        await store.rename_workspace(await store.workspace("demo"), name, "test")
    (path,) = (path for path in (made.root / "kv").glob("*.json") if path.name != "sandboxes,x.json")
    path.write_bytes(content)
    (found,) = made.problems()
    assert (found.severity, found.kind, found.left) == (Severity.WARNING, "document", True)
    assert made.check(repair=True).exit_code == 1
    assert made.problems() == []
    assert [kept.read_bytes() for kept in (made.root / "quarantine").glob("*.document")] == [content]
    async with open_store(f"file://{made.root}") as store:
        workspace = await store.workspace(name)
        with pytest.raises(NameTaken):
            await store.create_workspace(name, "test")
        await store.rename_workspace(workspace, "other", "test")
        await store.create_workspace(name, "test")
    assert made.problems() == []


async def test_a_name_that_two_workspaces_have(made: Made):
    async with open_store(f"file://{made.root}") as store:
        other = await store.create_workspace("other", "test")
        event = NewEntry(b'{"type":"workspace.changed","name":"demo"}', "test")
        await other.space.append([event])
    assert made.kinds() == ["name-twice"]


def test_one_chat_alone(made: Made):
    flip(made.log("cut"), 40)
    flip(made.object("", b"small"), 1)
    report = made.check(scope=Scope("demo", "trip"))
    assert [found.kind for found in report.findings if found.severity is Severity.ERROR] == ["blob-damaged"]
    assert report.counts.logs == 2  # the workspace's says which chat it is
