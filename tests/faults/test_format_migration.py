"""Bringing a store of format 1 to the present one: what is kept, what interruptions leave, who waits for whom."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import trio

from store import durability
from store.driver import Access
from store.drivers.file import migration
from store.errors import ReadOnly, StoreError
from store.library import open_store
from store.registry import open_driver
from tests.golden.interrupted import Interrupting, silent
from tests.golden.seen import by_library, written

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests/golden/v1"
EXPECTED = {name: data for name, data in written(GOLDEN / "expected").items() if not name.endswith("files.json")}


def copied(target: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "store", target))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return copied(tmp_path / "store")


def format_of(store: Path) -> int:
    number = orjson.loads((store / "store.json").read_bytes())["format"]
    assert type(number) is int
    return number


async def seen(store: Path, access: Access) -> dict[str, bytes]:
    async with open_store(store.as_uri(), access=access) as opened:
        return await by_library(opened)


async def check_migrated(store: Path) -> None:
    """Everything is shown, and one whole backup has all that is no longer as it was."""
    assert await seen(store, Access.MAKE) == EXPECTED
    assert format_of(store) == 2
    (backup,) = (store / "backup").iterdir()
    assert backup.suffix == ""
    before, kept = written(GOLDEN / "store"), written(backup)
    after = written(store)
    changed = {name: data for name, data in before.items() if after.get(name) != data}
    assert kept.keys() - {"README"} == changed.keys()
    assert not [name for name in after if name.endswith(("/history.md", "/history.md.json")) and name[:6] != "backup"]
    assert all(kept[name] == data for name, data in changed.items())
    assert not [name for name in os.listdir(store) if name.startswith(".")]


# ---- a step


async def test_progress_is_told(store: Path):
    told: list[tuple[int, int]] = []
    driver = await open_driver(str(store), progress=lambda done, total: told.append((done, total)))
    await driver.aclose()
    assert told[0] == (0, 16)
    assert told[-1] == (16, 16)
    assert told == sorted(told)
    told.clear()
    driver = await open_driver(str(store), progress=lambda done, total: told.append((done, total)))
    await driver.aclose()
    assert told == []


async def test_what_else_store_json_says_is_kept(store: Path):
    described = orjson.loads((store / "store.json").read_bytes())
    (store / "store.json").write_bytes(orjson.dumps(described | {"note": "mine"}))
    await check_opens(store)
    assert orjson.loads((store / "store.json").read_bytes()) == described | {"note": "mine", "format": 2}


async def check_opens(store: Path) -> None:
    assert await seen(store, Access.MAKE) == EXPECTED


async def test_where_links_cant_be_made_the_backup_has_copies(store: Path, monkeypatch: pytest.MonkeyPatch):
    class NoLinks(durability.System):
        def link(self, label: str, source: str | Path, target: str | Path) -> None:
            raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(durability, "system", NoLinks())
    await check_migrated(store)


async def test_what_the_readme_says_brings_the_old_format_back(store: Path):
    before = written(store)
    await check_migrated(store)
    (backup,) = (store / "backup").iterdir()
    (command,) = [line for line in (backup / "README").read_text().splitlines() if line.startswith("cp -a ")]
    await trio.run_process(command.partition(")")[0], shell=True, cwd=backup)
    after = written(store)
    assert {name: after[name] for name in before} == before
    assert await seen(store, Access.READ) == EXPECTED
    # And forth again.
    assert await seen(store, Access.MAKE) == EXPECTED
    assert len(list((store / "backup").iterdir())) == 2


async def test_symbolic_links_are_neither_followed_nor_changed(store: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "history.md.json").write_text("{}")
    (outside / "history.md").write_text("mine")
    chat = next(store / name for name in written(store) if name.endswith("history.md.json")).parent
    (chat.parent / "planted").symlink_to(outside)
    (chat / "history.md.json").unlink()
    (chat / "history.md.json").symlink_to(outside / "history.md.json")
    driver = await open_driver(str(store))
    await driver.aclose()
    assert format_of(store) == 2
    assert written(outside) == {"history.md.json": b"{}", "history.md": b"mine"}
    assert (chat / "history.md.json").is_symlink()


# ---- interruptions


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_any_call_may_fail_and_the_next_open_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    at = 0
    finished = False
    while not finished:
        at += 1
        store = copied(tmp_path / f"{at}")
        system = Interrupting(at, fail, after=code == errno.ENOSPC)
        with monkeypatch.context() as patch:
            patch.setattr(durability, "system", system)
            said = await error_of_opening(store)
        assert said.startswith(f"migrating the store at {store} to format 2: ") or system.calls < at or not said
        finished = system.calls < at
        assert await seen(store, Access.READ) == EXPECTED
        await check_migrated(store)
        shutil.rmtree(store)
    assert at > 35


async def error_of_opening(store: Path) -> str:
    try:
        driver = await open_driver(str(store))
    except StoreError as error:
        return str(error)
    await driver.aclose()
    return ""


@pytest.fixture
def killed_stores(tmp_path: Path) -> list[Path]:
    """One for each call at which the migration was killed; the last one's got to its end."""
    command = [sys.executable, "-m", "tests.golden.interrupted", GOLDEN / "store", tmp_path]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return sorted(tmp_path.iterdir(), key=lambda path: int(path.name))


async def test_killed_at_any_call_nothing_is_lost_and_the_next_open_goes_on(
    killed_stores: list[Path], monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert len(killed_stores) > 35
    assert [format_of(store) for store in (killed_stores[0], killed_stores[-1])] == [1, 2]
    for number, store in enumerate(killed_stores):
        assert await seen(store, Access.READ) == EXPECTED
        if number % 2:
            # The first one that goes on doesn't get to its end either.
            with monkeypatch.context() as patch, contextlib.suppress(OSError):
                patch.setattr(durability, "system", Interrupting(1 + number * 7 % 23, fail))
                migration.migrate(store, silent)
        await check_migrated(store)


async def test_a_cancelled_one_goes_on_later(store: Path):
    with trio.CancelScope() as scope:
        await open_driver(str(store), progress=lambda _done, _total: scope.cancel())
    assert scope.cancelled_caught
    assert format_of(store) == 1
    await check_migrated(store)


async def test_what_the_old_chatfs_wrote_after_an_interruption_is_in_the_backup(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (text, *_) = [store / name for name in sorted(written(store)) if name.endswith("history.md")]
    counting = Interrupting(-1, fail)
    with monkeypatch.context() as patch:
        patch.setattr(durability, "system", counting)
        migration.migrate(copied(store.with_name("other")), silent)
    with monkeypatch.context() as patch:
        patch.setattr(durability, "system", Interrupting(counting.calls - 6, fail))
        with pytest.raises(OSError, match="Input/output"):
            migration.migrate(store, silent)
    assert [path.suffix for path in (store / "backup").iterdir()] == [".unfinished"]
    assert not text.exists()
    for path, data in ((text, b"another text"), (text.with_name("history.md.json"), b"{}")):
        path.write_bytes(data)
    assert await seen(store, Access.MAKE) == EXPECTED
    (backup,) = (store / "backup").iterdir()
    assert (backup / text.relative_to(store)).read_bytes() == b"another text"
    assert not text.exists()


# ---- several processes


async def test_who_finds_it_being_migrated_waits(store: Path):
    told: list[tuple[int, int]] = []
    waiting = trio.Event()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        waiting.set()

    async def opens() -> None:
        driver = await open_driver(str(store), progress=progress)
        await driver.aclose()

    with (store / "store.json").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens)
            await waiting.wait()
            assert told[0] == (0, 0)
            assert format_of(store) == 1
            fcntl.flock(held, fcntl.LOCK_UN)
    assert told[-1] == (16, 16)
    await check_migrated(store)


async def test_of_many_at_once_one_migrates(store: Path):
    script = "import sys, trio, store.registry as r; trio.run(r.open_driver, sys.argv[1])"
    run = functools.partial(trio.run_process, cwd=REPOSITORY)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run, [sys.executable, "-c", script, str(store)])
            nursery.start_soon(open_driver, str(store))
    await check_migrated(store)


async def test_one_that_may_not_be_written_isnt_migrated(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("store.drivers.file.format.why_read_only", lambda _root: "Read-only file system")
    with pytest.raises(ReadOnly, match=r"can't be written \(Read-only file system\): it can only be read"):
        await open_driver(str(store), access=Access.WRITE)
    assert await seen(store, Access.LOOK) == EXPECTED
    assert format_of(store) == 1
    assert not (store / "backup").exists()
