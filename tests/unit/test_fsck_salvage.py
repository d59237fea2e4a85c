"""A damaged log, surveyed and repaired: every entry that wasn't hit stays as it was, in its place."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import codec
from store.drivers.file import salvage, survey
from store.drivers.file.tail import ORIGIN, Mark, last_batch
from store.drivers.file.text import BASE_NAME, LOG_NAME, read_base
from store.errors import CorruptLog
from store.model import Entry, Millis, NewEntry, Origin, Seq, SpaceId
from store.registry import open_driver
from tests.unit.strategies import examples

SPACE = SpaceId("workspace/w")
NOW = Millis(9_999)
TIMES = itertools.count(NOW)


@contextlib.contextmanager
def roots() -> Iterator[Path]:
    """A directory where an fsync costs nothing, if there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as found:
        yield Path(found)


@pytest.fixture
def root() -> Iterator[Path]:
    with roots() as found:
        yield found


def batches(sizes: list[int], *, after: Seq = Seq(0), crc: int = 0) -> bytes:
    """A log of batches with so many entries each."""
    text = b""
    for size in sizes:
        batch = [
            NewEntry(
                orjson.dumps({"type": "message.appended", "n": after + n, "text": 'a "quoted"\n line ' * (n % 3)}),
                "uid:1/agent",
                Origin("elsewhere", Millis(7)) if n % 4 == 3 else None,
            )
            for n in range(size)
        ]
        lines, encoded = codec.encode_batch(batch, after, [1000 + after] * size, crc)
        crc = encoded[-1].crc
        text += lines
        after = Seq(after + size)
    return text


def decoded(text: bytes, base: Mark = ORIGIN) -> list[Entry]:
    return [entry for entry, _ in codec.decode_lines(text, after=Seq(base.seq), previous_crc=base.crc)]


def repaired(root: Path, text: bytes, base: Mark = ORIGIN) -> tuple[survey.Plan, list[Entry], bytes]:
    """The plan, the entries after the repair, and what quarantine keeps."""
    path = root / SPACE / LOG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    fd = os.open(path, os.O_RDONLY)
    try:
        plan = survey.examine(fd, len(text), base)
        done = salvage.salvage(root, SPACE, fd, plan, Millis(next(TIMES)))
    finally:
        os.close(fd)
    new = path.read_bytes()
    fd = os.open(path, os.O_RDONLY)
    try:
        assert last_batch(fd, len(new), base).end == len(new)
    finally:
        os.close(fd)
    return plan, decoded(new, base), (root / "quarantine" / done.quarantine).read_bytes()


def content(entry: Entry) -> tuple[object, ...]:
    """All that a repair must keep."""
    return entry.seq, entry.ts, entry.actor, entry.origin, entry.data


def lost(plan: survey.Plan) -> set[int]:
    return {seq for first, last in plan.lost for seq in range(first, last + 1)}


def test_a_bit_flipped_in_every_byte_costs_at_most_the_entry_that_it_hit(root: Path):
    whole = batches([1, 2, 1, 3, 2])
    entries = decoded(whole)
    hit = 0
    for at in range(len(whole)):
        text = bytearray(whole)
        text[at] ^= 1 << at % 8
        plan, after, _ = repaired(root, bytes(text))
        where = whole[:at].count(b"\n") + 1
        assert lost(plan) <= {where}, at
        assert [entry.seq for entry in after] == list(range(1, len(entries) + 2)), at
        for entry, kept in zip(entries, after, strict=False):
            if entry.seq not in lost(plan):
                assert content(kept) == content(entry), at
                assert kept.more == entry.more
        hit += not plan.lost
        event = orjson.loads(after[-1].data)
        assert (event["type"], event["lost"]) == ("log.repaired", plan.lost)
    assert hit >= 19 * len(entries)  # crc fields and newlines: nothing is lost there


def test_the_crc_field_and_the_newline_are_restored_not_lost(root: Path):
    whole = batches([1, 1, 1])
    ends = [end for _, end in codec.decode_lines(whole, after=Seq(0), previous_crc=0)]
    for end in ends:
        for at in (end - 1, end - 5, end - 15):
            text = whole[:at] + b"?" + whole[at + 1 :]
            plan, after, kept = repaired(root, text)
            assert plan.restored
            assert not plan.lost
            assert [content(entry) for entry in after[:3]] == [content(entry) for entry in decoded(whole)]
            assert b"?" in kept


def test_lost_entries_leave_placeholders_that_name_the_quarantined_bytes(root: Path):
    whole = batches([1, 1, 3, 1, 1])
    lines = whole.splitlines(keepends=True)
    lines[1], lines[4] = b"\0" * (len(lines[1]) - 1) + b"\n", b"garbage\n"
    plan, after, kept = repaired(root, b"".join(lines))
    assert plan.lost == [[2, 2], [5, 5]]
    assert kept == lines[1] + lines[4]
    events = [orjson.loads(entry.data) for entry in after]
    assert [event["type"] for event in events if event["type"].startswith("log.")] == [
        "log.lost",
        "log.lost",
        "log.repaired",
    ]
    (name,) = {event["quarantine"] for event in events if "quarantine" in event}
    note = orjson.loads((root / "quarantine" / name).with_suffix(".json").read_bytes())
    assert [(found["offset"], found["size"]) for found in note["ranges"]] == [
        (len(lines[0]), len(lines[1])),
        (len(b"".join(lines[:4])), len(lines[4])),
    ]
    assert after[1].actor == "chatfs/fsck"


def test_entries_that_left_no_trace_are_counted(root: Path):
    lines = batches([1] * 9).splitlines(keepends=True)
    plan, after, _ = repaired(root, b"".join(lines[:3] + lines[6:]))
    assert plan.lost == [[4, 6]]
    assert plan.unverified == [7]
    assert [entry.seq for entry in after] == list(range(1, 11))


def test_a_damaged_end_is_said_to_be_one(root: Path):
    lines = batches([1, 1, 2]).splitlines(keepends=True)
    plan, after, _ = repaired(root, b"".join([*lines[:2], b"x" * 40 + b"\n", b"y" * 40 + b"\n"]))
    assert plan.hidden_tail
    assert plan.lost == [[3, 3]]
    plan, after, _ = repaired(root, b"".join([*lines[:3], b"y" * 40 + b"\n"]))
    assert (plan.lost, [entry.more for entry in after]) == ([[4, 4]], [0, 0, 1, 0, 0])


def test_a_line_from_elsewhere_and_a_repeated_one_are_no_entries(root: Path):
    lines = batches([1] * 5).splitlines(keepends=True)
    stranger = batches([1], after=Seq(3), crc=77)
    for text in ([*lines[:3], stranger, *lines[3:]], lines[:3] + lines[1:3] + lines[3:]):
        plan, after, _ = repaired(root, b"".join(text))
        assert plan.lost == []
        assert [content(entry) for entry in after[:5]] == [content(entry) for entry in decoded(b"".join(lines))]


@st.composite
def damages(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, int, int, bytes]]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    size = len(batches(sizes))
    edits = []
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, size - 1))
        length = draw(st.sampled_from([1, 1, 1, 8, 60, 300]))
        kind = draw(st.sampled_from(["set", "cut", "insert"]))
        fill = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\0", b"\n", b'"', b'{"seq":3,']))
        edits.append((kind, at, length, fill))
    return sizes, edits


def edited(whole: bytes, edits: list[tuple[str, int, int, bytes]]) -> tuple[bytes, set[int]]:
    """The text after the edits, and the offsets of the original's bytes that were changed, or lost a neighbour."""
    cells = [(byte, at) for at, byte in enumerate(whole)]
    hit = set()
    for kind, at, length, fill in edits:
        stop = at if kind == "insert" else at + length
        hit |= {origin for _, origin in cells[at:stop]}
        if kind != "set":
            hit |= {origin for _, origin in cells[max(0, at - 1) : at] + cells[stop : stop + 1]}
        new = fill if kind == "insert" else b"" if kind == "cut" else (fill * length)[: len(cells[at:stop])]
        cells[at:stop] = [(byte, -1) for byte in new]
    return bytes(byte for byte, _ in cells), hit - {-1}


@given(damages())
@examples
def test_whatever_happened_neighbours_that_were_not_hit_are_kept(damage):
    sizes, edits = damage
    whole = batches(sizes)
    entries = decoded(whole)
    starts = [0, *(end for _, end in codec.decode_lines(whole, after=Seq(0), previous_crc=0))]
    text, hit = edited(whole, edits)
    sound = [not hit.intersection(range(begin - 1, end)) for begin, end in itertools.pairwise(starts)]
    with roots() as root:
        path = root / SPACE / LOG_NAME
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
        fd = os.open(path, os.O_RDONLY)
        plan = survey.examine(fd, len(text), ORIGIN)
        if plan.damaged:
            salvage.salvage(root, SPACE, fd, plan, NOW)
        os.close(fd)
        after = {
            entry.seq: entry for entry in decoded(path.read_bytes() if plan.damaged else bytes(text[: plan.end.end]))
        }
    assert sorted(after) == list(range(1, len(after) + 1))
    for index, entry in enumerate(entries):
        before = index == 0 or sound[index - 1]
        behind = index + 1 < len(entries) and sound[index + 1]
        if sound[index] and (before or behind) and (plan.damaged or entry.seq <= plan.end.seq):
            assert content(after[entry.seq]) == content(entry)


async def test_an_instance_that_has_the_log_open_reads_and_appends_after_the_repair(root: Path):
    driver = await open_driver(f"file://{root}")
    log = await driver.open_log(SPACE, create=True)
    await log.append([NewEntry(b'{"n":%d}' % n, "a") for n in range(5)])
    await log.append([NewEntry(b'{"n":5}', "a")])
    path = root / SPACE / LOG_NAME
    text = bytearray(path.read_bytes())
    at = text.index(b'{"n":2}') + 5
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"7")
    other = await driver.open_log(SPACE)
    with pytest.raises(CorruptLog):
        [entry async for entry in other.read()]
    fd = os.open(path, os.O_RDONLY)
    plan = survey.examine(fd, len(text), ORIGIN)
    salvage.salvage(root, SPACE, fd, plan, NOW)
    os.close(fd)
    assert await log.append([NewEntry(b"8", "b")]) == 8
    assert (await other.refresh()).seq == 8
    assert [entry.seq async for entry in other.read()] == list(range(1, 9))
    await log.aclose()
    await other.aclose()
    await driver.aclose()


@pytest.mark.parametrize("dropped", [0, 3])
def test_the_base_can_be_read_off_the_first_line(root: Path, dropped: int):
    whole = batches([1] * 6)
    lines = whole.splitlines(keepends=True)
    entries = decoded(whole)
    path = root / LOG_NAME
    path.write_bytes(b"".join(lines[dropped:]))
    fd = os.open(path, os.O_RDONLY)
    found = survey.rebuilt_base(fd, path.stat().st_size)
    os.close(fd)
    assert found is not None
    before = entries[dropped - 1] if dropped else None
    assert (found.seq, found.crc) == ((before.seq, before.crc) if before else (0, 0))


def test_a_repaired_log_may_have_a_base(root: Path):
    whole = batches([1] * 6)
    entries = decoded(whole)
    lines = whole.splitlines(keepends=True)[2:]
    base = Mark(2, entries[1].ts, entries[1].crc)
    lines[0] = lines[0].replace(b"quoted", b"Quoted").replace(b'"n":2', b'"n":9')
    plan, after, _ = repaired(root, b"".join(lines), base)
    assert plan.lost == [[3, 3]]
    assert [entry.seq for entry in after] == [3, 4, 5, 6, 7]
    assert not (root / SPACE / BASE_NAME).exists()
    assert read_base(root / SPACE) == ORIGIN
