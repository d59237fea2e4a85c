"""A `file:` log with gigabytes behind its last entry, as a power cut or a hostile hand leaves them, in little RAM."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.drivers.file.holes import end_of_data
from store.drivers.file.text import LOG_NAME
from store.model import SpaceId
from tests.contract.backends import FileBackend, entries

REPOSITORY = Path(__file__).parents[2]
SPACE = SpaceId("workspace/01a1fda9-25d2-7f50-a22d-88e44119c758")
LARGE = 8 << 30
ROOM = 384 << 20
"""Bytes of address space, besides what an idle process has."""
CHILD = f"""
import os, resource, sys
from pathlib import Path
import trio
from store.driver import Access
from store.errors import CorruptLog
from store.fsck import check_store
from store.model import NewEntry, SpaceId
from store.registry import open_driver

root, how = Path(sys.argv[1]), sys.argv[2]
size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + {ROOM},) * 2)


async def main():
    if how == "fsck":
        report = check_store(root, repair=True)
        print(*sorted({{found.kind for found in report.findings}}))
    driver = await open_driver(str(root), access=Access.READ if how == "read" else Access.WRITE)
    log = await driver.open_log(SpaceId("{SPACE}"))
    await log.refresh()
    await log.refresh()
    seqs = []
    try:
        async for entry in log.read():
            seqs.append(entry.seq)
    except CorruptLog as damage:
        print(damage)
    print(seqs)
    if how != "read":
        try:
            print(await log.append([NewEntry(b"1", "test")]))
        except CorruptLog:
            print("refused")
    await log.aclose()
    await driver.aclose()


trio.run(main)
"""


async def made(backend: FileBackend, tail: list[tuple[int, bytes]], size: int = LARGE) -> Path:
    """A log of two entries, and behind them `size` bytes that are NUL but for what `tail` puts there."""
    driver = await backend.open()
    log = await driver.open_log(SPACE, create=True)
    await log.append(entries("a", "b"))
    await log.aclose()
    path = backend.path / SPACE / LOG_NAME
    end = path.stat().st_size
    os.truncate(path, end + size)
    with path.open("r+b") as file:
        for offset, data in tail:
            file.seek(end + offset)
            file.write(data)
    return path


def said(backend: FileBackend, how: str) -> list[str]:
    command = [sys.executable, "-c", CHILD, str(backend.path), how]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("tail", [[], [(0, b'{"seq":3,"ts":1')], [(LARGE - 100, b"x" * 100)]])
@pytest.mark.parametrize("how", ["append", "fsck"])
async def test_a_torn_tail_of_gigabytes_is_moved(file_backend: FileBackend, how: str, tail: list[tuple[int, bytes]]):
    path = await made(file_backend, tail)
    whole = path.stat().st_size - LARGE
    *found, entries_, appended = said(file_backend, how)
    assert (entries_, appended) == ("[1, 2]", "3")
    assert found == (["torn-tail"] if how == "fsck" else [])
    assert path.stat().st_size < whole + 100
    (kept,) = (file_backend.path / "quarantine").glob("*.torn")
    assert kept.stat().st_size == LARGE
    assert kept.stat().st_blocks * 512 < 1 << 22
    with kept.open("rb") as file:
        for offset, data in tail:
            file.seek(offset)
            assert file.read(len(data)) == data


async def test_a_torn_tail_that_cant_be_moved_is_passed_over(file_backend: FileBackend):
    path = await made(file_backend, [])
    assert said(file_backend, "read") == ["[1, 2]"]
    assert path.stat().st_size > LARGE


@pytest.mark.parametrize(
    "tail",
    [
        [(LARGE - 100, b"what\nis this\n")],
        [(0, b"x\n")],
        [(700, b"\n"), (LARGE - 9, b"\n")],
        [(0, b"\n" * (64 << 20))],
    ],
    ids=["a line", "a line at once", "two lines", "very many lines"],
)
async def test_gigabytes_of_damage_are_said(file_backend: FileBackend, tail: list[tuple[int, bytes]]):
    path = await made(file_backend, tail)
    size = path.stat().st_size
    damage, read, appended = said(file_backend, "append")
    assert "is damaged after entry 2, at byte" in damage
    assert (read, appended) == ("[1, 2]", "refused")
    assert path.stat().st_size == size


def test_where_the_file_system_doesnt_know_its_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_bytes(b"\0x" + bytes(5))

    def refuse(*_args: int) -> int:
        raise OSError(errno.EINVAL, "injected")

    fd = os.open(path, os.O_RDONLY)
    try:
        assert end_of_data(fd, 7) == 2
        monkeypatch.setattr(os, "lseek", refuse)
        assert end_of_data(fd, 7) == 2
    finally:
        os.close(fd)


async def test_a_log_of_nothing_but_nul_bytes(file_backend: FileBackend):
    path = await made(file_backend, [])
    path.write_bytes(b"")
    os.truncate(path, LARGE)
    assert said(file_backend, "append") == ["[]", "1"]


async def test_a_batch_that_is_longer_than_what_is_looked_at_at_once(file_backend: FileBackend):
    first = await (await file_backend.open()).open_log(SPACE, create=True)
    other = await (await file_backend.open()).open_log(SPACE)
    await first.append(entries("a"))
    begin = first.head.size
    await first.append(entries(*["x" * (1 << 20)] * 72))
    assert (await other.refresh()) == first.head
    path = file_backend.path / SPACE / LOG_NAME
    again = await (await file_backend.open()).open_log(SPACE)
    assert again.head == first.head
    os.truncate(path, path.stat().st_size - 1)
    for log in (first, other, again):
        await log.aclose()
    again = await (await file_backend.open()).open_log(SPACE)
    assert (again.head.seq, again.head.size) == (1, begin)
    (kept,) = (file_backend.path / "quarantine").glob("*.torn")
    assert kept.stat().st_size > 72 << 20
