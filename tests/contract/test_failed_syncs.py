"""A failed fsync is never done again and believed: what it was for is written again. (Logs: `test_log_recovery`.)"""

from __future__ import annotations

import errno

import pytest

from store.driver import CHUNK
from store.errors import StoreFailed
from tests.contract.backends import FaultySystem, FileBackend, faulty

EIO = OSError(errno.EIO, "injected")
LONG = b"long" * (CHUNK // 3)


class FailingSync(FaultySystem):
    """The first sync of a label fails; `made` are all calls."""

    def __init__(self, label: str, call: str = "fsync") -> None:
        super().__init__("nothing", EIO)
        self.failing: str | None = label
        self.call = call
        self.made: list[str] = []

    def _sync(self, call: str, label: str) -> None:
        self.made.append(f"{call} {label}")
        if call == self.call and label == self.failing:
            self.failing = None
            raise EIO

    def fsync(self, label: str, fd: int) -> None:
        self._sync("fsync", label)
        super().fsync(label, fd)

    def syncfs(self, label: str, fd: int) -> None:
        self._sync("syncfs", label)

    def write(self, label: str, fd: int, data: bytes | memoryview) -> int:
        self.made.append(f"write {label}")
        return super().write(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.made.append(f"pwrite {label}")
        return super().pwrite(label, fd, data, offset)


async def test_a_commit_whose_sync_failed_writes_the_bytes_again(file_backend: FileBackend):
    driver = await file_backend.open()
    staging = driver.blobs.stage(label={})
    staging.write(0, b"content")
    with faulty(FailingSync("blob.sync")) as system:
        with pytest.raises(StoreFailed):
            await staging.commit()
        system.made.clear()
        ref = await staging.commit()
    assert system.made.index("write blob.write") < system.made.index("fsync blob.write")
    assert await driver.blobs.read(ref.digest, 0, 100) == b"content"


async def test_a_draft_whose_sync_failed_is_written_again(file_backend: FileBackend):
    driver = await file_backend.open()
    staging = driver.blobs.stage(label={})
    staging.write(0, b"content")
    with faulty(FailingSync("draft.sync")) as system:
        with pytest.raises(StoreFailed):
            await staging.sync()
        system.made.clear()
        await staging.sync()
        assert system.made.index("pwrite draft.sync") < system.made.index("fsync draft.sync")
        system.made.clear()
        await staging.sync()
        assert "pwrite draft.sync" not in system.made
    assert staging.read(0, 100) == b"content"


async def test_what_was_there_before_is_not_believed_to_be_synced(file_backend: FileBackend):
    first = await file_backend.open()
    await first.blobs.put(LONG, durable=False)
    driver = await file_backend.open()
    with faulty(FailingSync("nothing")) as system:
        base = await driver.blobs.put(LONG)
        assert "fsync blob.sync" in system.made
        system.made.clear()
        # The chunk that is kept is known to be durable by now.
        await driver.blobs.append(base.digest, b"more")
        assert "syncfs blob.require" not in system.made
    other = await file_backend.open()
    with faulty(FailingSync("nothing")) as system:
        # Another process can't know.
        await other.blobs.append(base.digest, b"still more")
    assert "syncfs blob.require" in system.made


async def test_blobs_that_a_failed_syncfs_may_have_lost_are_written_again(file_backend: FileBackend):
    driver = await file_backend.open()
    ref = await driver.blobs.put(b"relaxed", durable=False)
    long = await driver.blobs.put(LONG, durable=False)
    with faulty(FailingSync("store.sync", "syncfs")) as system:
        with pytest.raises(StoreFailed):
            await driver.sync()
        system.made.clear()
        await driver.sync()
        assert system.made.count("write store.sync") == 4  # the small one, two chunks, a manifest
        assert system.made.index("fsync store.sync") < system.made.index("syncfs store.sync")
        system.made.clear()
        await driver.sync()
        assert system.made == ["syncfs store.sync"]
    assert await driver.blobs.read(ref.digest, 0, 100) == b"relaxed"
    assert await driver.blobs.read(long.digest, 0, len(LONG)) == LONG


async def test_a_document_whose_deletion_wasnt_synced_is_deleted_again(file_backend: FileBackend):
    driver = await file_backend.open()
    await driver.kv.put("a", 1)
    with faulty(FailingSync("kv.delete")) as system:
        with pytest.raises(StoreFailed):
            await driver.kv.delete("a")
        system.made.clear()
        await driver.kv.delete("a")
        assert system.made == ["fsync kv.delete"]
        await driver.kv.delete("a")
        assert system.made == ["fsync kv.delete"]
    assert await driver.kv.get("a") is None


@pytest.mark.parametrize("label", ["blob.sync", "draft.sync"])
async def test_names_whose_sync_failed_are_changed_before_they_are_synced_again(file_backend: FileBackend, label: str):
    driver = await file_backend.open()
    staging = driver.blobs.stage(label={})
    staging.write(0, b"content")

    class FailingDirectory(FaultySystem):
        """The second sync of the label is one of a directory."""

        def fsync(self, found: str, fd: int) -> None:
            self.seen.append(f"fsync {found}")
            if found == label and self.seen.count(f"fsync {label}") == (2 if label == "blob.sync" else 3):
                raise EIO
            super().fsync(found, fd)

        def open(self, found: str, path: object, flags: int) -> int:
            self.seen.append(f"open {found}")
            return super().open(found, path, flags)  # type: ignore[arg-type]

    attempt = staging.commit if label == "blob.sync" else staging.sync
    with faulty(FailingDirectory("nothing", EIO)) as system:
        with pytest.raises(StoreFailed):
            await attempt()
        assert f"open {label}" not in system.seen
        await attempt()
    assert f"open {label}" in system.seen
