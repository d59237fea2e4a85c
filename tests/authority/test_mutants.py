"""What a holder's worst moments do to the appends that others have sent to it, and that every safeguard is needed.

A test that begins with `test_without` switches a safeguard off, and sees that the proof finds what comes of it: a proof
that can't fail is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from store import authority, forwarding
from tests.authority import faults
from tests.authority.harness import PATIENCE, Party, append_the_last, epochs_that_run_backwards, party
from tests.authority.recorded import STALE, count_of
from tests.authority.together import together
from tests.support.waiting import wait_for


def made_twice(wrong: list[str]) -> bool:
    """Whether that is what is wrong; one that expects a seq is refused the second time, and was made the first."""
    return any("times" in line or "refused, but in the log" in line for line in wrong)


# ---- a holder that dies


def dying_holder(root: Path, how: str, others: str = "") -> Party:
    """A holder that dies over a forwarded append, and one that forwards to it; all of it finished."""
    with party(root, "1", workers=0, lease_ms=500) as made:
        holder = made.start(fault=how)
        holder.ready()
        made.go(3)
        made.start(fault=others, pace_ms=3).ready()
        wait_for(lambda: holder.process.poll() is not None, PATIENCE, what="the holder's death")
        made.kill(holder)
        made.go(10)
        made.finish()
    return made


@pytest.mark.parametrize("how", ["dies_before_it_writes", "dies_before_it_answers"])
def test_a_dying_holder_makes_an_append_once_or_never(tmp_path: Path, how: str) -> None:
    dying_holder(tmp_path, how).check()


def test_without_the_intent_an_append_is_made_twice(tmp_path: Path) -> None:
    wrong = dying_holder(tmp_path, "dies_before_it_answers", "no_intent").wrong()
    assert made_twice(wrong), wrong


# ---- a holder that doesn't answer


async def hanging_up(root: Path, patch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """What is wrong after a run with a holder that writes, and hangs up. It stays the holder."""
    for kind, name in [(authority.Authority, "serve"), (forwarding.Attempt, "hear")]:
        patch.setattr(kind, name, getattr(kind, name))  # it is put back when the test ends
    faults.begin(",".join(names))
    async with together(root, f"file://{root / 'store'}", "1", lease_ms=600_000) as working:
        for _ in range(3):
            working.start(drops=False)
        await working.go(10)
        return await working.finish()


async def test_who_is_hung_up_on_has_its_append_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await hanging_up(tmp_path, monkeypatch, "hangs_up") == []


async def test_without_the_ids_the_intent_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await hanging_up(tmp_path, monkeypatch, "no_ids", "hangs_up") == []


async def test_without_the_intent_the_ids_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await hanging_up(tmp_path, monkeypatch, "hangs_up", "no_intent") == []


async def test_without_both_an_append_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = await hanging_up(tmp_path, monkeypatch, "no_ids", "hangs_up", "no_intent")
    assert made_twice(wrong), wrong


# ---- a holder that is late


def late_holders(root: Path, fault: str, until: Callable[[Party], object]) -> Party:
    """Holders that are stopped beyond their lease, and whose clocks don't tell them, until it has come to something."""
    with party(root, "1", workers=0, lease_ms=400) as made:
        for process in [made.start(fault=fault, pace_ms=3) for _ in range(2)]:
            process.ready()
        made.go(2)
        for _ in range(12):
            late = made.holder() or made.living[0]
            late.set_clock(-600_000)
            late.stop()
            made.go(3)
            late.go_on()
            begun = late.begun()
            wait_for(lambda late=late, begun=begun: late.begun() > begun, PATIENCE, what="its next append")
            late.set_clock(0)
            made.go(3)
            if until(made):
                break
        made.finish()
    return made


def test_a_late_holder_is_refused(tmp_path: Path) -> None:
    made = late_holders(tmp_path, "", lambda made: any(process.refused() for process in made.living))
    made.check()
    assert sum(count_of(STALE, record) for record in made.records)


def test_without_the_fence_a_late_holder_appends(tmp_path: Path) -> None:
    made = late_holders(tmp_path, "no_fence", lambda made: epochs_that_run_backwards(made.recorded().epochs))
    assert any("under epoch" in line for line in made.wrong()), made.wrong()


# ---- a reader that doesn't look


def test_without_looking_reads_are_old(tmp_path: Path) -> None:
    with party(tmp_path, "1", workers=0, lease_ms=500) as made:
        for process in [made.start(fault="old_reads") for _ in range(2)]:
            process.ready()
        made.go(20)
        for process in list(made.living):
            made.kill(process)
        made.elsewhere(append_the_last)
    assert any("had been seen" in line for line in made.wrong()), made.wrong()
