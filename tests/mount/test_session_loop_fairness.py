"""The fast path by itself, over a pipe in the kernel's place: bounds for any order of events, and the guard."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pyfuse3
import pytest
import trio

from fusefs import session_loop
from fusefs.session_loop import REQUESTS, FastLoop, Unfit, fast_session_loop


class Session:
    """What pyfuse3 has: a descriptor that is readable while a request is there, a wait of its own, and workers."""

    def __init__(self) -> None:
        self.device, self.kernel = os.pipe2(os.O_NONBLOCK)
        self.lock = trio.Lock()
        self.taken = 0
        self.moved = trio.Event()

    async def plain(self) -> bool:
        async with self.lock:
            try:
                await trio.lowlevel.wait_readable(self.device)
            except trio.ClosedResourceError:
                return False
        return True

    def ask(self) -> None:
        os.write(self.kernel, b".")

    def take(self) -> None:
        """Raises BlockingIOError where `wait` was wrong: pyfuse3 would hang there."""
        os.read(self.device, 1)
        self.taken += 1
        self.moved.set()

    async def until_taken(self, count: int) -> None:
        """Return once so many requests were taken; nobody is runnable meanwhile but the workers."""
        with trio.fail_after(60):
            while self.taken < count:
                self.moved = trio.Event()
                await self.moved.wait()

    def end(self) -> None:
        trio.lowlevel.notify_closing(self.device)

    def close(self) -> None:
        os.close(self.device)
        os.close(self.kernel)


@pytest.fixture
async def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


@pytest.fixture
async def loop(session: Session) -> Iterator[FastLoop]:
    loop = FastLoop(session.device, session.plain)
    trio.lowlevel.add_instrument(loop)
    yield loop
    trio.lowlevel.remove_instrument(loop)


async def workers(nursery: trio.Nursery, loop: FastLoop, session: Session, count: int = 2, *, endless: bool) -> None:
    """As pyfuse3's. `endless`: every request that is answered brings another."""

    async def work() -> None:
        while await loop.wait():
            session.take()
            if endless:
                session.ask()

    for _ in range(count):
        nursery.start_soon(work)


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_flood_leaves_a_turn_to_who_is_ready(loop: FastLoop, session: Session, count: int) -> None:
    session.ask()
    async with trio.open_nursery() as nursery:
        await workers(nursery, loop, session, count, endless=True)
        for _ in range(200):
            before = session.taken
            await trio.lowlevel.checkpoint()
            # Those who were parked may each take one more in a round.
            assert session.taken - before <= 2 * REQUESTS + count
        assert session.taken > REQUESTS
        nursery.cancel_scope.cancel()


async def test_a_flood_leaves_a_turn_to_deadlines_threads_and_cancellation(loop: FastLoop, session: Session) -> None:
    session.ask()
    async with trio.open_nursery() as nursery:
        await workers(nursery, loop, session, endless=True)
        for _ in range(20):
            await trio.sleep(0.001)
            assert await trio.to_thread.run_sync(lambda: 17) == 17
        assert session.taken > REQUESTS
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_the_reader_sleeps_no_longer_than_others_do(loop: FastLoop, session: Session) -> None:
    async with trio.open_nursery() as nursery:
        await workers(nursery, loop, session, endless=False)
        with trio.fail_after(30):
            for expected in range(1, 50):
                await trio.sleep(0.001)
                await trio.to_thread.run_sync(lambda: 17)
                woken = trio.Event()
                nursery.start_soon(trio.lowlevel.checkpoint)
                nursery.start_soon(_set, woken)
                await woken.wait()
                # Not one of trio's threads, whose end would be an event by itself.
                asking = threading.Thread(target=session.ask)
                asking.start()
                await session.until_taken(expected)
                asking.join()
        nursery.cancel_scope.cancel()


async def test_the_reader_sleeps_no_longer_than_until_a_deadline(loop: FastLoop, session: Session) -> None:
    async with trio.open_nursery() as nursery:
        await workers(nursery, loop, session, endless=False)
        for _ in range(10):
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def _set(event: trio.Event) -> None:
    await trio.lowlevel.checkpoint()
    event.set()


async def test_requests_from_another_thread_are_all_taken_once(loop: FastLoop, session: Session) -> None:
    def ask_all() -> None:
        for _ in range(2000):
            session.ask()

    async with trio.open_nursery() as nursery:
        await workers(nursery, loop, session, 3, endless=False)
        asking = [threading.Thread(target=ask_all) for _ in range(3)]
        for each in asking:
            each.start()
        await session.until_taken(6000)
        for each in asking:
            each.join()
        assert session.taken == 6000
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("endless", [True, False])
async def test_the_end_reaches_every_worker(loop: FastLoop, session: Session, count: int, *, endless: bool) -> None:
    session.ask()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await workers(nursery, loop, session, count, endless=endless)
            while session.taken < (100 if endless else 1):
                await trio.lowlevel.checkpoint()
            # Where nobody waits just then, pyfuse3 looks at its own mark instead.
            while nursery.child_tasks:
                session.end()
                await trio.lowlevel.checkpoint()
                if endless and len(nursery.child_tasks) == 1:
                    nursery.cancel_scope.cancel()


# ---- the guard


@pytest.fixture
def kept_plain() -> Iterator[object]:
    plain = pyfuse3._wait_fuse_readable
    yield plain
    assert pyfuse3._wait_fuse_readable is plain


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pyfuse3.__version__", "3.9.9", "pyfuse3 3.9.9 isn't known to fit"),
        ("fusefs.session_loop.fuse_device", lambda: -1, "more than one FUSE session"),
    ],
)
async def test_what_isnt_known_keeps_the_plain_loop(
    name: str,
    value: object,
    said: str,
    kept_plain: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(name, value)
    with caplog.at_level(logging.WARNING), fast_session_loop(wanted=True) as fast:
        assert not fast
        assert pyfuse3._wait_fuse_readable is kept_plain
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]


async def test_a_trio_of_another_make_keeps_the_plain_loop(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runner:
        """It has nothing that is looked for."""

    context = type("Context", (), {"runner": Runner()})()
    with pytest.raises(Unfit, match="trio"), monkeypatch.context() as other:
        other.setattr("trio._core._run.GLOBAL_RUN_CONTEXT", context)
        FastLoop(session.device, session.plain)


async def test_the_switch(kept_plain: object, caplog: pytest.LogCaptureFixture) -> None:
    with fast_session_loop(wanted=False) as fast:
        assert not fast
        assert pyfuse3._wait_fuse_readable is kept_plain
    assert caplog.messages == []


async def test_it_is_put_back(kept_plain: object, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_loop, "fuse_device", lambda: session.device)
    with fast_session_loop(wanted=True) as fast:
        assert fast
        assert pyfuse3._wait_fuse_readable is not kept_plain
