"""`chatfs import --jsonl` and `chatfs migrate` into a workspace that has a quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from store.errors import QuotaExceeded
from store.library import open_store
from tests.cli.conftest import Cli
from tests.cli.test_moving import fill, truth
from tests.support.quotas import ME, on_disk

MESSAGE = b'{"role":"user","content":"hello"}\n'


@pytest.fixture
def stream(cli: Cli, tmp_path: Path) -> Path:
    """A chat of another store, with an attachment."""
    cli.run("workspace", "create", "there")
    cli.run("chat", "new", "there/trip")
    cli.run("append", "there/trip", "-", given=MESSAGE * 50)
    (tmp_path / "photo").write_bytes(os.urandom(100_000))
    cli.run("attach", "there/trip", tmp_path / "photo")
    cli.run("export", "there/trip", "--jsonl", "-o", tmp_path / "stream")
    cli.store.rename(tmp_path / "elsewhere")
    cli.run("workspace", "create", "demo")
    cli.run("chat", "new", "demo/first")
    return tmp_path / "stream"


def test_a_chat_that_does_not_fit_leaves_nothing_and_one_that_fits_is_charged(cli: Cli, stream: Path) -> None:
    words = ("import", "--jsonl", stream, "--workspace", "demo")
    cli.run("workspace", "quota", "demo", "100000")
    before = on_disk(cli.store)
    refusal = cli.fails(*words)
    assert refusal.startswith("workspace 'demo' uses ")
    assert "don't fit" in refusal
    assert not list(cli.store.glob("objects/??/*")), "its bytes were stored before they were charged"
    # The attachment fits now, with all entries but the last ones.
    cli.run("workspace", "quota", "demo", "101500")
    refusal = cli.fails(*words)
    assert "don't fit" in refusal
    assert [found["name"] for found in cli.json("chat", "ls", "demo")] == ["first"]
    assert len(list(cli.store.glob("workspace/*/chats/*"))) == 1
    cli.run("workspace", "quota", "demo", "200000")
    assert cli.run(*words).startswith("imported 51 entries of 1 logs")
    used = cli.json("workspace", "show", "demo")["usage_bytes"]
    assert before + 100_000 < used == on_disk(cli.store)
    assert cli.run(*words) == "nothing new in 1 logs\n"
    assert cli.json("workspace", "show", "demo")["usage_bytes"] == used


def test_the_mount_beside_it_knows_at_once_that_nothing_is_left(cli: Cli, stream: Path) -> None:
    """What is charged counts for every process: not only where usage is measured the next time."""

    async def check() -> None:
        async with open_store(str(cli.store)) as store:
            workspace = await store.workspace("demo")
            await workspace.change(ME, quota_bytes=115_000)
            chat = await workspace.chat("first")
            await chat.append_events([{"role": "user", "content": "x"}], ME)  # it has measured
            words = ("import", "--jsonl", stream, "--workspace", "demo")
            assert (await trio.to_thread.run_sync(cli.attempt, *words))[0] == 0
            with pytest.raises(QuotaExceeded):
                await chat.append_events([{"role": "user", "content": "x" * 10_000}], ME)

    trio.run(check)


@pytest.mark.parametrize("form", ["migrate", "import"])
def test_a_workspace_brings_its_quota_and_is_counted_at_once(cli: Cli, tmp_path: Path, form: str) -> None:
    fill(cli)
    cli.run("workspace", "quota", "demo", "3000000")
    stream, other = tmp_path / "stream", Cli(tmp_path / "target")
    other.root.mkdir()

    def bring() -> None:
        cli.run("export", "demo", "--jsonl", "-o", stream)
        words = ("migrate", cli.store, other.store) if form == "migrate" else ("import", "--jsonl", stream)
        code, _, err = other.attempt(*words)
        assert code == 0, err

    async def check() -> None:
        async with open_store(str(other.store)) as store:
            chat = await (await store.workspace("demo")).chat("trip")
            await chat.append_events([{"role": "user", "content": "x"}], ME)  # it has measured
            await trio.to_thread.run_sync(bring)
            with pytest.raises(QuotaExceeded):
                await chat.append_events([{"role": "user", "content": "x" * 100_000}], ME)

    bring()
    (tmp_path / "more").write_bytes(os.urandom(850_000))
    cli.run("chat", "new", "demo/more")
    cli.run("attach", "demo/more", tmp_path / "more")
    trio.run(check)
    assert truth(other.store).keys() == truth(cli.store).keys()
    # What the source may use, the copy may, too, although its own quota was less before.
    cli.run("workspace", "quota", "demo", "8000000")
    (tmp_path / "most").write_bytes(os.urandom(3_000_000))
    cli.run("attach", "demo/more", tmp_path / "most")
    bring()
    assert other.json("workspace", "show", "demo")["quota_bytes"] == 8_000_000
