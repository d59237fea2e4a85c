"""What happens to the processes of a party, by chance: kills, stops, wrong clocks, slow starts, proper ends.

Also of who is stopped, and whose clock is minutes off.
"""

from __future__ import annotations

import random

from tests.authority.harness import PATIENCE, Party, Process
from tests.support.waiting import wait_for


class Trouble:
    """What happens to a party, by chance."""

    def __init__(self, among: Party, choose: random.Random, *, most: int = 5) -> None:
        self._party = among
        self._choose = choose
        self._most = most
        """Workers, at once."""

    def round(self) -> str:
        """One thing happens, and everybody goes on; what it was."""
        what = self._choose.choice(
            [
                *[self.kill_holder, self.kill_any] * 2,
                *[self.stop_holder, self.stop_one_that_is_late, self.stop_any, self.stop_two],
                *[self.jump, self.start_slowly, self.leave],
            ]
        )
        what()
        return what.__name__

    def _any(self) -> Process:
        return self._choose.choice(self._party.living)

    def _holder(self) -> Process:
        return self._party.holder() or self._any()

    def _another(self) -> None:
        """In the place of one that has gone; its clock may be minutes off."""
        ahead_ms = self._choose.choice([0, 0, 120_000, -120_000, 700])
        process = self._party.start(ahead_ms=ahead_ms)
        process.ready()

    def kill_holder(self) -> None:
        self._party.kill(self._holder())
        self._party.go()
        self._another()

    def kill_any(self) -> None:
        self._party.kill(self._any())
        self._another()
        self._party.go()

    def stop_holder(self) -> None:
        """Until others have taken the lease and appended; then it goes on, and thinks that it still has it."""
        self._stop(self._holder())

    def stop_any(self) -> None:
        self._stop(self._any())

    def stop_one_that_is_late(self) -> None:
        """As `stop_holder`; its clock says afterwards that hardly any time has passed: only the epoch tells."""
        process = self._holder()
        process.set_clock(-600_000)
        self._stop(process)
        process.set_clock(0)

    def stop_two(self) -> None:
        self._stop(self._holder(), self._any())

    def _stop(self, *processes: Process) -> None:
        stopped = list(dict.fromkeys(processes))
        for process in stopped:
            process.stop()
        self._party.go()
        for process in stopped:
            process.go_on()
        self._party.go()

    def jump(self) -> None:
        """Somebody's clock."""
        self._any().set_clock(self._choose.choice([0, 600_000, -600_000, 400, -400]))
        self._party.go()

    def start_slowly(self) -> None:
        """One that is stopped somewhere while it starts."""
        if len(self._party.living) >= self._most:
            self._party.kill(self._any())
        process = self._party.start()
        log = self._party.living[0]
        before = log.acknowledged()
        wait_for(lambda: log.acknowledged() > before + self._choose.randrange(40), PATIENCE, what="a moment")
        process.stop()
        self._party.go()
        process.go_on()
        process.ready()
        self._party.go()

    def leave(self) -> None:
        """The holder ends properly: the lease is free at once."""
        self._party.leave(self._holder())
        self._party.go()
        self._another()
