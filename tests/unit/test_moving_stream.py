"""Workspaces and chats as streams of lines: `store.moving.exporting`, `store.moving.taking`."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.codec import encode
from store.driver import Driver
from store.drivers.chunks import sha256
from store.errors import Diverged, InvalidInput, NameTaken, StoreError, StoreFailed
from store.events import AttachmentPut, ChatCreated, Event, WorkspaceCreated
from store.library import open_store
from store.model import (
    LINE_MAX,
    BlobRef,
    ChatId,
    Millis,
    NewEntry,
    Origin,
    Seq,
    WorkspaceId,
    chat_space,
    uuid7,
    workspace_space,
)
from store.moving.exporting import export
from store.moving.migrating import migrate
from store.moving.report import Moved
from store.moving.stream import bytes_line, control
from store.moving.taking import Taking
from store.registry import open_driver
from tests.unit.test_moving import chat_id, filled, logs, spoil, template

__all__ = ["filled", "template"]


async def exported(path: Path, workspace: WorkspaceId, chat: ChatId | None = None) -> bytes:
    driver = await open_driver(str(path))
    out = io.BytesIO()
    moved = await export(driver, workspace, chat, out.write)
    await driver.aclose()
    assert moved.failures == []
    return out.getvalue()


async def take(driver: Driver, stream: bytes, workspace: WorkspaceId | None = None) -> Moved:
    taking = Taking(io.BytesIO(stream), driver)
    found = await taking.begin()
    return await taking.take(found, workspace or found.workspace)


async def taken(path: Path, stream: bytes) -> Moved:
    driver = await open_driver(str(path))
    try:
        return await take(driver, stream)
    finally:
        await driver.aclose()


async def demo_stream(path: Path) -> bytes:
    workspace, _ = await chat_id(path / "a")
    return await exported(path / "a", workspace)


def of_workspace(store: Path, workspace: WorkspaceId) -> dict[str, bytes]:
    return {name: data for name, data in logs(store).items() if workspace in name or name.startswith("objects")}


# ---- there and back


async def test_a_workspace_comes_back_as_it_was(filled: Path) -> None:
    workspace, _ = await chat_id(filled / "a")
    stream = await exported(filled / "a", workspace)
    moved = await taken(filled / "b", stream)
    assert (moved.failures, moved.workspaces, moved.logs) == ([], 1, 6)
    assert of_workspace(filled / "b", workspace) == of_workspace(filled / "a", workspace)
    assert await exported(filled / "b", workspace) == stream
    assert (await taken(filled / "b", stream)).nothing_new
    async with open_store(str(filled / "b")) as store:
        assert [found.state.name for found in await store.workspaces()] == ["demo"]
        with pytest.raises(NameTaken):
            await store.create_workspace("demo", "test")


async def test_what_is_there_is_passed_over_and_the_rest_added(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    await taken(filled / "b", await exported(filled / "a", workspace))
    async with open_store(str(filled / "a")) as store:
        trip = await (await store.workspace("demo")).chat("trip")
        await trip.append_events([{"role": "user", "content": "later"}], "test")
        await trip.attach("late", b"late", "test")
    moved = await taken(filled / "b", await exported(filled / "a", workspace))
    assert (moved.entries, moved.blobs) == (2, 1)
    assert of_workspace(filled / "b", workspace) == of_workspace(filled / "a", workspace)
    # The older one once more, into a store that went on.
    assert (await taken(filled / "b", await exported(filled / "b", workspace, None))).nothing_new
    assert chat


async def test_one_chat(filled: Path) -> None:
    for name in ("trip", "packed"):
        workspace, chat = await chat_id(filled / "a", name)
        stream = await exported(filled / "a", workspace, chat)
        other = WorkspaceId(uuid7())
        driver = await open_driver(str(filled / "b"))
        assert (await take(driver, stream, other)).logs == 1
        assert (await take(driver, stream, other)).nothing_new
        with pytest.raises(NameTaken, match="has the chat"):
            await take(driver, stream, WorkspaceId(uuid7()))
        (there,) = (filled / "b").glob(f"workspace/{other}/chats/{chat}/history.jsonl")
        assert there.read_bytes() == (filled / "a" / chat_space(workspace, chat) / "history.jsonl").read_bytes()
        await driver.aclose()


async def test_a_damaged_chat_is_left_out_and_said_to_be(filled: Path) -> None:
    workspace, chat = await chat_id(filled / "a")
    spoil(filled / "a", chat)
    driver = await open_driver(str(filled / "a"))
    out = io.BytesIO()
    moved = await export(driver, workspace, None, out.write)
    await driver.aclose()
    (failure,) = moved.failures
    assert failure.startswith("demo/trip: ")
    moved = await taken(filled / "b", out.getvalue())
    (failure,) = moved.failures
    assert failure.startswith(f"chat {chat} isn't in the stream: ")
    async with open_store(str(filled / "b")) as store:
        with pytest.raises(StoreFailed, match="demo/trip wasn't moved here"):
            await (await (await store.workspace("demo")).chat("trip")).text()


# ---- what isn't taken


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


# ---- any logs, any way round

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def _events(blobs: list[BlobRef]) -> st.SearchStrategy[bytes]:
    def put(ref: BlobRef, name: str) -> Event:
        return AttachmentPut(uuid7(), name, ref.digest, ref.size, "text/plain")

    messages = st.builds(
        lambda text: orjson.dumps({"type": "message.appended", "role": "user", "content": text}), _TEXT
    )
    unknown = st.sampled_from(
        [b"null", b'{"type":"its.own","x":1.50}', b'"text"', b"[1, 2 ]", b'{"a":"sha256:\\u0030"}']
    )
    attached = st.builds(put, st.sampled_from(blobs), st.sampled_from(["a.txt", "b.txt"])).map(lambda e: e.encode())
    return st.one_of(messages, unknown, attached)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_any_logs_come_over_by_migrating_and_as_a_stream(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("moving")
    random.seed(0)
    source = await open_driver(str(path / "a"))
    blobs = [await source.blobs.put(bytes([number]) * (number * 700_000)) for number in range(3)]
    workspace, chats = WorkspaceId(uuid7()), [ChatId(uuid7()) for _ in range(data.draw(st.integers(0, 2)))]
    own = await source.open_log(workspace_space(workspace), create=True)
    await own.append([NewEntry(WorkspaceCreated(workspace, "demo", "me").encode(), "test")])
    origin = st.none() | st.builds(Origin, _TEXT, st.integers(0, 10**12).map(Millis))
    new = st.tuples(_events(blobs), _TEXT, origin).map(lambda found: NewEntry(*found))
    for number, chat in enumerate(chats):
        log = await source.open_log(chat_space(workspace, chat), create=True)
        for batch in data.draw(st.lists(st.lists(new, min_size=1, max_size=3), max_size=5)):
            await log.append(batch)
        await log.truncate_before(Seq(data.draw(st.integers(1, log.head.seq + 1))))
        await log.aclose()
        await own.append([NewEntry(ChatCreated(chat, f"chat {number}").encode(), "test")])
    await own.aclose()

    memory, back = await open_driver("memory:"), await open_driver(str(path / "b"))
    assert (await migrate(source, memory)).failures == []
    assert (await migrate(memory, back, verify=True)).failures == []
    named = {name for name in logs(path / "a") if not name.startswith("objects")}
    assert {name: logs(path / "a")[name] for name in named} == {name: logs(path / "b")[name] for name in named}
    assert {sha256(text) for text in logs(path / "b").values()} <= {sha256(text) for text in logs(path / "a").values()}

    out = io.BytesIO()
    assert (await export(back, workspace, None, out.write)).failures == []
    streamed = await open_driver(str(path / "c"))
    assert (await take(streamed, out.getvalue())).failures == []
    assert logs(path / "c") == logs(path / "b")
    for driver in (source, memory, back, streamed):
        await driver.aclose()
