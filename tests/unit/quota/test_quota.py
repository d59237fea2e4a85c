"""A workspace's quota: never exceeded, used up to its last byte, and what is freed can be used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from store import codec
from store import quota as quotas
from store.chat import Chat
from store.compaction import compact
from store.errors import QuotaExceeded
from store.events import WorkspaceChanged
from store.library import open_store
from store.model import NewEntry
from store.quota.ledger import LEDGER
from store.workspace import Workspace
from tests.support.quotas import ME, holding, last_byte, on_disk


async def leave(workspace: Workspace, size: int) -> int:
    """Set a quota that leaves so much; the quota."""
    used, seq = await workspace.usage(), workspace.space.head.seq
    quota = used + size
    while True:
        # The entry that sets it counts, too.
        event = NewEntry(WorkspaceChanged(quota_bytes=quota).encode(), ME)
        wanted = used + size + len(codec.encode_batch([event], seq, [10**12], 0)[0])
        if wanted == quota:
            break
        quota = wanted
    await workspace.change(ME, quota_bytes=quota)
    assert await workspace.usage() == quota - size
    return quota


def line(size: int) -> bytes:
    """A value whose entry has that many bytes, from entry 2 to 9."""
    around = len('{"seq":2,"ts":1795241582000,"actor":"tests","data":"","crc":"1f2e3d4c"}\n')
    return b'"' + b"x" * (size - around) + b'"'


async def test_the_last_byte_can_be_used_and_no_more(workspace: Workspace, tmp_path: Path) -> None:
    quota = await leave(workspace, 500)
    chat = await workspace.chat("trip")
    assert await workspace.usage() == quota - 500
    with pytest.raises(QuotaExceeded, match=f"uses {quota - 500} of {quota} bytes: 501 more"):
        await chat.append_lines([line(501)], ME)
    await chat.append_lines([line(500)], ME)
    assert await workspace.usage() == quota == on_disk(tmp_path / "store")
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b"1"], ME)


async def test_the_last_byte_where_the_number_of_an_entry_gets_longer(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await chat.append_lines([b"1"] * 7, ME)
    quota = await leave(workspace, 100 + 101)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([line(100), line(101)], ME)  # the second is entry 10
    await chat.append_lines([line(100)], ME)
    await chat.append_lines([line(100)], ME)
    assert await workspace.usage() == quota


@pytest.mark.parametrize("size", [1, 1000, 3 << 20])
async def test_an_attachment_fits_exactly(workspace: Workspace, size: int) -> None:
    chat = await workspace.chat("trip")
    before = await workspace.usage()
    await chat.attach("probe", b"p" * size, ME)
    cost = await workspace.usage() - before
    quota = await leave(workspace, cost - 1)
    with pytest.raises(QuotaExceeded):
        await chat.attach("again", b"q" * size, ME)
    assert await workspace.usage() == quota - cost + 1, "nothing is left of what was refused"
    quota = await leave(workspace, cost)
    await chat.attach("again", b"q" * size, ME)
    assert await workspace.usage() == quota


async def test_equal_bytes_count_once(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    other = await workspace.create_chat("other", ME)
    quota = await leave(workspace, 50_000)
    for number in range(20):
        await (chat, other)[number % 2].attach(f"a{number}", b"x" * 20_000, ME)
    assert quota - 30_000 < await workspace.usage() < quota


async def test_over_the_quota_all_that_isnt_growth_works(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await chat.attach("a", b"x" * 5000, ME)
    await chat.append_events([{"type": "message", "id": "m", "role": "user", "content": "x"}], ME)
    await workspace.change(ME, quota_bytes=1)
    for growth in (
        lambda: chat.append_lines([b"1"], ME),
        lambda: chat.attach("b", b"", ME),
        lambda: workspace.create_chat("new", ME),
        lambda: chat.change(ME, title="longer"),
    ):
        with pytest.raises(QuotaExceeded):
            await growth()
    assert b"".join([piece async for piece in chat.read_attachment("a")]) == b"x" * 5000
    await chat.rename_attachment("a", "b", ME)
    await chat.remove_attachment("b", ME)
    await chat.remove_message("m", ME)
    await compact(chat, keep=0)
    await workspace.trash_chat(chat.id, ME)
    await workspace.change(ME, title="Full")
    assert (await workspace.load()).title == "Full"
    assert len(await workspace.driver.spaces(workspace.space.id)) == 1, "no chat was left that isn't listed"


async def test_what_is_freed_can_be_used_again(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await chat.append_events([{"type": "message", "id": "m", "role": "user", "content": "x"}], ME)
    for number in range(50):
        await chat.edit_message("m", f"{number}" + "x" * 1000, ME)
    quota = await leave(workspace, 2000)
    scratch = chat.directory / "scratch"
    scratch.mkdir(mode=0o700, exist_ok=True)
    async with workspace.quota.taking(lambda: 2000):
        (scratch / "swap").write_bytes(b"x" * 2000)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([line(200)], ME)
    (scratch / "swap").unlink()
    await chat.append_lines([b'"' + b"y" * 1500 + b'"'], ME)
    draft = chat.stage("draft")
    async with workspace.quota.taking(lambda: 300):
        draft.write(0, b"x" * 300)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b'"' + b"y" * 200 + b'"'], ME)
    await draft.discard()
    await chat.append_lines([b'"' + b"y" * 200 + b'"'], ME)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b'"' + b"y" * 2000 + b'"'], ME)
    await compact(chat, keep=0)
    assert await workspace.usage() < quota - 40_000
    await last_byte(workspace)


async def test_a_change_of_the_quota_counts_at_once_everywhere(workspace: Workspace, tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}/store") as store:
        other = await store.workspace("demo")
        chat = await other.chat("trip")
        await chat.append_lines([b"1"], ME)
        await workspace.change(ME, quota_bytes=100_000)
        # It was without: it hears of that as of every append.
        with trio.fail_after(10):
            while not other.quota.limited:  # noqa: ASYNC110 - nothing signals it
                await trio.sleep(0.001)
        for quota, fits in ((1, False), (100_000, True), (2, False), (0, True), (3, False)):
            await workspace.change(ME, quota_bytes=quota)
            await other.load()
            if fits:
                await chat.append_lines([b"1"], ME)
            else:
                with pytest.raises(QuotaExceeded):
                    await chat.append_lines([b"1"], ME)


async def test_without_a_quota_there_is_no_ledger(workspace: Workspace, tmp_path: Path) -> None:
    await (await workspace.chat("trip")).append_lines([b"1"], ME)
    assert not workspace.quota.limited
    assert list(tmp_path.glob("store/**/quota*")) == []  # noqa: ASYNC240 - a test


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b'{"charged":"5"}', b'{"charged":0,"measured":"x","at":1,"boot":"other"}']
)
async def test_an_odd_ledger_is_made_anew(workspace: Workspace, text: bytes) -> None:
    chat = await workspace.chat("trip")
    quota = await leave(workspace, 1000)
    await chat.append_lines([line(500)], ME)
    (workspace.driver.local_dir(workspace.space.id) / LEDGER).write_bytes(text)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([line(501)], ME)
    await chat.append_lines([line(500)], ME)
    (workspace.driver.local_dir(workspace.space.id) / LEDGER).unlink()
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b"1"], ME)
    assert await workspace.usage() == quota


async def test_what_was_written_without_a_quota_counts(workspace: Workspace) -> None:
    chat = await workspace.chat("trip")
    await leave(workspace, 10_000)
    await chat.append_lines([line(100)], ME)
    await workspace.change(ME, quota_bytes=0)
    await chat.append_lines([b'"' + b"x" * 9000 + b'"'], ME)
    quota = await leave(workspace, 1000)
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([b'"' + b"x" * 2000 + b'"'], ME)
    assert await workspace.usage() == quota - 1000


async def test_bytes_that_are_only_claimed_count(workspace: Workspace) -> None:
    """Who writes lines of a log by hand gets no room for nothing."""
    chat = await workspace.chat("trip")
    await leave(workspace, 10_000)
    forged = b'{"type":"attachment.put","id":"i","name":"n","digest":"sha256:%b","size":%d,"content_type":"a/b"}'
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([forged % (b"0" * 64, 10**12)], ME)
    used = await workspace.usage()
    await chat.append_lines([forged % (b"0" * 64, 5000)], ME)
    assert await workspace.usage() > used + 5000
    with pytest.raises(QuotaExceeded):
        await chat.append_lines([forged % (b"1" * 64, 5000)], ME)


# ---- processes


async def test_what_a_killed_process_had_charged_comes_back(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_TRIES", 2)
    chat = await workspace.chat("trip")
    quota = await leave(workspace, 5000)
    with holding(tmp_path / "store", 4950) as process:
        # Nobody knows yet whether its bytes come: it is refused, after a while.
        with trio.fail_after(30), pytest.raises(QuotaExceeded):
            await chat.append_lines([line(100)], ME)
        await workspace.change(ME, title="x")
        process.kill()
        process.wait()
    await chat.append_lines([line(100)], ME)
    await last_byte(workspace)
    assert await workspace.usage() == quota


async def test_a_process_in_flight_keeps_nobody_from_what_fits(workspace: Workspace, tmp_path: Path) -> None:
    chat = await workspace.chat("trip")
    await leave(workspace, 5000)
    with holding(tmp_path / "store", 1000):
        with trio.fail_after(5):
            for _ in range(5):
                await chat.append_lines([line(100)], ME)


# ---- the model


_CONTENTS = st.sampled_from([b"", b"a" * 300, b"b" * 700, b"c" * 1500])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 900), min_size=1, max_size=3)),
        st.tuples(st.just("attach"), _CONTENTS),
        st.tuples(st.just("remove"), st.none()),
        st.tuples(st.just("quota"), st.integers(1, 9)),
        st.tuples(st.just("scratch"), st.integers(0, 1500)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(_STEPS)
def test_it_accepts_exactly_what_fits(steps: list[tuple[str, Any]]) -> None:
    trio.run(_check, steps)


async def _check(steps: list[tuple[str, Any]]) -> None:
    async with open_store("memory:") as store:
        workspace = await store.create_workspace("demo", ME)
        machine = Machine(workspace, await workspace.create_chat("trip", ME))
        await workspace.change(ME, quota_bytes=4000)
        for kind, value in steps:
            await machine.step(kind, value)


class Machine:
    """Does one step after the other, and knows what each must cost."""

    def __init__(self, workspace: Workspace, chat: Chat) -> None:
        self.workspace = workspace
        self.chat = chat
        self.blobs: set[bytes] = set()
        self.names: list[str] = []
        self.swap = chat.directory / "scratch" / "swap"
        self.swap.parent.mkdir(parents=True)
        self.swap.touch()

    async def step(self, kind: str, value: Any) -> None:
        """One step, and whether it was right to accept or refuse it."""
        used, log = await self.workspace.usage(), (await self.chat.head()).size
        quota = (await self.workspace.load()).quota_bytes
        swapped = self.swap.stat().st_size
        try:
            await getattr(self, kind)(value)
        except QuotaExceeded as error:
            assert kind not in {"remove", "quota"}
            assert await self.workspace.usage() == used, "nothing is left of what was refused"
            # An attachment's bytes come first, then the line that names them.
            needed = int(str(error).rpartition(": ")[2].split()[0])
            before = len(value) if kind == "attach" and f"uses {used} " not in str(error) else 0
            assert used + before + needed > quota, "it would have fitted"
            return
        if kind in {"remove", "quota"}:
            return
        expected = (await self.chat.head()).size - log + self.swap.stat().st_size - swapped
        if kind == "attach" and value not in self.blobs:
            self.blobs.add(value)
            expected += len(value)
        after = await self.workspace.usage()
        assert after - used == expected
        assert after <= max(quota, used)

    async def append(self, sizes: list[int]) -> None:
        await self.chat.append_lines([b'"' + b"x" * size + b'"' for size in sizes], ME)

    async def attach(self, content: bytes) -> None:
        name = f"n{len(self.names)}"
        await self.chat.attach(name, content, ME)
        self.names.append(name)

    async def remove(self, _: None) -> None:
        if self.names:
            await self.chat.remove_attachment(self.names.pop(), ME)

    async def quota(self, thousands: int) -> None:
        await self.workspace.change(ME, quota_bytes=thousands * 1000)

    async def scratch(self, size: int) -> None:
        async with self.workspace.quota.taking(lambda: max(0, size - self.swap.stat().st_size)):
            self.swap.write_bytes(b"s" * size)
