"""A log cut or changed at every byte: what is undamaged is there, what is damaged is noticed, never taken for true."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import trio

from store.driver import AppendLog
from store.drivers.file.salvage import LOST, REPAIRED
from store.drivers.file.text import LOG_NAME
from store.errors import CorruptLog
from store.fsck import Severity, check_store
from store.library import open_store
from store.model import Entry, Millis, NewEntry, Origin
from tests.contract.backends import SPACE, FileBackend
from tests.faults.faulty import FailingAt, standing_in
from tests.support.torture import LONG

ENTRIES = 50


@pytest.fixture
async def backend(quick_path: Path) -> AsyncIterator[FileBackend]:
    found = FileBackend(quick_path / "store")
    with standing_in(FailingAt()):
        yield found
        await found.aclose()


def new(*numbers: int) -> list[NewEntry]:
    return [NewEntry(b'{"n":"\xc3\xa9%d"}' % number, "uid:1/me") for number in numbers]


async def read(log: AppendLog) -> list[Entry]:
    return [entry async for entry in log.read()]


async def written(backend: FileBackend, *batches: list[NewEntry]) -> tuple[bytes, list[Entry], list[int]]:
    """A log of these batches: its bytes, its entries, and where each batch ends."""
    log = await (await backend.open()).open_log(SPACE, create=True)
    ends = []
    for batch in batches:
        await log.append(batch)
        ends.append(log.head.size)
    entries = await read(log)
    await log.aclose()
    return (backend.path / SPACE / LOG_NAME).read_bytes(), entries, ends


@pytest.mark.parametrize("tail", [[[8], [9], [10]], [[8, 9, 10]], [[8], [9, 10]]])
async def test_cut_at_every_byte_of_the_last_three_entries(backend: FileBackend, tail: list[list[int]]):
    whole, entries, ends = await written(backend, new(1), new(2, 3), new(4, 5, 6, 7), *(new(*batch) for batch in tail))
    path = backend.path / SPACE / LOG_NAME
    driver = await backend.open()
    kept_before = 0
    for cut in range(ends[2], len(whole) + 1):
        path.write_bytes(whole[:cut])
        end = max(end for end in ends if end <= cut)
        log = await driver.open_log(SPACE)
        good = await read(log)
        assert good == entries[: len(good)]
        assert log.head.size == end == path.stat().st_size
        assert await log.append(new(99)) == len(good) + 1
        await log.sync()
        await log.aclose()
        again = await driver.open_log(SPACE)
        assert (await read(again))[:-1] == good
        await again.aclose()
        kept = sorted((backend.path / "quarantine").glob("*.torn"), key=lambda found: found.stat().st_mtime_ns)
        assert len(kept) == kept_before + (cut > end)
        kept_before = len(kept)
        if cut > end:
            assert whole[end:cut] in {found.read_bytes() for found in kept[-2:]}


async def test_a_flipped_bit_in_every_byte(backend: FileBackend):
    whole, entries, ends = await written(backend, *(new(number) for number in range(1, ENTRIES + 1)))
    path = backend.path / SPACE / LOG_NAME
    driver = await backend.open()
    for at in range(len(whole)):
        hit = sum(end <= at for end in ends)
        for bit in range(8) if LONG else [at % 8]:
            damaged = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
            path.write_bytes(damaged)
            found: list[Entry] = []
            log = None
            try:
                log = await driver.open_log(SPACE)
                async for entry in log.read():
                    found.append(entry)  # noqa: PERF401
            except CorruptLog as damage:
                noticed = damage
            else:
                pytest.fail(f"bit {bit} of byte {at} was flipped, and nobody noticed")
            assert noticed.seq <= hit
            assert found == entries[:hit], f"bit {bit} of byte {at}"
            assert path.read_bytes() == damaged
            if log is not None:
                if LONG or not at % 7:
                    await _check_backward(log, entries, hit)
                await log.aclose()
    assert not (backend.path / "quarantine").exists()


async def _check_backward(log: AppendLog, entries: list[Entry], hit: int) -> None:
    """What reading from the end finds before it meets the damage (where that isn't behind the head) is right."""
    found: list[Entry] = []
    head = log.head.seq
    try:
        async for entry in log.read(reverse=True):
            found.append(entry)  # noqa: PERF401
    except CorruptLog:
        assert head - len(found) >= hit
    else:
        assert hit == head
    assert found == entries[head - len(found) : head][::-1]


def content(entry: Entry) -> tuple[object, ...]:
    """All that a repair must keep."""
    return entry.seq, entry.ts, entry.actor, entry.origin, entry.data


async def chat_of_batches(url: str) -> tuple[Path, list[Entry]]:
    """A chat with single entries, batches, and entries that come from elsewhere: its log, and what that says."""
    async with open_store(url) as store:
        workspace = await store.create_workspace("demo", "test")
        chat = await workspace.create_chat("trip", "test")
        for size in (1, 3, 1, 2, 5, 1, 4, 1):
            await chat.space.append(
                [
                    NewEntry(
                        orjson.dumps(
                            {"type": "message.appended", "id": f"m{n}", "role": "user", "content": f"\u00e9 {n}\n"}
                        ),
                        "uid:1/me",
                        Origin("elsewhere", Millis(7)) if n % 2 else None,
                    )
                    for n in range(size)
                ]
            )
        return chat.directory / LOG_NAME, [entry async for entry in chat.log()]


async def test_a_flipped_bit_in_every_byte_is_repaired(quick_path: Path):
    """Every entry that wasn't hit is as it was, and the log goes on behind the repair."""
    sound, root = quick_path / "sound", quick_path / "store"
    with standing_in(FailingAt()):
        path, entries = await chat_of_batches(sound.as_uri())
        path = root / path.relative_to(sound)
        shutil.copytree(sound, root)
        whole = path.read_bytes()
        ends = list(itertools.accumulate(len(line) for line in whole.splitlines(keepends=True)))
        assert len(ends) == len(entries)
        newlines = [end - 1 for end in ends]
        some = {*range(0, len(whole), len(whole) // 40), newlines[0], newlines[2], newlines[-2], newlines[-1]}
        for at in range(len(whole)) if LONG else sorted(some):
            shutil.rmtree(root)
            shutil.copytree(sound, root)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            hit = entries[sum(end <= at for end in ends)]
            try:
                await _check_repair(root, entries, hit)
            except BaseException as error:
                error.add_note(f"bit {at % 8} of byte {at}, in entry {hit.seq}")
                raise


async def _check_repair(root: Path, entries: list[Entry], hit: Entry) -> None:
    report = await trio.to_thread.run_sync(lambda: check_store(root, repair=True))
    assert report.exit_code in {0, 1}
    after = await _read_chat(root)
    found = {entry.seq: entry for entry in after}
    others = [entry for entry in entries if entry.seq != hit.seq]
    assert [content(found[entry.seq]) for entry in others] == [content(entry) for entry in others]
    there = found.get(hit.seq)
    if there is None:
        assert hit is entries[-1]  # a torn tail
    elif content(there) != content(hit):
        assert orjson.loads(there.data)["type"] in {LOST, REPAIRED}
    assert all(orjson.loads(entry.data)["type"] == REPAIRED for entry in after if entry.seq > entries[-1].seq)
    async with open_store(root.as_uri()) as store:
        chat = await (await store.workspace("demo")).chat("trip")
        await chat.append_events([{"role": "user", "content": "goes on"}], "test")
    again = await _read_chat(root)
    assert again[:-1] == after
    assert orjson.loads(again[-1].data)["content"] == "goes on"
    assert [entry.seq for entry in again] == list(range(1, len(again) + 1))
    report = await trio.to_thread.run_sync(lambda: check_store(root, full=True))
    assert [each for each in report.findings if each.severity < Severity.INFO] == []


async def _read_chat(root: Path) -> list[Entry]:
    async with open_store(root.as_uri()) as store:
        chat = await (await store.workspace("demo")).chat("trip")
        assert await chat.text()
        return [entry async for entry in chat.log()]


async def test_a_chat_with_a_flipped_bit_is_read_only_and_the_others_go_on(quick_path: Path):
    url = (quick_path / "store").as_uri()
    with standing_in(FailingAt()):
        async with open_store(url) as store:
            workspace = await store.create_workspace("demo", "test")
            other = await workspace.create_chat("other", "test")
            chat = await workspace.create_chat("trip", "test")
            ends = []
            for number in range(ENTRIES):
                await chat.append_events([{"role": "user", "content": f"message {number}"}], "test")
                ends.append(chat.space.head.size)
            path = chat.directory / LOG_NAME
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if LONG else 97):
            damaged = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
            path.write_bytes(damaged)
            async with open_store(url) as store:
                workspace = await store.workspace("demo")
                chat = await workspace.chat("trip")
                text = await chat.text()
                hit = sum(end <= at for end in ends)
                assert [number for number in range(ENTRIES) if b"message %d\n" % number in text] == list(range(hit))
                # Whoever has read it knows.
                with pytest.raises(CorruptLog):
                    await chat.append_events([{"role": "user", "content": "more"}], "test")
                other = await workspace.chat("other")
                await other.append_events([{"role": "user", "content": "goes on"}], "test")
                await other.sync()
            assert path.read_bytes() == damaged
