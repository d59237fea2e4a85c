"""chat.json and workspace.json: what they show, and what an edit of them changes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import Chat, Workspace
from tests.support.ops import append, opened, refused

pytestmark = pytest.mark.mount


def shown(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    assert path.stat().st_size == len(text)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(shown(path) | fields, indent=2))


@pytest.fixture
def chat_json(chat: Chat) -> Path:
    return chat.directory / "chat.json"


def test_what_chat_json_shows(workspace: Workspace, chat: Chat, chat_json: Path) -> None:
    (chat.attachments / "a").write_bytes(b"x")
    found = shown(chat_json)
    assert (found["id"], found["name"], found["workspace"]) == (chat.id, "trip", workspace.directory.name)
    assert (found["messages"], found["attachments"], found["last_seq"], found["lifecycle"]) == (2, 1, 3, "active")
    assert (found["title"], found["labels"]) == ("", [])


def test_title_and_labels_can_be_edited(chat: Chat, chat_json: Path) -> None:
    mtime = chat_json.stat().st_mtime_ns
    edit(chat_json, title="A trip", labels=["travel", "2026"])
    [event] = chat.events()
    assert event == {"type": "chat.changed", "title": "A trip", "labels": ["travel", "2026"]}
    assert (shown(chat_json)["title"], shown(chat_json)["labels"]) == ("A trip", ["travel", "2026"])
    assert chat_json.stat().st_mtime_ns > mtime
    assert chat.md.read_text().startswith("# A trip\n")
    edit(chat_json, labels=[])
    assert chat.events() == [{"type": "chat.changed", "labels": []}]
    assert shown(chat_json)["labels"] == []


def test_read_only_fields_are_ignored(chat: Chat, chat_json: Path) -> None:
    before = chat_json.read_bytes()
    edit(chat_json, id="other", messages=99, name="other", lifecycle="trashed", unknown=1)
    assert chat.events() == []
    assert chat_json.read_bytes() == before


@pytest.mark.parametrize(
    "bad", [b"", b"not json", b"[]", b'{"title": 1}', b'{"labels": "x"}', b'{"title": "two\\nlines"}', b"\xff"]
)
def test_what_is_no_such_object_is_refused_at_close(chat: Chat, chat_json: Path, bad: bytes) -> None:
    before = chat_json.read_bytes()
    descriptor = os.open(chat_json, os.O_WRONLY | os.O_TRUNC)
    if bad:
        os.write(descriptor, bad)
        with refused(errno.EINVAL):
            os.close(descriptor)
        assert (chat.directory / "chat.json.rejected-1").read_bytes() == bad
    else:
        with refused(errno.EINVAL):
            os.fsync(descriptor)
        os.close(descriptor)
    assert chat_json.read_bytes() == before
    assert chat.events() == []


def test_a_rename_over_it_is_an_edit(chat: Chat, chat_json: Path) -> None:
    temporary = chat.directory / "chat.json.tmp"
    temporary.write_text('{"title": "renamed"}')
    temporary.replace(chat_json)
    assert chat.events() == [{"type": "chat.changed", "title": "renamed"}]
    assert shown(chat_json)["title"] == "renamed"
    assert shown(chat_json)["id"] == chat.id
    temporary.write_text("nonsense")
    with refused(errno.EINVAL):
        temporary.replace(chat_json)
    assert temporary.read_text() == "nonsense"


def test_it_follows_what_happens(workspace: Workspace, chat: Chat, chat_json: Path) -> None:
    assert shown(chat_json)["messages"] == 2
    chat.say("more")
    assert shown(chat_json)["messages"] == 3
    moved = workspace.directory / "archive" / "journey"
    chat.directory.rename(moved)
    assert (shown(moved / "chat.json")["name"], shown(moved / "chat.json")["lifecycle"]) == ("journey", "archived")


def test_it_cannot_be_linked_or_owned_by_another(chat: Chat, chat_json: Path) -> None:
    with refused(errno.EPERM):
        os.chown(chat_json, os.getuid() + 1, -1)
    with refused(errno.EPERM):
        (chat.directory / "link").hardlink_to(chat_json)


def test_two_that_edit_different_fields(chat: Chat, chat_json: Path) -> None:
    """What a save leaves as its writer had read it stays as another has changed it meanwhile."""
    stale = shown(chat_json)
    program = 'import sys; open(sys.argv[1], \'w\').write(\'{"title": "by another", "labels": []}\')'
    subprocess.run([sys.executable, "-c", program, chat_json], check=True)
    chat_json.write_text(json.dumps(stale | {"labels": ["mine"]}))
    assert chat.events() == [
        {"type": "chat.changed", "title": "by another"},
        {"type": "chat.changed", "labels": ["mine"]},
    ]
    chat_json.write_text(json.dumps(stale | {"labels": ["mine", "too"]}))
    assert (shown(chat_json)["title"], shown(chat_json)["labels"]) == ("by another", ["mine", "too"])


def test_what_was_read_is_known_after_the_kernel_has_let_go(chat: Chat, chat_json: Path) -> None:
    drop = Path("/proc/sys/vm/drop_caches")
    if not os.access(drop, os.W_OK):
        pytest.skip("only root can have the kernel drop its entries")
    stale = shown(chat_json)
    program = 'import sys; open(sys.argv[1], \'w\').write(\'{"title": "by another", "labels": []}\')'
    subprocess.run([sys.executable, "-c", program, chat_json], check=True)
    os.sync()
    drop.write_text("2\n")
    chat_json.write_text(json.dumps(stale | {"labels": ["mine"]}))
    assert chat.events()[-1] == {"type": "chat.changed", "labels": ["mine"]}


# ---- workspace.json


def test_what_workspace_json_shows(workspace: Workspace, chat: Chat) -> None:
    path = workspace.directory / "workspace.json"
    found = shown(path)
    assert (found["id"], found["name"], found["quota_bytes"]) == (workspace.id, workspace.directory.name, 0)
    assert found["chats"] == {"chats": 1, "archive": 0, "trash": 0}
    assert found["usage_bytes"] >= chat.log_file.stat().st_size
    append(chat.jsonl, b'"' + b"x" * 100_000 + b'"\n')
    assert shown(path)["usage_bytes"] > found["usage_bytes"] + 100_000


def test_title_labels_and_quota_can_be_edited(workspace: Workspace) -> None:
    path = workspace.directory / "workspace.json"
    edit(path, title="Work", labels=["a"], quota_bytes=1 << 30, name="ignored", usage_bytes=5)
    assert workspace.events()[-1] == {
        "type": "workspace.changed",
        "title": "Work",
        "labels": ["a"],
        "quota_bytes": 1 << 30,
    }
    found = shown(path)
    assert (found["title"], found["labels"], found["quota_bytes"]) == ("Work", ["a"], 1 << 30)
    assert found["name"] == workspace.directory.name
    count = len(workspace.events())
    path.write_bytes(path.read_bytes())
    assert len(workspace.events()) == count


def test_a_bad_workspace_json_is_refused(workspace: Workspace) -> None:
    path = workspace.directory / "workspace.json"
    before = shown(path)
    all_bad = ('{"quota_bytes": -1}', '{"quota_bytes": "1G"}', "{")
    for bad in all_bad:
        with refused(errno.EINVAL):
            path.write_text(bad)
    # What was refused is kept, beside it.
    assert shown(path) == before | {"usage_bytes": before["usage_bytes"] + sum(map(len, all_bad))}


# ---- quota


def limited(workspace: Workspace, quota: int) -> None:
    edit(workspace.directory / "workspace.json", quota_bytes=quota)


def test_what_does_not_fit_is_refused(workspace: Workspace, chat: Chat) -> None:
    limited(workspace, 100_000)
    (chat.attachments / "fits").write_bytes(b"x" * 10_000)
    descriptor = os.open(chat.attachments / "large", os.O_WRONLY | os.O_CREAT, 0o600)
    with refused(errno.EDQUOT):
        os.write(descriptor, b"x" * 120_000)
    with refused(errno.EDQUOT):
        os.close(descriptor)
    assert os.listdir(chat.attachments) == ["fits"]
    with opened(chat.jsonl, os.O_WRONLY | os.O_APPEND) as log, refused(errno.EDQUOT):
        os.write(log, b'"' + b"x" * 120_000 + b'"\n')
    text = chat.md.read_bytes()
    with refused(errno.EDQUOT):
        chat.md.write_bytes(text + b"x" * 120_000)
    assert chat.md.read_bytes() == text
    temporary = chat.attachments / ".tmp"
    with refused(errno.EDQUOT):
        temporary.write_bytes(b"x" * 120_000)
        temporary.rename(chat.attachments / "renamed")
    assert [event["name"] for event in chat.events()] == ["fits"]
    assert (chat.attachments / "fits").read_bytes() == b"x" * 10_000


def test_removing_and_small_appends_still_work_within_the_quota(workspace: Workspace, chat: Chat) -> None:
    (chat.attachments / "a").write_bytes(b"x" * 50_000)
    limited(workspace, 60_000)
    chat.say("small")
    (chat.attachments / "a").unlink()
    limited(workspace, 0)
    (chat.attachments / "b").write_bytes(b"x" * 200_000)
    assert (chat.attachments / "b").stat().st_size == 200_000


def test_over_quota_what_frees_is_allowed(workspace: Workspace, chat: Chat) -> None:
    """A workspace that is over its quota can still be put in order."""
    (chat.attachments / "a").write_bytes(b"x" * 50_000)
    limited(workspace, 10)
    with refused(errno.EDQUOT):
        (chat.attachments / "b").write_bytes(b"x")
    (chat.attachments / "a").unlink()
    chat.directory.rmdir()
    assert os.listdir(workspace.directory / "chats") == []
    limited(workspace, 0)


def test_usage_counts_each_blob_once(workspace: Workspace) -> None:
    first, second = workspace.chat("first"), workspace.chat("second")
    content = os.urandom(300_000)
    (first.attachments / "a").write_bytes(content)
    used = shown(workspace.directory / "workspace.json")["usage_bytes"]
    (first.attachments / "b").write_bytes(content)
    (second.attachments / "a").write_bytes(content)
    assert 300_000 < used < shown(workspace.directory / "workspace.json")["usage_bytes"] < used + 5_000
