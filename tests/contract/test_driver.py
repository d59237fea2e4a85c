"""Driver: spaces, local directories, what it tells of; and the registry."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest
import trio
import trio.testing

from store.driver import Driver
from store.errors import FormatError, InvalidInput, InvalidName, SpaceNotFound, StoreFailed
from store.model import SpaceId
from store.registry import open_driver
from tests.contract.backends import CHAT, SPACE, Backend, FileBackend, entries


async def nothing_told(changes: AsyncIterator[set[SpaceId]]) -> None:
    """Nothing is told for much longer than telling takes."""
    with trio.move_on_after(0.1) as scope:
        await anext(changes)
    assert scope.cancelled_caught


async def next_change(changes: AsyncIterator[set[SpaceId]]) -> set[SpaceId]:
    with trio.fail_after(10):
        return await anext(changes)


async def test_spaces(backend: Backend):
    driver = await backend.open()
    assert await driver.spaces() == []
    await driver.open_log(SpaceId("workspace/w2"), create=True)
    await driver.open_log(SPACE, create=True)
    await driver.open_log(CHAT, create=True)
    other = await backend.open()
    assert await other.spaces() == [SPACE, "workspace/w2"]
    assert await other.spaces(SPACE) == [CHAT]
    assert await other.spaces("workspace/w2") == await other.spaces("workspace/none") == []
    with pytest.raises(InvalidName):
        await other.spaces("kv")


async def test_delete_space(backend: Backend):
    driver, other = await backend.open(), await backend.open()
    workspace = await driver.open_log(SPACE, create=True)
    chat = await other.open_log(CHAT, create=True)
    await chat.append(entries("a"))
    scratch = driver.local_dir(CHAT)
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "x").write_text("x")
    await driver.delete_space(CHAT)
    assert await other.spaces(SPACE) == []
    assert not scratch.exists()
    with pytest.raises(SpaceNotFound):
        await chat.append(entries("b"))
    with pytest.raises(SpaceNotFound):
        await other.open_log(CHAT)
    with pytest.raises(SpaceNotFound):
        await driver.delete_space(CHAT)
    assert await workspace.append(entries("a")) == 1
    again = await driver.open_log(CHAT, create=True)
    assert again.head.seq == 0
    await driver.delete_space(SPACE)
    assert await driver.spaces() == await driver.spaces(SPACE) == []
    with pytest.raises(SpaceNotFound):
        await driver.open_log(CHAT)


async def test_a_local_directory_may_come_first(driver: Driver):
    directory = driver.local_dir(SPACE)
    directory.mkdir(parents=True)
    (directory / "scratch").write_text("kept")
    log = await driver.open_log(SPACE, create=True)
    assert await log.append(entries("a")) == 1
    assert (driver.local_dir(SPACE) / "scratch").read_text() == "kept"


async def test_local_directories_are_apart(backend: Backend):
    one, two = await backend.open(), await backend.open()
    assert one.local_dir(SPACE) == two.local_dir(SPACE) != one.local_dir(CHAT)
    with pytest.raises(InvalidName):
        one.local_dir(SpaceId("workspace/../.."))


async def test_changes(backend: Backend):
    driver, other = await backend.open(), await backend.open()
    await driver.open_log(SPACE, create=True)
    log, chat = await other.open_log(SPACE), await other.open_log(CHAT, create=True)
    changes = driver.changes()
    driver.watch(SPACE)
    driver.watch(SPACE)
    await log.append(entries("a"))
    assert await next_change(changes) == {SPACE}
    await chat.append(entries("a"))
    await nothing_told(changes)
    driver.unwatch(SPACE)
    await log.append(entries("b"))
    assert await next_change(changes) == {SPACE}
    await log.truncate_before(log.head.seq)
    assert await next_change(changes) == {SPACE}
    await nothing_told(changes)
    # The log was replaced: it is still watched.
    await log.append(entries("c"))
    assert await next_change(changes) == {SPACE}
    driver.unwatch(SPACE)
    await log.append(entries("d"))
    await nothing_told(changes)
    driver.unwatch(SPACE)


async def test_a_burst_is_told_once_or_a_few_times(backend: Backend):
    driver, other = await backend.open(), await backend.open()
    log = await other.open_log(SPACE, create=True)
    driver.watch(SPACE)
    for _ in range(500):
        await log.append(entries("x"))
    changes = driver.changes()
    told = 0
    with trio.move_on_after(0.2):
        while True:
            assert await anext(changes) == {SPACE}
            told += 1
    assert 1 <= told <= 3


async def test_watching_a_space_before_it_is_there(backend: Backend):
    driver, other = await backend.open(), await backend.open()
    driver.watch(CHAT)
    changes = driver.changes()
    log = await other.open_log(CHAT, create=True)
    await log.append(entries("x"))
    assert await next_change(changes) == {CHAT}
    await nothing_told(changes)
    await log.append(entries("y"))
    assert await next_change(changes) == {CHAT}


async def test_spaces_that_come_and_go_are_told(backend: Backend):
    driver, other = await backend.open(), await backend.open()
    driver.watch_spaces()
    changes = driver.changes()
    await other.open_log(SPACE, create=True)
    assert await next_change(changes) == {"workspace"}
    assert await driver.spaces() == [SPACE]
    driver.watch_spaces(SPACE)
    await other.open_log(CHAT, create=True)
    assert await next_change(changes) == {SPACE}
    await nothing_told(changes)
    await other.delete_space(CHAT)
    assert await next_change(changes) == {SPACE}
    await other.delete_space(SPACE)
    with trio.fail_after(10):
        while "workspace" not in await anext(changes):
            pass


async def test_closing_ends_changes(driver: Driver):
    driver.watch_spaces()
    async with trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await driver.aclose()

        nursery.start_soon(close)
        with trio.fail_after(5):
            assert [change async for change in driver.changes()] == []


async def test_usage(driver: Driver):
    size, blocks, free, available = driver.usage()
    assert size > 0
    assert blocks >= free >= available > 0


async def test_private_and_named_memory():
    one, two = await open_driver("memory:"), await open_driver("memory:")
    named, same = await open_driver("memory:n"), await open_driver("memory:n")
    for driver in (one, named):
        await driver.kv.put("k", 1)
    assert await two.kv.get("k") is None
    assert await same.kv.get("k") is not None
    directory = named.local_dir(SPACE)
    directory.mkdir(parents=True)
    for driver in (one, two, named):
        await driver.aclose()
    assert directory.exists()
    await same.aclose()
    assert not directory.exists()
    again = await open_driver("memory:n")
    assert await again.kv.get("k") is None
    await again.aclose()


@pytest.mark.parametrize("url", ["ftp://host/x", "git://host/x", "git:", "file://host/x", "file:", ""])
async def test_urls_that_name_no_driver(url: str):
    with pytest.raises(InvalidInput):
        await open_driver(url)


async def test_a_path_and_its_url_are_one_store(tmp_path):
    path = tmp_path / "a b%20" / "deep"
    one = await open_driver(str(path))
    await one.kv.put("k", 1)
    two = await open_driver(path.as_uri())
    assert await two.kv.get("k") == await one.kv.get("k")
    assert [found.name for found in tmp_path.iterdir()] == ["a b%20"]
    await one.aclose()
    await two.aclose()


async def test_store_json(file_backend: FileBackend):
    await file_backend.open()
    described = json.loads((file_backend.path / "store.json").read_text())
    assert described["format"] == 2
    await file_backend.open()
    assert json.loads((file_backend.path / "store.json").read_text()) == described
    assert [path.name for path in file_backend.path.iterdir()] == ["store.json"]


async def test_many_make_the_store_at_once(file_backend: FileBackend):
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(file_backend.open)
    assert [path.name for path in file_backend.path.iterdir()] == ["store.json"]


@pytest.mark.parametrize("text", ['{"format":3,"id":"x"}', "{}", "[]", "not json", '{"format":"1"}'])
async def test_another_format_is_refused(file_backend: FileBackend, text: str):
    file_backend.path.mkdir()
    (file_backend.path / "store.json").write_text(text)
    with pytest.raises(FormatError):
        await file_backend.open()


async def test_a_directory_of_something_else_is_refused(file_backend: FileBackend):
    file_backend.path.mkdir()
    (file_backend.path / ".bashrc").write_text("x")
    with pytest.raises(FormatError):
        await file_backend.open()
    assert [path.name for path in file_backend.path.iterdir()] == [".bashrc"]


async def test_closing_gives_every_descriptor_back(file_backend: FileBackend):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def use() -> None:
        driver = await open_driver(str(file_backend.path))
        log = await driver.open_log(SPACE, create=True)
        driver.watch(SPACE)
        driver.watch_spaces()
        grant = await driver.leases.acquire(SPACE, "me", 1000)
        async with log.subscribe(), driver.kv.watch(), driver.blobs.watch():
            await log.append(entries("a"), epoch=grant.epoch)
            await driver.kv.put("k", 1)
            staging = driver.blobs.stage(label={})
            staging.write(0, b"x")
            await log.sync()
            await staging.commit()
            await staging.discard()
            await log.truncate_before(log.head.seq)
            await log.append(entries("b"), epoch=grant.epoch)
        driver.unwatch(SPACE)
        await log.aclose()
        await driver.aclose()

    await use()
    before = count()
    for _ in range(5):
        await use()
    assert count() == before


async def test_without_inotify_watched_files_are_polled(file_backend: FileBackend, monkeypatch, caplog):
    from store.drivers.file import watch  # noqa: PLC0415

    class NoMore(watch.INotify):  # type: ignore[misc]
        def add_watch(self, path, mask):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(watch, "INotify", NoMore)
    driver, other = await file_backend.open(), await file_backend.open()
    log = await other.open_log(SPACE, create=True)
    driver.watch(SPACE)
    changes = driver.changes()
    for _ in range(3):
        await log.append(entries("x"))
        assert await next_change(changes) == {SPACE}
    async with driver.kv.watch() as documents:
        await other.kv.put("k", 1)
        with trio.fail_after(10):
            assert (await anext(documents)).key == "k"
    assert len([record for record in caplog.records if "inotify" in record.getMessage()]) == 1


async def test_what_another_makes_while_it_is_opened_is_no_directory_that_cant_be_written(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await file_backend.open()
    usual, made = os.access, file_backend.path / "workspace"

    def access(path: Path, mode: int, **how: bool) -> bool:
        found = usual(path, mode, **how)
        if Path(path) == made:
            made.mkdir()
        return found

    assert not made.exists()
    monkeypatch.setattr(os, "access", access)
    assert not (await file_backend.open()).read_only


@pytest.mark.parametrize(
    ("module", "call", "code", "what"),
    [
        (os, "link", errno.EPERM, "hard links"),
        (os, "link", errno.EOPNOTSUPP, "hard links"),
        (fcntl, "flock", errno.EOPNOTSUPP, "file locks"),
        (fcntl, "flock", errno.ENOLCK, "file locks"),
    ],
)
async def test_a_file_system_without_what_a_store_needs_is_named_when_it_is_made(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str, code: int, what: str
) -> None:
    def refuse(*_args: object, **_how: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, refuse)
        with pytest.raises(StoreFailed, match=rf"has no {what} .*another one"):
            await file_backend.open()
    assert not list(file_backend.path.iterdir())
    await file_backend.open()
