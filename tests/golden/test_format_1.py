"""The frozen store of format 1, `v1/store`, shows what it showed with the chatfs that wrote it, byte for byte.

What is compared is in `v1/expected`; `seen` made it. The tests work on copies: git keeps neither the modes of the
store's files nor its empty directories.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

from store.driver import Access
from store.errors import ReadOnly
from store.library import open_store
from tests.golden.seen import by_library, in_mount, written
from tests.support.mounts import mounting

GOLDEN = Path(__file__).parent / "v1"
EXPECTED = written(GOLDEN / "expected")
FILES = {key for key in EXPECTED if key.endswith("files.json")}
"""What the editors left, of which the library knows nothing."""
REBUILDABLE = {"index.db", "snapshots", "announced"}


def contents(store: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and its inode's last change."""
    return {
        path.relative_to(store).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "store", tmp_path / "store"))


def without(found: dict[str, bytes], left_out: set[str]) -> dict[str, bytes]:
    return {key: data for key, data in found.items() if key not in left_out}


def same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    for key, data in expected.items():
        assert found[key] == data, key


async def test_opened_for_writing_it_shows_what_it_showed(store: Path):
    for _ in range(2):
        async with open_store(store.as_uri()) as opened:
            same(await by_library(opened), without(EXPECTED, FILES))
        assert orjson.loads((store / "store.json").read_bytes())["format"] == 2


@pytest.mark.parametrize("access", [Access.READ, Access.LOOK])
async def test_opened_for_reading_it_shows_the_same_and_stays_as_it_was(store: Path, access: Access):
    before = contents(store)
    async with open_store(store.as_uri(), access=access) as opened:
        same(await by_library(opened), without(EXPECTED, FILES))
        workspace = await opened.workspace("demo")
        chat = await workspace.chat("trip")
        text = await chat.text()
        # As a mount reads it, which leaves a copy where it may.
        assert await chat.read_text(0, len(text)) == text
        with pytest.raises(ReadOnly):
            await chat.append_lines([b"{}"], "uid:0/test")
        with pytest.raises(ReadOnly):
            await workspace.create_chat("new", "uid:0/test")
        with pytest.raises(ReadOnly):
            await chat.attach("a.txt", b"a", "uid:0/test")
        with pytest.raises(ReadOnly):
            await opened.create_workspace("new", "uid:0/test")
    assert contents(store) == before


async def test_what_a_migration_changes_is_in_the_backup(store: Path):
    before = {name: data for name, (data, _) in contents(store).items()}
    async with open_store(store.as_uri()):
        pass
    after = {name: data for name, (data, _) in contents(store).items()}
    (backup,) = (store / "backup").iterdir()
    kept = written(backup)
    assert b"cp -a store.json workspace ../.." in kept.pop("README")
    assert sorted(kept) == sorted(name for name, data in before.items() if after.get(name) != data)
    assert all(before[name] == data for name, data in kept.items())
    assert "store.json" in kept
    assert not [name for name in after if name.endswith("history.md.json") and not name.startswith("backup/")]


@pytest.mark.mount
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_mounted_it_shows_what_it_showed(tmp_path: Path, store: Path, options: tuple[str, ...]):
    before = contents(store)
    for _ in range(2):
        with mounting(tmp_path, *options) as mounted:
            same(in_mount(mounted.mountpoint), EXPECTED)
    if options:
        assert contents(store) == before
    else:
        assert orjson.loads((store / "store.json").read_bytes())["format"] == 2


@pytest.mark.mount
def test_without_anything_that_can_be_rebuilt_it_shows_the_same(tmp_path: Path, store: Path):
    with mounting(tmp_path) as mounted:
        same(in_mount(mounted.mountpoint), EXPECTED)
        mounted.unmount()
        for path in [*store.rglob("history.md"), *store.rglob("history.md.json"), *store.rglob("*")]:
            if path.name in REBUILDABLE and path.is_dir():
                shutil.rmtree(path)
            elif path.name in REBUILDABLE | {"history.md", "history.md.json"} and path.exists():
                path.unlink()
        mounted.start()
        same(in_mount(mounted.mountpoint), EXPECTED)
