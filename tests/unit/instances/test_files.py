"""What happens to the files beneath two instances."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from store import durability
from store.chat import Chat
from store.drivers.file import takeover
from store.errors import StaleEpoch, StoreFailed
from store.library import Store
from tests.contract.backends import FakeClock
from tests.support.instances import holder, say, told


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def url(root: Path) -> str:
    return f"file://{root}"


async def test_an_instance_whose_files_were_removed_serves_others_again(
    root: Path, first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock
) -> None:
    for path in (root / "instances").iterdir():
        path.unlink()
    # The others take it for dead.
    assert await say(twin, "two") == 2
    with pytest.raises(StaleEpoch):
        await say(chat, "lost")
    assert await say(chat, "three") == 3
    clock.now += 5000
    assert await say(chat, "four") == 4
    assert await holder(second, chat) == first.driver.peers.name
    assert await say(twin, "five") == 5
    assert await holder(second, chat) == first.driver.peers.name
    assert await told(chat) == await told(twin) == ["one", "two", "three", "four", "five"]


async def test_a_holder_with_a_log_that_is_another_by_now_keeps_nobody_from_it(
    first: Store, second: Store, chat: Chat, root: Path
) -> None:
    path = root / chat.space.id / "history.jsonl"
    backup = path.read_bytes()
    await say(chat, "two", "three")
    path.write_bytes(backup)
    twin = await (await second.workspace("demo")).chat("trip")
    assert await say(twin, "another") == 2
    assert await holder(second, chat) == second.driver.peers.name
    assert await told(twin) == ["one", "another"]


@pytest.mark.parametrize("label", ["lease", "peers"])
async def test_a_store_that_is_too_full_for_a_lease_can_be_appended_to(
    root: Path, second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    usual = durability.system

    def full(labelled: str, *_args: object, **_rest: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __getattr__(self, name: str) -> object:
            if name in {"open", "write", "link", "mkdir", "create"}:
                real = getattr(usual, name)
                return lambda labelled, *args, **rest: (
                    full(labelled) if labelled == label else real(labelled, *args, **rest)
                )
            return getattr(usual, name)

    clock.now += 5000
    monkeypatch.setattr(durability, "system", Full())
    assert await say(chat, "two") == 2
    assert await say(twin, "three") == 3
    assert await say(chat, "four") == 4
    assert await told(chat) == await told(twin) == ["one", "two", "three", "four"]
    monkeypatch.setattr(durability, "system", usual)
    assert await say(twin, "five") == 5
    assert await told(chat) == ["one", "two", "three", "four", "five"]
    assert not [name for name in os.listdir(root / chat.space.id) if name.endswith(".tmp")]


async def test_no_descriptor_left_for_a_socket(
    first: Store, second: Store, chat: Chat, twin: Chat, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to serve on nor to ask with: what is appended meanwhile fails, and nothing else."""

    def none_left(*_args: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", none_left)
        patch.setattr(second.authorities, "lease_ms", 50)
        with pytest.raises(StoreFailed, match=r"making .*sock.*open files"):
            await say(twin, "two")
        clock.now += 5000
        with pytest.raises(StoreFailed, match=r"making .*sock.*open files"):
            await say(twin, "two")
    assert await say(twin, "two") == 2
    assert await say(chat, "three") == 3
    assert await told(chat) == await told(twin) == ["one", "two", "three"]
    assert await holder(first, chat) == second.driver.peers.name


async def test_a_lease_that_is_removed_by_hand_while_it_is_acquired(
    root: Path, first: Store, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = root / chat.space.id
    await chat.space.release()
    assert chat.workspace.space.loaded
    hold, removed = takeover.hold, []

    async def removing(*args: Any, **rest: Any) -> int:
        if not removed:
            removed.extend(path.name for path in directory.glob("lease-*.json"))
            for name in removed:
                (directory / name).unlink()
        return await hold(*args, **rest)

    again = await (await first.workspace("demo")).chat("trip")
    await again.load()
    monkeypatch.setattr(takeover, "hold", removing)
    assert await say(again, "two") == 2
    assert sorted(removed) == ["lease-1.json", "lease-2.json"]
    assert [path.name for path in directory.glob("lease-*.json")] == ["lease-1.json"]
