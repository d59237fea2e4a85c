"""Peers: how the instances of one store find and ask each other."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from store.driver import Access, Driver
from store.drivers.file import connection
from store.drivers.file.answering import CONNECTIONS
from store.drivers.file.asking import Asking
from store.drivers.file.peers import FilePeers
from store.errors import ReadOnly, Unreachable
from store.peers import PeerCredentials, Say, program_of
from store.registry import open_driver
from tests.contract.backends import Backend, FileBackend


async def echo(_peer: PeerCredentials, request: bytes, _say: Say) -> bytes:
    return b"echo " + request


@pytest.fixture
async def other(backend: Backend, driver: Driver) -> Driver:
    return await backend.open()


async def connected(peers: FilePeers) -> socket.socket:
    """To itself, without a question."""
    return await peers._connected(peers.name, Asking(b"", None, None))


async def names(driver: Driver) -> list[str]:
    return [info.name for info in await driver.peers.everyone()]


async def test_an_instance_is_known_from_its_announcement_to_its_end(driver: Driver, other: Driver) -> None:
    assert driver.peers.name != other.peers.name
    assert await names(driver) == []
    driver.peers.announce()
    driver.peers.announce()
    assert await names(driver) == await names(other) == [driver.peers.name]
    other.peers.announce()
    assert await names(other) == sorted([driver.peers.name, other.peers.name])
    assert not other.peers.is_dead(driver.peers.name)
    assert not driver.peers.is_dead(driver.peers.name)
    await driver.aclose()
    assert other.peers.is_dead(driver.peers.name)
    assert await names(other) == [other.peers.name]


async def test_nothing_is_known_of_other_holders(driver: Driver) -> None:
    assert not driver.peers.is_dead("one")
    assert not driver.peers.is_dead("../../x")


async def test_a_question_and_its_answer(driver: Driver, other: Driver) -> None:
    big = b"x" * (3 * 1024 * 1024)
    async with driver.peers.serve(echo):
        assert await other.peers.ask(driver.peers.name, b"a") == b"echo a"
        assert await other.peers.ask(driver.peers.name, b"") == b"echo "
        assert await other.peers.ask(driver.peers.name, big) == b"echo " + big
        assert await driver.peers.ask(driver.peers.name, b"b") == b"echo b"


async def test_many_at_once(driver: Driver, other: Driver) -> None:
    found = []

    async def ask(number: int) -> None:
        found.append(await other.peers.ask(driver.peers.name, b"%d" % number))

    async with driver.peers.serve(echo), trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(ask, number)
    assert sorted(found) == sorted(b"echo %d" % number for number in range(300))


async def test_who_doesnt_serve_is_unreachable(driver: Driver, other: Driver) -> None:
    for prepare in (lambda: None, driver.peers.announce):
        prepare()
        with pytest.raises(Unreachable):
            await other.peers.ask(driver.peers.name, b"a")
    async with driver.peers.serve(echo):
        assert await other.peers.ask(driver.peers.name, b"a")
    with pytest.raises(Unreachable):
        await other.peers.ask(driver.peers.name, b"a")


async def test_what_is_said_before_the_answer_comes_before_it(driver: Driver, other: Driver) -> None:
    heard: list[bytes] = []

    async def answer(_peer: PeerCredentials, request: bytes, say: Say) -> bytes:
        say(b"one")
        say(b"")
        await trio.lowlevel.checkpoint()
        say(b"two")
        return request

    async with driver.peers.serve(answer):
        assert await other.peers.ask(driver.peers.name, b"a", heard=heard.append) == b"a"
        assert heard == [b"one", b"", b"two"]
        assert await other.peers.ask(driver.peers.name, b"a") == b"a"


async def test_who_gives_up_has_heard_all_and_nothing_more_can_be_said(driver: Driver, other: Driver) -> None:
    heard: list[bytes] = []
    said, given_up, seen = trio.Event(), trio.Event(), trio.Event()
    refused: list[Exception] = []

    async def answer(_peer: PeerCredentials, _request: bytes, say: Say) -> bytes:
        say(b"before")
        said.set()
        await given_up.wait()
        try:
            say(b"after")
        except Unreachable as error:
            refused.append(error)
        seen.set()
        return b""

    async def ask() -> None:
        await other.peers.ask(driver.peers.name, b"a", heard=heard.append)

    async with driver.peers.serve(answer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await said.wait()
            nursery.cancel_scope.cancel()
        assert heard == [b"before"]
        given_up.set()
        with trio.fail_after(5):
            await seen.wait()
    assert len(refused) == 1
    assert heard == [b"before"]


async def test_who_is_being_answered_when_serving_ends_gets_the_answer(driver: Driver, other: Driver) -> None:
    begun, go_on = trio.Event(), trio.Event()

    async def answer(_peer: PeerCredentials, request: bytes, _say: Say) -> bytes:
        begun.set()
        await go_on.wait()
        return request

    found: list[bytes] = []

    async def ask() -> None:
        found.append(await other.peers.ask(driver.peers.name, b"last"))

    async with trio.open_nursery() as nursery, driver.peers.serve(answer):
        nursery.start_soon(ask)
        await begun.wait()
        nursery.start_soon(_set_after_a_turn, go_on)
    assert found == [b"last"]


async def _set_after_a_turn(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked()
    event.set()


# ---- of stores in directories


async def test_what_stands_in_the_directory(file_backend: FileBackend) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    directory = file_backend.path / "instances"
    assert not directory.exists()
    async with driver.peers.serve(echo):
        name = driver.peers.name
        assert sorted(path.name for path in directory.iterdir()) == [f"{name}.lock", f"{name}.sock"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / f"{name}.sock")] == [0o700, 0o600]
        (info,) = await other.peers.everyone()
        assert (info.pid, info.uid) == (os.getpid(), os.getuid())
        assert info.program == program_of(os.getpid()) != ""
    assert sorted(path.name for path in directory.iterdir()) == [f"{name}.lock"]
    await driver.aclose()
    assert list(directory.iterdir()) == []


async def test_a_store_whose_path_is_too_long_for_an_address(tmp_path: Path) -> None:
    backend = FileBackend(tmp_path / ("x" * 100) / ("y" * 100) / "store")
    backend.path.parent.mkdir(parents=True)
    driver, other = await backend.open(), await backend.open()
    async with driver.peers.serve(echo):
        assert await other.peers.ask(driver.peers.name, b"a") == b"echo a"
    await backend.aclose()


async def test_what_the_dead_left_is_swept_by_whoever_comes_next(file_backend: FileBackend) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    directory = file_backend.path / "instances"
    other.peers.announce()
    for name in ("0" * 32 + ".lock", "1" * 32 + ".sock", ".new-" + "2" * 32):
        (directory / name).touch()
    assert other.peers.is_dead("0" * 32)
    driver.peers.announce()
    assert sorted(path.stem for path in directory.iterdir()) == sorted([driver.peers.name, other.peers.name])


async def test_an_instance_whose_files_were_removed_announces_itself_anew(file_backend: FileBackend) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    driver.peers.announce()
    (file_backend.path / "instances" / f"{driver.peers.name}.lock").unlink()
    assert other.peers.is_dead(driver.peers.name)
    driver.peers.announce()
    assert not other.peers.is_dead(driver.peers.name)


async def test_a_store_that_is_opened_read_only_announces_nothing(file_backend: FileBackend) -> None:
    await file_backend.open()
    driver = await open_driver(file_backend.path.as_uri(), access=Access.READ)
    with pytest.raises(ReadOnly):
        driver.peers.announce()
    assert await driver.peers.everyone() == []
    await driver.aclose()
    assert not (file_backend.path / "instances").exists()


async def test_who_connects_and_says_nothing_keeps_nobody_waiting(file_backend: FileBackend) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    assert isinstance(driver.peers, FilePeers)
    async with driver.peers.serve(echo):
        silent = [await connected(driver.peers) for _ in range(2 * CONNECTIONS)]
        silent[0].close()
        with trio.fail_after(5):
            for _ in range(5):
                assert await other.peers.ask(driver.peers.name, b"a") == b"echo a"
        for one in silent:
            one.close()


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff", b"\0\0\0\5abc", b"\0", b"\0\0\0\0"])
async def test_what_is_no_request_is_dropped(file_backend: FileBackend, sent: bytes) -> None:
    driver = await file_backend.open()
    assert isinstance(driver.peers, FilePeers)
    async with driver.peers.serve(echo):
        strange = await connected(driver.peers)
        strange.sendall(sent)
        strange.shutdown(socket.SHUT_WR)
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(strange)
            found = strange.recv(100)
        strange.close()
        assert found == (b"a\0\0\0\5echo " if sent == b"\0\0\0\0" else b"")
        assert await driver.peers.ask(driver.peers.name, b"a") == b"echo a"


async def test_another_user_is_refused(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At both ends: who asks isn't served, who listens in a socket's place isn't told. (A process has one uid only.)"""
    driver, other = await file_backend.open(), await file_backend.open()
    mine = os.geteuid() or 4242

    async with driver.peers.serve(echo):
        monkeypatch.setattr(connection, "credentials_of", lambda _connection: (1, mine + 1))
        for _ in range(2):
            with pytest.raises(Unreachable, match="Permission denied"):
                await other.peers.ask(driver.peers.name, b"a")
        with trio.fail_after(10):
            while not caplog.records:
                await trio.lowlevel.checkpoint()
    assert [record.message for record in caplog.records] == [
        f"uid {mine + 1} asked this process to append for it: refused, the store is another user's"
    ]


# ---- connections that are kept


async def test_the_next_question_takes_the_same_connection(
    file_backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    assert isinstance(other.peers, FilePeers)
    made = 0
    usual = other.peers._connected

    async def counted(holder: str, asking: Asking) -> socket.socket:
        nonlocal made
        made += 1
        return await usual(holder, asking)

    monkeypatch.setattr(other.peers, "_connected", counted)
    async with driver.peers.serve(echo):
        for _ in range(5):
            assert await other.peers.ask(driver.peers.name, b"a") == b"echo a"
        assert made == 1
    # What was kept is of no use any more: a new one is made, or can't be.
    with pytest.raises(Unreachable):
        await other.peers.ask(driver.peers.name, b"a")
    async with driver.peers.serve(echo):
        assert await other.peers.ask(driver.peers.name, b"b") == b"echo b"
        assert await other.peers.ask(driver.peers.name, b"c") == b"echo c"
    assert made == 3


async def test_one_that_was_kept_and_closed_at_the_other_end_is_made_anew(file_backend: FileBackend) -> None:
    """As where there are too many of them."""
    driver, other = await file_backend.open(), await file_backend.open()
    assert isinstance(driver.peers, FilePeers)
    assert isinstance(other.peers, FilePeers)
    async with driver.peers.serve(echo):
        assert await other.peers.ask(driver.peers.name, b"a") == b"echo a"
        (kept,) = other.peers._kept._connected
        silent = [await connected(driver.peers) for _ in range(CONNECTIONS)]
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(kept.socket)
            assert await other.peers.ask(driver.peers.name, b"b") == b"echo b"
        assert other.peers._kept._connected[0].socket is not kept.socket
        for one in silent:
            one.close()


async def test_one_whose_question_was_given_up_isnt_kept(file_backend: FileBackend) -> None:
    driver, other = await file_backend.open(), await file_backend.open()
    assert isinstance(other.peers, FilePeers)
    begun, go_on = trio.Event(), trio.Event()

    async def answer(_peer: PeerCredentials, request: bytes, _say: Say) -> bytes:
        if request == b"slow":
            begun.set()
            await go_on.wait()
        return request

    async with driver.peers.serve(answer):
        assert await other.peers.ask(driver.peers.name, b"a") == b"a"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.peers.ask, driver.peers.name, b"slow")
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert other.peers._kept._connected == []
        assert await other.peers.ask(driver.peers.name, b"b") == b"b"
        go_on.set()


async def test_a_question_before_the_answer_to_the_last_one_ends_it(file_backend: FileBackend) -> None:
    driver = await file_backend.open()
    assert isinstance(driver.peers, FilePeers)
    async with driver.peers.serve(echo):
        hasty = await connected(driver.peers)
        hasty.sendall(b"\0\0\0\1a\0\0\0\1b")
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(hasty)
        assert hasty.recv(100) == b""
        hasty.close()


async def test_who_is_no_longer_wanted_is_not_waited_for(driver: Driver, other: Driver) -> None:
    looks, go_on = 0, trio.Event()

    async def answer(_peer: PeerCredentials, request: bytes, _say: Say) -> bytes:
        await go_on.wait()
        return request

    async def still() -> bool:
        nonlocal looks
        looks += 1
        return looks < 3

    async with driver.peers.serve(answer):
        with trio.fail_after(10), pytest.raises(Unreachable):
            await other.peers.ask(driver.peers.name, b"a", still=still)
        go_on.set()
    assert looks == 3
