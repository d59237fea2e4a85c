"""Go through the orders in which the system calls of pretended processes can come (`interleaving`).

At each turn any process may go on, and one may be killed or stopped for ever. What leads to a state that was seen is
left out: the files, and what each process has been told so far.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.support.interleaving import World

KILL, STOP = "kill", "stop"
UNBOUNDED = 1000
Choice = tuple[str, int]
"""What happens next ("go", KILL, STOP), and to which process."""


@dataclass
class Run:
    """What a run did: its choices, and where others could have been made."""

    choices: list[Choice] = field(default_factory=list)
    others: list[list[Choice]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    """Who was killed or stopped."""
    last: int = -1
    """Who went on last."""
    switches: int = 0


Seen = dict[tuple[int, int], int]
"""States, with who went on last; and with how few switches that was reached."""


@dataclass
class Explored:
    """How far it went."""

    runs: int = 0
    states: int = 0
    whole: bool = True
    """Whether all orders were gone through."""


@dataclass(frozen=True)
class Bounds:
    """What may happen in a run, and how many runs there may be."""

    victims: tuple[int, ...] = ()
    """Who may be killed or stopped, one of them in each run."""
    fates: tuple[str, ...] = (KILL, STOP)
    switches: int = UNBOUNDED
    """How often a process may be interrupted that could go on."""
    runs: int = 1_000_000


class Scenario:
    """What is explored: override all four."""

    def set_up(self, world: World) -> None:
        """Make the files, open the logs."""
        raise NotImplementedError

    def programs(self) -> list[Callable[[], Awaitable[None]]]:
        """What each process does."""
        raise NotImplementedError

    def check(self, world: World) -> None:
        """Raises AssertionError where the end isn't as it must be. Stopped processes are still there."""
        raise NotImplementedError

    def tear_down(self, world: World) -> None:
        """Close everything."""
        raise NotImplementedError


def explore(scenario: Scenario, world: World, bounds: Bounds) -> Explored:
    """Go through all orders, in no particular one. A failed check raises with the choices that lead there."""
    done = Explored()
    dice = random.Random(1)
    seen: Seen = {}
    pending: list[list[Choice]] = [[]]
    while pending:
        if done.runs >= bounds.runs:
            done.whole = False
            break
        # A mistake is found sooner so than where the last choices are changed first.
        place = dice.randrange(len(pending))
        pending[place], pending[-1] = pending[-1], pending[place]
        prefix = pending.pop()
        run = _run(scenario, world, bounds, prefix, seen)
        done.runs += 1
        for place in range(len(prefix), len(run.choices)):
            pending += [[*run.choices[:place], other] for other in run.others[place]]
    done.states = len(seen)
    return done


def _run(scenario: Scenario, world: World, bounds: Bounds, prefix: list[Choice], seen: Seen) -> Run:
    world.reset()
    scenario.set_up(world)
    run = Run()
    try:
        for process, program in zip(world.processes, scenario.programs(), strict=True):
            process.start(program)
        while options := _options(world, run, bounds):
            if len(run.choices) < len(prefix):
                choice = prefix[len(run.choices)]
                assert choice in options, "the run isn't the same again"
            else:
                # Who came here with fewer switches can do all that one with more can.
                state = world.state(), run.last if bounds.switches < UNBOUNDED else -1
                if seen.get(state, bounds.switches + 1) <= run.switches:
                    return run
                seen[state] = run.switches
                choice = options[0]
            run.others.append([other for other in options if other != choice])
            _choose(world, run, choice)
        _check(scenario, world, run)
        return run
    finally:
        for process in world.processes:
            process.end()
        scenario.tear_down(world)


def _options(world: World, run: Run, bounds: Bounds) -> list[Choice]:
    """What may happen next; first that the process goes on that did last."""
    able = [each.number for each in world.processes if each.running and each.number not in run.gone]
    options: list[Choice] = sorted((("go", number) for number in able), key=lambda choice: choice[1] != run.last)
    if run.last in able and run.switches >= bounds.switches:
        options = options[:1]
    if not run.gone:
        options += [(fate, number) for number in able if number in bounds.victims for fate in bounds.fates]
    return options


def _choose(world: World, run: Run, choice: Choice) -> None:
    run.choices.append(choice)
    what, number = choice
    process = world.processes[number]
    if what == "go":
        last = run.last
        run.switches += last not in {-1, number} and world.processes[last].running and last not in run.gone
        run.last = number
        process.step()
    else:
        run.gone.add(number)
        if what == KILL:
            process.end()


def _check(scenario: Scenario, world: World, run: Run) -> None:
    for process in world.processes:
        if process.error is not None:
            error, process.error = process.error, None
            raise AssertionError(f"process {process.number} failed; {described(run)}") from error
    try:
        scenario.check(world)
    except AssertionError as error:
        raise AssertionError(f"{error}; {described(run)}") from error


def described(run: Run) -> str:
    """The choices, as a list of who went on how many times."""
    parts = []
    for (what, number), times in itertools.groupby(run.choices):
        parts.append(f"{what} {number} x{len(list(times))}")
    return "after " + ", ".join(parts)
