"""Streams that aren't taken, and what is said of them: `store.moving.taking`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from store.codec import encode
from store.errors import Diverged, InvalidInput, NameTaken, StoreError
from store.library import open_store
from store.model import (
    LINE_MAX,
    NewEntry,
    WorkspaceId,
)
from store.moving.stream import bytes_line, control
from store.moving.taking import Taking
from store.registry import open_driver
from tests.support.moved import (
    chat_id,
    demo_stream,
    exported,
    logs,
    of_workspace,
    taken,
)


def lines_of(stream: bytes) -> list[bytes]:
    return stream.split(b"\n")[:-1]


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


async def refused(path: Path, stream: bytes, kind: type[StoreError] = InvalidInput) -> str:
    """What is said of a stream that can't be taken; no workspace is shown."""
    with pytest.raises(kind) as caught:
        await taken(path, stream)
    async with open_store(str(path)) as store:
        assert await store.workspaces() == []
    return str(caught.value)


async def test_every_end_that_is_cut_off_is_refused_and_the_rest_taken_later(filled: Path) -> None:
    stream = await demo_stream(filled)
    lines = lines_of(stream)
    store = filled / "b"
    for count in range(1, len(lines), 3):
        # Before its own log is there, nothing of the workspace is shown.
        said = await self_refused(store, joined(lines[:count]))
        assert "line" in said
        said = await self_refused(store, joined(lines[:count]) + lines[count][:-3])
        assert f"line {count + 1} was cut off" in said or f"line {count + 1} isn't" in said
    await taken(store, stream)
    workspace, _ = await chat_id(filled / "a")
    assert of_workspace(store, workspace) == of_workspace(filled / "a", workspace)


async def self_refused(path: Path, stream: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        await taken(path, stream)
    return str(caught.value)


def an_entry(lines: list[bytes], nth: int = 1) -> int:
    return [number for number, line in enumerate(lines) if line.startswith(b'{"seq":')][nth]


Spoil = Callable[[list[bytes], int], None]


def _drop(lines: list[bytes], at: int) -> None:
    del lines[at]


def _swap(lines: list[bytes], at: int) -> None:
    lines[at - 1], lines[at] = lines[at], lines[at - 1]


def _twice(lines: list[bytes], at: int) -> None:
    lines.insert(at, lines[at])


def _change(lines: list[bytes], at: int) -> None:
    lines[at] = lines[at].replace(b"two", b"owt")


def _forge(lines: list[bytes], at: int) -> None:
    lines[at] = lines[at].replace(b'"actor":"', b'"actor":"x')


def _garble(lines: list[bytes], at: int) -> None:
    lines[at] = b'{"seq":nonsense}'


def _other(lines: list[bytes], at: int) -> None:
    lines[at] = b"\xff\x00"


@pytest.mark.parametrize(
    ("spoiling", "said"),
    [
        (_drop, "has entry 3, where 2 must stand"),
        (_swap, "has entry 2, where 1 must stand"),
        (_twice, "has entry 2, where 3 must stand"),
        (_change, "(entry 2) has a wrong checksum"),
        (_forge, "(entry 2) has a wrong checksum"),
        (_garble, "isn't an entry of a log"),
        (_other, "isn't an entry of a log"),
    ],
)
async def test_a_log_that_is_not_whole_is_refused_at_its_line(filled: Path, spoiling: Spoil, said: str) -> None:
    lines = lines_of(await demo_stream(filled))
    at = an_entry(lines)
    spoiling(lines, at)
    found = await refused(filled / "b", joined(lines))
    assert said in found
    number = int(found.split()[1])
    assert number - at in {0, 1, 2}


async def test_other_lines_that_are_wrong(filled: Path) -> None:
    stream = await demo_stream(filled)
    lines = lines_of(stream)
    blob = next(number for number, line in enumerate(lines) if line.startswith(b'{"chatfs":"blob"'))
    ours = orjson.loads(lines[0])
    cases = {
        "isn't what chatfs export": [b'{"role":"user"}', *lines],
        "of another version": [orjson.dumps(ours | {"version": 2}), *lines[1:]],
        "has no 'name'": [orjson.dumps(ours | {"name": 7}), *lines[1:]],
        "names no workspace": [orjson.dumps(ours | {"workspace": "../.."}), *lines[1:]],
        "names no chat": [lines[0], orjson.dumps(orjson.loads(lines[1]) | {"chat": "../../x"}), *lines[2:]],
        "has no 'head'": [lines[0], orjson.dumps(orjson.loads(lines[1]) | {"head": []}), *lines[2:]],
        "isn't JSON": [*lines[:2], b'{"chatfs":', *lines[2:]],
        "is none that may stand here": [*lines[:1], b'{"chatfs":"else"}', *lines[1:]],
        "lines are missing": [*lines[: an_entry(lines, 0)], *lines[an_entry(lines, 0) + 9 :]],
        "has no digest": [*lines[:blob], control("blob", digest="x", size=0)[:-1], *lines[blob + 1 :]],
        "of a blob are missing": [*lines[: blob + 1], *lines[blob + 2 :]],
        "isn't what its digest says": [*lines[: blob + 1], bytes_line(bytes(1 << 20))[:-1], *lines[blob + 2 :]],
        "other bytes of a blob": [*lines[: blob + 1], bytes_line(bytes(8 << 20))[:-1], *lines[blob + 2 :]],
        "has no 'data'": [*lines[: blob + 1], b'{"chatfs":"bytes","data":"?"}', *lines[blob + 2 :]],
    }
    for number, (said, wrong) in enumerate(cases.items()):
        assert said in await refused(filled / f"b{number}", joined(wrong)), said
    assert "comes behind the end" in await self_refused(filled / "c", stream + control("end", logs=6))


async def test_a_refused_log_that_begins_later_keeps_nobody_from_the_right_one(filled: Path) -> None:
    """A store would take no other beginning of a log than one that it has."""
    lines = lines_of(await demo_stream(filled))
    begin = next(number for number, line in enumerate(lines) if line.startswith(b'{"chatfs":"log"'))
    wrong = orjson.loads(lines[begin]) | {"base": {"seq": 10**14, "ts": 0, "crc": 0}}
    said = await refused(filled / "b", joined([*lines[:begin], orjson.dumps(wrong), *lines[begin + 1 :]]))
    assert f"where {10**14 + 1} must stand" in said
    moved = await taken(filled / "b", joined(lines))
    assert moved.failures == []


def logged(lines: list[bytes], entries: list[NewEntry], mores: list[int], times: list[int]) -> list[bytes]:
    """The same with another first log."""
    begin = next(number for number, line in enumerate(lines) if line.startswith(b'{"chatfs":"log"'))
    end = next(number for number, line in enumerate(lines) if line.startswith(b'{"chatfs":"log"') and number > begin)
    crc, found = 0, []
    for seq, (entry, more, ts) in enumerate(zip(entries, mores, times, strict=True), 1):
        line, crc = encode(entry, seq, ts, crc, more)
        found.append(line[:-1])
    zero = {"seq": 0, "ts": 0, "crc": 0}
    head = orjson.loads(lines[begin]) | {"base": zero, "head": {"seq": len(entries), "crc": crc}, "fold": None}
    return [*lines[:begin], orjson.dumps(head), *found, *lines[end:]]


@pytest.mark.parametrize(
    ("size", "more", "ts", "said"),
    [
        (LINE_MAX + 1, 0, 9, "(entry 2) isn't one line of at most"),
        (10, 0, 7, "(entry 2) has the time 7, which isn't one at or after 8"),
        (10, 3, 9, "(entry 2) isn't what its batch goes on with"),
    ],
)
async def test_an_entry_that_no_log_can_have_is_refused_at_its_line(
    filled: Path, size: int, more: int, ts: int, said: str
) -> None:
    lines = lines_of(await demo_stream(filled))
    entries = [NewEntry(b'"first"', "test"), NewEntry(b'"%b"' % (b"x" * (size - 2)), "test")]
    wrong = logged(lines, entries, [1 if more else 0, more], [8, ts])
    assert said in await refused(filled / "b", joined(wrong))
    entries[1] = NewEntry(b'"%b"' % (b"x" * (min(size, LINE_MAX) - 2)), "test")
    await taken(filled / "b", joined(logged(lines, entries, [1, 0], [8, 9])))


async def test_a_workspace_whose_chats_are_not_all_there_is_not_shown(filled: Path) -> None:
    lines = lines_of(await demo_stream(filled))
    begins = [number for number, line in enumerate(lines) if line.startswith(b'{"chatfs":"log"')]
    without = lines[: begins[1]] + lines[begins[2] :]
    assert "whose log isn't in the stream" in await refused(filled / "b", joined(without))
    # A log that says it is another workspace's.
    other = await exported(filled / "a", (await other_id(filled)))
    own = next(number for number, line in enumerate(lines_of(other)) if b'"chat":null' in line)
    mixed = lines[: begins[-1]] + lines_of(other)[own:]
    assert "not of" in await refused(filled / "c", joined(mixed))


async def other_id(path: Path) -> WorkspaceId:
    async with open_store(str(path / "a")) as store:
        return (await store.workspace("second")).id


async def test_a_line_that_never_ends_takes_no_memory(filled: Path) -> None:
    class Endless(io.RawIOBase):
        read = 0

        def read1(self, size: int) -> bytes:
            self.read += size
            assert self.read < 64 << 20
            return b"x" * size

    lines = await demo_stream(filled)
    first = lines[: lines.index(b"\n") + 1]

    class After(Endless):
        def read1(self, size: int) -> bytes:
            if not self.read:
                self.read = 1
                return first
            return super().read1(size)

    driver = await open_driver(str(filled / "b"))
    taking = Taking(After(), driver)  # type: ignore[arg-type]
    found = await taking.begin()
    with pytest.raises(InvalidInput, match="line 2 is longer than any"):
        await taking.take(found, found.workspace)
    await driver.aclose()


async def test_streams_that_diverged(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    await taken(filled / "b", await exported(filled / "a", workspace))
    for store, text in (("a", "this way"), ("b", "that way")):
        async with open_store(str(filled / store)) as opened:
            trip = await (await opened.workspace("demo")).chat("trip")
            await trip.append_events([{"role": "user", "content": text}], "test")
    stream = await exported(filled / "a", workspace)
    lines = lines_of(stream)
    number, seq = next(
        (number, orjson.loads(line)["seq"])
        for number, line in reversed(list(enumerate(lines, 1)))
        if b"this way" in line
    )
    before = logs(filled / "b")
    with pytest.raises(Diverged, match=f"line {number} diverged: the store has another entry {seq}"):
        await taken(filled / "b", stream)
    assert logs(filled / "b") == before
    assert chat


async def test_a_name_that_is_taken_is_refused_before_anything_is_written(filled: Path) -> None:
    stream = await demo_stream(filled)
    async with open_store(str(filled / "b")) as store:
        await store.create_workspace("demo", "test")
    before = logs(filled / "b")
    with pytest.raises(NameTaken, match="another workspace 'demo'"):
        await taken(filled / "b", stream)
    assert logs(filled / "b") == before
    # A stream that hides its name in front.
    first, _, rest = stream.partition(b"\n")
    with pytest.raises(NameTaken, match="another workspace 'demo'"):
        await taken(filled / "b", first.replace(b'"name":"demo"', b'"name":"free"') + b"\n" + rest)
    async with open_store(str(filled / "b")) as store:
        assert len(await store.workspaces()) == 1
