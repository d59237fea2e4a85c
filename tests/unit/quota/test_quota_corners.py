"""What makes it hard to say how much is used: files that come and go meanwhile, others in flight, escapes, renames."""

from __future__ import annotations

import fcntl
import os
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import pytest
import trio

from store import quota as quotas
from store.chat import Chat
from store.compaction import compact
from store.errors import QuotaExceeded, StoreFailed
from store.importers.imported import ImportedAttachment, ImportedChat, ImportedRecord
from store.importing import store_chat
from store.model import NewEntry, clock_ms
from store.quota import ledger
from store.quota.ledger import LEDGER, Ledger
from store.workspace import Workspace
from tests.support.quotas import ME, holding, on_disk

COMM = Path("/proc/self/comm").read_text().strip()


async def leave(workspace: Workspace, size: int) -> int:
    """Set a quota that leaves at least so much; the quota."""
    quota = await workspace.usage() + size + 200
    await workspace.change(ME, quota_bytes=quota)
    return quota


# ---- measuring


async def test_a_scratch_file_that_goes_meanwhile_hides_no_others(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = (await workspace.chat("trip")).directory / "scratch"
    scratch.mkdir()
    for number in range(10):
        (scratch / str(number)).write_bytes(b"x" * 1000)
    before = await workspace.usage()
    list_directory = os.scandir

    def removing(path: Path) -> object:
        """A listing, of which the first file has gone by the time it is looked at."""
        if Path(path) != scratch:
            return list_directory(path)
        with list_directory(path) as found:
            entries = list(found)
        os.unlink(entries[0].path)
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", removing)
    assert await workspace.usage() == before - 1000


async def test_the_target_of_a_symbolic_link_counts(workspace: Workspace) -> None:
    chat, before = await workspace.chat("trip"), await workspace.usage()
    (chat.directory / "scratch").mkdir()
    (chat.directory / "scratch" / "link").symlink_to("t" * 3000)
    assert await workspace.usage() == before + 3000


async def test_an_attachment_counts_however_its_line_is_written(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    ref = await workspace.driver.blobs.put(b"x" * 50_000)
    line = b'{"type":"attachment\\u002eput","id":"i","name":"n","digest":"%b","size":50000,"content_type":"a/b"}'
    await leave(workspace, 10_000)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([line % ref.digest.encode()], ME)
    await leave(workspace, 60_000)
    before = await workspace.usage()
    await chat.append_lines([line % ref.digest.encode()], ME)
    assert (await chat.attachment("n")).size == 50_000
    assert await workspace.usage() > before + 50_000


async def test_a_quota_that_is_set_by_a_line_counts_what_was_written_before(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await leave(workspace, 10_000)
    await chat.append_lines([b"1"], ME)
    await workspace.change(ME, quota_bytes=0)
    await chat.append_lines([b'"' + b"x" * 9000 + b'"'], ME)
    used = await workspace.usage()
    line = b'{"type":"workspace.changed","quota\\u005fbytes":%d}' % (used + 1000)
    await workspace.append_lines([NewEntry(line, ME)])
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b'"' + b"x" * 2000 + b'"'], ME)


async def test_what_others_wrote_before_they_heard_of_a_new_quota_counts_soon(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = await workspace.chat("trip")
    await leave(workspace, 10_000)
    await chat.append_lines([b"1"], ME)
    (chat.directory / "scratch").mkdir()
    (chat.directory / "scratch" / "swap").write_bytes(b"x" * 9000)
    await chat.append_lines([b"2"], ME)
    monkeypatch.setattr(quotas, "clock_ms", lambda: clock_ms() + 2100)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b'"' + b"x" * 2000 + b'"'], ME)


# ---- others


async def test_what_was_freed_can_be_used_although_others_write_for_long(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_PATIENCE", 0.02)
    chat = await workspace.chat("trip")
    swap = chat.directory / "scratch" / "swap"
    swap.parent.mkdir()
    swap.write_bytes(b"x" * 5000)
    await leave(workspace, 500)
    looks = 0
    looked = trio.Event()
    alone = Ledger.alone

    def counted(self: Ledger, patience: float) -> AbstractAsyncContextManager[bool]:
        nonlocal looks
        looks += 1
        if looks == 3:  # it has found out twice that nobody can tell
            looked.set()
        return alone(self, patience)

    with holding(tmp_path / "store", 10) as process:
        swap.unlink()
        monkeypatch.setattr(Ledger, "alone", counted)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat.append_lines, [b'"' + b"y" * 4000 + b'"'], ME)
                await looked.wait()
                process.kill()
    assert (await chat.head()).seq == 2


async def test_it_is_said_who_keeps_the_ledger_locked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger, "PATIENCE", 0.3)
    monkeypatch.setattr(ledger, "_SILENCE", 0.05)
    chat = await workspace.chat("trip")
    await leave(workspace, 5000)
    await chat.append_lines([b"1"], ME)
    with (workspace.driver.local_dir(workspace.space.id) / LEDGER).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreFailed, match=f"process {os.getpid()} .* keeps .* locked"):
            await chat.append_lines([b"2"], ME)
        assert [record.message.split("/")[0] for record in caplog.records] == [
            f"waiting for process {os.getpid()} ({COMM}), which keeps "
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.append_lines, [b"2"], ME)
            for _ in range(10):  # a measurement that takes twice as long, and goes on
                os.utime(file.fileno())
                await trio.sleep(0.06)
            fcntl.flock(file, fcntl.LOCK_UN)
    assert (await chat.head()).seq == 3


# ---- what isn't refused


async def renamed(chat: Chat, times: int) -> None:
    for number in range(times):
        await chat.rename_attachment(f"a{number % 2}", f"a{(number + 1) % 2}", ME)


async def test_renaming_for_ever_fills_no_disk(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "TIDYING_MAX", 2000)
    chat = await workspace.chat("trip")
    await chat.attach("a0", b"a", ME)
    await chat.attach("b", b"b", ME)
    await workspace.change(ME, quota_bytes=1)
    await renamed(chat, 4)
    used = await workspace.usage()
    with pytest.raises(QuotaExceeded):
        await renamed(chat, 100)
    assert await workspace.usage() < used + 2000
    await chat.remove_attachment("b", ME)
    await workspace.change(ME, quota_bytes=await workspace.usage() + 1000)
    await renamed_back(chat)
    await workspace.change(ME, quota_bytes=1)
    await workspace.trash_chat(chat.id, ME)


async def renamed_back(chat: Chat) -> None:
    """A rename, whatever the attachment is called now."""
    (name,) = (await chat.load()).attachments
    await chat.rename_attachment(name, "back", ME)


# ---- imports


def source(number: int) -> ImportedChat:
    """A chat with one record that has an attachment."""
    item = ImportedAttachment("image.png", bytes([number]) * 10_000, "image/png")
    record = ImportedRecord(f"record-{number}", b'{"role":"user","content":"look"}', None, None, (item,))
    return ImportedChat(f"chat-{number}", f"chat-{number}", "", [record], [])


async def test_imports_at_the_limit_leave_no_bytes_that_nothing_names(workspace: Workspace, tmp_path: Path) -> None:
    quota = await leave(workspace, 55_000)
    refused = 0

    async def bring(number: int) -> None:
        nonlocal refused
        try:
            await store_chat(workspace, "tests", source(number), ME)
        except QuotaExceeded:
            refused += 1

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(bring, number)
    assert refused == 16 - 5
    assert await workspace.usage() == on_disk(tmp_path / "store") <= quota


# ---- what frees room


async def test_compacting_frees_what_removed_attachments_take(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await chat.attach("big", b"x" * 50_000, ME)
    await chat.attach("kept", b"y" * 1000, ME)
    await leave(workspace, 2000)
    await chat.remove_attachment("big", ME)
    with pytest.raises(QuotaExceeded):
        await chat.attach("next", b"z" * 40_000, ME)
    await compact(chat, keep=0)
    await chat.attach("next", b"z" * 40_000, ME)
    assert sorted((await chat.load()).attachments) == ["kept", "next"]
