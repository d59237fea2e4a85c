"""The power is cut at any moment of a session: what was durable is there, and nothing is damaged but torn tails."""

from __future__ import annotations

import shutil
from pathlib import Path

import trio

from store.library import open_store
from store.registry import open_driver
from tests.faults import session
from tests.faults.disk import EXTREMES, Choice, Drawn, PowerCut, build, states
from tests.faults.faulty import FailingAt, standing_in
from tests.faults.ledger import Ledger, goes_on, look
from tests.support.torture import rounds, seeded


def record(root: Path) -> tuple[PowerCut, Ledger]:
    """A session on a disk that remembers everything."""
    root.mkdir(mode=0o700)
    recorded = PowerCut(root)
    ledger = Ledger(lambda: recorded.moment)
    with standing_in(recorded):
        trio.run(session.run, root.as_uri(), ledger)
    return recorded, ledger


async def _look(url: str) -> dict:
    async with open_store(url) as store:
        return await look(store)


def check(recorded: PowerCut, ledger: Ledger, cut: int, choice: Choice, target: Path) -> None:
    """Build that state, open the store there, see what is durable, and go on."""
    build(recorded, cut, choice, target)
    try:
        with standing_in(FailingAt()):
            trio.run(_check, target.as_uri(), ledger, cut)
    except BaseException as error:
        error.add_note(f"power cut after operation {cut} ({recorded.labels[cut]}), {choice!r}")
        raise
    shutil.rmtree(target)


async def _check(url: str, ledger: Ledger, cut: int) -> None:
    async with open_store(url) as store:
        ledger.check(await look(store), cut)
        await goes_on(store, "after")
    async with open_store(url) as store:
        await look(store)
        await goes_on(store, "again")


def test_a_recording_that_loses_nothing_is_the_store(quick_path: Path):
    recorded, ledger = record(quick_path / "store")
    build(recorded, recorded.moment, EXTREMES[-1], quick_path / "all")
    for path in sorted((quick_path / "store").rglob("*")):
        copy = quick_path / "all" / path.relative_to(quick_path / "store")
        if not path.name.startswith("index.db"):  # SQLite's own, and rebuilt
            assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes(), path
    ledger.check(trio.run(_look, (quick_path / "all").as_uri()))


def test_what_was_durable_survives_a_power_cut(quick_path: Path):
    recorded, ledger = record(quick_path / "store")
    last = recorded.moment
    for cut, choice in states(last, rounds(40, last), rounds(3, 20), rounds(6, last), seeded("power cuts")):
        check(recorded, ledger, cut, choice, quick_path / "cut")


def test_a_second_power_cut_during_recovery(quick_path: Path):
    recorded, ledger = record(quick_path / "store")
    random = seeded("second power cuts")
    for number in range(rounds(8, 300)):
        cut = random.randrange(1, recorded.moment + 1)
        root = quick_path / f"{number}"
        first = Drawn(f"{random.random()}")
        build(recorded, cut, first, root)
        recovery = PowerCut(root)
        with standing_in(recovery):
            ledger.check(trio.run(_look, root.as_uri()), cut)
        for _ in range(rounds(3, 10)):
            second = random.randrange(recovery.moment + 1)
            choice = Drawn(f"{random.random()}")
            build(recovery, second, choice, quick_path / "cut")
            try:
                with standing_in(FailingAt()):
                    ledger.check(trio.run(_look, (quick_path / "cut").as_uri()), cut)
            except BaseException as error:
                error.add_note(f"power cut after operation {cut} ({recorded.labels[cut]}), {first!r}")
                error.add_note(f"and while recovering after {second} ({recovery.labels[second]}), {choice!r}")
                raise
            shutil.rmtree(quick_path / "cut")


async def _two_drafts(url: str) -> None:
    """One after the other, which share a label (`store.drivers.file.labels`)."""
    driver = await open_driver(url)
    first = driver.blobs.stage(label={"chat": "first"})
    first.write(0, b"of the first")
    await first.sync()
    await first.commit()
    await first.discard()
    second = driver.blobs.stage(label={"chat": "second"})
    second.write(0, b"of the second")
    await second.commit()
    await driver.aclose()


async def _abandoned(url: str) -> list[tuple[str, bytes]]:
    driver = await open_driver(url)
    found = []
    for draft in await driver.blobs.abandoned():
        found.append((draft.label["chat"], draft.read(0, 100)))
        await draft.discard()
    await driver.aclose()
    return found


def test_no_draft_comes_back_with_the_bytes_of_another(quick_path: Path):
    root = quick_path / "store"
    root.mkdir(mode=0o700)
    recorded = PowerCut(root)
    with standing_in(recorded):
        trio.run(_two_drafts, root.as_uri())
    met = set()
    for cut in range(1, recorded.moment + 1):
        for number in range(rounds(10, 100)):
            choice = Drawn(f"{number}")
            build(recorded, cut, choice, quick_path / "cut")
            for chat, content in trio.run(_abandoned, (quick_path / "cut").as_uri()):
                met.add(chat)
                other = b"second" if chat == "first" else b"first"
                assert other not in content, f"after operation {cut} ({recorded.labels[cut]}), {choice!r}"
            shutil.rmtree(quick_path / "cut")
    assert met == {"first", "second"}
