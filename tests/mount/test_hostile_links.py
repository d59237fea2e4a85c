"""Symbolic links that somebody has planted in a store: never followed to write, and all else works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Mounted, Workspace, message
from tests.support.ops import append

pytestmark = pytest.mark.mount


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    found = tmp_path / "outside"
    found.mkdir()
    return found


def tree(directory: Path) -> dict[str, bytes | None]:
    """All names below, with the bytes of the files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def attempts(chat: Path) -> dict[str, Callable[[], object]]:
    """Everything that writes."""
    return {
        "append": lambda: append(chat / "history.jsonl", message("more")),
        "save": lambda: (chat / "history.md").write_bytes(b"## user\n\nsaved\n"),
        "attach": lambda: (chat / "attachments" / "b").write_bytes(b"b" * 3_000_000),
        "detach": lambda: (chat / "attachments" / "a").unlink(),
        "edit": lambda: (chat / "chat.json").write_bytes(b'{"title": "T"}'),
        "scratch": lambda: (chat / "new~").write_bytes(b"new"),
        "overwrite scratch": lambda: (chat / "scratch~").write_bytes(b"new"),
        "remove scratch": lambda: (chat / "scratch~").unlink(),
        "make": lambda: chat.with_name(f"{chat.name} more").mkdir(),
        "make a workspace": lambda: (chat.parents[2] / f"{chat.name}-w").mkdir(),
    }


def attempted(chat: Path) -> list[str]:
    """Try everything that writes; what was refused."""
    failed = []
    for what, attempt in attempts(chat).items():
        try:
            attempt()
        except OSError:
            failed.append(what)
    return failed


def stored(mounted: Mounted, *names: str) -> Workspace:
    """A workspace whose chats have a bit of everything."""
    workspace = mounted.workspace()
    for name in names:
        chat = workspace.chat(name)
        chat.say("hello")
        (chat.attachments / "a").write_bytes(b"a" * 10)
        (chat.directory / "scratch~").write_bytes(b"scratch")
        chat.md.read_bytes()
    return workspace


def plant(victim: Path, outside: Path) -> None:
    """Move what is there outside, and leave a link to it."""
    moved = outside / f"{len(os.listdir(outside))}"
    if victim.exists():
        victim.rename(moved)
    else:
        moved.mkdir()
    victim.symlink_to(moved)


FILES = ["history.jsonl", "history.md", "history.md.json", "lease.json"]


@pytest.mark.parametrize(
    "places",
    [
        FILES,
        ["snapshots"],
        ["scratch"],
        pytest.param([""], id="the chat"),
    ],
    ids=" ".join,
)
def test_links_in_a_chats_directory_are_never_followed_to_write(
    mounted: Mounted, outside: Path, places: list[str]
) -> None:
    mounted.expected_trouble.append("(?!.*Traceback)")
    workspace = stored(mounted, *map("hit {}".format, places), "other")
    stores = [workspace.found(f"hit {place}").log_file.parent for place in places]
    mounted.unmount()
    for place, directory in zip(places, stores, strict=True):
        plant(directory / place, outside)
    before = tree(outside)
    mounted.start()
    for place in places:
        attempted(workspace.directory / "chats" / f"hit {place}")
    assert attempted(workspace.directory / "chats" / "other") == []
    mounted.unmount()
    assert tree(outside) == before


def test_an_index_that_is_a_link_is_never_followed_to_write(mounted: Mounted, outside: Path) -> None:
    mounted.expected_trouble.append("(?!.*Traceback)")
    workspace = stored(mounted, "trip")
    mounted.unmount()
    plant(mounted.store / "index.db", outside)
    before = tree(outside)
    mounted.start()
    assert attempted(workspace.directory / "chats" / "trip") == []
    mounted.cli("search", "saved")
    mounted.unmount()
    assert tree(outside) == before


@pytest.mark.parametrize("place", ["drafts", "quarantine", "objects", "kv", "workspace"])
def test_a_store_whose_directory_is_a_link_is_refused(mounted: Mounted, outside: Path, place: str) -> None:
    stored(mounted, "trip")
    mounted.unmount()
    plant(mounted.store / place, outside)
    before = tree(outside)
    for words in (("mount", str(mounted.mountpoint)), ("append", "demo/trip"), ("workspace", "ls")):
        done = mounted.cli(*words, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert f"{place} is a symbolic link".encode() in done.stderr
    assert tree(outside) == before


def test_a_description_that_is_a_link_is_refused(mounted: Mounted, outside: Path) -> None:
    mounted.unmount()
    plant(mounted.store / "store.json", outside)
    before = tree(outside)
    done = mounted.cli("workspace", "ls", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert b"store.json" in done.stderr
    assert tree(outside) == before
