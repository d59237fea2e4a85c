"""JsonKv."""

from __future__ import annotations

import errno
import itertools
from typing import Any

import pytest
import trio
import trio.testing

from store.driver import ABSENT, Document, Driver, Etag, EtagConflict, KvChange
from store.errors import FormatError, InvalidName, StoreFailed, StoreFull
from tests.contract.backends import Backend, FileBackend, take

HOSTILE = [
    ".",
    "..",
    "a/../b",
    "a.json",
    "a.json/b",
    "~",
    "~/x",
    "%2F",
    "a,b",
    "a/b",
    ".lock",
    "A",
    "a",
    " ",
    "a b/ü/日本語",
    "*?[]",
    "\\",
    "-rf",
    "x" * 255,
    "x" * 254 + "y",
    "/".join(["seg"] * 200),
    "ü" * 200,
    "\u00a0",
]


async def put(driver: Driver, key: str, value: Any, if_match: Etag | None = None) -> Document:
    answer = await driver.kv.put(key, value, if_match=if_match)
    assert isinstance(answer, Document)
    return answer


async def test_nothing_is_there(driver: Driver):
    assert await driver.kv.get("a") is None
    assert await driver.kv.list() == []
    assert await driver.kv.delete("a") is None


@pytest.mark.parametrize("value", [None, 0, "text", [1, [2]], {"a": {"ü": None}}, True])
async def test_what_is_put_is_got(backend: Backend, value: Any):
    one, two = await backend.open(), await backend.open()
    document = await put(one, "a/b", value)
    assert document.value == value
    assert document == await one.kv.get("a/b") == await two.kv.get("a/b")


async def test_values_arent_shared_with_the_caller(driver: Driver):
    value = {"a": [1]}
    document = await put(driver, "k", value)
    value["a"].append(2)
    document.value["a"].append(3)
    found = await driver.kv.get("k")
    assert found is not None
    assert found.value == {"a": [1]}


async def test_no_two_versions_have_the_same_etag(driver: Driver):
    etags = set()
    for _ in range(5):
        etags.add((await put(driver, "k", "same")).etag)
        await driver.kv.delete("k")
        etags.add((await put(driver, "k", "same")).etag)
    assert len(etags) == 10
    assert ABSENT not in etags


async def test_if_match(backend: Backend):
    one, two = await backend.open(), await backend.open()
    first = await put(one, "k", 1, ABSENT)
    assert await two.kv.put("k", 2, if_match=ABSENT) == EtagConflict(first)
    second = await put(two, "k", 2, first.etag)
    assert await one.kv.put("k", 3, if_match=first.etag) == EtagConflict(second)
    assert await one.kv.delete("k", if_match=first.etag) == EtagConflict(second)
    assert await one.kv.delete("k", if_match=ABSENT) == EtagConflict(second)
    assert await one.kv.delete("k", if_match=second.etag) is None
    assert await one.kv.delete("k", if_match=second.etag) == EtagConflict(None)
    assert await one.kv.put("k", 4, if_match=second.etag) == EtagConflict(None)
    assert await one.kv.get("k") is await two.kv.get("k") is None


@pytest.mark.parametrize("start", [None, "there"])
async def test_a_race_has_exactly_one_winner(backend: Backend, start: str | None):
    drivers = [await backend.open() for _ in range(3)]
    etag = ABSENT if start is None else (await put(drivers[0], "k", start)).etag
    won: list[Document] = []
    lost: list[EtagConflict] = []

    async def attempt(number: int) -> None:
        answer = await drivers[number % 3].kv.put("k", number, if_match=etag)
        if isinstance(answer, EtagConflict):
            lost.append(answer)
        else:
            won.append(answer)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(attempt, number)
    assert len(won) == 1
    assert lost == [EtagConflict(won[0])] * 29
    assert await drivers[1].kv.get("k") == won[0]


async def test_a_counter_loses_no_turn(backend: Backend):
    drivers = [await backend.open() for _ in range(2)]

    async def count(driver: Driver) -> None:
        for _ in range(10):
            while True:
                found = await driver.kv.get("n")
                value = found.value if found else 0
                answer = await driver.kv.put("n", value + 1, if_match=found.etag if found else ABSENT)
                if isinstance(answer, Document):
                    break

    async with trio.open_nursery() as nursery:
        for driver in drivers * 2:
            nursery.start_soon(count, driver)
    found = await drivers[0].kv.get("n")
    assert found is not None
    assert found.value == 40


async def test_hostile_keys_stay_apart(backend: Backend):
    driver = await backend.open()
    for number, key in enumerate(HOSTILE):
        await put(driver, key, number)
    other = await backend.open()
    assert await other.kv.list() == sorted(HOSTILE)
    for number, key in enumerate(HOSTILE):
        found = await other.kv.get(key)
        assert found is not None, key
        assert found.value == number
    for key in HOSTILE:
        await driver.kv.delete(key)
    assert await other.kv.list() == []


@pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", "a\0", "a\nb", "\x7f", "a\ud800"])
async def test_what_cant_be_a_key(driver: Driver, key: str):
    for attempt in (driver.kv.get(key), driver.kv.put(key, 1), driver.kv.delete(key)):
        with pytest.raises(InvalidName):
            await attempt


async def test_list_by_prefix(driver: Driver):
    keys = ["a", "a/b", "a/c/d", "ab", "b/" + "x" * 300]
    for key in keys:
        await put(driver, key, 0)
    for prefix in ("", "a", "a/", "a/c/d", "b/x", "c", "a/c/de"):
        assert await driver.kv.list(prefix) == [key for key in keys if key.startswith(prefix)]


async def test_watch_tells_of_every_instances_changes(backend: Backend):
    one, two = await backend.open(), await backend.open()
    await put(one, "a/0", "before")
    long = "a/" + "x" * 300
    async with one.kv.watch("a/") as changes:
        first = await put(two, "a/1", 1)
        await put(two, "b", 2)
        assert await take(changes, 1) == [KvChange("a/1", first)]
        second = await put(one, long, 3)
        assert await take(changes, 1) == [KvChange(long, second)]
        await two.kv.delete("a/0")
        assert await take(changes, 1) == [KvChange("a/0", None)]
        await two.kv.delete(long)
        assert await take(changes, 1) == [KvChange(long, None)]


async def test_quick_changes_end_with_the_last(backend: Backend):
    one, two = await backend.open(), await backend.open()
    async with one.kv.watch() as changes:
        for number in range(20):
            await put(two, "k", number)
        with trio.fail_after(10):
            async for change in changes:
                assert change.key == "k"
                if change.document is not None and change.document.value == 19:
                    break


async def test_a_watch_begins_when_it_is_entered(backend: Backend):
    one, two = await backend.open(), await backend.open()
    await put(two, "early", 0)
    async with one.kv.watch() as changes:
        await put(two, "late", 0)
        assert [change.key for change in await take(changes, 1)] == ["late"]


@pytest.mark.parametrize(("error", "raised"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreFailed)])
async def test_a_failed_put_changes_nothing(backend: Backend, error: int, raised: type[Exception]):
    driver = await backend.open()
    before = await put(driver, "k", 1)
    with backend.failing("kv.put", OSError(error, "injected")), pytest.raises(raised):
        await driver.kv.put("k", 2)
    assert await driver.kv.get("k") == before
    assert await driver.kv.list() == ["k"]
    await put(driver, "k", 3, before.etag)


async def test_every_step_of_a_put_may_fail(file_backend: FileBackend):
    from tests.contract.backends import FaultySystem, faulty  # noqa: PLC0415

    driver = await file_backend.open()
    await put(driver, "k", 0)
    for step in itertools.count(1):
        system = FaultySystem("nothing", OSError())
        left = step

        def meet(label: str) -> None:
            nonlocal left
            if label == "kv.put":
                left -= 1
                if left == 0:
                    raise OSError(errno.EIO, "injected")

        system._meet = meet  # type: ignore[method-assign]
        with faulty(system):
            try:
                await driver.kv.put("k", step)
            except StoreFailed:
                found = await driver.kv.get("k")
                assert found is not None
                assert found.value in (step - 1, step)
                await put(driver, "k", step)
                continue
        break
    assert step == 5  # write, fsync, rename and the directory's fsync can fail
    names = {path.name for path in (file_backend.path / "kv").iterdir()}
    assert names == {".lock", "k.json"}


async def test_a_damaged_document_is_said_to_be(file_backend: FileBackend):
    driver = await file_backend.open()
    await put(driver, "k", 0)
    (file_backend.path / "kv" / "k.json").write_bytes(b'{"key":')
    with pytest.raises(FormatError):
        await driver.kv.get("k")
