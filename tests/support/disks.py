"""File systems of the tests' own, on loop devices: small ones, and one on a disk that records what is written to it.

Whatever happens in a test, its loop devices and mounts are taken away in the end. Where a machine has none (a container
without the right to mount, no mkfs.ext4), the tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import recording_disk
from tests.support.recording_disk import COUNT, Record
from tests.support.waiting import wait_for

SECTOR = 512
BLOCK = 4096


def run(*words: str | Path) -> str:
    """Run a system program; its output. AssertionError with its complaint."""
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr.strip()}"
    return done.stdout.strip()


def needs_loop_devices() -> None:
    """Skip the test where there are none."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    for program in ("losetup", "mkfs.ext4", "mount", "umount"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    found = subprocess.run(["losetup", "--find"], check=False, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no loop device can be had here: {found.stderr.strip()}")


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """What can be read and not written; root writes whatever the mode says, but not on a read-only mount."""
    if os.geteuid():
        mode = path.stat().st_mode
        path.chmod(mode & 0o555)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    run("mount", "--bind", path, path)
    try:
        run("mount", "-o", "remount,bind,ro", path)
        yield
    finally:
        run("umount", "-l", path)


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A loop device on a file."""
    device = run("losetup", "--find", "--show", "--direct-io=off", image)
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted_device(device: str, directory: Path, *options: str) -> Iterator[Path]:
    """The ext4 of a device, mounted."""
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", ",".join(["noatime", *options]), device, directory)
    try:
        yield directory
    finally:
        # Whoever used it may take a moment to end.
        wait_for(
            lambda: subprocess.run(["umount", directory], check=False, capture_output=True).returncode == 0,
            what=f"umount {directory}",
        )


def format_ext4(image: Path, size: int) -> None:
    """Make an ext4 file system in a new file; no lazy work is left for later."""
    with image.open("wb") as file:
        file.truncate(size)
    quiet = ["-q", "-F", "-b", str(BLOCK), "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    run("mkfs.ext4", *quiet, image)


@dataclass
class RecordedDisk:
    """An ext4 file system at `directory`, on a disk that records."""

    root: Path
    directory: Path
    before: Path
    """The image as it was before the first record."""
    _count: mmap.mmap | None = None
    _records: list[Record] = field(default_factory=list)

    def position(self) -> int:
        """How many records there are: what was durable before the call lies in these."""
        assert self._count is not None
        found: int = COUNT.unpack(self._count[:])[0]
        return found

    def records(self) -> list[Record]:
        """All records, once nothing is written any more."""
        if not self._records:
            self._records = list(recording_disk.records(self.root / "records"))
        return self._records


@contextlib.contextmanager
def recorded_disk(root: Path, size: int, *options: str) -> Iterator[RecordedDisk]:
    """Make the disk and mount it with these options; after the block it is gone, and its records can be read."""
    needs_loop_devices()
    before, image, count = root / "before.img", root / "now.img", root / "count"
    format_ext4(before, size)
    shutil.copyfile(before, image)
    count.write_bytes(COUNT.pack(0))
    served = root / "recorder"
    served.mkdir()
    command = [sys.executable, recording_disk.__file__, served, image, root / "records", count]
    with count.open("r+b") as file, contextlib.ExitStack() as stack:
        counter = mmap.mmap(file.fileno(), COUNT.size)
        with (root / "recorder.stderr").open("wb") as complaints:
            process = subprocess.Popen([str(word) for word in command], stderr=complaints)
        stack.callback(_end, process, served)
        wait_for(lambda: (served / "disk").exists() or process.poll() is not None, what="the recording disk")
        assert process.poll() is None, (root / "recorder.stderr").read_text()
        device = stack.enter_context(loop_device(served / "disk"))
        directory = stack.enter_context(mounted_device(device, root / "disk", *options))
        yield RecordedDisk(root, directory, before, _count=counter)


def _end(process: subprocess.Popen[bytes], served: Path) -> None:
    subprocess.run(["fusermount3", "-u", "-z", served], check=False, capture_output=True)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def image_after_cut(before: bytes, recorded: Sequence[Record], position: int, choose: random.Random) -> bytearray:
    """What the disk may hold when the power goes after `position` records.

    A disk with a cache that is written back: everything before the last flush is there. Of what came after it, each
    sector may be there or not, whatever became of the others: all of them, none, or some, by the generator. Of two
    writes to one sector the later counts if both are there.
    """
    flushed = max((index for index in range(position) if recorded[index].is_flush), default=-1) + 1
    image = bytearray(before)
    for record in recorded[:flushed]:
        image[record.offset : record.offset + len(record.data)] = record.data
    pending = [record for record in recorded[flushed:position] if not record.is_flush]
    kept = choose.choice(["all", "none", "writes", "blocks", "sectors", "last"])
    step = {"blocks": BLOCK, "sectors": SECTOR}.get(kept, 1 << 30)
    for index, record in enumerate(pending):
        for start in range(0, len(record.data), step):
            piece = record.data[start : start + step]
            there = {"all": True, "none": False, "last": index == len(pending) - 1}.get(kept, choose.random() < 0.5)
            if there:
                image[record.offset + start : record.offset + start + len(piece)] = piece
    return image
