"""Every system call that changes the store fails once, at every place of a session: nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from store.library import open_store
from tests.faults import session
from tests.faults.faulty import KINDS, FailingAt, standing_in
from tests.faults.ledger import Ledger, goes_on, look
from tests.support.torture import LONG, seeded

_QUICK = 120
"""How many places of the session are tried in a quick run."""


def calls_of_a_session(directory: Path) -> list[str]:
    """The calls that a session makes where none fails; checks that it does what it says."""
    system = FailingAt()
    ledger = Ledger()
    url = (directory / "store").as_uri()
    with standing_in(system):
        trio.run(session.run, url, ledger)
    trio.run(_check, url, ledger, "undisturbed")
    return system.calls


async def _check(url: str, ledger: Ledger, word: str) -> None:
    """What was acknowledged is there, before and after the store was used again."""
    async with open_store(url) as store:
        ledger.check(await look(store))
        await goes_on(store, word)
    async with open_store(url) as store:
        seen = await look(store)
        assert seen["workspace", "name"] is not None


def fail(directory: Path, at: int, kind: str) -> str:
    """One session with a fault; what failed."""
    system = FailingAt(at, kind)
    ledger = Ledger()
    url = (directory / "store").as_uri()
    with standing_in(system):
        gave_up = False
        try:
            trio.run(session.run, url, ledger)
        except session.GaveUp:
            gave_up = True
    assert not gave_up or kind == "dead", f"the session couldn't go on after {system.failed} ({kind}, call {at})"
    try:
        with standing_in(FailingAt()):
            trio.run(_check, url, ledger, "after")
    except BaseException as error:
        error.add_note(f"after {system.failed} failed ({kind}, call {at})")
        raise
    return system.failed


def test_the_session_makes_every_kind_of_call(quick_path: Path):
    calls = set(calls_of_a_session(quick_path))
    for label in ("log.append", "log.sync", "log.truncate", "log.base", "kv.put", "kv.delete", "lease", "blob.write"):
        assert any(call.endswith(" " + label) for call in calls), label
    for label in ("blob.link", "blob.sync", "draft.chunk", "draft.sync", "space.make", "store.make", "snapshot.write"):
        assert any(call.endswith(" " + label) for call in calls), label


@pytest.mark.parametrize("part", range(4))
def test_any_call_may_fail(quick_path: Path, part: int):
    count = len(calls_of_a_session(quick_path / "undisturbed"))
    random = seeded("failing calls")
    cases = [(at, kind) for at in range(1, count + 1) for kind in KINDS]
    if not LONG:
        # Every place sooner or later; each run the same.
        places = random.sample(range(1, count + 1), min(_QUICK, count))
        cases = [(at, random.choice(KINDS)) for at in sorted(places)]
    cases = [(at, kind) for number, (at, kind) in enumerate(cases) if number % 4 == part]
    missed = [at for number, (at, kind) in enumerate(cases) if not fail(quick_path / f"{number}", at, kind)]
    # How often a lease is renewed depends on the time it takes: a session may make a few calls less.
    assert all(at > count - 8 for at in missed), (missed, count)
