"""Attachments that are larger than memory should be, and many programs at them at once.

The quick form writes 300 MB, the long one (`scripts/torture hostile`) 4 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import torture
from tests.support.mounts import Chat, Mounted, mounting

MIB = 1 << 20
_FILLING = bytes(range(256)) * (MIB // 256)
_READER = """
import os, sys
path, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
filling = bytes(range(256)) * 4096
file = os.open(path, os.O_RDONLY)
count = size >> 20
for step in range(count):
    index = (step * (2 * seed + 1) + seed) % count  # each in another order
    offset = index << 20
    for begin, length in ((0, 4096), (700_000, 70_000), (0, 1 << 20)):
        found = os.pread(file, length, offset + begin)
        expected = (index.to_bytes(8, "big") + filling[8:])[begin : begin + length]
        assert found == expected, (index, begin, length)
"""


def piece(index: int) -> bytes:
    """One MiB that no other has."""
    return index.to_bytes(8, "big") + _FILLING[8:]


def write(path: Path, count: int, block: int = MIB) -> None:
    with path.open("wb", buffering=0) as file:
        for index in range(count):
            data = piece(index)
            for at in range(0, MIB, block):
                assert file.write(data[at : at + block]) == block


def peak(mounted: Mounted) -> int:
    """Bytes of memory that the daemon has had at most since `forget_peak`."""
    assert mounted.process is not None
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def forget_peak(mounted: Mounted) -> None:
    assert mounted.process is not None
    Path(f"/proc/{mounted.process.pid}/clear_refs").write_text("5")


def read_and_check(path: Path, count: int) -> None:
    with path.open("rb", buffering=0) as file:
        for index in range(count):
            found = b""
            while len(found) < MIB and (more := file.read(MIB - len(found))):
                found += more
            assert found == piece(index)
        assert file.read(1) == b""


@pytest.mark.timeout(1800 if torture.LONG else 120)
def test_one_streams_in_and_out_in_constant_memory(tmp_path: Path) -> None:
    count = torture.either(300, 4096)
    with mounting(tmp_path, "--durability", "relaxed") as mounted:
        chat = mounted.workspace().chat()
        small, large = chat.attachments / "small", chat.attachments / "large"
        write(small, 16)
        read_and_check(small, 16)
        before = peak(mounted)
        write(large, count)
        written = peak(mounted)
        mounted.remount()
        read_and_check(small, 16)
        forget_peak(mounted)
        read_and_check(large, count)
        read = peak(mounted)
        print(f"{before >> 10} kB before, {written >> 10} kB written, {read >> 10} kB read")  # noqa: T201 - for the long form
        # Pieces under way, and some 2 kB for each MiB: its digest, and that it was found to be right.
        room = 24 * MIB + count * 2048
        assert written < before + room
        assert read < before + room
        (event,) = [event for event in chat.events() if event["name"] == "large"]
        assert event["size"] == count * MIB


@pytest.mark.timeout(120)
def test_programs_read_one_in_parallel_while_others_are_written(tmp_path: Path) -> None:
    size = 24 * MIB
    with mounting(tmp_path, "--durability", "relaxed") as mounted:
        chat = mounted.workspace().chat()
        write(chat.attachments / "read", size // MIB, 128 * 1024)
        mounted.remount()
        readers = [_reader(chat, size, seed) for seed in range(4)]
        try:
            write(chat.attachments / "written", 20)
            for number in range(100):
                (chat.attachments / f"small {number}").write_bytes(b"%d" % number)
            assert [reader.wait(60) for reader in readers] == [0] * 4
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        mounted.remount()
        read_and_check(chat.attachments / "written", 20)
        assert [(chat.attachments / f"small {number}").read_bytes() for number in range(100)] == [
            b"%d" % number for number in range(100)
        ]


def _reader(chat: Chat, size: int, seed: int) -> subprocess.Popen[bytes]:
    path = os.fspath(chat.attachments / "read")
    return subprocess.Popen([sys.executable, "-c", _READER, path, str(size), str(seed)])
