"""Listings of many chats: stable while names come and go, nothing kept after the kernel has let go of it."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from store import events as ev
from store.library import Store
from store.model import ChatId, NewEntry, uuid7
from tests.support.mounts import Mounted
from tests.support.ops import elsewhere
from tests.support.torture import LONG
from tests.support.waiting import wait_for

pytestmark = pytest.mark.mount

MANY = 1_000
GOING = 80
BUFFER = 4096
"""Bytes of a getdents64(2): about a hundred entries, so that a listing takes many requests."""

_libc = ctypes.CDLL(None, use_errno=True)


def many_chats(mounted: Mounted, number: int, prefix: str = "chat") -> Path:
    """chats/ of a workspace with that many, which nobody has opened yet."""
    if not (mounted.mountpoint / "demo").exists():
        mounted.workspace()

    async def create(store: Store) -> None:
        demo = await store.workspace("demo")
        new = [ev.ChatCreated(ChatId(uuid7()), f"{prefix}-{n:06}") for n in range(number)]
        for first in range(0, number, 1000):
            await demo.append_lines([NewEntry(event.encode(), "test") for event in new[first : first + 1000]])

    elsewhere(mounted, create)
    chats = mounted.mountpoint / "demo" / "chats"
    wait_for((chats / f"{prefix}-{number - 1:06}").is_dir)
    return chats


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def getdents(descriptor: int) -> list[tuple[str, int]]:
    """The next entries: name, and the offset behind it."""
    buffer = ctypes.create_string_buffer(BUFFER)
    size = _libc.syscall(217, descriptor, buffer, BUFFER)
    assert size >= 0, os.strerror(ctypes.get_errno())
    found, at = [], 0
    while at < size:
        _ino, offset, length, _kind = struct.unpack_from("=QqHB", buffer.raw, at)
        found.append((buffer.raw[at + 19 : at + length].split(b"\0")[0].decode(), offset))
        at += length
    return found


def all_of(descriptor: int) -> list[str]:
    """The rest of a listing."""
    found: list[str] = []
    while piece := getdents(descriptor):
        found += [name for name, _ in piece]
    return found


def test_what_stays_is_listed_once_whatever_comes_and_goes(mounted: Mounted) -> None:
    """Names go and come between the requests of one listing."""
    staying = many_chats(mounted, MANY)
    going = many_chats(mounted, GOING, "going")
    gone, listed = 0, []
    with opened(staying) as descriptor:
        while piece := getdents(descriptor):
            listed += [name for name, _ in piece]
            for _ in range(6):
                if gone < GOING:
                    (going / f"going-{gone:06}").rmdir()
                    (staying / f"coming-{gone:06}").mkdir()
                    gone += 1
    stays = [name for name in listed if name.startswith("chat-")]
    assert stays == [f"chat-{n:06}" for n in range(MANY)]
    assert len(set(listed)) == len(listed)
    with opened(staying) as descriptor:
        found = set(all_of(descriptor))
    assert found == {*stays, ".", "..", *(f"coming-{n:06}" for n in range(gone))} | {
        f"going-{n:06}" for n in range(gone, GOING)
    }


def test_seekdir_rewinddir_and_two_readers_of_one_descriptor(mounted: Mounted) -> None:
    chats = many_chats(mounted, 500)
    with opened(chats) as descriptor:
        first = getdents(descriptor)
        (chats / "chat-000000").rmdir()
        rest = all_of(descriptor)
        # seekdir(3): an offset goes on behind its entry, although one before it has gone.
        os.lseek(descriptor, first[10][1], os.SEEK_SET)
        assert getdents(descriptor)[0][0] == first[11][0]
        os.lseek(descriptor, first[-1][1], os.SEEK_SET)
        assert all_of(descriptor) == rest
        # rewinddir(3): the names as they are now.
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert all_of(descriptor) == [".", "..", *(f"chat-{n:06}" for n in range(1, 500))]
        os.lseek(descriptor, 0, os.SEEK_SET)
        other = os.dup(descriptor)
        try:
            shared: list[str] = []
            while piece := [*getdents(descriptor), *getdents(other)]:
                shared += [name for name, _ in piece]
        finally:
            os.close(other)
        assert shared == [".", "..", *(f"chat-{n:06}" for n in range(1, 500))]


def test_rm_r_while_others_create_and_list(mounted: Mounted) -> None:
    chats = many_chats(mounted, 80)
    stop = threading.Event()

    def create() -> int:
        number = 0
        while not stop.is_set():
            (chats / f"new-{number:06}").mkdir()
            number += 1
        return number

    def list_names() -> None:
        while not stop.is_set():
            with opened(chats) as descriptor:
                names = all_of(descriptor)
            assert len(set(names)) == len(names)

    with ThreadPoolExecutor() as threads:
        creating, listing = threads.submit(create), [threads.submit(list_names) for _ in range(2)]
        command = ["sh", "-c", 'rm -r "$0"/chat-*', str(chats)]
        try:
            assert subprocess.run(command, check=False, timeout=120).returncode == 0
        finally:
            stop.set()
        for each in listing:
            each.result()
        made = creating.result()
    assert sorted(os.listdir(chats)) == [f"new-{n:06}" for n in range(made)]


def resident(mounted: Mounted) -> int:
    """Kilobytes of memory that the daemon has."""
    assert mounted.process is not None
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{mounted.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_what_was_listed_and_forgotten_is_not_kept(mounted: Mounted) -> None:
    """Listed again and again, with everything dropped in between: the memory comes to rest. Needs root for the drop."""
    drop = Path("/proc/sys/vm/drop_caches")
    if not os.access(drop, os.W_OK):
        pytest.skip("only root can have the kernel drop its entries")
    number = 100_000 if LONG else 3_000
    chats = many_chats(mounted, number)
    os.stat(chats)
    sizes = [resident(mounted)]
    for _ in range(10):
        command = ["ls", "-l", str(chats)]
        listed = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
        assert listed.stdout.count(b"\ndrwx") == number
        drop.write_text("2\n")
        # Something that is answered behind the forgets.
        os.listdir(chats.parent)
        sizes.append(resident(mounted))
        # An entry takes some 400 bytes while it is held: a leak of them, or of a tenth, would show every time.
        if len(sizes) > 2 and sizes[-1] - sizes[-2] < number * 40 // 1024:
            break
    else:
        pytest.fail(f"kilobytes after each listing: {sizes}")
    print(f"{sizes} kB before, and after each listing")  # noqa: T201 - the figures of the long form


def test_parallel_finds_see_every_chat(mounted: Mounted) -> None:
    chats = many_chats(mounted, 150)
    command = ["find", str(chats), "-name", "history.jsonl"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    found = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert all(sorted(lines) == sorted(found[0]) for lines in found)
    assert len(found[0]) == 150
